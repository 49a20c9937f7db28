"""A worker's three lanes: while one batch is optimised, the next is read and the last is written.

Each lane is one thread, so that each stage has one batch at a time, in order, and the processor that optimises never
waits for a disk or a store. A fourth thread writes the checkpoints, so that they do not wait for finished avatars. The
work itself is anything with the three stages (work.py; tests and benchmarks have others), which also says what its
device's errors mean.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol, TypeVar

from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.evaluation.footage import reason_of
from spatialavatar.fleet.subjects import FleetSubject

T = TypeVar("T")
PREPARED_AT_MOST = 1  # batches, beside the one that is optimised: their frames are in memory
_LOOK = 1.0  # seconds between looks at the clock
_STDERR = 2  # of the process, whatever Python writes to
_GRACE = 60.0  # seconds after a deadline until the process ends without Python's help
# "shared": the whole batch failed, and nobody knows by whom
Kind = Literal["done", "error", "shared", "store", "memory", "stopped"]


@dataclass(frozen=True)
class Job:
    """A subject on its way through a worker."""

    subject: FleetSubject
    name: str  # ID.DIGEST of its record
    attempts: int  # this one counted


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    id: str
    kind: Kind
    reason: str = ""
    record: dict[str, Any] | None = None  # of one that is done


@dataclass(frozen=True)
class BatchReport:
    outcomes: list[Outcome]
    optimised: int  # subjects that were optimised together, at most
    optimising_seconds: float  # in iterations of the batch
    step_seconds: float | None  # for an iteration of one subject, the median; None when there were too few
    memory: float  # share of the worker's memory in use at most while it was optimised; 0 when it did not end


@dataclass(frozen=True)
class Timing:
    """What optimising a batch took."""

    together: int  # subjects of its largest part that is one optimisation
    seconds: float | None  # for an iteration of one subject of that part, the median; None when there were too few
    memory: float  # share of the worker's memory in use at most
    optimising: float | None = None  # seconds in iterations, without measuring; None: all that the lane took


class OutOfMemory(Exception):
    """A subject, or a batch, does not fit into the memory of the worker's device. Says what to do."""


class Broken(Exception):
    """The worker's device is of no more use to this process: it ends, and another one takes its place."""


class Stopped(Exception):
    """The batch was asked to stop, and left checkpoints."""


class Work(Protocol):
    """The stages, each called in a lane of its own. What they raise becomes the job's outcome."""

    def prepare(self, job: Job) -> Any: ...

    def optimise(self, batch: list[Any], stop: Callable[[], bool]) -> tuple[list[Any], Timing]:
        """A result or an exception for each that ``prepare`` gave.

        When ``stop`` says so, Stopped is raised, or returned for those that are not finished. Raises OutOfMemory.
        Results hold nothing that takes much memory: they wait for the delivering lane."""
        ...

    def deliver(self, job: Job, result: Any) -> dict[str, Any]:
        """Write everything, the record last; returns the record."""
        ...

    def progress(self) -> float:
        """How much of what is to do for the batch that is optimised this process has done, in whole subjects."""
        ...


class Pipeline:
    def __init__(
        self,
        make_work: Callable[[ThreadPoolExecutor], Work],
        enter_lane: Callable[[], None] = lambda: None,
        minutes: float = 60.0,
    ) -> None:
        """``make_work`` gets a lane of its own for files that are written on the way; ``deliver`` has to wait for those
        of its subject. ``enter_lane`` is called in each lane's thread first. A stage that takes longer than
        ``minutes`` for each of its subjects ends the process."""

        def lane(name: str) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(1, name, initializer=enter_lane)

        self._prepare, self._optimise, self._deliver = lane("prepare"), lane("optimise"), lane("deliver")
        self._work = make_work(lane("uploads"))
        self._room = threading.Semaphore(1 + PREPARED_AT_MOST)
        self._stop = threading.Event()
        self._deadlines: dict[str, float] = {}
        self._arming = threading.Lock()
        self._seconds = 60 * minutes
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def refine(self, jobs: Sequence[Job]) -> BatchReport:
        """Take a batch through the lanes. To be called from a thread for each batch."""
        settled: dict[str, Outcome] = {}
        results: list[tuple[Job, Any]] = []
        seconds, timing = 0.0, Timing(0, None, 0.0)
        with self._room:
            ready = self._prepare.submit(self._prepared, jobs, settled).result()
            if ready:
                optimised = self._optimise.submit(self._optimised, ready, settled)
                del ready  # its frames and meshes go when they have been optimised, not when all is written
                results, seconds, timing = optimised.result()
                del optimised
        self._deliver.submit(self._delivered, results, settled).result()
        outcomes = [settled[job.subject.id] for job in jobs]
        return BatchReport(outcomes, timing.together, seconds, timing.seconds, timing.memory)

    def progress(self) -> float:
        """Of the batch that is optimised, in whole subjects."""
        return self._work.progress()

    def stop(self) -> None:
        """Batches end with checkpoints, as soon as may be."""
        self._stop.set()

    def _prepared(self, jobs: Sequence[Job], settled: dict[str, Outcome]) -> list[tuple[Job, Any]]:
        ready = []
        for job in jobs:
            if self._stop.is_set():
                settled[job.subject.id] = Outcome(job.subject.id, "stopped")
                continue
            prepared = self._of_one(job, settled, "prepare", lambda job=job: self._work.prepare(job))  # type: ignore[misc]
            if job.subject.id not in settled:
                ready.append((job, prepared))
        return ready

    def _optimised(
        self, ready: list[tuple[Job, Any]], settled: dict[str, Outcome]
    ) -> tuple[list[tuple[Job, Any]], float, Timing]:
        began = time.perf_counter()
        ids = [job.subject.id for job, _ in ready]

        def all_end(kind: Kind, reason: str = "") -> tuple[list[tuple[Job, Any]], float, Timing]:
            settled.update((id, Outcome(id, kind, reason)) for id in ids)
            return [], time.perf_counter() - began, Timing(len(ids), None, 0.0)

        if self._stop.is_set():
            return all_end("stopped")
        try:
            with self._deadline("optimise", len(ready)):
                outcomes, timing = self._work.optimise([prepared for _, prepared in ready], self._stop.is_set)
        except OutOfMemory as e:
            return all_end("memory", str(e))
        except Stopped:
            return all_end("stopped")
        except Broken as e:
            _end(e)
        except Exception as e:
            return all_end("shared" if len(ids) > 1 else "error", reason_of(e))
        seconds = time.perf_counter() - began if timing.optimising is None else timing.optimising
        results = []
        for (job, _), outcome in zip(ready, outcomes):
            if isinstance(outcome, Exception):
                settled[job.subject.id] = _failed(job, outcome)
            else:
                results.append((job, outcome))
        return results, seconds, timing

    def _delivered(self, results: list[tuple[Job, Any]], settled: dict[str, Outcome]) -> None:
        for job, result in results:
            record = self._of_one(job, settled, "deliver", lambda j=job, r=result: self._work.deliver(j, r))  # type: ignore[misc]
            if record is not None:
                settled[job.subject.id] = Outcome(job.subject.id, "done", record=record)

    def _of_one(self, job: Job, settled: dict[str, Outcome], stage: str, action: Callable[[], T]) -> T | None:
        try:
            with self._deadline(stage):
                return action()
        except Broken as e:
            _end(e)
        except Exception as e:
            settled[job.subject.id] = _failed(job, e)
            return None

    @contextmanager
    def _deadline(self, stage: str, subjects: int = 1) -> Iterator[None]:
        self._set_deadline(stage, time.monotonic() + self._seconds * subjects)
        try:
            yield
        finally:
            self._set_deadline(stage, None)

    def _set_deadline(self, stage: str, deadline: float | None) -> None:
        with self._arming:
            self._deadlines.pop(stage, None)
            if deadline is not None:
                self._deadlines[stage] = deadline
            if self._deadlines:
                seconds = max(0.0, min(self._deadlines.values()) - time.monotonic()) + _GRACE
                faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
            else:
                faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        """Ends the process when a stage takes too long, also one that waits for ever.

        Code that never lets go of the interpreter stops this thread as well; faulthandler's, which needs no
        interpreter, ends the process then, ``_GRACE`` later.
        """
        while True:
            time.sleep(_LOOK)
            if any(time.monotonic() > deadline for deadline in list(self._deadlines.values())):
                faulthandler.dump_traceback(sys.stderr)
                os._exit(1)


def _end(error: Broken) -> NoReturn:
    print(error, file=sys.stderr, flush=True)
    os._exit(1)


def _failed(job: Job, error: Exception) -> Outcome:
    if isinstance(error, Stopped):
        return Outcome(job.subject.id, "stopped")
    kind: Kind = "store" if isinstance(error, StoreError) else "error"
    if isinstance(error, OutOfMemory):
        kind = "memory"
    reason = str(error) if isinstance(error, (SpatialAvatarError, OutOfMemory)) else reason_of(error)
    return Outcome(job.subject.id, kind, " ".join(reason.split())[:1000])
