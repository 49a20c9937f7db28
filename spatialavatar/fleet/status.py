"""How a run stands: kept in ``status.json`` while it goes on, so that anyone can look without a cluster."""

import datetime
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.fleet.records import FAILURES, RECORDS, listed

FILE = "status.json"
FORMAT = "spatialavatar-fleet-status"
VERSION = 1
SILENT = 120.0  # seconds without a word after which a run counts as gone
State = Literal["running", "finished", "stopped", "failed"]
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_RECENT = 600.0  # seconds over which the rate is taken
_BETWEEN_NOTES = 1.0  # seconds


@dataclass
class Status:
    """Counts are of the subjects on the list, whoever finished them."""

    state: State = "running"
    total: int = 0
    done: int = 0
    review: int = 0  # of the done ones
    running: int = 0
    queued: int = 0
    failed: int = 0
    left: int = 0  # whose store did not answer
    mean_psnr: float | None = None  # dB, of the done ones that are known
    subjects_per_hour: float | None = None
    seconds_left: float | None = None
    workers: int = 0
    starting: int = 0
    workers_lost: int = 0
    optimising: float | None = None  # share of the workers' time in which they optimised
    started: str = ""
    updated: str = ""
    driver: str = ""
    notes: list[str] = field(default_factory=list)


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime(_TIME)


def write_status(out: files.Location, status: Status) -> None:
    files.write_json(files.join(out, FILE), {"format": FORMAT, "version": VERSION, **asdict(status)})


def read_status(out: files.Location) -> Status:
    """Raises SpatialAvatarError when there is no run, or a damaged status."""
    where = files.join(out, FILE)
    if not files.exists(where):
        raise SpatialAvatarError(f"{out}: no fleet there, it holds no {FILE}; give the --output of a run")
    value = files.read_json(where)
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
        raise SpatialAvatarError(f"{where}: not a status of version {VERSION}; the next run writes it anew")
    try:
        status = TypeAdapter(Status).validate_python(value)
        silence(status)
    except ValueError as e:  # pydantic's errors are such
        reason = in_short(e)
        raise SpatialAvatarError(f"{where}: not a status that this program reads ({reason})") from None
    return status


def silence(status: Status) -> float:
    """Seconds since a run wrote its status."""
    then = datetime.datetime.strptime(status.updated, _TIME).replace(tzinfo=datetime.UTC)
    return (datetime.datetime.now(datetime.UTC) - then).total_seconds()


def is_gone(status: Status) -> bool:
    """Whether a run that did not end has been silent for too long."""
    return status.state == "running" and silence(status) > SILENT


def state_of(status: Status) -> str:
    """As a person says it."""
    if is_gone(status):
        return f"gone: no word for {duration(silence(status))}; run the same command again to go on"
    return status.state


def counted(out: files.Location) -> dict[str, int]:
    """What lies in the folder now, by two listings."""
    return {"records": len(listed(out, RECORDS)), "failures": len(listed(out, FAILURES))}


class Rate:
    """Subjects an hour, over the last minutes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()  # when, and how many were done by then

    def note(self, time: float, done: float) -> None:
        """``done`` subjects were done in this run by ``time``, in seconds."""
        if len(self._seen) > 1 and time - self._seen[-2][0] < _BETWEEN_NOTES:
            self._seen.pop()
        self._seen.append((time, done))
        while len(self._seen) > 2 and time - self._seen[1][0] > _RECENT:
            self._seen.popleft()

    def per_hour(self) -> float | None:
        """None before anything is done, and when more was lost."""
        if len(self._seen) < 2 or self._seen[-1][1] <= self._seen[0][1]:
            return None
        (then, before), (now, done) = self._seen[0], self._seen[-1]
        return 3600 * (done - before) / max(now - then, 1e-9)


def line(status: Status) -> str:
    """The part of the live line that a progress bar does not say."""
    parts = [f"{status.running} running", f"{status.queued} queued"]
    parts += [f"{count} {word}" for count, word in ((status.failed, "failed"), (status.review, "to review")) if count]
    if status.subjects_per_hour is not None:
        parts.append(f"{status.subjects_per_hour:.0f}/h")
    if status.seconds_left is not None:
        parts.append(f"{duration(status.seconds_left)} left")
    if status.mean_psnr is not None:
        parts.append(f"{status.mean_psnr:.2f} dB")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """As a person says it: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def as_text(status: Status) -> list[str]:
    """Lines for people."""
    lines = [state_of(status), f"{status.done} of {status.total} done, {line(status)}"]
    if status.left:
        lines.append(f"{status.left} left, because their store did not answer")
    lines.append(f"{status.workers} workers, {status.starting} starting, {status.workers_lost} lost so far")
    if status.optimising is not None:
        lines.append(f"{status.optimising:.0%} of the workers' time went into optimising")
    lines.append(f"started {status.started}, last word {status.updated}, driver {status.driver}")
    return lines + status.notes


def public(status: Status) -> dict[str, Any]:
    """The numbers, for metrics."""
    return {
        name: float(value)
        for name, value in asdict(status).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
