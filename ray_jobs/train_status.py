"""What the driver of a training and its first worker tell each other: progress and messages, and the wish to stop.

The board is a process of its own: what it imports, torch and the like, a training would wait for.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import ray

from ray_jobs.cluster import beside_driver
from spatialavatar.training.progress import Progress, StopTraining

SECONDS_BETWEEN_UPDATES = 0.5


@dataclass
class Status:
    """As the driver sees it."""

    progress: Progress | None = None
    stopping: bool = False  # the workers were told to, and are at their last checkpoint
    messages: list[str] = field(default_factory=list)  # since it was last looked at


class _Board:
    def __init__(self) -> None:
        self._status = Status()
        self._stop = False

    def update(self, progress: Progress | None, messages: list[str]) -> bool:
        """By the worker; tells it whether to stop."""
        self._status.progress = progress or self._status.progress
        self._status.messages += messages
        return self._stop

    def read(self) -> Status:
        """By the driver; messages are read once."""
        status, self._status = self._status, Status(self._status.progress, self._status.stopping)
        return status

    def stopping(self) -> None:
        self._status.stopping = True

    def stop(self) -> None:
        self._stop = True


def status_board() -> Any:
    return beside_driver(_Board, max_concurrency=4)


class Reporter(logging.Handler):
    """An observer of the first worker's run: to the status board now and then, and the library's warnings, too.

    Raises StopTraining when the driver wants that.
    """

    def __init__(self, board: Any) -> None:
        super().__init__(logging.WARNING)
        self._board = board
        self._messages: list[str] = []
        self._answer: Any = None
        self._told = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_UPDATES and progress.step < progress.steps:
            return
        if self._answer is not None:
            ready, _ = ray.wait([self._answer], timeout=0)
            if ready and ray.get(ready[0]) and progress.step < progress.steps:
                self.flush_to(progress)
                self._board.stopping.remote()
                raise StopTraining
        self.flush_to(progress)

    def flush_to(self, progress: Progress | None) -> None:
        self._told = time.monotonic()
        messages, self._messages = self._messages, []
        self._answer = self._board.update.remote(progress, messages)
