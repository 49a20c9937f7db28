"""What a training tells who watches it, and how that one stops it; without torch, which takes seconds to import."""

from dataclasses import dataclass, field
from typing import Any


class StopTraining(Exception):
    """Raise this from an observer to stop after the current step, with a checkpoint to resume from."""


@dataclass
class Progress:
    """Where a run stands; handed to the observer of every process after every step."""

    step: int
    steps: int
    seconds: float
    latest: dict[str, Any] = field(default_factory=dict)  # the last line of the log
    saved: str | None = None  # the newest checkpoint, known to the first process
