"""One subject of a refinement: its training frames and posed meshes, kept in memory as far as the budget goes."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.head import HeadModel
from spatialavatar.losses.photometric import composite
from spatialavatar.refine.config import Background
from spatialavatar.splat.camera import Camera

_BYTES_PER_PIXEL = 5  # image, coverage, region


@dataclass(frozen=True)
class TrainingView:
    """What one iteration compares against, with a batch axis of one."""

    image: Float[Tensor, "1 H W 3"]
    coverage: Float[Tensor, "1 H W"]  # matte x region: where the target shows the image
    region: Float[Tensor, "1 H W"]
    vertices: Float[Tensor, "1 V 3"]  # metres
    camera: Camera

    def target(self, background: Float[Tensor, "1 3"]) -> Float[Tensor, "1 H W 3"]:
        """The image over the background; outside the region of interest the background alone."""
        return composite(self.image, self.coverage, background)


class Subject:
    """The training side of a tracked clip at one image size.

    Frames are held as 8-bit images and meshes as posed vertices; what does not fit in ``memory_bytes`` is decoded and
    posed when asked for. All draws depend on (seed, identity, iteration) alone.
    """

    def __init__(
        self, clip: TrackedClip, head: HeadModel, resolution: int, memory_bytes: float, device: torch.device
    ) -> None:
        clip.require_head(head)
        self.clip, self.head, self.device = clip, head, device
        self.frames = clip.split("train")
        self.width, self.height = clip.size_at(resolution)
        self._key = int.from_bytes(hashlib.sha256(clip.identity.encode()).digest()[:8], "little")
        self._camera = clip.camera(self.frames).resized(self.width, self.height).to(device)
        per_frame = self.width * self.height * _BYTES_PER_PIXEL + head.vertex_count * 12
        self._budget = int(memory_bytes // per_frame)
        self._pixels: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._vertices: dict[int, Tensor] = {}

    def background_kind(self, wanted: Background) -> Background:
        """Black where the pictures have no other: without mattes no colour tells person from background."""
        return wanted if self.clip.matte_kind == "alpha" else "black"

    def preload(self) -> None:
        """Decode and pose as many frames as the budget admits, ahead of the first iteration."""
        for row in range(min(len(self.frames), self._budget)):
            self._load(row)

    def row_at(self, seed: int, iteration: int) -> int:
        """Row of ``frames`` for an iteration: every frame once, in a new random order each time round."""
        round_number, place = divmod(iteration, len(self.frames))
        order = np.random.default_rng([seed, self._key, 0, round_number]).permutation(len(self.frames))
        return int(order[place])

    def background_at(self, seed: int, iteration: int) -> Float[Tensor, "1 3"]:
        """The random colour, RGB in [0, 1], behind both pictures of an iteration."""
        color = np.random.default_rng([seed, self._key, 1, iteration]).random((1, 3), dtype=np.float32)
        return torch.from_numpy(color).to(self.device)

    def view(self, row: int) -> TrainingView:
        """The frame of a row of ``frames``. Raises SpatialAvatarError for one that cannot be read."""
        (image, coverage, region), vertices = self._load(row)
        return TrainingView(
            image=image.to(self.device).float()[None] / 255,
            coverage=coverage.to(self.device).float()[None] / 255,
            region=region.to(self.device).float()[None],
            vertices=vertices,
            camera=self._camera[row],
        )

    def _load(self, row: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        if row in self._pixels:
            return self._pixels[row], self._vertices[row]
        index = self.frames[row]
        pixels, vertices = self._decode(index), self._pose(index)
        if len(self._pixels) < self._budget:
            self._pixels[row], self._vertices[row] = pixels, vertices
        return pixels, vertices

    def _decode(self, index: FrameIndex) -> tuple[Tensor, Tensor, Tensor]:
        frame = self.clip.frame(index, self.width, self.height)
        image = (frame.image * 255).round().to(torch.uint8)
        coverage = (frame.matte * frame.region * 255).round().to(torch.uint8)
        return image.to(self.device), coverage.to(self.device), frame.region.bool().to(self.device)

    def _pose(self, index: FrameIndex) -> Tensor:
        with torch.no_grad():
            return self.head(self.clip.params_at(index).to(self.device))
