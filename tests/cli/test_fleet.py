"""``spatialavatar fleet``: what is said of output folders that are whole, half made, abandoned or damaged."""

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from spatialavatar import files
from spatialavatar.cli import fleet as commands
from spatialavatar.fleet.config import FleetConfig
from spatialavatar.fleet.records import RECORD_FORMAT, VERSION, Failure, Recipe, write_failure, write_record
from spatialavatar.fleet.status import SILENT, Status, now, write_status
from spatialavatar.fleet.subjects import FleetSubject

RECIPE = Recipe("c" * 64, "d" * 64)
LONG_AGO = "2026-01-02T03:04:05Z"


class Folder:
    """An output made by hand, with a manifest beside it."""

    def __init__(self, root: str) -> None:
        self.out, self.manifest = f"{root}/fleet", f"{root}/people.jsonl"
        self._ids: list[str] = []
        config = FleetConfig(subjects=self.manifest, output=self.out)
        head = {"format": "spatialavatar-fleet", "version": 1}
        recipe = {"config_hash": RECIPE.config_hash, "layout_fingerprint": RECIPE.layout_fingerprint}
        files.write_json(f"{self.out}/fleet.json", head | recipe | {"config": config.model_dump(mode="json")})

    def subject(self, id: str) -> FleetSubject:
        """On the list."""
        self._ids.append(id)
        rows = [json.dumps({"id": id, "clip": f"clips/{id}"}) for id in self._ids]
        files.write_bytes(self.manifest, "\n".join(rows).encode())
        return FleetSubject(id, f"{self.manifest.rpartition('/')[0]}/clips/{id}")

    def record(self, id: str, psnr: float | None = 30.0, recipe: Recipe = RECIPE, **changes: Any) -> str:
        subject = self.subject(id)
        record = {
            "format": RECORD_FORMAT,
            "version": VERSION,
            "id": id,
            "digest": recipe.digest(subject),
            "clip": subject.clip,
            "avatar": f"avatars/{id}.0",
            "metrics": {"psnr": psnr, "ssim": 0.9, "lpips": None, "frames": 4, "split": "test"},
            "review": [],
            "iterations": 400,
            "seconds": 6.5,
            "attempts": 1,
            "worker": "host, CPU",
            "finished": LONG_AGO,
            "config_hash": recipe.config_hash,
            "layout_fingerprint": recipe.layout_fingerprint,
        }
        write_record(self.out, recipe.name(subject), record | changes)
        picture = np.full((24, 96, 3), int(psnr or 0), np.uint8)
        files.write_bytes(f"{self.out}/avatars/{id}.0/thumbnail.jpg", cv2.imencode(".jpg", picture)[1].tobytes())
        return f"{self.out}/records/{recipe.name(subject)}.json"

    def failure(self, id: str, reasons: list[str], given_up: bool) -> None:
        subject = self.subject(id)
        tries = [Failure("error", reason, "process 3 on host, cpu", LONG_AGO) for reason in reasons]
        write_failure(self.out, RECIPE.name(subject), subject, tries, given_up)

    def status(self, state: str = "running", updated: str | None = None, **values: Any) -> None:
        given = {"total": 5, "done": 2, "running": 1, "queued": 2, "started": LONG_AGO, "driver": "process 7 on host"}
        write_status(self.out, Status(**(given | {"state": state, "updated": updated or now()} | values)))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """One of each kind; eve is on the list and nothing more."""
    folder = Folder(str(tmp_path))
    folder.record("ann", 31.25)
    folder.record("ben", 17.5, review=["PSNR 17.5 dB, at least 20 is delivered", "aspect ratio 9, at most 8"])
    folder.failure("cid", ["a", "clip.json:\tnot\nvalid \x1b[31mJSON"], given_up=True)
    folder.failure("dan", ["the JPEG is truncated"], given_up=False)
    folder.subject("eve")
    return folder


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[Callable[[], None]]], None]]:
    """What happens between the looks of --watch, in place of waiting."""

    def between(events: list[Callable[[], None]]) -> None:
        left = iter(events)
        monkeypatch.setattr(commands, "time", SimpleNamespace(sleep=lambda seconds: next(left)()))

    yield between


def lines(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_list_is_for_scripts(folder: Folder, run) -> None:  # type: ignore[no-untyped-def]
    result = run("fleet", "list", folder.out)
    assert result.code == 0 and result.err == ""
    assert lines(result.out) == [
        ["cid", "failed", "", "clip.json: not valid ?[31mJSON"],
        ["dan", "missing", "", "the JPEG is truncated"],
        ["eve", "missing", "", ""],
        ["ben", "review", "17.50", "PSNR 17.5 dB, at least 20 is delivered; aspect ratio 9, at most 8"],
        ["ann", "done", "31.25", ""],
    ]
    some = run("fleet", "list", folder.out, "--outcome", "failed", "--outcome", "review")
    assert [row[0] for row in lines(some.out)] == ["cid", "ben"]
    assert run("fleet", "list", folder.out, "--outcome", "refused").out == ""
    wrong = run("fleet", "list", folder.out, "--outcome", "faild")
    assert wrong.code == 2 and wrong.err.startswith("error: --outcome faild: expected failed, ")


def test_report_makes_the_summary(folder: Folder, run) -> None:  # type: ignore[no-untyped-def]
    folder.status(updated=LONG_AGO)
    result = run("fleet", "report", f"{folder.out}/")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{folder.out}/summary.md: 1 failed, 2 missing, 1 review, 1 done\n"
    rows = {row["id"]: row for row in pq.read_table(f"{folder.out}/summary.parquet").to_pylist()}
    assert {id: row["outcome"] for id, row in rows.items()} == {
        "ann": "done",
        "ben": "review",
        "cid": "failed",
        "dan": "missing",
        "eve": "missing",
    }
    assert rows["ann"]["psnr"] == 31.25 and rows["cid"]["attempts"] == 2 and rows["dan"]["attempts"] == 1
    assert rows["eve"]["clip"].endswith("clips/eve")
    page = Path(folder.out, "summary.md").read_text()
    assert "- state: gone: no word for" in page and "from the records" in page
    assert cv2.imread(f"{folder.out}/sheet.jpg").shape[1] == 96


def test_report_passes_over_what_is_damaged(folder: Folder, run) -> None:  # type: ignore[no-untyped-def]
    Path(folder.record("fay")).write_text("{")
    folder.record("gus", metrics={"psnr": "high"})
    folder.record("hal", review=[3])
    folder.record("ida", recipe=Recipe("other", "other"))
    Path(folder.record("jon")).write_text("[]")
    folder.failure("kim", ["x"], given_up=True)
    Path(folder.out, "failures", f"{RECIPE.name(folder.subject('kim'))}.json").write_text('{"failures": 3}')
    Path(folder.out, "avatars", "ann.0", "thumbnail.jpg").write_bytes(b"")
    Path(folder.out, "avatars", "ben.0", "thumbnail.jpg").write_bytes(b"no picture")
    result = run("fleet", "report", folder.out)
    assert result.code == 0
    assert [name for name in ("fay", "gus", "hal", "jon") if f"/records/{name}." in result.err] == [
        "fay",
        "gus",
        "hal",
        "jon",
    ]
    table = pq.read_table(f"{folder.out}/summary.parquet").to_pydict()
    outcomes = dict(zip(table["id"], table["outcome"]))
    assert {id for id, outcome in outcomes.items() if outcome == "missing"} >= {"fay", "gus", "hal", "ida", "jon"}
    assert outcomes["ann"] == "done"


def test_report_without_the_list(folder: Folder, run) -> None:  # type: ignore[no-untyped-def]
    """Of the newest record of these settings, or else of failures."""
    folder.record("ida", recipe=Recipe("other", "other"))
    Path(folder.manifest).unlink()
    result = run("fleet", "list", folder.out)
    assert result.code == 0 and "their list cannot be read" in result.err and result.err.count("\n") == 1
    assert [row[0] for row in lines(result.out)] == ["cid", "dan", "ben", "ann"]
    assert run("fleet", "report", folder.out).out.endswith("1 failed, 1 missing, 1 review, 1 done\n")
    assert "- note 1: " in Path(folder.out, "summary.md").read_text()


def test_in_a_store(run) -> None:  # type: ignore[no-untyped-def]
    folder = Folder("memory://lab/people")
    folder.record("ann", 31.0)
    folder.failure("ben", ["broken"], given_up=True)
    folder.status("finished")
    assert run("fleet", "report", folder.out).out == f"{folder.out}/summary.md: 1 failed, 1 done\n"
    assert files.exists(f"{folder.out}/summary.parquet") and files.exists(f"{folder.out}/sheet.jpg")
    assert run("fleet", "list", folder.out).out == "ben\tfailed\t\tbroken\nann\tdone\t31.00\t\n"
    assert run("fleet", "status", folder.out).out.startswith("finished\n2 of 5 done")


def test_status_for_people(folder: Folder, run) -> None:  # type: ignore[no-untyped-def]
    folder.status(failed=1, subjects_per_hour=120.0, mean_psnr=24.375, notes=["the list\x1b has changed"])
    result = run("fleet", "status", folder.out)
    assert result.code == 0
    assert result.out.splitlines()[:2] == ["running", "2 of 5 done, 1 running, 2 queued, 1 failed, 120/h, 24.38 dB"]
    assert "the list? has changed" in result.out and "in the folder now" not in result.out


def test_status_of_a_run_that_is_gone(folder: Folder, run) -> None:  # type: ignore[no-untyped-def]
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=SILENT + 300)
    folder.status(updated=then.strftime("%Y-%m-%dT%H:%M:%SZ"))
    result = run("fleet", "status", folder.out, "--watch")
    assert result.code == 0 and result.out.startswith("gone: no word for 7 min; run the same command again")
    assert result.out.splitlines()[-1] == "in the folder now: 2 finished, 2 with failures"
    told = json.loads(run("fleet", "status", folder.out, "--json").out)
    assert told["gone"] is True and told["seconds_silent"] > SILENT and told["state"] == "running"
    assert told["total"] == 5 and told["driver"] == "process 7 on host"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_watch_ends_with_the_run(folder: Folder, run, looks, form: list[str]) -> None:  # type: ignore[no-untyped-def]
    folder.status()
    looks([lambda: None, lambda: folder.status(done=4), lambda: folder.status("finished", done=5)])
    result = run("fleet", "status", folder.out, "--watch", *form)
    assert result.code == 0
    if form:
        assert [json.loads(line)["done"] for line in result.out.splitlines()][-2:] == [4, 5]
    else:
        first, second, third = result.out.split("\n\n")
        assert first.startswith("running\n2 of 5") and second.startswith("running\n4 of 5")
        assert third.startswith("finished\n5 of 5")


def test_watch_is_interrupted(folder: Folder, run, looks) -> None:  # type: ignore[no-untyped-def]
    def press() -> None:
        raise KeyboardInterrupt

    folder.status()
    looks([press])
    result = run("fleet", "status", folder.out, "--watch")
    assert (result.code, result.err) == (130, "") and result.out.startswith("running\n")


@pytest.mark.parametrize("command", ["status", "report", "list"])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("{tmp}", "no fleet there"),
        ("{tmp}/nowhere", "no fleet there"),
        ("memory://nowhere/at/all", "no fleet there"),
        ("nosuch://bucket/fleet", "no way to open such a URL"),
    ],
)
def test_what_is_no_fleet_is_one_line(run, tmp_path: Path, command: str, url: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    result = run("fleet", command, url.format(tmp=tmp_path))
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("error: ") and expected in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": "spatialavatar-fleet-status", "version": 2}',
        '{"format": "spatialavatar-fleet-status", "version": 1}',
        '{"format": "spatialavatar-fleet-status", "version": 1, "updated": "yesterday"}',
        '{"format": "spatialavatar-fleet-status", "version": 1, "updated": "2026-01-02T03:04:05Z", "done": "many"}',
        '{"format": "spatialavatar-fleet-status", "version": 1, "updated": "2026-01-02T03:04:05Z", "state": "odd"}',
    ],
)
def test_damaged_status_is_one_line(folder: Folder, run, content: str) -> None:  # type: ignore[no-untyped-def]
    Path(folder.out, "status.json").write_text(content)
    for options in ([], ["--json"], ["--watch"]):
        result = run("fleet", "status", folder.out, *options)
        assert result.code == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1
        assert "status.json" in result.err
    assert run("fleet", "report", folder.out).code == 0
    assert "- state: unknown" in Path(folder.out, "summary.md").read_text()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "spatialavatar-fleet", "version": 1, "config": 3}'])
def test_damaged_settings_are_one_line(folder: Folder, run, content: str) -> None:  # type: ignore[no-untyped-def]
    Path(folder.out, "fleet.json").write_text(content)
    for command in ("report", "list"):
        result = run("fleet", command, folder.out)
        assert result.code == 2 and "fleet.json" in result.err and result.err.count("\n") == 1
