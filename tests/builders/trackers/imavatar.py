"""A miniature folder as IMavatar's preprocessing writes it, and what its own camera saw.

Written from the layout's description, not from the importer: vertices times 4, an OpenGL camera whose first intrinsic
is negative, [-1, 1] for boxes and key points, the head's rotation in the neck's place, frames numbered from 1.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float

from spatialavatar.head import HeadParams
from tests.builders.trackers.head import flame_head

SIZE = 64  # pixels
SHAPE, EXPRESSION = 100, 50  # codes that IMavatar uses of FLAME's


@dataclass(frozen=True)
class ImavatarTruth:
    folder: Path
    landmarks: Float[np.ndarray, "T 68 2"]  # pixels
    box: Float[np.ndarray, "T 4"]  # pixels
    shape: Float[np.ndarray, " 100"]
    expression: Float[np.ndarray, "T 50"]
    pose: Float[np.ndarray, "T 15"]
    camera_centre: Float[np.ndarray, "T 3"]  # in the head's own metres


def imavatar_folder(
    folder: Path,
    *,
    instants: int = 12,
    pictures: Literal["rgba", "mask", "opaque rgba and mask", "plain"] = "rgba",
    image_folder: str = "image",
    ending: str = "png",
    intrinsics: Literal["normalised", "pixels"] = "normalised",
    matrix_rows: int = 3,
    jumbled: bool = False,  # frames of the file in the order in which strings sort
    **changes: Any,  # of the file's top level; None removes
) -> ImavatarTruth:
    rng = np.random.default_rng(7)
    shape = rng.normal(0, 1, SHAPE)
    expression = rng.normal(0, 1, (instants, EXPRESSION))
    pose = np.zeros((instants, 15))
    pose[:, :3] = rng.normal(0, 0.05, (instants, 3))  # optimised from zero
    pose[:, 3:6] = rng.normal(0, 0.2, (instants, 3))  # DECA's global rotation
    pose[:, 6] = np.linspace(0.05, 0.4, instants)
    pose[:, 9:] = rng.normal(0, 0.1, (instants, 6))

    head = flame_head()
    four_times = 4 * _vertices(shape, expression, pose)
    points = torch.from_numpy(four_times)
    landmarks = head.landmarks(points).numpy()  # a fixed mean of three vertices each

    # world to camera: a slight turn of the camera, which looks along -z with y up; t starts at (0, 0, -4)
    yaw = 0.1
    rotation = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    translation = np.array([0.05, 0.02, -4.0]) + np.stack([0.02 * np.arange(instants)] * 3, -1) * [1, -0.5, -1]
    seen = landmarks @ rotation.T + translation[:, None]
    assert (seen[..., 2] < 0).all()
    k = np.array([-4.0, 4.2, 0.48, 0.53])  # of the image's width and height
    u = k[0] * seen[..., 0] / seen[..., 2] + k[2]
    v = k[1] * seen[..., 1] / seen[..., 2] + k[3]
    keypoints = np.stack([u, v], -1) * 2 - 1
    box = np.concatenate([keypoints.min(1), keypoints.max(1)], -1)

    frames = []
    for t in range(instants):
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation, translation[t]
        frames.append(
            {
                "file_path": f"./image/{t + 1}",
                "world_mat": matrix[:matrix_rows].tolist(),
                "expression": expression[t].tolist(),
                "pose": pose[t].tolist(),
                "bbox": box[t].tolist(),
                "flame_keypoints": keypoints[t].tolist(),
            }
        )
    if jumbled:
        frames.sort(key=lambda frame: str(frame["file_path"]))
    content = {
        "frames": frames,
        "intrinsics": (k if intrinsics == "normalised" else 512 * k).tolist(),
        "shape_params": shape.tolist(),
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flame_params.json").write_text(json.dumps({n: x for n, x in content.items() if x is not None}))
    for t in range(instants):
        _write_pictures(folder, t, pictures, image_folder, ending)
    return ImavatarTruth(
        folder,
        (keypoints + 1) / 2 * SIZE,
        (box + 1) / 2 * SIZE,
        shape,
        expression,
        pose,
        -(translation @ rotation) / 4,
    )


def picture(t: int) -> tuple[np.ndarray, np.ndarray]:
    """Image, of a grey that tells the frame, with a bright left half; matte: a soft disc."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    image = np.full((SIZE, SIZE, 3), 10 + 5 * t, np.uint8)
    image[:, : SIZE // 2, 0] = 250
    matte = np.clip((1 - np.hypot(x - SIZE / 2, y - SIZE / 2) / 24) * 4 + 0.5, 0, 1)
    return image, (255 * matte).round().astype(np.uint8)


def _vertices(shape: np.ndarray, expression: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """FLAME as the tool calls it: [root, neck, jaw, eyes] of 15 numbers, the codes padded to its bases."""
    head = flame_head()
    t = len(pose)

    def padded(codes: np.ndarray, width: int) -> torch.Tensor:
        return torch.from_numpy(np.pad(codes, ((0, 0), (0, width - codes.shape[1])))).float()

    joints = torch.from_numpy(pose).float()
    params = HeadParams(
        padded(np.tile(shape, (t, 1)), 300),
        padded(expression, 100),
        joints[:, 0:3],
        joints[:, 3:6],
        joints[:, 6:9],
        joints[:, 9:15],
        torch.zeros(t, 3),
    )
    with torch.no_grad():
        return head(params).double().numpy()


def _write_pictures(folder: Path, t: int, pictures: str, image_folder: str, ending: str) -> None:
    image, matte = picture(t)
    bgr = image[..., ::-1]
    (folder / image_folder).mkdir(exist_ok=True)
    if "rgba" in pictures:
        alpha = matte if pictures == "rgba" else np.full_like(matte, 255)
        bgr = np.concatenate([bgr, alpha[..., None]], -1)
    assert cv2.imwrite(str(folder / image_folder / f"{t + 1}.{ending}"), bgr)
    if "mask" in pictures:
        (folder / "mask").mkdir(exist_ok=True)
        assert cv2.imwrite(str(folder / "mask" / f"{t + 1}.png"), np.stack([matte] * 3, -1))
