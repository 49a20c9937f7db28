"""The shards of an ingested data set as training data: of a clip what is needed to draw is read, then what was drawn.

The next clip is opened, and its frames are fetched from a store, while the present one's are decoded.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from spatialavatar import files
from spatialavatar.clip import EncodedFrame, FrameIndex, TrackedClip
from spatialavatar.clip.square import square_picture
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel
from spatialavatar.shards.manifest import open_shards
from spatialavatar.training.config import ShardData
from spatialavatar.training.pool import Memory, Tracking, View
from spatialavatar.training.samplers import ClipFacts

CLIPS_HELD = 2  # the one that is drawn from, and the next
FETCHERS = 8


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
        self._lock = threading.Lock()  # of what is held: a training's own thread draws held-out samples
        self._held: OrderedDict[int, Future[_Held]] = OrderedDict()
        # one thread opens clips in the order asked for; several fetch pictures from a store, which takes its time for
        # each; a disk does not, and handing pictures from thread to thread costs more than reading them
        self._far = not files.is_local(data.url)
        self._opener = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards-clips")
        self._fetchers = ThreadPoolExecutor(max_workers=FETCHERS, thread_name_prefix="shards-frames")

    def __len__(self) -> int:
        return len(self._clips)

    @property
    def licence(self) -> str:
        terms = sorted(set(self._shards.column("licence").tolist()))
        return "; ".join(terms)

    def name(self, clip: int) -> str:
        return f"{self._shards.location}#{self._shards.entry(self._clips[clip]).key}"

    def facts(self, clip: int) -> ClipFacts:
        return self._opened(clip).tracking.facts

    def view(self, clip: int, frame: FrameIndex, size: int) -> View:
        held = self._opened(clip)
        pixels = self._memory.pixels(clip, frame, size, lambda: square_picture(held.clip, frame, size))
        return held.tracking.view(frame, pixels)

    def prefetch(self, clip: int, frames: Callable[[ClipFacts], Sequence[FrameIndex]]) -> None:
        def fetch(opening: "Future[_Held]") -> _Held:
            held = opening.result()
            for frame in dict.fromkeys(frames(held.tracking.facts)):
                held.ahead[frame] = self._fetchers.submit(held.read_frame, frame)
            return held

        with self._lock:
            opening = self._opening(clip)
            if self._far:
                # in its place: who asks for the clip from now on finds all that was announced
                self._held[clip] = self._opener.submit(fetch, opening)

    def _opened(self, clip: int) -> "_Held":
        with self._lock:
            opening = self._opening(clip)
        return opening.result()

    def _opening(self, clip: int) -> "Future[_Held]":
        """The clip, perhaps still under way; only the latest few are held."""
        if not 0 <= clip < len(self):
            raise IndexError(f"clip {clip} of {len(self)}")
        if clip in self._held:
            self._held.move_to_end(clip)
        else:
            self._held[clip] = self._opener.submit(self._open, clip)
            while len(self._held) > CLIPS_HELD:
                self._held.popitem(last=False)
        return self._held[clip]

    def _open(self, clip: int) -> "_Held":
        read = self._shards.clip(self._clips[clip])
        ahead: dict[FrameIndex, Future[EncodedFrame]] = {}

        def read_frame(index: FrameIndex) -> EncodedFrame:
            return ahead[index].result() if index in ahead else read.read_frame(index)

        return _Held(replace(read, read_frame=read_frame), Tracking.of_clip(self._head, read), read.read_frame, ahead)


@dataclass(frozen=True)
class _Held:
    clip: TrackedClip  # takes from ``ahead`` what is there
    tracking: Tracking
    read_frame: Callable[[FrameIndex], EncodedFrame]
    ahead: dict[FrameIndex, Future[EncodedFrame]]  # pictures that are on their way


def is_held_out(identity: str, share: float) -> bool:
    """Whether a person belongs to the held-out ``share``: decided by the name alone, so more people change nothing."""
    digest = hashlib.sha256(identity.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
