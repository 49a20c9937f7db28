"""Who is finished, as a run knows it: by a listing at once, by what the records say while the run goes on.

A listing tells whose record there is; mean, verdicts and summary need what is in it. The records of earlier runs are
read beside the loop, a store that does not give one is asked again, and one that another gate judges otherwise is
written anew.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.fleet.config import Gate
from spatialavatar.fleet.gate import review
from spatialavatar.fleet.records import Record, try_records, write_records
from spatialavatar.writer import Writer

SECONDS_BETWEEN_QUESTIONS = 30.0  # to a store that did not give a record


@dataclass(frozen=True)
class _Read:
    """What was found in records of earlier runs, by name."""

    verdicts: dict[str, Record]  # those that another gate judges otherwise
    unanswered: dict[str, StoreError]  # those that the store did not give


class Finished:
    def __init__(
        self, out: files.Location, gate: Gate, office: Executor, writer: Writer, note: Callable[[str], None]
    ) -> None:
        """Reads and writes in a thread of ``office``, and writes only while ``writer`` may; ``note`` hears of what is
        wrong with records."""
        self.names: set[str] = set()  # of records
        self._out, self._gate, self._office, self._writer, self._note = out, gate, office, writer, note
        self._records: dict[str, Record] = {}  # by name; those that are known, whoever made them
        self._to_review = self._psnr_count = 0  # of the known ones, like the sum
        self._psnr_sum = 0.0
        self._lock = threading.Lock()
        self._damaged: list[str] = []  # names of records that cannot be used
        self._unread: set[str] = set()  # names of records that nobody has asked for
        self._unanswered: dict[str, StoreError] = {}  # by name; asked for in vain
        self._asked = time.monotonic()
        self._reading: Future[_Read] | None = None
        self._verdicts: dict[str, Record] = {}  # by name; to be written
        self._judging: Future[None] | None = None

    @property
    def records(self) -> dict[str, Record]:
        """By name, as far as they are known."""
        with self._lock:
            return dict(self._records)

    @property
    def to_review(self) -> int:
        return self._to_review

    @property
    def mean_psnr(self) -> float | None:
        """dB, of the known ones."""
        with self._lock:
            return self._psnr_sum / self._psnr_count if self._psnr_count else None

    @property
    def open(self) -> bool:
        """Whether it may still turn out that somebody is not finished; not for records that the store does not give."""
        reading = self._reading is not None and not self._reading.done()
        return reading or bool(self._unread) or bool(self._damaged)

    def add(self, name: str, record: Record) -> None:
        """Of this run."""
        self.names.add(name)
        self._know(name, record)

    def follow(self, wanted: Set[str], there: Set[str]) -> None:
        """From now on those count whose names are ``wanted``; of them there are records by the names ``there``."""
        self._unread = (self._unread | (there - self.names)) & wanted
        self._unanswered = {name: e for name, e in self._unanswered.items() if name in wanted}
        with self._lock:
            self.names = (self.names | there) & wanted
            kept, self._records = self._records, {}
            self._psnr_sum, self._psnr_count, self._to_review = 0.0, 0, 0
        for name, record in kept.items():
            self._know(name, record)

    def ask_again(self, now: float) -> None:
        """For what the store did not give, when that is some time ago."""
        if now - self._asked > SECONDS_BETWEEN_QUESTIONS:
            self._unread |= self._unanswered.keys()

    def read_on(self, wait: bool = False) -> None:
        """Take in what was read, and read what is to be read yet; ``wait`` for all of it."""
        while True:
            if self._reading is not None and (wait or self._reading.done()):
                read, self._reading = self._reading.result(), None
                self._verdicts |= read.verdicts
                self._unanswered |= read.unanswered
            if self._reading is not None or not self._unread:
                return
            names, self._unread = self._unread, set()
            self._unanswered = {name: e for name, e in self._unanswered.items() if name not in names}
            self._asked = time.monotonic()
            self._reading = self._office.submit(self._read, sorted(names))
            if not wait:
                return

    def take_damaged(self) -> list[str]:
        """Names whose records turned out to be of no use, and which are finished no more."""
        damaged = []
        while self._damaged:
            damaged.append(self._damaged.pop())
        self.names.difference_update(damaged)
        return damaged

    def judge_again(self, wait: bool = False) -> None:
        """Write what another gate says of records."""
        if self._judging is not None and (wait or self._judging.done()):
            self._judging.result()
            self._judging = None
        if self._verdicts and self._judging is None:
            verdicts, self._verdicts = self._verdicts, {}
            self._judging = self._office.submit(self._write_verdicts, verdicts)
            if wait:
                self._judging.result()

    def read_the_rest(self) -> None:
        """At the end of a run: once more what the store did not give; what it still does not is noted."""
        self._unread |= self._unanswered.keys()
        self.read_on(wait=True)
        if self._unanswered:
            reason = next(iter(self._unanswered.values()))
            self._note(
                f"{len(self._unanswered)} records could not be read, and their metrics are not in the summary; "
                f"'spatialavatar fleet report' makes it anew: {reason}"
            )

    def _know(self, name: str, record: Record) -> None:
        with self._lock:
            if name not in self.names:  # it left the list while it was read
                return
            if name not in self._records:
                self._to_review += bool(record["review"])
                if record["metrics"].get("psnr") is not None:
                    self._psnr_sum += record["metrics"]["psnr"]
                    self._psnr_count += 1
            self._records[name] = record

    def _read(self, names: Sequence[str]) -> _Read:
        """In the office. One that cannot be used is as good as none."""
        read = _Read({}, {})
        for name, record in try_records(self._out, names):
            if isinstance(record, StoreError):
                read.unanswered[name] = record
                continue
            if isinstance(record, SpatialAvatarError):
                self._note(str(record))
                self._damaged.append(name)
                continue
            verdict = review(self._gate, record["metrics"])
            if verdict != record["review"]:  # the gate is another than then
                record = {**record, "review": verdict}
                read.verdicts[name] = record
            self._know(name, record)
        return read

    def _write_verdicts(self, records: Mapping[str, Record]) -> None:
        """In the office."""
        try:
            self._writer.require()
            write_records(self._out, records)
        except (SpatialAvatarError, OSError) as e:
            self._note(f"what the gate says of earlier avatars could not all be written: {e}")
