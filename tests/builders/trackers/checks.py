"""What must hold of every imported clip, against what a builder of a tracker's folder computed by itself."""

import numpy as np
import torch
from jaxtyping import Float

from spatialavatar.clip import TrackedClip
from spatialavatar.head import HeadModel
from tests.builders.trackers.head import CHIN, EYE_LEFT, EYE_RIGHT, NOSE


def check_landmarks(clip: TrackedClip, head: HeadModel, expected: Float[np.ndarray, "T C L 2"]) -> None:
    """The clip's projected landmarks lie where the tool's own camera saw them, to 1 % of the face's size."""
    projected = projected_landmarks(clip, head)
    assert projected.shape == expected.shape
    size = np.ptp(expected, axis=2).max(-1)
    assert (size > 10).all(), "the face is too small to tell"
    assert (np.linalg.norm(projected - expected, axis=-1) < 0.01 * size[..., None]).all()


def check_rotations(clip: TrackedClip) -> None:
    rotation = clip.world_to_camera[..., :3, :3].double()
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand_as(rotation), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(rotation.shape[:2], dtype=torch.float64), atol=1e-5)


def check_upright_and_unmirrored(
    clip: TrackedClip,
    head: HeadModel,
    *,
    left: int = EYE_LEFT,
    right: int = EYE_RIGHT,
    up: int = NOSE,
    down: int = CHIN,
) -> None:
    """The subject's left eye is on the right of the picture, the chin below the nose, the face towards the camera."""
    frames = clip.split("all")[:: max(1, clip.instants // 20)]
    camera = clip.camera(frames)
    with torch.no_grad():
        vertices = head(clip.params_at(frames))
    pixels, depth = camera.project(head.landmarks(vertices))
    assert (pixels[:, left, 0] > pixels[:, right, 0]).all()
    assert (pixels[:, down, 1] > pixels[:, up, 1]).all()
    assert (depth > 0).all() and (depth.mean(1) < camera.project(vertices)[1].mean(1)).all()


def projected_landmarks(clip: TrackedClip, head: HeadModel) -> Float[np.ndarray, "T C L 2"]:
    frames = clip.header.frames()
    with torch.no_grad():
        points = head.landmarks(head(clip.params_at(frames)))
    pixels = clip.camera(frames).project(points)[0].double().numpy()
    return pixels.reshape(clip.instants, clip.cameras, -1, 2)
