"""Who waits, who is being refined, who is tried again: what a cluster does not know.

Plain bookkeeping, without clock, store or cluster. A subject that raises is tried again, a few times. When a process
ends, nobody says which of the subjects it had was the reason: each becomes a suspect and is refined by itself, and only
what happens then counts against it. A lost machine counts against nobody. What is tried again goes before the others,
and to another machine than before where there is one.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from spatialavatar.fleet.config import Attempts
from spatialavatar.fleet.records import Failure
from spatialavatar.fleet.subjects import FleetSubject

LOOK_PAST = 100  # subjects, to find one that did not fail on the machine that asks
PATIENCE = 100  # times that a subject is passed over, before it goes to a machine where it failed, but not last


@dataclass(slots=True)
class Case:
    """A subject and how often it was tried in vain."""

    subject: FleetSubject
    failures: list[Failure] = field(default_factory=list)
    errors: int = 0
    crashes: int = 0  # while it was alone
    stores: int = 0
    suspect: bool = False
    store_failure: Failure | None = None  # the last one
    failed_at: set[str] = field(default_factory=set)  # machines
    failed_last_at: str = ""
    passed_over: int = 0  # times, since it failed last

    @property
    def attempts(self) -> int:
        """Counting the next one, but not those that a store let down."""
        return 1 + len(self.failures)

    def failed(self, where: str) -> None:
        """On the machine ``where``; an empty name stands for one that is not known."""
        self.failed_last_at, self.passed_over = where, 0
        if where:
            self.failed_at.add(where)

    def better_elsewhere(self, where: str) -> bool:
        """Whether to wait for another machine. Never for long when it has failed on all: the last one alone is out."""
        if where not in self.failed_at:
            return False
        self.passed_over += 1
        return where == self.failed_last_at or self.passed_over <= PATIENCE


class Ledger:
    """Every subject is in one place: waiting, out, or settled (done, failed, left)."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._waiting: deque[Case] = deque()
        self._suspects: deque[Case] = deque()
        self._out: dict[str, Case] = {}
        self._ids: set[str] = set()  # waiting or out
        self.failed: dict[str, Case] = {}
        self.left: dict[str, Case] = {}  # their store did not answer: for the next run

    def add(self, subject: FleetSubject, failures: Sequence[Failure] = ()) -> None:
        """A subject that is not waiting or out, settled or not; ``failures`` are those of an earlier run that count
        on."""
        self._forget(subject.id)
        case = Case(subject, list(failures))
        case.errors = sum(failure.kind == "error" for failure in failures)
        case.crashes = sum(failure.kind == "crash" for failure in failures)
        case.suspect = case.crashes > 0
        self._ids.add(subject.id)
        (self._suspects if case.suspect else self._waiting).append(case)

    def drop(self, ids: Collection[str]) -> int:
        """Take subjects off the list, but those that are out; how many of them were waiting."""
        for id in ids:
            self._forget(id)
        gone = {id for id in ids if id in self._ids and id not in self._out}
        self._ids -= gone
        self._waiting = deque(case for case in self._waiting if case.subject.id not in gone)
        self._suspects = deque(case for case in self._suspects if case.subject.id not in gone)
        return len(gone)

    def __contains__(self, id: str) -> bool:
        return id in self._ids

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._suspects)

    @property
    def out(self) -> int:
        return len(self._out)

    @property
    def suspects(self) -> int:
        """That wait for a process of their own."""
        return len(self._suspects)

    @property
    def open(self) -> bool:
        """Whether anything is waiting or out."""
        return bool(self._ids)

    def take(self, most: int, where: str = "", others: bool = False) -> list[Case]:
        """The next subjects for a batch on the machine ``where``; no suspects.

        While there are ``others``, machines that could take them, those that failed on this one are passed over: there
        may be none for it although some wait."""
        return self._next(self._waiting, most, where if others else "")

    def take_suspect(self, where: str = "", others: bool = False) -> Case | None:
        """One for a process that has nothing else; passed over as in ``take``."""
        return next(iter(self._next(self._suspects, 1, where if others else "")), None)

    def case(self, id: str) -> Case:
        """Of a subject that is out."""
        return self._out[id]

    def done(self, id: str) -> None:
        self._settle(id)

    def error(self, id: str, failure: Failure, where: str = "") -> bool:
        """The subject raised on the machine ``where``; whether it is given up."""
        case = self._out[id]
        case.failed(where)
        case.failures.append(failure)
        case.errors += 1
        return self._again_or_failed(case, case.errors >= self._attempts.errors)

    def crashed(self, id: str, alone: bool, failure: Failure, where: str = "") -> bool:
        """The process ended that had the subject, ``alone`` or with others; whether the subject is given up."""
        case = self._out[id]
        case.failed(where)
        case.suspect = True
        if not alone:
            self._again(case)
            return False
        case.failures.append(failure)
        case.crashes += 1
        return self._again_or_failed(case, case.crashes >= self._attempts.crashes)

    def store_failed(self, id: str, failure: Failure, where: str = "") -> bool:
        """The store did not answer, which is nobody's fault; whether the subject is left for the next run."""
        case = self._out[id]
        case.failed(where)
        case.stores += 1
        case.store_failure = failure
        if case.stores < self._attempts.stores:
            self._again(case, last=True)
            return False
        self.left[id] = self._settle(id)
        return True

    def returned(self, id: str) -> None:
        """Not tried, or its machine was lost: waits again, before the others."""
        self._again(self._out[id])

    def _next(self, queue: deque[Case], most: int, avoid: str) -> list[Case]:
        """From the head of a queue, but those that had better go elsewhere, which stay at the head."""
        cases: list[Case] = []
        passed: list[Case] = []
        while queue and len(cases) < most and len(passed) < LOOK_PAST:
            case = queue.popleft()
            (passed if avoid and case.better_elsewhere(avoid) else cases).append(case)
        queue.extendleft(reversed(passed))
        self._out.update((case.subject.id, case) for case in cases)
        return cases

    def _forget(self, id: str) -> None:
        """That it was given up or left."""
        self.failed.pop(id, None)
        self.left.pop(id, None)

    def _again_or_failed(self, case: Case, given_up: bool) -> bool:
        if given_up:
            self.failed[case.subject.id] = self._settle(case.subject.id)
        else:
            self._again(case)
        return given_up

    def _again(self, case: Case, last: bool = False) -> None:
        del self._out[case.subject.id]
        queue = self._suspects if case.suspect else self._waiting
        if last:
            queue.append(case)
        else:
            queue.appendleft(case)

    def _settle(self, id: str) -> Case:
        self._ids.discard(id)
        return self._out.pop(id)
