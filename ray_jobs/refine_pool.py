"""A pool of actors that refine a fleet, driven by a loop over ``ray.wait``.

Placement, health and growth of the cluster are Ray's. The loop holds what Ray does not know: which subject a worker
has, how often it was tried, and whether a worker that ended was its subjects' fault or its machine's. Actors are never
restarted and calls never repeated by Ray, because its own ways lose items or their identity.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from ray_jobs.cluster import first_line, free_now, machines_that_answer, workers_on
from ray_jobs.refine_worker import CALLS, Facts, MakeWork, Refiner
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.batch_size import BatchSizes
from spatialavatar.fleet.ledger import Case
from spatialavatar.fleet.pipeline import BatchReport, Outcome
from spatialavatar.fleet.run import FleetRun
from spatialavatar.fleet.status import Status

SECONDS_BETWEEN_LOOKS = 0.5  # at the cluster, the source and the clock
SECONDS_TO_A_VERDICT = 4.0  # a machine that goes away is missed by Ray some seconds after its workers
SECONDS_TO_STOP = 20.0  # for checkpoints
SECONDS_BETWEEN_QUESTIONS = 3.0  # to a worker, how far it is
SECONDS_TO_ANSWER = 600.0  # that question, before a worker counts as ended
QUESTIONS_A_SECOND = 50.0  # to all of them
SECONDS_BETWEEN_REQUESTS = 10.0  # to a cluster that grows
MOST_REQUESTED = 1000  # workers at a time, of a cluster that grows
AHEAD = 2  # batches that a worker has beside the one that it optimises: one being read, one being written
SECONDS_TO_START = 90.0  # of the first worker, before it is said what it waits for
FAILED_STARTS = 5  # in a row and with no worker left, before the run ends
SECONDS_AFTER_A_FAILED_START = 5.0  # until the next one, times their number
SUSPICIOUS = 3  # subjects in a row that failed on a worker while others have none of it, before it rests
SECONDS_OF_REST = (30.0, 120.0, 600.0)  # the first time, the second, from then on


@dataclass(eq=False)
class _Worker:
    actor: Any
    opening: Any  # reference of ``open``; None when it is ready
    facts: Facts | None = None
    calls: dict[Any, list[Case]] = field(default_factory=dict)  # batches by their references
    alone: bool = False  # with a suspect
    asked: Any = None  # reference of its ``progress``
    asked_at: float = 0.0
    partly_done: float = 0.0  # of the batch that it optimises, in whole subjects
    failed_in_a_row: int = 0  # subjects
    rests: int = 0  # so far
    rests_until: float = -math.inf

    @property
    def ready(self) -> bool:
        return self.opening is None

    @property
    def name(self) -> str:
        return "" if self.facts is None else self.facts.name

    @property
    def machine(self) -> str:
        return "" if self.facts is None else self.facts.node


@dataclass
class _Loss:
    """A worker that ended, until it is known whether its machine did."""

    due: float
    worker: _Worker
    reason: str


class Pool:
    def __init__(
        self,
        run: FleetRun,
        make_work: MakeWork,
        instruments: Any,
        observe: Callable[[Status], None] = lambda status: None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``instruments`` go to every worker, for ``make_work``. ``observe`` hears how it stands, ``tell`` warnings."""
        self._run, self._observe, self._tell = run, observe, tell
        wanted = run.config.workers
        gpus = wanted.gpus
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
            if not gpus and len(ray.nodes()) > 1:
                tell("no GPU in the cluster now: it is refined on CPUs; --set workers.gpus=1 waits for GPUs")
        self._needs = {"CPU": wanted.cpus} | ({"GPU": gpus} if gpus else {})
        self._most = wanted.most or math.inf
        self._sizes = BatchSizes(wanted.batch, wanted.largest_batch)
        self._actor_class: Any = ray.remote(Refiner).options(
            num_cpus=wanted.cpus,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=CALLS,
            scheduling_strategy="SPREAD",
        )
        self._arguments = make_work, ray.put(instruments), wanted.cpus, run.config.attempts.minutes
        self._workers: list[_Worker] = []
        self._losses: list[_Loss] = []
        self._failed_starts = 0
        self._next_start = -math.inf
        self._looked = self._requested = self._asked_at = -math.inf
        self._counted = time.monotonic()
        self._asked = False  # the cluster, to grow
        self._told: set[str] = set()
        self._idle_since: float | None = None  # without a worker that is ready

    def go(self) -> None:
        """Until every subject is settled. Raises SpatialAvatarError: no room for a worker, workers that cannot start,
        another run in the same output; KeyboardInterrupt after the workers had time for checkpoints."""
        try:
            while self._run.open:
                now = time.monotonic()
                if now - self._looked >= SECONDS_BETWEEN_LOOKS:
                    self._looked = now
                    self._judge(now)
                    self._resize(now)
                    self._ask(now)
                    self._look()
                self._feed(now)
                self._wait(SECONDS_BETWEEN_LOOKS)
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            for worker in self._workers[:]:
                self._dismiss(worker)
            with contextlib.suppress(Exception):  # the reason for the end, if any, is the one to tell
                self._request(0)

    def _look(self) -> None:
        """Tell of the state, and count the workers' time."""
        now = time.monotonic()
        ready = sum(worker.ready for worker in self._workers)
        self._run.total_seconds += ready * (now - self._counted)
        self._counted = now
        self._run.workers, self._run.starting = ready, len(self._workers) - ready
        self._run.partly_done = sum(worker.partly_done for worker in self._workers)
        self._observe(self._run.tick())

    def _ask(self, now: float) -> None:
        """The workers how far they are; one that does not answer for long counts as ended."""
        asked = [worker for worker in self._workers if worker.asked is not None]
        if asked:
            answered, _ = ray.wait([worker.asked for worker in asked], num_returns=len(asked), timeout=0)
            for worker in asked:
                if worker.asked in answered:
                    with contextlib.suppress(RayError):  # of a worker that ended, which its calls tell
                        worker.partly_done = ray.get(worker.asked)
                    worker.asked = None
                elif now - worker.asked_at > SECONDS_TO_ANSWER:
                    self._ended(worker, f"did not answer for {SECONDS_TO_ANSWER:g} s")
        if now - self._asked_at >= max(SECONDS_BETWEEN_QUESTIONS, len(self._workers) / QUESTIONS_A_SECOND):
            self._asked_at = now
            for worker in self._workers:
                if worker.calls and worker.asked is None:
                    worker.asked, worker.asked_at = worker.actor.progress.remote(), now

    def _resize(self, now: float) -> None:
        """As many workers as there is work and room for; ask a cluster that grows for more room."""
        ledger = self._run.ledger
        wanted = int(min(ledger.waiting + ledger.out, self._most))
        room = workers_on([node["Resources"] for node in ray.nodes() if node["Alive"]], self._needs)
        if now - self._requested >= SECONDS_BETWEEN_REQUESTS:
            self._requested = now
            self._request(min(wanted, MOST_REQUESTED) if wanted > room else 0)
        for worker in self._workers[:]:  # nothing left for it: its place may go to others
            if not worker.calls and not ledger.waiting and len(self._workers) > wanted:
                self._dismiss(worker)
        if now >= self._next_start:
            for _ in range(min(wanted, room) - len(self._workers)):
                actor = self._actor_class.remote(*self._arguments)
                self._workers.append(_Worker(actor, actor.open.remote()))
        if any(worker.ready for worker in self._workers):
            self._idle_since = None
            return
        self._idle_since = self._idle_since or now
        each = " and ".join(f"{need:g} {name}" for name, need in self._needs.items())
        if not room and not self._workers:
            self._tell_once(f"waiting for machines: a worker needs {each}, and no machine of the cluster has that")
        elif now - self._idle_since > SECONDS_TO_START:
            self._tell_once(f"waiting for room: a worker needs {each}; {free_now()} are free, other jobs hold the rest")

    def _feed(self, now: float) -> None:
        """Subjects to the workers: to every one a batch, then to every one the next, as long as all have work."""
        ledger = self._run.ledger
        ready = [worker for worker in self._workers if worker.ready and not worker.alone and now >= worker.rests_until]
        machines = {worker.machine for worker in ready}
        if ledger.suspects:
            for worker in [worker for worker in ready if not worker.calls]:
                case = ledger.take_suspect(worker.machine, len(machines) > 1)
                if case is not None:
                    worker.alone = True
                    self._give(worker, [case])
                    ready.remove(worker)
            if ledger.suspects and ready:  # one worker gets nothing more until it is empty
                ready.remove(min(ready, key=lambda worker: len(worker.calls)))
        for ahead in range(1 + AHEAD):
            for worker in ready:
                if len(worker.calls) > ahead or ledger.waiting <= ledger.suspects:
                    continue
                if ahead and ledger.waiting < ahead * len(self._workers):
                    return  # the last ones are for whoever is free first
                assert worker.facts is not None
                share = math.ceil(ledger.waiting / len(self._workers))
                most = min(self._sizes.next(worker.facts.kind), share)
                cases = ledger.take(most, worker.machine, len(machines) > 1)
                if cases:
                    self._give(worker, cases)

    def _give(self, worker: _Worker, cases: list[Case]) -> None:
        worker.calls[worker.actor.refine.remote(self._run.jobs_of(cases))] = cases

    def _wait(self, seconds: float) -> None:
        """Take in what has ended."""
        owner = {reference: worker for worker in self._workers for reference in worker.calls}
        owner |= {worker.opening: worker for worker in self._workers if worker.opening is not None}
        if not owner:
            time.sleep(seconds)
            return
        ready, _ = ray.wait(list(owner), num_returns=1, timeout=seconds)
        if ready and len(owner) > 1:
            ready, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
        for reference in ready:
            worker = owner[reference]
            if worker in self._workers:  # not one that was found dead just now
                self._take(worker, reference)

    def _take(self, worker: _Worker, reference: Any) -> None:
        try:
            value = ray.get(reference)
        except RayTaskError as e:
            reason = str(e.cause)[:300] or type(e.cause).__name__
            if reference is worker.opening:
                self._not_started(worker, reason)
            else:
                cases = worker.calls.pop(reference)
                self._settle(worker, cases, _all_failed(cases, reason))
        except RayError as e:
            if worker.facts is None:
                self._not_started(worker, first_line(e))
            elif isinstance(e, OutOfMemoryError):
                self._ended(worker, "it takes more memory than there is")
            else:
                minutes = f"{self._run.config.attempts.minutes:g}"
                self._ended(worker, f"a crash, too little memory, or more than {minutes} minutes")
        else:
            if reference is not worker.opening:
                self._settle(worker, worker.calls.pop(reference), value)
            elif isinstance(value, Exception):
                self._not_started(worker, str(value))
            else:
                worker.opening, worker.facts = None, value
                self._failed_starts = 0
                if value.warning:
                    self._tell_once(value.warning)

    def _not_started(self, worker: _Worker, reason: str) -> None:
        """A worker cannot begin, or its machine went away before it did. With others at work it is tried again later.

        Raises SpatialAvatarError when there is none, after some tries."""
        self._dismiss(worker)
        self._failed_starts += 1
        self._next_start = time.monotonic() + SECONDS_AFTER_A_FAILED_START * self._failed_starts
        if self._workers:
            self._tell_once(f"a worker cannot start: {reason}")
        elif self._failed_starts >= FAILED_STARTS:
            raise SpatialAvatarError(f"no worker can start ({self._failed_starts} tries in a row): {reason}")

    def _settle(self, worker: _Worker, cases: list[Case], report: BatchReport) -> None:
        worker.alone = worker.alone and bool(worker.calls)
        worker.partly_done = 0.0
        assert worker.facts is not None
        for outcome in report.outcomes:
            if outcome.kind == "memory" and len(cases) == 1:
                outcome = replace(outcome, kind="error")
            self._run.settle(outcome, worker.name, worker.machine)
            if outcome.kind in ("error", "store"):
                worker.failed_in_a_row += 1
            elif outcome.kind == "done":
                worker.failed_in_a_row = worker.rests = 0
        if any(outcome.kind == "memory" for outcome in report.outcomes):
            self._sizes.out_of_memory(worker.facts.kind, len(cases))
        elif report.step_seconds is not None:
            self._sizes.note(worker.facts.kind, report.optimised, report.step_seconds, report.memory)
        self._run.optimising_seconds += report.optimising_seconds
        self._rest_if_suspicious(worker)

    def _rest_if_suspicious(self, worker: _Worker) -> None:
        """A worker on which everything fails is always free: it would go through the whole queue."""
        sound = [w for w in self._workers if w.ready and w.machine != worker.machine and not w.failed_in_a_row]
        if worker.failed_in_a_row >= SUSPICIOUS and sound:
            seconds = SECONDS_OF_REST[min(worker.rests, len(SECONDS_OF_REST) - 1)]
            worker.rests += 1
            worker.rests_until = time.monotonic() + seconds
            failed, worker.failed_in_a_row = worker.failed_in_a_row, 0
            self._tell(f"{worker.name}: {failed} subjects in a row failed there alone; it rests for {seconds:g} s")

    def _ended(self, worker: _Worker, reason: str) -> None:
        """A worker is gone; who is to blame is looked at a little later."""
        self._dismiss(worker)
        self._run.workers_lost += 1
        reason = f"ended the process that refined it: {reason}"
        self._losses.append(_Loss(time.monotonic() + SECONDS_TO_A_VERDICT, worker, reason))

    def _judge(self, now: float) -> None:
        """Whether workers ended, or their machines."""
        due = [loss for loss in self._losses if loss.due <= now]
        if not due:
            return
        self._losses = [loss for loss in self._losses if loss.due > now]
        there = machines_that_answer({loss.worker.machine for loss in due})
        for loss in due:
            ids = [case.subject.id for cases in loss.worker.calls.values() for case in cases]
            if loss.worker.machine in there:
                self._run.crashed(ids, len(ids) == 1, loss.reason, loss.worker.name, loss.worker.machine)
                self._tell(f"{loss.worker.name}: ended; {len(ids)} subject(s) are tried one by one")
            else:
                self._run.lost(ids)
                self._tell(f"{loss.worker.name}: its machine is gone; {len(ids)} subject(s) go to others")

    def _dismiss(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with contextlib.suppress(RayError):
            ray.kill(worker.actor)

    def _stop(self) -> None:
        """Checkpoints, where there is time for them; a second interruption ends it at once."""
        until = time.monotonic() + SECONDS_TO_STOP
        self._tell("stopping, with checkpoints (press again to stop at once)")
        with contextlib.suppress(KeyboardInterrupt):
            for worker in [worker for worker in self._workers if not worker.ready]:
                self._dismiss(worker)
            for worker in self._workers:
                worker.actor.stop.remote()
            while time.monotonic() < until and any(worker.calls for worker in self._workers):
                self._wait(SECONDS_BETWEEN_LOOKS)

    def _request(self, workers: int) -> None:
        """Room that a cluster which grows should have; nothing happens on others."""
        from ray.autoscaler.sdk import request_resources

        if workers or self._asked:
            self._asked = bool(workers)
            request_resources(bundles=[self._needs] * workers)

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)


def _all_failed(cases: Sequence[Case], reason: str) -> BatchReport:
    """Of a call that raised: nobody knows by whom, unless there was one."""
    kind: Any = "error" if len(cases) == 1 else "shared"
    return BatchReport([Outcome(case.subject.id, kind, reason) for case in cases], 0, 0.0, None, 0.0)
