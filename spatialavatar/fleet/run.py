"""One run of a fleet: what is finished, who is still to be refined, and what is told of it.

The driver's side, without a cluster: ``ray_jobs/refine_pool.py`` takes cases from the ledger and brings outcomes back.
A store that does not answer for a while costs a run nothing that can wait: it is asked again, and at last noted.
"""

import contextlib
import difflib
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.fleet.config import FleetConfig
from spatialavatar.fleet.finished import Finished
from spatialavatar.fleet.ledger import Case, Ledger
from spatialavatar.fleet.pipeline import Job, Outcome
from spatialavatar.fleet.records import (
    FAILURES,
    RECORDS,
    UNFINISHED,
    Failure,
    Recipe,
    Record,
    id_in,
    listed,
    read_failures,
    read_records,
    remove,
    write_failure,
)
from spatialavatar.fleet.settings import SETTINGS, claim_output, settings_of
from spatialavatar.fleet.status import Rate, State, Status, now, write_status
from spatialavatar.fleet.subjects import FleetSubject, Listing, read_subjects, source_version
from spatialavatar.fleet.summary import Row, heading, rows_of, write_summary
from spatialavatar.fleet.superseded import remove_superseded
from spatialavatar.writer import TakenOver, Writer

SECONDS_BETWEEN_WRITES = {True: 5.0, False: 15.0}  # of the status, by whether the output is a local folder
SECONDS_BETWEEN_CHECKS = 30.0  # whether the source has changed


@dataclass(frozen=True)
class Selection:
    """Which subjects a run takes."""

    only: tuple[str, ...] = ()  # IDs; empty: all
    retry_failed: bool = False
    again: bool = False  # finished ones, too


@dataclass(frozen=True)
class Ending:
    """What is told of a run that is over."""

    status: Status
    new: int  # subjects that it finished
    notes: list[str]  # of its last minutes, which nobody has seen yet


@dataclass(frozen=True)
class _Wanted:
    """Who is to be refined, and what earlier runs left of them, by the names of their records."""

    subjects: dict[str, FleetSubject]
    records: Set[str]
    failures: dict[str, tuple[list[Failure], bool]]  # of those without a record; and whether they were given up


class FleetRun:
    def __init__(self, config: FleetConfig, recipe: Recipe, listing: Listing, selection: Selection) -> None:
        """Looks at what the output holds, and writes nothing there before ``begin``.

        Raises SpatialAvatarError: other settings there, an ID that is not listed."""
        self.config, self.recipe = config, recipe
        self.ledger = Ledger(config.attempts)
        self.total_seconds = self.optimising_seconds = 0.0  # of all workers
        self.workers = self.starting = self.workers_lost = 0
        self.partly_done = 0.0  # of the subjects that are out, in whole subjects
        self._out, self._selection, self._listing = config.output, selection, listing
        wanted = self._named(chosen(listing, selection.only))
        self._done_here = self._most_workers = 0
        self._rate = Rate()
        self._began = time.monotonic()
        self._rate.note(self._began, 0)
        self._written = self._checked = self._began
        self._notes: list[str] = []
        self._office = ThreadPoolExecutor(3, "office")  # reads, writes and looks while the loop goes on
        self._desk = ThreadPoolExecutor(1, "desk")  # failures, in order
        self._writing: Future[None] | None = None
        self._looking: Future[tuple[Listing, _Wanted] | None] | None = None
        self._failure_writes: list[Future[None]] = []  # that are not over
        self._writer = Writer(self._out, "fleet")
        self._status = Status(started=now(), driver=f"process {os.getpid()} on {socket.gethostname()}")
        self._settings = settings_of(config, recipe)
        claim_output(self._out, self._settings, replace=selection.again and not selection.only)
        self._finished = Finished(self._out, config.gate, self._office, self._writer, self._notes.append)
        self._failures: dict[str, tuple[list[Failure], bool]] = {}  # by name, of earlier runs; whether given up
        self._given_up: dict[str, Case] = {}  # in earlier runs
        self._changed: set[str] = set()  # ids that were out when the list changed what it says of them
        self._by_name: dict[str, FleetSubject] = {}  # those that are wanted
        self._want(_Wanted(wanted, set(), {}) if selection.again else self._looked_up(wanted, wanted.keys()))

    def begin(self) -> None:
        """Take the output over from any other run, which ends then."""
        self._writer.take_over()
        files.write_json(files.join(self._out, SETTINGS), self._settings)
        if self._selection.again:
            self._clear()
        self._write(self._current("running"))  # whoever looks sees this run, not the one before
        self._finished.read_on()

    @property
    def open(self) -> bool:
        """Whether anything is to be done, as far as is known yet; not for records that the store does not give."""
        return self.ledger.open or self._finished.open

    def know_all(self) -> None:
        """Wait until all records of earlier runs are read that can be read."""
        self._finished.read_on(wait=True)
        self._make_again()

    def jobs_of(self, cases: Sequence[Case]) -> list[Job]:
        return [Job(case.subject, self.recipe.name(case.subject), case.attempts) for case in cases]

    @property
    def done(self) -> int:
        return len(self._finished.names)

    @property
    def total(self) -> int:
        return len(self._by_name)

    def settle(self, outcome: Outcome, worker: str, where: str = "") -> None:
        """What a worker on the machine ``where`` says of a subject that is out."""
        if outcome.kind == "done":
            assert outcome.record is not None
            self.ledger.done(outcome.id)
            name = f"{outcome.id}.{outcome.record['digest']}"
            if self._names.get(outcome.id) == name:
                self._finished.add(name, outcome.record)
            self._done_here += 1
        elif outcome.kind == "error":
            case = self.ledger.case(outcome.id)
            given_up = self.ledger.error(outcome.id, Failure("error", outcome.reason, worker, now()), where)
            self._keep_failure(case, given_up)
        elif outcome.kind == "shared":
            self.crashed([outcome.id], False, outcome.reason, worker, where)
        elif outcome.kind == "store":
            self.ledger.store_failed(outcome.id, Failure("store", outcome.reason, worker, now()), where)
        else:  # memory, stopped
            self.ledger.returned(outcome.id)
        self._catch_up([outcome.id])

    def crashed(self, ids: Sequence[str], alone: bool, reason: str, worker: str, where: str = "") -> None:
        """The process on the machine ``where`` ended that had these subjects."""
        for id in ids:
            case = self.ledger.case(id)
            given_up = self.ledger.crashed(id, alone, Failure("crash", reason, worker, now()), where)
            if alone:
                self._keep_failure(case, given_up)
        self._catch_up(ids)

    def lost(self, ids: Sequence[str]) -> None:
        """The machine went away that had these subjects."""
        for id in ids:
            self.ledger.returned(id)
        self._catch_up(ids)

    def tick(self) -> Status:
        """To be called about every second: follows the source, keeps the status. Raises SpatialAvatarError when
        another run has taken over."""
        time_now = time.monotonic()
        self._rate.note(time_now, self._done_here + self.partly_done)
        if self.ledger.open:
            self._finished.ask_again(time_now)
        self._finished.read_on()
        self._make_again()
        self._finished.judge_again()
        self._note_failed_writes()
        if self._looking is not None and self._looking.done():
            looking, self._looking = self._looking, None
            if (error := looking.exception()) is not None:
                self._note_once(f"changes of {self.config.subjects} are not followed for now: {error}")
            elif (found := looking.result()) is not None:
                self._follow(*found)
        elif self._looking is None and time_now - self._checked > SECONDS_BETWEEN_CHECKS:
            self._checked = time_now
            self._looking = self._office.submit(self._changed_listing, self._listing.version, self._by_name.keys())
        status = self._current("running")
        if self._writing is not None and self._writing.done():
            failed = self._writing.exception()
            self._writing = None
            if isinstance(failed, TakenOver):
                raise failed
        if self._writing is None and time_now - self._written > SECONDS_BETWEEN_WRITES[files.is_local(self._out)]:
            self._written = time_now
            self._writing = self._office.submit(self._write, status)
        return status

    def finish(self, state: State, alone: bool) -> Ending:
        """Write summary and last status; ``alone``: no worker writes any more, so what is superseded can go.

        Raises TakenOver, with nothing written, when another run has taken over; and, after all else is done that can
        be, StoreError where summary or status could not be written."""
        self._writer.require()
        said = len(self._notes)
        self._finished.read_the_rest()
        self._make_again()
        self._finished.judge_again(wait=True)
        if self._writing is not None and (error := self._writing.exception()) is not None:
            self._notes.append(str(error))
        self._note_failed_writes(wait=True)
        rows = self._rows()
        status = self._current(state)
        seconds = time.monotonic() - self._began
        more = {
            "this run": f"{self._done_here} finished in {seconds:.0f} s by up to {self._most_workers} workers",
            "optimising": "-" if status.optimising is None else f"{status.optimising:.0%} of the workers' time",
        }
        subjects = f"{self.config.subjects or 'none'}, {len(self._listing.subjects)} listed"
        unwritten: StoreError | OSError | None = None
        try:
            write_summary(self._out, rows, heading(state, subjects, self.recipe, more))
        except (StoreError, OSError) as e:
            unwritten = e
            self._notes.append(f"the summary could not be written: {e}")
            status = self._current(state)
        try:
            self._write(status)
        except (StoreError, OSError) as e:
            unwritten = unwritten or e
        if alone:
            with self._noted("what is superseded could not all be removed"):
                self._remove_superseded()
        self._office.shutdown()
        self._desk.shutdown()
        if unwritten is not None:
            raise unwritten
        return Ending(status, self._done_here, self._notes[said:])

    def _named(self, subjects: Iterable[FleetSubject]) -> dict[str, FleetSubject]:
        return {self.recipe.name(subject): subject for subject in subjects}

    def _looked_up(self, subjects: dict[str, FleetSubject], asked: Set[str]) -> _Wanted:
        """With what lies in the output of those ``asked`` for, by listings; failures are read."""
        records = listed(self._out, RECORDS) & asked
        if self._selection.retry_failed or self._selection.again:
            return _Wanted(subjects, records, {})
        return _Wanted(subjects, records, read_failures(self._out, (listed(self._out, FAILURES) & asked) - records))

    def _want(self, wanted: _Wanted) -> None:
        """Those who are new here and not finished join the ledger."""
        before, self._by_name = self._by_name, wanted.subjects
        self._names = {subject.id: name for name, subject in self._by_name.items()}
        self._failures |= wanted.failures
        self._finished.follow(self._by_name.keys(), wanted.records)
        for name, subject in self._by_name.items():
            if name not in before and name not in self._finished.names and subject.id not in self.ledger:
                self._enlist(name)

    def _enlist(self, name: str) -> None:
        """To be refined, with the failures of earlier runs, unless one of them gave it up."""
        subject = self._by_name[name]
        before, given_up = self._failures.get(name, ([], False))
        if given_up:
            self._given_up[subject.id] = Case(subject, before)
        else:
            self.ledger.add(subject, before)

    def _clear(self) -> None:
        """Nothing of what is made again must be taken up: records of the same names, checkpoints and failures."""
        remove(self._out, RECORDS, listed(self._out, RECORDS) & self._by_name.keys())
        for folder, names in (
            (UNFINISHED, files.list_folder(files.join(self._out, UNFINISHED))),
            (FAILURES, listed(self._out, FAILURES)),
        ):
            remove(self._out, folder, [name for name in names if id_in(name) in self._names])

    def _note_failed_writes(self, wait: bool = False) -> None:
        """Of failures; those that are not over are looked at later."""
        going_on = []
        for write in self._failure_writes:
            if not wait and not write.done():
                going_on.append(write)
            elif (error := write.exception()) is not None:
                self._notes.append(f"a failure could not be kept: {error}")
        self._failure_writes = going_on

    @contextlib.contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        """Of that which a run can do without."""
        try:
            yield
        except (SpatialAvatarError, OSError) as e:
            self._notes.append(f"{what}: {e}")

    def _note_once(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)

    def _make_again(self) -> None:
        """Subjects whose record turned out to be of no use."""
        for name in self._finished.take_damaged():
            subject = self._by_name.get(name)
            if subject is not None and subject.id not in self.ledger:
                self._enlist(name)

    def _catch_up(self, ids: Sequence[str]) -> None:
        """Of those that came back: for whom the list has named another clip since, or nothing."""
        for id in self._changed.intersection(ids):
            self._changed.remove(id)
            self.ledger.drop([id])
            name = self._names.get(id)
            if name is not None and name not in self._finished.names:
                self._enlist(name)

    def _keep_failure(self, case: Case, given_up: bool) -> None:
        name = self.recipe.name(case.subject)
        write = self._desk.submit(write_failure, self._out, name, case.subject, list(case.failures), given_up)
        self._failure_writes.append(write)

    def _changed_listing(self, version: str, known: Set[str]) -> tuple[Listing, _Wanted] | None:
        """The list when it has changed, and who of it is wanted; names that are ``known`` are not looked up again."""
        if not version or source_version(self.config.subjects) == version:
            return None
        listing = read_subjects(self.config.subjects, self.config.allow)
        only = self._selection.only
        wanted = self._named(subject for subject in listing.subjects if not only or subject.id in only)
        return listing, self._looked_up(wanted, wanted.keys() - known)

    def _follow(self, listing: Listing, wanted: _Wanted) -> None:
        """The source is another: new subjects join, those that are gone, or of another clip, and still wait leave."""
        self._listing = listing
        gone = [subject.id for name, subject in self._by_name.items() if name not in wanted.subjects]
        self.ledger.drop(gone)
        self._changed.update(id for id in gone if id in self.ledger)
        for id in gone:
            self._given_up.pop(id, None)
        self._want(wanted)
        self._finished.read_on()
        self._notes.append(f"{now()}: {self.config.subjects} has changed, {self.total} subjects from now on")

    def _current(self, state: State) -> Status:
        ledger = self.ledger
        failed = len(ledger.failed) + len(self._given_up) + len(self._listing.refused)
        per_hour = self._rate.per_hour()
        todo = max(0.0, ledger.waiting + ledger.out - self.partly_done)  # the two are not of one moment
        self._most_workers = max(self._most_workers, self.workers)
        self._status = replace(
            self._status,
            state=state,
            total=self.total + len(self._listing.refused),
            done=self.done,
            review=self._finished.to_review,
            running=ledger.out,
            queued=ledger.waiting,
            failed=failed,
            left=len(ledger.left),
            mean_psnr=self._finished.mean_psnr,
            subjects_per_hour=per_hour,
            seconds_left=3600 * todo / per_hour if per_hour and todo else None,
            workers=self.workers,
            starting=self.starting,
            workers_lost=self.workers_lost,
            optimising=self.optimising_seconds / self.total_seconds if self.optimising_seconds else None,
            updated=now(),
            notes=self._notes[-10:],
        )
        return self._status

    def _write(self, status: Status) -> None:
        self._writer.require()
        write_status(self._out, status)

    def _rows(self) -> list[Row]:
        known = self._finished.records
        finished = {id_in(name): record for name, record in known.items()}
        others = {id: ("left", case) for id, case in self.ledger.left.items()}
        others |= {id: ("failed", case) for id, case in (self._given_up | self.ledger.failed).items()}
        others |= {id_in(name): ("done", Case(self._by_name[name])) for name in self._finished.names - known.keys()}
        with self._noted("the summary lacks those that --only passed over"):
            self._add_passed_over(finished, others)
        return rows_of(self._listing, finished, others)

    def _add_passed_over(self, finished: dict[str, Record], others: dict[str, tuple[str, Case]]) -> None:
        passed_over = {self.recipe.name(s): s for s in self._listing.subjects if s.id not in self._names}
        if not passed_over:
            return
        there = listed(self._out, RECORDS) & passed_over.keys()
        read = read_records(self._out, there)
        finished |= {id_in(name): record for name, record in read if not isinstance(record, SpatialAvatarError)}
        tried = read_failures(self._out, (listed(self._out, FAILURES) & passed_over.keys()) - there)
        given_up = {name: tries for name, (tries, given_up) in tried.items() if given_up}
        others |= {id_in(name): ("failed", Case(passed_over[name], tries)) for name, tries in given_up.items()}

    def _remove_superseded(self) -> None:
        self._writer.require()
        remove_superseded(self._out, self._finished.names, self._finished.records)


def chosen(listing: Listing, only: Sequence[str]) -> list[FleetSubject]:
    """The subjects of a run. Raises SpatialAvatarError for an ID that is not listed."""
    if not only:
        return list(listing.subjects)
    by_id = {subject.id: subject for subject in listing.subjects}
    for id in only:
        if id not in by_id:
            near = difflib.get_close_matches(id, by_id, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {len(by_id)} others"
            raise SpatialAvatarError(f"--only {id}: no subject of that id; {hint}")
    return [by_id[id] for id in dict.fromkeys(only)]
