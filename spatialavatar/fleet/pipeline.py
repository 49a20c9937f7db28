"""A worker's three lanes: while one batch is optimised, the next is read and the last is written.

Each lane is one thread, so that each stage has one batch at a time, in order, and the processor that optimises never
waits for a disk or a store. The work itself is anything with the three stages (work.py; tests and benchmarks have
others).
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
from typing import Any, Literal, Protocol, TypeVar

import torch

from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.evaluation.footage import reason_of
from spatialavatar.fleet.subjects import FleetSubject

T = TypeVar("T")
PREPARED_AT_MOST = 1  # batches, beside the one that is optimised: their frames are in memory
_LOOK = 1.0  # seconds between looks at the clock
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
    optimised: int  # subjects that were optimised together
    optimising_seconds: float  # that the optimising lane was at work on the batch
    step_seconds: float | None  # for an iteration of one subject, the median; None when there were too few
    memory: float  # share of the worker's memory in use at most


class OutOfMemory(Exception):
    """A batch does not fit into the memory of the worker's device."""


class Stopped(Exception):
    """The batch was asked to stop, and left checkpoints."""


class Work(Protocol):
    """The stages, each called in a lane of its own. What they raise becomes the job's outcome."""

    def prepare(self, job: Job) -> Any: ...

    def optimise(self, batch: list[Any], stop: Callable[[], bool]) -> tuple[list[Any], float | None]:
        """A result or an exception for each that ``prepare`` gave, and the seconds for an iteration of one subject.

        Raises OutOfMemory, or Stopped when ``stop`` says so."""
        ...

    def deliver(self, job: Job, result: Any) -> dict[str, Any]:
        """Write everything, the record last; returns the record."""
        ...

    def memory(self) -> float:
        """Share of the worker's memory that was in use at most."""
        ...

    def progress(self) -> float:
        """How much of the batch that is optimised is done, in whole subjects."""
        ...


class Pipeline:
    def __init__(
        self,
        make_work: Callable[[ThreadPoolExecutor], Work],
        enter_lane: Callable[[], None] = lambda: None,
        minutes: float = 60.0,
    ) -> None:
        """``make_work`` gets the delivering lane, for files that are written on the way. ``enter_lane`` is called in
        each lane's thread first. A stage that takes longer than ``minutes`` for each of its subjects ends
        the process."""

        def lane(name: str) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(1, name, initializer=enter_lane)

        self._prepare, self._optimise, self._deliver = lane("prepare"), lane("optimise"), lane("deliver")
        self._work = make_work(self._deliver)
        self._room = threading.Semaphore(1 + PREPARED_AT_MOST)
        self._stop = threading.Event()
        self._deadlines: dict[str, float] = {}
        self._seconds = 60 * minutes
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def refine(self, jobs: Sequence[Job]) -> BatchReport:
        """Take a batch through the lanes. To be called from a thread for each batch."""
        settled: dict[str, Outcome] = {}
        results: list[tuple[Job, Any]] = []
        seconds, step_seconds = 0.0, None
        with self._room:
            ready = self._prepare.submit(self._prepared, jobs, settled).result()
            if ready:
                results, seconds, step_seconds = self._optimise.submit(self._optimised, ready, settled).result()
        self._deliver.submit(self._delivered, results, settled).result()
        outcomes = [settled[job.subject.id] for job in jobs]
        return BatchReport(outcomes, len(ready), seconds, step_seconds, self._work.memory())

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
    ) -> tuple[list[tuple[Job, Any]], float, float | None]:
        began = time.perf_counter()
        ids = [job.subject.id for job, _ in ready]

        def all_end(kind: Kind, reason: str = "") -> tuple[list[tuple[Job, Any]], float, None]:
            settled.update((id, Outcome(id, kind, reason)) for id in ids)
            return [], time.perf_counter() - began, None

        if self._stop.is_set():
            return all_end("stopped")
        try:
            with self._deadline("optimise", len(ready)):
                outcomes, step_seconds = self._work.optimise([prepared for _, prepared in ready], self._stop.is_set)
        except OutOfMemory as e:
            return all_end("memory", str(e))
        except Stopped:
            return all_end("stopped")
        except Exception as e:
            _end_if_broken(e)
            return all_end("shared" if len(ids) > 1 else "error", reason_of(e))
        results = []
        for (job, _), outcome in zip(ready, outcomes):
            if isinstance(outcome, Exception):
                settled[job.subject.id] = _failed(job, outcome)
            else:
                results.append((job, outcome))
        return results, time.perf_counter() - began, step_seconds

    def _delivered(self, results: list[tuple[Job, Any]], settled: dict[str, Outcome]) -> None:
        for job, result in results:
            record = self._of_one(job, settled, "deliver", lambda j=job, r=result: self._work.deliver(j, r))  # type: ignore[misc]
            if record is not None:
                settled[job.subject.id] = Outcome(job.subject.id, "done", record=record)

    def _of_one(self, job: Job, settled: dict[str, Outcome], stage: str, action: Callable[[], T]) -> T | None:
        try:
            with self._deadline(stage):
                return action()
        except Exception as e:
            _end_if_broken(e)
            settled[job.subject.id] = _failed(job, e)
            return None

    @contextmanager
    def _deadline(self, stage: str, subjects: int = 1) -> Iterator[None]:
        self._deadlines[stage] = time.monotonic() + self._seconds * subjects
        try:
            yield
        finally:
            self._deadlines.pop(stage, None)

    def _watch(self) -> None:
        """Ends the process when a stage takes too long, even one in code that never returns."""
        while True:
            time.sleep(_LOOK)
            if any(time.monotonic() > deadline for deadline in list(self._deadlines.values())):
                faulthandler.dump_traceback(sys.stderr)
                os._exit(1)


def _end_if_broken(error: Exception) -> None:
    """After an error of the GPU itself every further call fails: the process ends, and another one takes its place."""
    if isinstance(error, RuntimeError) and "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError):
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _failed(job: Job, error: Exception) -> Outcome:
    kind: Kind = "store" if isinstance(error, StoreError) else "error"
    if isinstance(error, torch.OutOfMemoryError):
        kind = "memory"
    reason = str(error) if isinstance(error, SpatialAvatarError) else reason_of(error)
    return Outcome(job.subject.id, kind, " ".join(reason.split())[:1000])
