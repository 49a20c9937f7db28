"""Which frames of a clip a generator looks at: those that show the face, the reference frame first, views far apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.frame_name import frame_name
from spatialavatar.clip.reference_frame import reference_frame
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.portrait import portrait
from spatialavatar.generator.view_encoding import view_direction
from spatialavatar.head import HeadModel
from spatialavatar.head.canonical import canonical

LEAST_FACE = 0.1  # share of the face that a source must show
FRONTAL = 0.5  # cosine: the face is what looks within 60 degrees of +z on the mesh at rest
_FRAMES_AT_ONCE = 32  # posed together


@dataclass(frozen=True)
class SourceFrame:
    """A frame of a clip that a generator looks at."""

    clip: TrackedClip
    index: FrameIndex

    @property
    def name(self) -> str:
        """As a person names it (``frame_name``)."""
        return frame_name(self.clip, self.index)


def face_in_view(clip: TrackedClip, head: HeadModel, frames: Sequence[FrameIndex]) -> Float[Tensor, " T"]:
    """Share of the face's surface that each frame's camera has before it, turned towards it and inside the image.

    Whether something lies in front of it is not asked.
    """
    head = head.on("cpu")
    corners = head.template[head.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    weight = normal.norm(dim=-1) * (normal[:, 2] > FRONTAL * normal.norm(dim=-1))
    shares = []
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        chunk = frames[start : start + _FRAMES_AT_ONCE]
        camera = clip.camera(chunk)
        with torch.no_grad():
            triangles = head(clip.params_at(chunk))[:, head.faces]
        centre = triangles.mean(2)
        outwards = torch.linalg.cross(triangles[:, :, 1] - triangles[:, :, 0], triangles[:, :, 2] - triangles[:, :, 0])
        pixels, depth = camera.project(centre)
        eye = camera.position[:, None]
        size = pixels.new_tensor([camera.width, camera.height])
        seen = (depth > 0) & ((pixels >= 0) & (pixels <= size)).all(-1) & (((eye - centre) * outwards).sum(-1) > 0)
        shares.append((seen * weight).sum(-1) / weight.sum())
    return torch.cat(shares)


def with_a_face(clip: TrackedClip, head: HeadModel) -> dict[FrameIndex, float]:
    """The training frames that show the face, and which share of it. Raises SpatialAvatarError when none does."""
    frames = clip.split("train")
    shares = face_in_view(clip, head, frames).tolist() if frames else []
    shown = {frame: share for frame, share in zip(frames, shares) if share >= LEAST_FACE}
    if not shown:
        raise SpatialAvatarError(
            f"{clip.location}: no training frame has the face in view; 'spatialavatar clip inspect' shows the tracking"
        )
    return shown


def choose_frames(clip: TrackedClip, head: HeadModel, count: int, size: int, seed: int = 0) -> list[SourceFrame]:
    """``count`` training frames that show the face, or as many as there are.

    First the reference frame (``reference_frame``; of several cameras the one that has most of the face before it),
    then again and again the frame whose viewing axis is farthest from all chosen ones, the earliest on ties. Frames
    that are empty as squares of ``size`` pixels are passed over. Raises SpatialAvatarError when none is left.
    """
    head = head.on("cpu")
    shown = with_a_face(clip, head)
    frames = list(shown)
    _, world_to_camera = canonical(head, clip.params_at(frames), clip.camera(frames).world_to_camera)
    axis = view_direction(world_to_camera.double()).numpy()
    distance = np.full(len(frames), np.inf)  # to the nearest chosen frame
    left, chosen = np.ones(len(frames), bool), list[SourceFrame]()
    while left.any() and len(chosen) < count:
        if chosen:
            row = int(np.where(left, distance, -1.0).argmax())
        else:
            row = _reference(clip, head, shown, np.flatnonzero(left).tolist(), seed)
        left[row] = False
        if not is_empty(clip, frames[row], head, size):
            chosen.append(SourceFrame(clip, frames[row]))
            distance = np.minimum(distance, np.linalg.norm(axis - axis[row], axis=-1))
    if not chosen:
        raise SpatialAvatarError(
            f"{clip.location}: the matte is empty in every training frame with a face in view; 'spatialavatar clip "
            "inspect' shows mattes and regions"
        )
    return chosen


def is_empty(clip: TrackedClip, index: FrameIndex, head: HeadModel, size: int) -> bool:
    """Whether the generator would see nothing: an empty matte, or one that lies outside the region."""
    return portrait(clip, index, head, size).coverage == 0


def _reference(
    clip: TrackedClip, head: HeadModel, shown: dict[FrameIndex, float], left: Sequence[int], seed: int
) -> int:
    """The row among ``left`` of the frame to begin with."""
    frames = list(shown)
    instants = sorted({frames[row].instant for row in left})
    quietest = instants[reference_frame(head, clip.params[instants], seed)]
    return max((row for row in left if frames[row].instant == quietest), key=lambda row: shown[frames[row]])
