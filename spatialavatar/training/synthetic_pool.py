"""People made up by number as training data: each is one capture, rendered when asked for; no disk is needed.

Capture n shows person n in motion n, in the light and from the cameras drawn by n.
"""

from collections.abc import Callable, Sequence

import numpy as np

from spatialavatar.clip import FrameIndex
from spatialavatar.clip.square import SquarePicture
from spatialavatar.clip.synthetic import SyntheticCapture, synthesize_capture
from spatialavatar.head import HeadModel
from spatialavatar.training.config import SyntheticData
from spatialavatar.training.pool import Memory, Tracking, View
from spatialavatar.training.samplers import ClipFacts

FPS = 1.0  # instants lie far apart, so that few of them show many expressions and both sides of the head
SWING = 30.0  # degrees to either side before a single camera; several cameras see both sides by themselves
NOMINAL_SIZE = 512  # pixels of the captures before they are resized


class SyntheticPool:
    """Captures number ``first_identity`` and on, with any head. Deterministic in (config, head)."""

    def __init__(self, config: SyntheticData, head: HeadModel, memory_gb: float) -> None:
        self._config, self._head = config, head
        self._tracking: dict[int, Tracking] = {}
        self._latest: tuple[int, SyntheticCapture] | None = None  # a sample takes several frames of one capture
        self._memory = Memory(memory_gb)

    def __len__(self) -> int:
        return self._config.identities

    @property
    def licence(self) -> str:
        return f"synthetic people of head model {self._head.info.id} ({self._head.info.licence})"

    def name(self, clip: int) -> str:
        return f"synthetic-{self._config.first_identity + clip:03d}"

    def facts(self, clip: int) -> ClipFacts:
        return self._tracked(clip).facts

    def view(self, clip: int, frame: FrameIndex, size: int) -> View:
        def render() -> SquarePicture:
            image, matte = self._capture(clip).resized(size).render(*frame)
            return SquarePicture(image, matte, np.broadcast_to(np.True_, matte.shape))

        return self._tracked(clip).view(frame, self._memory.pixels(clip, frame, size, render))

    def prefetch(self, clip: int, frames: Callable[[ClipFacts], Sequence[FrameIndex]]) -> None:
        """Nothing to do."""

    def _tracked(self, clip: int) -> Tracking:
        if clip not in self._tracking:
            capture = self._capture(clip)
            self._tracking[clip] = Tracking.of(
                self._head,
                capture.params,
                capture.world_to_camera,
                capture.intrinsics,
                capture.face_box,
                (capture.width, capture.height),
                [FrameIndex(t, c) for t in range(capture.frames) for c in range(capture.cameras)],
                self.name(clip),
            )
        return self._tracking[clip]

    def _capture(self, clip: int) -> SyntheticCapture:
        latest = self._latest
        if latest is not None and latest[0] == clip:
            return latest[1]
        capture = self._memory.get(clip, lambda: self._film(clip), _bytes)
        self._latest = (clip, capture)
        return capture

    def _film(self, clip: int) -> SyntheticCapture:
        if not 0 <= clip < len(self):
            raise IndexError(f"clip {clip} of {len(self)}")
        number = self._config.first_identity + clip
        return synthesize_capture(
            self._head,
            identity=number,
            motion=number,
            lighting=number,
            framing=number,
            swing=SWING if self._config.cameras == 1 else 0.0,
            frames=self._config.instants,
            cameras=self._config.cameras,
            size=NOMINAL_SIZE,
            fps=FPS,
            texture_size=self._config.texture_size,
        )


def _bytes(capture: SyntheticCapture) -> int:
    """Of what no other capture shares: the texture, the hair, and some for the parameters."""
    return capture.surface.texture.nbytes + 4 * capture.static_offset.numel() + 4096 * capture.frames
