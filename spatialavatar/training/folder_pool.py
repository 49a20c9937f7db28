"""Tracked clips in folders as training data: their training frames, decoded at the size asked for."""

from collections.abc import Callable, Sequence

from spatialavatar import files
from spatialavatar.clip import FrameIndex, TrackedClip, open_clip
from spatialavatar.clip.header import HEADER_FILE
from spatialavatar.clip.square import SquarePicture, square_picture
from spatialavatar.clip.tracked_clip import clip_folder
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel
from spatialavatar.training.pool import Memory, Tracking, View
from spatialavatar.training.samplers import ClipFacts


class FolderPool:
    """Clips by folder, URL or pattern (``data/*``), in the order given, those of a pattern sorted by name.

    Every clip is opened at once, so that what is wrong with one shows before a training starts; pictures are read when
    asked for. Raises SpatialAvatarError: nothing there, a clip that is damaged, of another head, or without two frames
    to train on.
    """

    def __init__(self, locations: Sequence[str], head: HeadModel, memory_gb: float) -> None:
        self._clips: list[TrackedClip] = []
        self._tracking: list[Tracking] = []
        for folder in _folders(locations):
            clip = open_clip(folder)
            clip.require_head(head)
            frames = clip.split("train")
            if len(frames) < 2:
                raise SpatialAvatarError(
                    f"{clip.location}: has {len(frames)} frame(s) to train on, a training sample takes a source and a "
                    "target; track more frames, set test_from later, or leave the clip out"
                )
            self._clips.append(clip)
            self._tracking.append(Tracking.of_clip(head, clip))
        self._memory = Memory(memory_gb)

    def __len__(self) -> int:
        return len(self._clips)

    @property
    def licence(self) -> str:
        terms = sorted({clip.source.licence for clip in self._clips})
        return "; ".join(terms)

    def name(self, clip: int) -> str:
        return self._clips[clip].location

    def facts(self, clip: int) -> ClipFacts:
        return self._tracking[clip].facts

    def view(self, clip: int, frame: FrameIndex, size: int) -> View:
        def read() -> SquarePicture:
            return square_picture(self._clips[clip], frame, size)

        return self._tracking[clip].view(frame, self._memory.pixels(clip, frame, size, read))

    def prefetch(self, clip: int, frames: Callable[[ClipFacts], Sequence[FrameIndex]]) -> None:
        """Nothing to do."""


def _folders(locations: Sequence[str]) -> list[str]:
    """Clip folders behind paths, URLs and patterns, each once."""
    found: list[str] = []
    for location in locations:
        if not any(sign in location for sign in "*?[") or files.exists(location):
            found.append(clip_folder(location))
            continue
        matched = files.matching(files.join(location.removesuffix(f"/{HEADER_FILE}"), HEADER_FILE))
        if not matched:
            raise SpatialAvatarError(
                f"{location}: no tracked clip matches this pattern; it should match folders that hold {HEADER_FILE}"
            )
        found += sorted(header.rpartition("/")[0] for header in matched)
    return list(dict.fromkeys(found))
