"""The three lanes, with work that waits for what must happen at the same time: a lane that waits in vain breaks."""

import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.fleet import pipeline as pipeline_module
from spatialavatar.fleet.pipeline import (
    PREPARED_AT_MOST,
    BatchReport,
    Job,
    OutOfMemory,
    Pipeline,
    Stopped,
    Timing,
)
from spatialavatar.fleet.subjects import FleetSubject

PATIENCE = 60.0  # seconds until a test that waits in vain fails; no test waits for long when all is well


def job(id: str) -> Job:
    return Job(FleetSubject(id, f"clips/{id}"), f"{id}.0", 1)


class Text(str):
    """One that a test can see go."""


class Fake:
    """Prepares an id to ``prepared ID``, optimises to ``refined ID``; ``events`` are what it did, in order.

    ``hooks`` are called by stage and id (in optimise by the ids of the batch, joined) and may wait or raise.
    """

    def __init__(self, **hooks: Callable[[], Any]) -> None:
        self.hooks = hooks
        self.events: list[str] = []
        self._more = threading.Condition()
        self.threads: dict[str, set[str]] = {}
        self.results: dict[str, Any] = {}  # by id, what optimise gives instead
        self.held: dict[str, weakref.ref[Text]] = {}  # by id, what it prepared

    def _do(self, stage: str, what: str) -> None:
        with self._more:
            self.events.append(f"{stage} {what}")
            self._more.notify_all()
        self.threads.setdefault(stage, set()).add(threading.current_thread().name)
        self.hooks.get(f"{stage}_{what}", lambda: None)()

    def until(self, event: str) -> None:
        """Until that has begun."""
        with self._more:
            assert self._more.wait_for(lambda: event in self.events, PATIENCE), f"waited for '{event}' in vain"

    def prepare(self, job: Job) -> str:
        self._do("prepare", job.subject.id)
        prepared = Text(f"prepared {job.subject.id}")
        self.held[job.subject.id] = weakref.ref(prepared)
        return prepared

    def optimise(self, batch: list[str], stop: Callable[[], bool]) -> tuple[list[Any], Timing]:
        self.stop = stop
        ids = [prepared.removeprefix("prepared ") for prepared in batch]
        self._do("optimise", "".join(ids))
        return [self.results.get(id, f"refined {id}") for id in ids], Timing(len(ids), 0.25 * len(ids), 0.5)

    def deliver(self, job: Job, result: Any) -> dict[str, Any]:
        assert result == f"refined {job.subject.id}"
        self._do("deliver", job.subject.id)
        return {"id": job.subject.id, "attempts": job.attempts}

    def progress(self) -> float:
        return 1.5


def wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE), "waited in vain"


@pytest.fixture
def batches() -> Iterator[Callable[..., "Future[BatchReport]"]]:
    """Starts a batch of these ids in a thread of its own, as a worker's calls are."""
    with ThreadPoolExecutor(8) as callers:
        yield lambda pipeline, ids: callers.submit(pipeline.refine, [job(id) for id in ids])


def kinds(report: BatchReport) -> dict[str, str]:
    return {outcome.id: outcome.kind for outcome in report.outcomes}


def refine(work: Fake, ids: Sequence[str]) -> BatchReport:
    return Pipeline(lambda uploads: work).refine([job(id) for id in ids])


def test_a_batch() -> None:
    work = Fake()
    report = refine(work, "abc")
    assert [(o.id, o.kind, o.reason) for o in report.outcomes] == [(id, "done", "") for id in "abc"]
    assert [o.record for o in report.outcomes] == [{"id": id, "attempts": 1} for id in "abc"]
    assert (report.optimised, report.step_seconds, report.memory) == (3, 0.75, 0.5)
    assert report.optimising_seconds > 0
    assert work.events == [*(f"prepare {id}" for id in "abc"), "optimise abc", *(f"deliver {id}" for id in "abc")]


def test_each_stage_has_one_thread_which_is_made_ready_first() -> None:
    entered, work = [], Fake()
    pipeline = Pipeline(lambda uploads: work, lambda: entered.append(threading.current_thread().name))
    for ids in ("ab", "c"):
        pipeline.refine([job(id) for id in ids])
    assert all(len(threads) == 1 for threads in work.threads.values())
    assert len(set.union(*work.threads.values())) == 3
    assert sorted(entered) == sorted(set.union(*work.threads.values()))
    assert pipeline.progress() == 1.5


def test_what_was_optimised_is_not_kept_for_delivery(batches: Callable[..., Any]) -> None:
    """While the results wait, also behind those of another batch, frames and meshes are gone already."""
    go_on = threading.Event()
    work = Fake(deliver_a=lambda: wait(go_on))
    pipeline = Pipeline(lambda uploads: work)
    reports = [batches(pipeline, "ab")]
    work.until("deliver a")
    reports += [batches(pipeline, "c")]
    work.until("optimise c")
    pipeline._optimise.submit(int).result(PATIENCE)  # now the lane has let go of what it did before
    assert [work.held[id]() for id in "abc"] == [None] * 3 and "deliver c" not in work.events
    go_on.set()
    assert [kinds(report.result(PATIENCE)) for report in reports] == [{"a": "done", "b": "done"}, {"c": "done"}]


def test_the_largest_part_that_was_optimised_together_is_told() -> None:
    class InParts(Fake):
        def optimise(self, batch: list[str], stop: Callable[[], bool]) -> tuple[list[Any], Timing]:
            return super().optimise(batch, stop)[0], Timing(2, 0.1, 0.7)

    report = refine(InParts(), "abc")
    assert (report.optimised, report.step_seconds, report.memory) == (2, 0.1, 0.7)


def test_stages_overlap(batches: Callable[..., Any]) -> None:
    """The first batch is written, the second optimised and the third read at one time: all meet at a barrier."""
    together = threading.Barrier(3, timeout=PATIENCE)
    work = Fake(deliver_a=together.wait, optimise_b=together.wait, prepare_c=together.wait)
    pipeline = Pipeline(lambda uploads: work)
    reports = [batches(pipeline, id) for id in "a"]
    reports += [batches(pipeline, id) for id in "b"]
    work.until("prepare b")  # so that c does not come before b
    reports += [batches(pipeline, "c")]
    assert [kinds(report.result(PATIENCE)) for report in reports] == [{"a": "done"}, {"b": "done"}, {"c": "done"}]


def test_at_most_one_batch_is_prepared_ahead(batches: Callable[..., Any]) -> None:
    """While the first is optimised, one more is read and no other, however many ask; then each in turn."""
    optimising, go_on = threading.Event(), threading.Event()

    def first() -> None:
        optimising.set()
        wait(go_on)

    ids = "abcdef"
    others = threading.Semaphore(0)
    hooks: dict[str, Callable[[], Any]] = {f"prepare_{id}": others.release for id in ids[1:]}
    work = Fake(optimise_a=first, **hooks)
    pipeline = Pipeline(lambda uploads: work)
    reports = [batches(pipeline, "a")]
    wait(optimising)
    reports += [batches(pipeline, id) for id in ids[1:]]
    for _ in range(PREPARED_AT_MOST):
        assert others.acquire(timeout=PATIENCE)
    # whoever else got through would have queued behind it in the one thread that prepares
    assert pipeline._prepare.submit(lambda: work.events.count("optimise a")).result(PATIENCE) == 1
    assert sum(event.startswith("prepare") for event in work.events) == 1 + PREPARED_AT_MOST
    go_on.set()
    for report in reports:
        report.result(PATIENCE)
    ahead = 0
    for event in work.events:
        ahead += event.startswith("prepare") - event.startswith("optimise")
        assert ahead <= PREPARED_AT_MOST + 1
    assert sorted(event for event in work.events if event.startswith("deliver")) == [f"deliver {id}" for id in ids]


def raises(error: Exception) -> Callable[[], Any]:
    def hook() -> None:
        raise error

    return hook


ERRORS = [
    (SpatialAvatarError("the clip\nis damaged"), "error", "the clip is damaged"),
    (StoreError("no answer"), "store", "no answer"),
    (OutOfMemory("does not fit; lower the resolution"), "memory", "does not fit; lower the resolution"),
    (Stopped(), "stopped", ""),
    (KeyError("x"), "error", "KeyError: 'x'"),
    (OSError(28, "No space left"), "error", "[Errno 28] No space left"),
    (ValueError("long " * 1000), "error", None),
]


@pytest.mark.parametrize("stage", ["prepare", "optimise", "deliver"])
@pytest.mark.parametrize(("error", "kind", "reason"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_hits_its_job_alone(stage: str, error: Exception, kind: str, reason: str | None) -> None:
    work = Fake() if stage == "optimise" else Fake(**{f"{stage}_b": raises(error)})
    if stage == "optimise":
        work.results["b"] = error
    report = refine(work, "abc")
    assert kinds(report) == {"a": "done", "b": kind, "c": "done"}
    said = report.outcomes[1].reason
    assert said == reason if reason is not None else len(said) == 1000
    assert report.outcomes[1].record is None
    assert ("deliver b" in work.events) == (stage == "deliver")
    assert report.optimised == (2 if stage == "prepare" else 3)


def test_when_nobody_can_be_prepared_nothing_is_optimised() -> None:
    work = Fake(prepare_a=raises(SpatialAvatarError("x")), prepare_b=raises(StoreError("y")))
    report = refine(work, "ab")
    assert kinds(report) == {"a": "error", "b": "store"} and work.events == ["prepare a", "prepare b"]
    assert (report.optimised, report.optimising_seconds, report.step_seconds) == (0, 0.0, None)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (OutOfMemory("does not fit"), "memory", "does not fit"),
        (Stopped(), "stopped", ""),
        (RuntimeError("shapes differ"), "shared", "RuntimeError: shapes differ"),
    ],
)
def test_what_hits_the_whole_batch(error: Exception, kind: str, reason: str) -> None:
    """Those that could not be prepared keep their own reason, and the next batch goes on."""
    work = Fake(prepare_b=raises(SpatialAvatarError("damaged")), optimise_ac=raises(error))
    pipeline = Pipeline(lambda uploads: work)
    report = pipeline.refine([job(id) for id in "abc"])
    assert [(o.kind, o.reason) for o in report.outcomes] == [(kind, reason), ("error", "damaged"), (kind, reason)]
    assert report.optimised == 2 and report.step_seconds is None
    assert kinds(pipeline.refine([job("d")])) == {"d": "done"}


def test_what_hits_a_batch_of_one_is_its_own() -> None:
    assert kinds(refine(Fake(optimise_a=raises(RuntimeError("shapes differ"))), "a")) == {"a": "error"}


@pytest.mark.parametrize("stage", ["prepare", "optimise", "deliver"])
def test_a_broken_device_ends_the_process(stage: str) -> None:
    program = f"""
from spatialavatar.fleet.pipeline import Broken
from tests.fleet.test_pipeline import Fake, raises, refine
refine(Fake({stage}_a=raises(Broken("CUDA error: an illegal memory access"))), "a")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 1 and ended.stderr.splitlines()[-1] == "CUDA error: an illegal memory access"


def test_stopping(batches: Callable[..., Any]) -> None:
    """The batch that is optimised hears of it; one that is read is read no further; one that is done is written."""
    work = Fake()
    reading, stopped = threading.Event(), threading.Event()

    def read() -> None:
        reading.set()
        wait(stopped)

    def optimise() -> None:
        assert not work.stop()
        wait(reading)
        pipeline.stop()
        stopped.set()
        assert work.stop()
        raise Stopped

    delivered = threading.Event()

    def deliver() -> None:
        wait(stopped)
        delivered.set()

    work.hooks |= {"deliver_z": deliver, "optimise_ab": optimise, "prepare_c": read}
    pipeline = Pipeline(lambda uploads: work)
    before = batches(pipeline, "z")
    work.until("deliver z")
    first = batches(pipeline, "ab")
    work.until("optimise ab")
    second = batches(pipeline, "cd")
    assert kinds(first.result(PATIENCE)) == {"a": "stopped", "b": "stopped"}
    assert kinds(second.result(PATIENCE)) == {"c": "stopped", "d": "stopped"}
    assert kinds(before.result(PATIENCE)) == {"z": "done"} and delivered.is_set()
    assert "prepare d" not in work.events and "optimise c" not in work.events
    assert kinds(pipeline.refine([job("e")])) == {"e": "stopped"} and "prepare e" not in work.events


def test_checkpoints_do_not_wait_for_what_is_delivered(batches: Callable[..., Any]) -> None:
    """One that the optimising lane hands over and waits for is written while an earlier batch's delivery hangs."""
    lanes: list[ThreadPoolExecutor] = []
    entered: list[str] = []
    written = threading.Event()

    def checkpoint() -> None:
        lanes[0].submit(lambda: entered.append(threading.current_thread().name)).result(PATIENCE)
        written.set()

    work = Fake(deliver_a=lambda: wait(written), optimise_b=checkpoint)

    def make(uploads: ThreadPoolExecutor) -> Fake:
        lanes.append(uploads)
        return work

    pipeline = Pipeline(make, lambda: entered.append(threading.current_thread().name))
    first = batches(pipeline, "a")
    work.until("deliver a")
    second = batches(pipeline, "b")
    assert kinds(first.result(PATIENCE)) == {"a": "done"} and kinds(second.result(PATIENCE)) == {"b": "done"}
    assert len(set(entered)) == 4 and len(entered) == 5  # made ready as the others, and the one upload


def test_what_cannot_be_made_is_told() -> None:
    def make(uploads: ThreadPoolExecutor) -> Fake:
        raise SpatialAvatarError("a generator of another head")

    with pytest.raises(SpatialAvatarError, match="another head"):
        Pipeline(make)


_STUCK = """
import sys, threading, time
from types import SimpleNamespace
from spatialavatar.fleet import pipeline
from tests.fleet.test_pipeline import Fake, job

later, looks = 0, threading.Semaphore(0)

def sleep(seconds):
    looks.release()
    time.sleep(0.001)

def hang():
    global later, looks
    later = 59 * 60
    looks = threading.Semaphore(0)
    looks.acquire(), looks.acquire()  # between two sleeps the clock was looked at
    print("after 59 minutes", flush=True)
    later = 61 * 60
    threading.Event().wait()

clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later, perf_counter=time.perf_counter, sleep=sleep)
pipeline.time = clock
print(pipeline.Pipeline(lambda uploads: Fake(**{sys.argv[1]: hang}), minutes=60).refine([job("a")]))
"""


@pytest.mark.parametrize("stage", ["prepare_a", "optimise_a"])
def test_a_stage_beyond_its_minutes_ends_the_process(stage: str) -> None:
    """Even one that never returns; where it hung is told."""
    ended = subprocess.run(
        [sys.executable, "-c", _STUCK, stage],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stdout) == (1, "after 59 minutes\n"), ended.stderr
    assert " in hang" in ended.stderr and f" in {stage.partition('_')[0]}" in ended.stderr


_DEAF = """
import ctypes
from spatialavatar.fleet import pipeline
from tests.fleet.test_pipeline import Fake, job

pipeline._GRACE = 0.1
pipeline._LOOK = 1000
hang = ctypes.PyDLL(None).pause  # keeps the interpreter for itself
pipeline.Pipeline(lambda uploads: Fake(optimise_a=hang), minutes=0.001).refine([job("a")])
"""


def test_a_stage_that_keeps_the_interpreter_is_ended_too() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _DEAF], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 1 and "Timeout" in ended.stderr and " in optimise" in ended.stderr


def test_the_end_without_python_is_set_for_the_earliest_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time a stage begins or ends; none is left behind."""
    now = [0.0]
    calls: list[float | None] = []
    pipeline = Pipeline(lambda uploads: Fake(), minutes=1.0)
    monkeypatch.setattr(pipeline_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(
        pipeline_module,
        "faulthandler",
        SimpleNamespace(
            dump_traceback_later=lambda seconds, exit, file: calls.append(seconds - pipeline_module._GRACE),
            cancel_dump_traceback_later=lambda: calls.append(None),
        ),
    )
    with pipeline._deadline("optimise", 3):
        now[0] = 10.0
        with pipeline._deadline("prepare"):
            now[0] = 30.0
    assert calls == [180.0, 60.0, 150.0, None]


def test_stages_within_their_minutes_end_nothing() -> None:
    """The time of each is its own: an earlier one that has ended counts no more."""
    pipeline = Pipeline(lambda uploads: Fake(prepare_b=raises(SpatialAvatarError("x"))), minutes=1.0)
    pipeline.refine([job("a"), job("b")])
    assert pipeline._deadlines == {}
