"""Who is tried again: against a model, over any order of events; and the promises one by one."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spatialavatar.fleet.config import Attempts
from spatialavatar.fleet.ledger import LOOK_PAST, PATIENCE, Case, Ledger
from spatialavatar.fleet.records import Failure
from spatialavatar.fleet.subjects import FleetSubject

ERROR = Failure("error", "raised", "worker", "now")
CRASH = Failure("crash", "ended", "worker", "now")
SILENCE = Failure("store", "no answer", "worker", "now")


def person(number: int) -> FleetSubject:
    return FleetSubject(f"p{number}", f"clips/p{number}")


def ledger_of(count: int, **attempts: int) -> Ledger:
    ledger = Ledger(Attempts(**attempts))
    for number in range(count):
        ledger.add(person(number))
    return ledger


def ids(cases: list[Case]) -> list[str]:
    return [case.subject.id for case in cases]


def test_the_list_is_worked_off_in_its_order() -> None:
    ledger = ledger_of(5)
    assert ids(ledger.take(2)) == ["p0", "p1"]
    assert ids(ledger.take(9)) == ["p2", "p3", "p4"]
    assert ledger.take(1) == [] and ledger.take_suspect() is None
    assert (ledger.waiting, ledger.out, ledger.open) == (0, 5, True)
    for number in range(5):
        ledger.done(f"p{number}")
    assert (ledger.waiting, ledger.out, ledger.open) == (0, 0, False)


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_one_that_raises_is_tried_as_often_as_configured(budget: int) -> None:
    """And before all others; then it is given up with all of its reasons."""
    ledger = ledger_of(3, errors=budget)
    for attempt in range(1, budget + 1):
        [case] = ledger.take(1)
        assert case.subject.id == "p0" and case.attempts == attempt
        assert ledger.error("p0", ERROR) == (attempt == budget)
    assert list(ledger.failed) == ["p0"] and ledger.failed["p0"].failures == [ERROR] * budget
    assert ids(ledger.take(5)) == ["p1", "p2"]


@pytest.mark.parametrize("budget", [1, 3])
def test_one_that_ends_its_process_is_tried_alone_as_often_as_configured(budget: int) -> None:
    ledger = ledger_of(2, crashes=budget)
    ledger.take(2)
    assert not ledger.crashed("p0", False, CRASH) and not ledger.crashed("p1", False, CRASH)
    for attempt in range(1, budget + 1):
        suspect = ledger.take_suspect()
        assert suspect is not None and suspect.subject.id == "p1" and suspect.attempts == attempt
        assert ledger.crashed("p1", True, CRASH) == (attempt == budget)
    assert ids([ledger.failed["p1"]]) == ["p1"] and ledger.failed["p1"].failures == [CRASH] * budget


def test_a_crash_among_several_is_nobodys_fault() -> None:
    """However often: each is refined by itself, and only what happens then counts."""
    ledger = ledger_of(3, crashes=1, errors=1)
    cases = ledger.take(3)
    for case in cases:
        assert not ledger.crashed(case.subject.id, False, CRASH)
    assert all((case.crashes, case.failures, case.attempts) == (0, [], 1) for case in cases)
    assert ledger.suspects == ledger.waiting == 3 and ledger.take(3) == []
    while (case := ledger.take_suspect()) is not None:
        assert ledger.out == 1
        ledger.done(case.subject.id)
    assert not ledger.open and not ledger.failed


def test_a_suspect_stays_one_until_it_is_done() -> None:
    ledger = ledger_of(1, errors=3)
    ledger.take(1)
    ledger.crashed("p0", False, CRASH)
    for again in (
        lambda: ledger.error("p0", ERROR),
        lambda: ledger.returned("p0"),
        lambda: ledger.store_failed("p0", SILENCE),
    ):
        assert ledger.take(1) == [] and ledger.take_suspect() is not None
        again()
    assert ledger.suspects == 1


def test_a_lost_machine_is_nobodys_fault() -> None:
    ledger = ledger_of(3, errors=1, crashes=1, stores=1)
    for _ in range(20):
        [case] = ledger.take(1)
        assert case.subject.id == "p0" and case.attempts == 1
        ledger.returned("p0")
    assert case.failures == [] and not case.suspect


def test_errors_crashes_and_stores_are_counted_apart() -> None:
    ledger = ledger_of(1, errors=2, crashes=2, stores=2)
    ledger.take(1)
    assert not ledger.error("p0", ERROR)
    ledger.take(1)
    assert not ledger.crashed("p0", True, CRASH)
    assert ledger.take_suspect() is not None and not ledger.store_failed("p0", SILENCE)
    assert ledger.take_suspect() is not None and ledger.crashed("p0", True, CRASH)
    assert ledger.failed["p0"].failures == [ERROR, CRASH, CRASH]


@pytest.mark.parametrize("budget", [1, 3])
def test_one_whose_store_is_silent_waits_behind_the_others_and_is_left(budget: int) -> None:
    ledger = ledger_of(2, stores=budget)
    for attempt in range(1, budget + 1):
        cases = ledger.take(1) if attempt == 1 else ledger.take(2)
        assert ids(cases)[-1] == "p0"
        if attempt > 1:
            ledger.returned("p1")
        assert ledger.store_failed("p0", SILENCE) == (attempt == budget)
    assert list(ledger.left) == ["p0"] and not ledger.failed and ledger.left["p0"].failures == []
    assert "p0" not in ledger and "p1" in ledger


def test_failures_of_an_earlier_run_count_on() -> None:
    ledger = Ledger(Attempts(errors=2, crashes=3))
    ledger.add(person(0), [ERROR])
    ledger.add(person(1), [CRASH, CRASH])
    [case] = ledger.take(2)
    assert case.attempts == 2 and ledger.error("p0", ERROR)
    suspect = ledger.take_suspect()
    assert suspect is not None and suspect.attempts == 3 and ledger.crashed("p1", True, CRASH)
    assert ledger.failed["p1"].failures == [CRASH] * 3


def test_dropping() -> None:
    ledger = ledger_of(4)
    ledger.take(2)
    ledger.crashed("p0", False, CRASH)
    assert ledger.drop(["p0", "p1", "p2", "nobody"]) == 2  # p1 is out
    assert ids(ledger.take(9)) == ["p3"] and ledger.take_suspect() is None
    assert "p1" in ledger and "p0" not in ledger and "p2" not in ledger


@pytest.mark.parametrize("event", ["error", "store", "crash", "shared"])
def test_one_that_failed_goes_to_another_machine(event: str) -> None:
    """While there is one; on the machine where it failed, the others go on."""
    ledger = ledger_of(3, errors=2, crashes=2, stores=2)
    [case] = ledger.take(1, "a", True)
    if event == "error":
        ledger.error("p0", ERROR, "a")
    elif event == "store":
        ledger.store_failed("p0", SILENCE, "a")
    else:
        ledger.crashed("p0", event == "crash", CRASH, "a")
    assert case.failed_at == {"a"}
    if case.suspect:
        assert all(ledger.take_suspect("a", True) is None for _ in range(2 * PATIENCE))
        assert ledger.suspects == 1 and ids(ledger.take(9, "a", True)) == ["p1", "p2"]
        assert ledger.take_suspect("b", True) is case
    else:
        assert ids(ledger.take(9, "a", True)) == ["p1", "p2"]
        assert all(ledger.take(9, "a", True) == [] for _ in range(2 * PATIENCE)) and ledger.waiting == 1
        assert ledger.take(9, "b", True) == [case]


def test_one_that_failed_stays_when_there_is_no_other_machine() -> None:
    ledger = ledger_of(2, errors=3)
    [case] = ledger.take(1, "a")
    ledger.error("p0", ERROR, "a")
    assert ledger.take(1, "a", False) == [case]
    ledger.crashed("p0", False, CRASH, "a")
    assert ledger.take_suspect("a", False) is case


def test_what_is_passed_over_stays_before_the_others() -> None:
    ledger = ledger_of(4, errors=2)
    ledger.take(2)
    ledger.error("p1", ERROR, "a")
    ledger.error("p0", ERROR, "a")
    assert ids(ledger.take(1, "a", True)) == ["p2"]
    assert ids(ledger.take(9, "b", True)) == ["p0", "p1", "p3"]


def test_one_that_failed_everywhere_is_tried_on() -> None:
    """Not on the last machine, nor at once, for a third one may come."""
    ledger = ledger_of(1, errors=3)
    for where in ("a", "b"):
        ledger.take(1, where, True)
        ledger.error("p0", ERROR, where)
    asked = 0
    while not (taken := ledger.take(1, "a", True)):
        assert ledger.take(1, "b", True) == []
        asked += 1
        assert asked < 2 * PATIENCE
    assert ids(taken) == ["p0"] and asked > 10


def test_few_are_looked_at_for_one_that_fits() -> None:
    ledger = ledger_of(2000, stores=2)
    for case in ledger.take(1500, "a", True):
        ledger.store_failed(case.subject.id, SILENCE, "a")
    assert len(ledger.take(600, "a", True)) == 500
    assert ledger.take(5, "a", True) == []
    assert sum(case.passed_over > 1 for case in ledger.take(1500, "b", True)) <= LOOK_PAST


def test_a_silent_store_is_remembered_and_no_attempt() -> None:
    ledger = ledger_of(1, stores=1)
    ledger.take(1)
    assert ledger.store_failed("p0", SILENCE)
    case = ledger.left["p0"]
    assert (case.store_failure, case.failures, case.attempts, case.errors, case.crashes) == (SILENCE, [], 1, 0, 0)


class Bookkeeping(RuleBasedStateMachine):
    """The ledger beside a list of who is where; of each case what was counted."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = Attempts(errors=2, crashes=2, stores=2)
        self.ledger = Ledger(self.attempts)
        self.place: dict[str, str] = {}  # waiting, suspect, out, failed, left, done or dropped
        self.counts: dict[str, dict[str, int]] = {}
        self.suspects: set[str] = set()
        self.retried: list[str] = []  # of the waiting ones, those to be tried again; the next one last

    def where(self, *places: str) -> list[str]:
        return sorted(id for id, place in self.place.items() if place in places)

    @rule(number=st.integers(0, 7), errors=st.integers(0, 1), crashes=st.integers(0, 1))
    def add(self, number: int, errors: int, crashes: int) -> None:
        subject = person(number)
        if self.place.get(subject.id) in ("waiting", "suspect", "out"):
            return
        self.ledger.add(subject, [ERROR] * errors + [CRASH] * crashes)
        self.counts[subject.id] = {"errors": errors, "crashes": crashes, "stores": 0}
        self.suspects -= {subject.id}
        self.suspects |= {subject.id} if crashes else set()
        self.place[subject.id] = "suspect" if crashes else "waiting"

    @rule(most=st.integers(0, 3))
    def take(self, most: int) -> None:
        cases = self.ledger.take(most)
        assert len(cases) == min(most, len(self.where("waiting")))
        for case in cases:
            id = case.subject.id
            if self.retried:
                assert id == self.retried.pop(), "what is tried again goes before the others"
            assert self.place[id] == "waiting"
            self.place[id] = "out"

    @rule()
    def take_suspect(self) -> None:
        case = self.ledger.take_suspect()
        assert (case is None) == (not self.where("suspect"))
        if case is not None:
            assert self.place[case.subject.id] == "suspect"
            self.place[case.subject.id] = "out"

    def again(self, id: str, first: bool = True) -> None:
        self.place[id] = "suspect" if id in self.suspects else "waiting"
        if first and id not in self.suspects:
            self.retried.append(id)

    def count(self, id: str, what: str, beyond: str, said: bool, first: bool = True) -> None:
        self.counts[id][what] += 1
        assert said == (self.counts[id][what] >= getattr(self.attempts, what))
        if said:
            self.place[id] = beyond
        else:
            self.again(id, first)

    @precondition(lambda self: self.where("out"))
    @rule(data=st.data(), event=st.sampled_from(["done", "error", "alone", "among others", "store", "returned"]))
    def settle(self, data: st.DataObject, event: str) -> None:
        id = data.draw(st.sampled_from(self.where("out")))
        if event == "done":
            self.ledger.done(id)
            self.place[id] = "done"
        elif event == "error":
            self.count(id, "errors", "failed", self.ledger.error(id, ERROR))
        elif event == "alone":
            self.suspects.add(id)
            self.count(id, "crashes", "failed", self.ledger.crashed(id, True, CRASH))
        elif event == "among others":
            self.suspects.add(id)
            assert not self.ledger.crashed(id, False, CRASH)
            self.again(id)
        elif event == "store":
            self.count(id, "stores", "left", self.ledger.store_failed(id, SILENCE), first=False)
        else:
            self.ledger.returned(id)
            self.again(id)

    @rule(numbers=st.sets(st.integers(0, 7), max_size=3))
    def drop(self, numbers: set[int]) -> None:
        gone = {f"p{number}" for number in numbers} & self.place.keys()
        waiting = gone & set(self.where("waiting", "suspect"))
        assert self.ledger.drop([f"p{number}" for number in numbers]) == len(waiting)
        for id in gone - set(self.where("out", "done")):
            self.place[id] = "dropped"
        self.retried = [id for id in self.retried if id not in gone]

    @invariant()
    def each_is_in_one_place(self) -> None:
        ledger = self.ledger
        assert ledger.waiting == len(self.where("waiting", "suspect"))
        assert ledger.suspects == len(self.where("suspect"))
        assert ledger.out == len(self.where("out"))
        assert sorted(ledger.failed) == self.where("failed") and sorted(ledger.left) == self.where("left")
        assert ledger.open == bool(self.where("waiting", "suspect", "out"))
        for id in self.place:
            assert (id in ledger) == (id in self.where("waiting", "suspect", "out"))
        for id in self.where("out"):
            case, counts = ledger.case(id), self.counts[id]
            assert (case.errors, case.crashes, case.stores) == tuple(counts[k] for k in ("errors", "crashes", "stores"))
            assert len(case.failures) == case.errors + case.crashes == case.attempts - 1


Bookkeeping.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestBookkeeping = Bookkeeping.TestCase
