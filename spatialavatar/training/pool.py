"""Where training samples come from: clips by number, each frame in the canonical form (method.md section 1).

Three pools with one interface (``ClipPool``): people made up by number (``synthetic_pool``), folders of tracked clips
(``folder_pool``), and the shards of an ingested data set (``shard_pool``). Frames are squares of the size asked for,
held in memory as 8-bit pictures as far as the budget goes; what is held and what is made anew has the same values.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from jaxtyping import Float

from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.square import SquarePicture, on_square, square_intrinsics
from spatialavatar.generator.view_encoding import view_direction
from spatialavatar.head import HeadModel, HeadParams
from spatialavatar.head.canonical import canonical
from spatialavatar.splat.camera import Camera
from spatialavatar.training.config import DataConfig
from spatialavatar.training.samplers import ClipFacts

GIGABYTE = 1e9

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """One frame with what is known of it, in the canonical form, on the CPU."""

    pixels: SquarePicture
    face_box: Float[torch.Tensor, "4"]  # x0 y0 x1 y1 in pixels; NaN when unknown
    params: HeadParams  # one row
    camera: Camera  # one, at the picture's size
    black_only: bool  # without a matte no colour tells person from background: such a frame trains on black


class ClipPool(Protocol):
    """Clips by number, as samplers and the stream of batches ask for them."""

    def __len__(self) -> int:
        """How many clips there are."""
        ...

    @property
    def licence(self) -> str:
        """The terms of all that is trained on, in a line: whoever holds the result must know them."""
        ...

    def name(self, clip: int) -> str:
        """A clip's name in messages."""
        ...

    def facts(self, clip: int) -> ClipFacts:
        """What the samplers need to know of a clip."""
        ...

    def view(self, clip: int, frame: FrameIndex, size: int) -> View:
        """A frame, its longer side ``size`` pixels. Raises SpatialAvatarError for one that cannot be read."""
        ...

    def prefetch(self, clip: int, frames: Callable[[ClipFacts], Sequence[FrameIndex]]) -> None:
        """A clip, and the frames that this tells of it, will be asked for soon: who reads from afar may begin."""
        ...


@dataclass(frozen=True)
class Tracking:
    """A clip's parameters and cameras in the canonical form, at the clip's own size."""

    params: HeadParams  # T rows
    world_to_camera: Float[torch.Tensor, "T C 4 4"]
    intrinsics: Float[torch.Tensor, "T C 3 3"]
    face_box: Float[torch.Tensor, "T C 4"] | None
    width: int
    height: int
    facts: ClipFacts
    black_only: bool
    _squares: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(
        head: HeadModel,
        params: HeadParams,
        world_to_camera: Float[torch.Tensor, "T C 4 4"],
        intrinsics: Float[torch.Tensor, "T C 3 3"],
        face_box: Float[torch.Tensor, "T C 4"] | None,
        size: tuple[int, int],  # width, height
        frames: list[FrameIndex],  # that train: every camera of them at every instant of them
        name: str,
        black_only: bool = False,
    ) -> "Tracking":
        """From tracking in any form; what is kept is canonical."""
        params, world_to_camera = canonical(head, params, world_to_camera)
        directions = view_direction(world_to_camera.flatten(0, 1)).unflatten(0, world_to_camera.shape[:2])
        facts = ClipFacts(
            view_direction=directions.numpy(),
            expression=params.expression.numpy(),
            instants=tuple(sorted({t for t, _ in frames})),
            cameras=tuple(sorted({c for _, c in frames})),
            name=name,
        )
        return Tracking(params, world_to_camera, intrinsics, face_box, *size, facts, black_only)

    @staticmethod
    def of_clip(head: HeadModel, clip: TrackedClip) -> "Tracking":
        """Of a clip's training frames."""
        return Tracking.of(
            head,
            clip.params,
            clip.world_to_camera,
            clip.intrinsics,
            clip.face_box,
            (clip.width, clip.height),
            clip.split("train"),
            clip.location,
            black_only=clip.matte_kind != "alpha",
        )

    def view(self, frame: FrameIndex, pixels: SquarePicture) -> View:
        """The frame with its numbers, all moved onto the square of ``pixels``."""
        (t, c), size = frame, len(pixels.image)
        if size not in self._squares:
            self._squares[size] = self._on_square(size)
        intrinsics, face_box = self._squares[size]
        camera = Camera(self.world_to_camera[t, c][None], intrinsics[t, c][None], size, size)
        return View(pixels, face_box[t, c], self.params[t], camera, self.black_only)

    def _on_square(self, size: int) -> tuple[Float[torch.Tensor, "T C 3 3"], Float[torch.Tensor, "T C 4"]]:
        """Intrinsics and face boxes of all frames, moved onto squares."""
        own, frames = (self.width, self.height), self.intrinsics.shape[:2]
        intrinsics = square_intrinsics(self.intrinsics.flatten(0, 1), *own, size).unflatten(0, frames)
        unknown = torch.full((*frames, 4), torch.nan)
        return intrinsics, unknown if self.face_box is None else on_square(self.face_box, *own, size)


class Memory:
    """What was made once, as long as it fits: the first come stay, for in the long run all are asked for equally often.

    One caller at a time (nested calls are fine), so that the thread that prepares batches can share a pool with others.
    """

    def __init__(self, memory_gb: float) -> None:
        self.left = memory_gb * GIGABYTE  # bytes
        self._held: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """What is held under ``key``, else what ``make`` gives; ``size`` tells its bytes."""
        with self._lock:
            if key not in self._held:
                made = make()
                if size(made) > self.left:
                    return made
                self.left -= size(made)
                self._held[key] = made
            held: T = self._held[key]
            return held

    def pixels(self, clip: int, frame: FrameIndex, size: int, make: Callable[[], SquarePicture]) -> SquarePicture:
        """A frame of a clip at a size, held or read by ``make``."""
        return self.get((clip, frame, size), make, lambda pixels: pixels.bytes)


def open_pool(config: DataConfig, head: HeadModel, phase: Literal[1, 2] = 1) -> ClipPool:
    """The pool that a training's configuration names, for the samplers of a phase.

    Raises SpatialAvatarError: no clip there, a damaged one, one of another head or without two frames to train on.
    """
    from spatialavatar.training.folder_pool import FolderPool
    from spatialavatar.training.shard_pool import ShardPool
    from spatialavatar.training.synthetic_pool import SyntheticPool

    if config.synthetic is not None:
        return SyntheticPool(config.synthetic, head, config.memory_gb)
    if config.shards is not None:
        return ShardPool(config.shards, head, config.memory_gb, phase)
    return FolderPool(config.clips, head, config.memory_gb)
