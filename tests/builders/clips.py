"""Tiny clips and a tiny head for tests: a few dozen triangles, a few pixels, no files needed but the clip's own."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from spatialavatar import files
from spatialavatar.clip import TrackedClip, write_clip
from spatialavatar.head import HeadInfo, HeadModel, HeadParams, write_head

EYE_LEFT, EYE_RIGHT, CHIN, NOSE = range(4)  # the tiny head's landmarks
DISTANCE = 0.6  # metres from camera to head


@cache
def tiny_head() -> HeadModel:
    """A ball of 12 cm radius with 3 shape and 4 expression codes and 4 landmarks; UV without overlap."""
    rows, columns = 7, 10
    elevation, azimuth = np.meshgrid(
        np.linspace(-1.5, 1.5, rows), np.linspace(-np.pi, np.pi, columns + 1), indexing="ij"
    )
    direction = np.stack(
        [np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)], -1
    ).reshape(-1, 3)
    template = 0.12 * direction
    uv = np.stack([azimuth / (2 * np.pi) + 0.5, elevation / 3.2 + 0.5], -1).reshape(-1, 2)
    corner = (np.arange(rows - 1)[:, None] * (columns + 1) + np.arange(columns)).reshape(-1)
    right, up = 1, columns + 1
    faces = np.concatenate(
        [
            np.stack([corner, corner + right, corner + right + up], -1),
            np.stack([corner, corner + right + up, corner + up], -1),
        ]
    )
    v, f = len(template), len(faces)
    rng = np.random.default_rng(0)
    joint_regressor = np.zeros((5, v))
    joint_regressor[:, :] = 1 / v
    weights = np.tile([0.6, 0.2, 0.1, 0.05, 0.05], (v, 1))
    wanted = 0.12 * np.array([[0.4, 0.3, 0.85], [-0.4, 0.3, 0.85], [0.0, -0.6, 0.8], [0.0, 0.0, 1.0]])
    centres = template[faces].mean(1)
    landmark_faces = np.array([np.linalg.norm(centres - w, axis=1).argmin() for w in wanted])
    info = HeadInfo(
        id="tiny",
        licence="Apache-2.0",
        attribution="made for tests",
        joints_follow_expression=False,
        part_names=["skin"],
        expression_names=["mouth", "brow", "smile", "puff"],
        mouth_opening_codes=["mouth"],
    )
    arrays = {
        "template": template,
        "faces": faces,
        "uv": uv,
        "uv_faces": faces,
        "face_chart": np.zeros(f),
        "face_part": np.zeros(f),
        "shapedirs": rng.normal(0, 0.003, (v, 3, 3)),
        "exprdirs": rng.normal(0, 0.003, (v, 3, 4)),
        "posedirs": np.zeros((v, 3, 0)),
        "joint_regressor": joint_regressor,
        "weights": weights,
        "landmark_faces": landmark_faces,
        "landmark_barycentric": np.full((4, 3), 1 / 3),
    }
    return write_head("memory://builders/tiny.head.safetensors", info, arrays)


def tiny_params(instants: int, seed: int = 0) -> HeadParams:
    random = torch.Generator().manual_seed(seed)

    def draw(width: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(instants, width, generator=random)

    shape = torch.randn(1, 3, generator=random).expand(instants, -1)
    expression = draw(4, 1).abs()
    return HeadParams(shape, expression, draw(3, 0.05), draw(3, 0.05), draw(3, 0.05), draw(6, 0.05), draw(3, 0.005))


def tiny_cameras(instants: int, cameras: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """world_to_camera [T C 4 4] and intrinsics [T C 3 3] of cameras in a row before the face, looking at the head."""
    world_to_camera = torch.eye(4).repeat(instants, cameras, 1, 1)
    for c in range(cameras):
        yaw = 0.3 * (c - (cameras - 1) / 2)
        turn = torch.tensor([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
        world_to_camera[:, c, :3, :3] = torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ turn.float()
    world_to_camera[..., 2, 3] = DISTANCE
    focal = 1.6 * min(width, height)
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return world_to_camera, intrinsics.repeat(instants, cameras, 1, 1)


def tiny_pictures(instant: int, camera: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, matte (soft disc in the middle) and region (all but the lowest eighth), uint8; smooth in space."""
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.stack([x / width, y / height, np.full_like(x, ((instant * 7 + camera * 3) % 10) / 10)], -1)
    distance = np.hypot(x - width / 2, y - height / 2) / (0.32 * min(width, height))
    matte = np.clip((1 - distance) * 4 + 0.5, 0, 1)
    region = (y < height * 7 / 8).astype(np.float64)
    return tuple((a * 255).round().astype(np.uint8) for a in (image, matte, region))  # type: ignore[return-value]


def tiny_parts(
    *,
    instants: int = 4,
    cameras: int = 1,
    width: int = 32,
    height: int = 24,
    matte_kind: Any = "alpha",
    has_region: bool = True,
    seed: int = 0,
    picture: Callable[[int, int, int, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = tiny_pictures,
    **changes: Any,
) -> dict[str, Any]:
    """The arguments of ``assemble_clip`` for a sound clip of the tiny head; ``changes`` replace and add some.

    The pictures do not show the head.
    """
    world_to_camera, intrinsics = tiny_cameras(instants, cameras, width, height)

    def frames(instant: int, camera: int) -> tuple[np.ndarray | None, ...]:
        image, matte, region = picture(instant, camera, width, height)
        return image, matte if matte_kind == "alpha" else None, region if has_region else None

    box = torch.tensor([0.3 * width, 0.3 * height, 0.7 * width, 0.7 * height])
    parts: dict[str, Any] = {
        "identity": f"tiny{seed}",
        "head": tiny_head(),
        "params": tiny_params(instants, seed),
        "world_to_camera": world_to_camera,
        "intrinsics": intrinsics,
        "width": width,
        "height": height,
        "fps": 25.0,
        "frames": frames,
        "matte_kind": matte_kind,
        "has_region": has_region,
        "face_box": box.expand(instants, cameras, 4),
    }
    return {**parts, **changes}


def tiny_clip(folder: files.Location, **changes: Any) -> TrackedClip:
    """Write a clip of ``tiny_parts`` and open it; ``changes`` are its arguments and those of ``write_clip``."""
    return write_clip(folder, **tiny_parts(**changes))
