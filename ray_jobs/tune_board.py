"""What the driver of a sweep and its trials tell each other: where each stands, and how it ended.

The board is a process of its own, which imports as little as it can: neither torch nor Ray's libraries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.cluster import beside_driver
from spatialavatar.training.progress import Progress


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    evaluation: dict[str, Any] | None = None  # its summary: overall, by_k, reasons, and failed: a number of clips
    stopped: int | None = None  # after this step, because others were better
    held_out_psnr: float | None = None  # dB, there
    failed: str | None = None  # for this reason; tried again when the sweep goes on

    @property
    def final(self) -> bool:
        return self.failed is None


@dataclass
class SweepStatus:
    """As the driver sees it."""

    progress: dict[str, Progress] = field(default_factory=dict)  # of trials at work
    evaluating: set[str] = field(default_factory=set)
    held_out: dict[str, float] = field(default_factory=dict)  # dB, the latest
    ended: dict[str, Ended] = field(default_factory=dict)  # in this run
    messages: list[str] = field(default_factory=list)  # since it was last looked at


class _SweepBoard:
    def __init__(self) -> None:
        self._status = SweepStatus()

    def update(self, name: str, progress: Progress | None, messages: Sequence[str]) -> bool:
        """By the workers of a trial; nothing but their end stops them."""
        if progress is not None:
            self._status.progress[name] = progress
            if "held_out_psnr" in progress.latest:
                self._status.held_out[name] = progress.latest["held_out_psnr"]
        self._status.messages += [f"{name}: {message}" for message in messages]
        return False

    def evaluating(self, name: str) -> None:
        self._status.evaluating.add(name)

    def end(self, name: str, ended: Ended) -> None:
        """By a trial, or who stopped it; the first end that is final stays."""
        before = self._status.ended.get(name)
        if before is None or not before.final:
            self._status.ended[name] = ended

    def read(self) -> SweepStatus:
        """By the driver; messages are read once."""
        status = self._status
        now = SweepStatus(
            dict(status.progress), set(status.evaluating), dict(status.held_out), dict(status.ended), status.messages
        )
        status.messages = []
        return now


def sweep_board() -> Any:
    return beside_driver(_SweepBoard)
