"""Who waits, who is being refined, who is tried again: what a cluster does not know.

Plain bookkeeping, without clock, store or cluster. A subject that raises is tried again, a few times. When a process
ends, nobody says which of the subjects it had was the reason: each becomes a suspect and is refined by itself, and only
what happens then counts against it. A lost machine counts against nobody. What is tried again goes before the others.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from spatialavatar.fleet.config import Attempts
from spatialavatar.fleet.records import Failure
from spatialavatar.fleet.subjects import FleetSubject


@dataclass(slots=True)
class Case:
    """A subject and how often it was tried in vain."""

    subject: FleetSubject
    failures: list[Failure] = field(default_factory=list)
    errors: int = 0
    crashes: int = 0  # while it was alone
    stores: int = 0
    suspect: bool = False

    @property
    def attempts(self) -> int:
        """Counting the next one."""
        return 1 + len(self.failures)


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

    def take(self, most: int) -> list[Case]:
        """The next subjects for a batch; no suspects."""
        cases = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        self._out.update((case.subject.id, case) for case in cases)
        return cases

    def take_suspect(self) -> Case | None:
        """One for a process that has nothing else."""
        if not self._suspects:
            return None
        case = self._suspects.popleft()
        self._out[case.subject.id] = case
        return case

    def case(self, id: str) -> Case:
        """Of a subject that is out."""
        return self._out[id]

    def done(self, id: str) -> None:
        self._settle(id)

    def error(self, id: str, failure: Failure) -> bool:
        """The subject raised; whether it is given up."""
        case = self._out[id]
        case.failures.append(failure)
        case.errors += 1
        return self._again_or_failed(case, case.errors >= self._attempts.errors)

    def crashed(self, id: str, alone: bool, failure: Failure) -> bool:
        """The process ended that had the subject, ``alone`` or with others; whether the subject is given up."""
        case = self._out[id]
        case.suspect = True
        if not alone:
            self._again(case)
            return False
        case.failures.append(failure)
        case.crashes += 1
        return self._again_or_failed(case, case.crashes >= self._attempts.crashes)

    def store_failed(self, id: str) -> bool:
        """The store did not answer, which is nobody's fault; whether the subject is left for the next run."""
        case = self._out[id]
        case.stores += 1
        if case.stores < self._attempts.stores:
            self._again(case, last=True)
            return False
        self.left[id] = self._settle(id)
        return True

    def returned(self, id: str) -> None:
        """Not tried, or its machine was lost: waits again, before the others."""
        self._again(self._out[id])

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
