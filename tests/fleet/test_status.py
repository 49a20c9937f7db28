"""How a run stands: written and read, its rate, its silence, and the lines for people."""

import datetime
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet import status as status_module
from spatialavatar.fleet.records import FAILURES, RECORDS
from spatialavatar.fleet.status import (
    SILENT,
    Rate,
    Status,
    as_text,
    counted,
    duration,
    is_gone,
    line,
    now,
    public,
    read_status,
    silence,
    write_status,
)

FULL = Status(
    state="finished",
    total=10,
    done=5,
    review=1,
    running=2,
    queued=1,
    failed=1,
    left=1,
    mean_psnr=31.25,
    subjects_per_hour=120.0,
    seconds_left=90.0,
    workers=2,
    starting=1,
    workers_lost=3,
    optimising=0.5,
    started="2026-01-02T03:04:05Z",
    updated="2026-01-02T04:04:05Z",
    driver="process 1 on host",
    notes=["something happened"],
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime.datetime]:
    """What time it is; half a second past ``FULL.updated`` and a minute."""
    here = [datetime.datetime(2026, 1, 2, 4, 5, 5, 500_000, tzinfo=datetime.UTC)]

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return here[0].astimezone(tz)

    monkeypatch.setattr(status_module.datetime, "datetime", Clock)
    return here


@pytest.mark.parametrize("status", [FULL, Status(updated="2026-01-02T04:04:05Z")], ids=["full", "new"])
def test_a_status_is_read_as_written(tmp_path: Path, status: Status) -> None:
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status


def stored(**changes: Any) -> bytes:
    value = {"format": "spatialavatar-fleet-status", "version": 1, **asdict(FULL), **changes}
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        stored(format="spatialavatar-fleet"),
        stored(version=2),
        stored(done="many"),
        stored(notes="one"),
        stored(notes=[1]),
        stored(state="dreaming"),
        stored(updated="yesterday"),
        stored(updated=None),
        stored(seconds_left=[1]),
    ],
    ids=lambda content: str(content[:30]) + str(len(content)),
)
def test_a_damaged_status_is_one_error(tmp_path: Path, content: bytes) -> None:
    files.write_bytes(tmp_path / "status.json", content)
    with pytest.raises(SpatialAvatarError, match=r"status\.json: not ") as e:
        read_status(tmp_path)
    assert "\n" not in str(e.value)


def test_a_folder_without_a_fleet(tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match=r"no fleet there, it holds no status\.json"):
        read_status(tmp_path)


def test_silence(clock: list[datetime.datetime]) -> None:
    running = Status(state="running", updated=FULL.updated)
    assert silence(running) == 60.5 and not is_gone(running)
    clock[0] += datetime.timedelta(seconds=SILENT - 60.5)
    assert silence(running) == SILENT and not is_gone(running)
    clock[0] += datetime.timedelta(seconds=1)
    assert is_gone(running)
    assert not any(is_gone(Status(state=state, updated=FULL.updated)) for state in ("finished", "stopped", "failed"))  # type: ignore[arg-type]
    assert now() == "2026-01-02T04:06:06Z"
    assert silence(Status(updated=now())) == 0.0


def test_the_lines(clock: list[datetime.datetime]) -> None:
    assert as_text(FULL) == [
        "finished",
        "5 of 10 done, 2 running, 1 queued, 1 failed, 1 to review, 120/h, 90 s left, 31.25 dB",
        "1 left, because their store did not answer",
        "2 workers, 1 starting, 3 lost so far",
        "50% of the workers' time went into optimising",
        "started 2026-01-02T03:04:05Z, last word 2026-01-02T04:04:05Z, driver process 1 on host",
        "something happened",
    ]
    new = Status(total=3, queued=3, started=FULL.updated, updated=FULL.updated, driver="d")
    assert as_text(new)[:3] == ["running", "0 of 3 done, 0 running, 3 queued", "0 workers, 0 starting, 0 lost so far"]
    assert len(as_text(new)) == 4 and line(new) == "0 running, 3 queued"
    clock[0] += datetime.timedelta(minutes=10)
    assert as_text(new)[0] == "gone: no word for 11 min; run the same command again to go on"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (40.4, "40 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (719, "12 min"),
        (3569, "59 min"),
        (3570, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (48 * 3600 - 31, "47 h 59 min"),
        (48 * 3600, "2 d 0 h"),
        (52 * 3600, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_rate() -> None:
    rate = Rate()
    assert rate.per_hour() is None
    rate.note(100.0, 0)
    assert rate.per_hour() is None
    rate.note(160.0, 0)
    assert rate.per_hour() is None, "nothing is done yet"
    rate.note(220.0, 2)
    assert rate.per_hour() == pytest.approx(60.0)


def test_progress_that_was_lost_gives_no_rate() -> None:
    """A worker that ended takes what it had partly done with it."""
    rate = Rate()
    for time, done in ((0.0, 0.0), (60.0, 0.75), (120.0, 0.0), (180.0, -0.5)):
        rate.note(time, done)
    assert rate.per_hour() is None


def test_the_rate_is_that_of_the_last_minutes() -> None:
    """A slow start is forgotten; of a subject that takes longer than that all of its time counts."""
    rate = Rate()
    rate.note(0.0, 0)
    for minute in range(1, 121):
        rate.note(60.0 * minute, 1 if minute < 60 else 1 + 10 * (minute - 59))
    assert rate.per_hour() == pytest.approx(600.0)
    slow = Rate()
    slow.note(0.0, 0)
    slow.note(7200.0, 1)
    assert slow.per_hour() == pytest.approx(0.5)
    slow.note(14400.0, 2)
    assert slow.per_hour() == pytest.approx(0.5)


def test_the_rate_takes_little_memory() -> None:
    """Thousands of subjects that end in one second are one note, of the last of them."""
    rate = Rate()
    rate.note(0.0, 0)
    for done in range(1, 10_001):
        rate.note(done / 1000, done)
    assert len(rate._seen) < 20
    assert rate.per_hour() == pytest.approx(3_600_000, rel=1e-9)


def test_numbers_for_metrics() -> None:
    numbers = public(FULL)
    assert numbers["done"] == 5.0 and numbers["mean_psnr"] == 31.25
    assert set(numbers) == {f.name for f in fields(Status)} - {"state", "started", "updated", "driver", "notes"}
    assert "mean_psnr" not in public(Status())


def test_what_lies_in_the_folder(tmp_path: Path) -> None:
    assert counted(tmp_path) == {"records": 0, "failures": 0}
    for folder, names in ((RECORDS, ("a.0", "b.0")), (FAILURES, ("c.0",))):
        for name in names:
            files.write_json(tmp_path / folder / f"{name}.json", {})
    assert counted(tmp_path) == {"records": 2, "failures": 1}
