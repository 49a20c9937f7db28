"""Pinhole cameras in the OpenCV convention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.indexing import row_slice


@dataclass(frozen=True)
class Camera:
    """B cameras of one image size.

    ``world_to_camera`` is OpenCV (x right, y down, z forward), metres; ``intrinsics`` in pixels, with pixel centres
    at +0.5: the outer corner of the first pixel is (0, 0).
    """

    world_to_camera: Float[Tensor, "B 4 4"]
    intrinsics: Float[Tensor, "B 3 3"]
    width: int
    height: int

    @property
    def batch(self) -> int:
        return self.world_to_camera.shape[0]

    @property
    def position(self) -> Float[Tensor, "B 3"]:
        """Where the cameras are, in the world."""
        rotation, translation = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        return -(rotation.mT @ translation[..., None]).squeeze(-1)

    def to(self, *args: Any, **kwargs: Any) -> "Camera":
        return Camera(
            self.world_to_camera.to(*args, **kwargs),
            self.intrinsics.to(*args, **kwargs),
            self.width,
            self.height,
        )

    def __getitem__(self, index: Any) -> "Camera":
        """Cameras by slice, list or index tensor; an int keeps the batch axis and is checked (IndexError)."""
        if isinstance(index, int):
            index = row_slice(index, self.batch)
        return Camera(self.world_to_camera[index], self.intrinsics[index], self.width, self.height)

    @staticmethod
    def cat(cameras: Sequence["Camera"]) -> "Camera":
        """Cameras of one image size along the batch axis."""
        return Camera(
            torch.cat([c.world_to_camera for c in cameras]),
            torch.cat([c.intrinsics for c in cameras]),
            cameras[0].width,
            cameras[0].height,
        )

    def resized(self, width: int, height: int) -> "Camera":
        """The same view at another image size (the picture is stretched to it)."""
        scale = self.intrinsics.new_tensor([width / self.width, height / self.height, 1.0])
        return Camera(self.world_to_camera, self.intrinsics * scale[:, None], width, height)

    def project(self, points: Float[Tensor, "B N 3"]) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B N"]]:
        """Pixel positions and depths (metres, positive in front)."""
        rotation, translation = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        in_camera = points @ rotation.mT + translation[:, None]
        homogeneous = in_camera @ self.intrinsics.mT
        depth = in_camera[..., 2]
        safe = torch.where(depth.abs() < 1e-9, torch.full_like(depth, 1e-9), depth)
        return homogeneous[..., :2] / safe[..., None], depth
