"""The shards of an ingested data set as training data: a clip is read whole when it is asked for, its frames decoded
when they are drawn."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np

from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.square import SquarePicture, square_picture
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel
from spatialavatar.shards.manifest import open_shards
from spatialavatar.training.config import ShardData
from spatialavatar.training.pool import Memory, Tracking, View
from spatialavatar.training.samplers import ClipFacts

CLIPS_HELD = 2  # the one that is drawn from, and the next


class ShardPool:
    """The clips of a data set that a phase can draw from, in the manifest's order.

    Phase 1 takes clips with two training instants, Phase 2 those with two training frames. Raises SpatialAvatarError:
    no data set there, one of another head, none of its clips usable.
    """

    def __init__(self, data: ShardData, head: HeadModel, memory_gb: float, phase: Literal[1, 2]) -> None:
        self._shards, self._head = open_shards(data.url), head
        self._shards.head.require(head, data.url)
        instants, cameras = self._shards.column("train_instants"), self._shards.column("train_cameras")
        usable = (instants >= 2) if phase == 1 else (instants * cameras >= 2)
        if data.part != "all":
            wanted = data.part == "held_out"
            people = self._shards.column("identity")
            usable &= np.array([is_held_out(name, data.held_out_share) == wanted for name in people], bool)
        self._clips: list[int] = np.flatnonzero(usable).tolist()
        if not self._clips:
            raise SpatialAvatarError(
                f"{data.url}: none of its {len(self._shards)} clips can be trained on in phase {phase} "
                f"(part '{data.part}'): it takes two frames of a person outside the test set"
            )
        self._memory = Memory(memory_gb)
        self._opened: OrderedDict[int, Future[tuple[TrackedClip, Tracking]]] = OrderedDict()
        self._reader: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._clips)

    @property
    def licence(self) -> str:
        terms = sorted(set(self._shards.column("licence").tolist()))
        return "; ".join(terms)

    def name(self, clip: int) -> str:
        return f"{self._shards.location}#{self._shards.entry(self._clips[clip]).key}"

    def facts(self, clip: int) -> ClipFacts:
        return self._clip(clip)[1].facts

    def view(self, clip: int, frame: FrameIndex, size: int) -> View:
        def read() -> SquarePicture:
            return square_picture(self._clip(clip)[0], frame, size)

        return self._clip(clip)[1].view(frame, self._memory.pixels(clip, frame, size, read))

    def prefetch(self, clips: Sequence[int]) -> None:
        for clip in clips:
            self._reading(clip)

    def _clip(self, clip: int) -> tuple[TrackedClip, Tracking]:
        return self._reading(clip).result()

    def _reading(self, clip: int) -> Future[tuple[TrackedClip, Tracking]]:
        """The clip, perhaps still under way; the latest few are held, for a clip may be hundreds of megabytes."""
        if clip in self._opened:
            self._opened.move_to_end(clip)
        else:
            if self._reader is None:
                self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards")
            self._opened[clip] = self._reader.submit(self._read, clip)
            while len(self._opened) > CLIPS_HELD:
                self._opened.popitem(last=False)
        return self._opened[clip]

    def _read(self, clip: int) -> tuple[TrackedClip, Tracking]:
        if not 0 <= clip < len(self):
            raise IndexError(f"clip {clip} of {len(self)}")
        read = self._shards.clip(self._clips[clip])
        return read, Tracking.of_clip(self._head, read)


def is_held_out(identity: str, share: float) -> bool:
    """Whether a person belongs to the held-out ``share``: decided by the name alone, so more people change nothing."""
    digest = hashlib.sha256(identity.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
