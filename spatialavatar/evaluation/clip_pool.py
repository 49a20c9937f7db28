"""One clip as a pool, wherever it was read from: what a subject of an evaluation is measured on."""

from collections.abc import Callable, Sequence

from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.square import SquarePicture, square_picture
from spatialavatar.head import HeadModel
from spatialavatar.training.pool import Memory, Tracking, View
from spatialavatar.training.samplers import ClipFacts

MEMORY_GB = 1.0  # of decoded frames: each is asked for once for every K


class OneClip:
    """The frames of a clip outside its test set. Raises SpatialAvatarError for a clip of another head."""

    def __init__(self, clip: TrackedClip, head: HeadModel) -> None:
        clip.require_head(head)
        self._clip, self._tracking, self._memory = clip, Tracking.of_clip(head, clip), Memory(MEMORY_GB)

    def __len__(self) -> int:
        return 1

    @property
    def licence(self) -> str:
        return self._clip.source.licence

    def name(self, clip: int) -> str:
        return self._clip.location

    def facts(self, clip: int) -> ClipFacts:
        return self._tracking.facts

    def view(self, clip: int, frame: FrameIndex, size: int) -> View:
        def read() -> SquarePicture:
            return square_picture(self._clip, frame, size)

        return self._tracking.view(frame, self._memory.pixels(clip, frame, size, read))

    def prefetch(self, clip: int, frames: Callable[[ClipFacts], Sequence[FrameIndex]]) -> None:
        """Nothing to do."""
