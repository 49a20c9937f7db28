"""The driver's side of a fleet, without workers: their outcomes are settled by hand, and all is done at once."""

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spatialavatar import files
from spatialavatar.config import load_config
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.fleet import finished as fleet_finished
from spatialavatar.fleet import run as fleet_run
from spatialavatar.fleet.config import FleetConfig, config_hash
from spatialavatar.fleet.ledger import Case
from spatialavatar.fleet.pipeline import Outcome
from spatialavatar.fleet.records import (
    AVATARS,
    FAILURES,
    RECORDS,
    UNFINISHED,
    Recipe,
    listed,
    read_record,
    write_record,
)
from spatialavatar.fleet.run import FleetRun, Selection
from spatialavatar.fleet.status import read_status
from spatialavatar.fleet.subjects import FleetSubject, Listing, Refused, read_subjects
from spatialavatar.writer import TakenOver
from tests.builders.fleet_records import record_of


class AtOnce:
    """Does what it is given before it returns."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as e:
            future.set_exception(e)
        return future

    def shutdown(self) -> None:
        pass


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_run, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(fleet_run, "SECONDS_BETWEEN_WRITES", {True: -1.0, False: -1.0})
    monkeypatch.setattr(fleet_run, "SECONDS_BETWEEN_CHECKS", -1.0)
    monkeypatch.setattr(fleet_finished, "SECONDS_BETWEEN_QUESTIONS", -1.0)


@dataclass
class Fleet:
    """An output and the manifest that it is made from."""

    folder: Path

    @property
    def out(self) -> str:
        return str(self.folder / "out")

    def listing(self, *rows: str) -> Listing:
        """Write a manifest of ``ID`` or ``ID=CLIP``, another one each time."""
        pairs = [(id, clip or id) for id, _, clip in (row.partition("=") for row in rows)]
        text = "id,clip\n" + "".join(f"{id},{clip}\n" for id, clip in pairs)
        files.write_bytes(self.folder / "m.csv", text.encode())
        return read_subjects(self.folder / "m.csv")

    def start(self, listing: Listing, *changes: str, **selection: Any) -> FleetRun:
        run = self.look(listing, *changes, **selection)
        run.begin()
        return run

    def look(self, listing: Listing, *changes: str, **selection: Any) -> FleetRun:
        places = [f"output={self.out}", f"subjects={self.folder}/m.csv"]
        config = load_config(FleetConfig, None, [*places, *changes])
        recipe = Recipe(config_hash(config, None, None), f"layout{config.refine.uv_resolution}")
        return FleetRun(config, recipe, listing, Selection(**selection))

    def end(self, run: FleetRun, state: Any = "finished", alone: bool = True) -> dict[str, dict[str, Any]]:
        """Rows of the summary, by id."""
        run.finish(state, alone)
        rows = pq.read_table(f"{self.out}/summary.parquet").to_pylist()
        return {row["id"]: row for row in rows}

    def outcomes(self, run: FleetRun, state: Any = "finished", alone: bool = True) -> dict[str, str]:
        return {id: row["outcome"] for id, row in self.end(run, state, alone).items()}

    def avatars(self) -> list[str]:
        return files.list_folder(f"{self.out}/{AVATARS}")


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def refine(run: FleetRun, case: Case, **metrics: Any) -> None:
    """As a worker does: avatar, record, word."""
    record = record_of(run.recipe, case.subject, run_review(run, metrics), **metrics)
    files.write_bytes(f"{run.config.output}/{record['avatar']}/avatar.json", b"{}")
    write_record(run.config.output, run.recipe.name(case.subject), record)
    run.settle(Outcome(case.subject.id, "done", record=record), "worker")


def subjects_of(run: FleetRun) -> list[FleetSubject]:
    return list(run._by_name.values())


def run_review(run: FleetRun, metrics: dict[str, Any]) -> list[str]:
    return fleet_finished.review(run.config.gate, metrics)


def refine_all(run: FleetRun, **metrics: Any) -> list[str]:
    """Whoever waits; their ids."""
    cases = run.ledger.take(100)
    while (case := run.ledger.take_suspect()) is not None:
        cases.append(case)
    for case in cases:
        refine(run, case, **metrics)
    return [case.subject.id for case in cases]


def waiting(run: FleetRun) -> list[str]:
    cases = run.ledger.take(100)
    for case in reversed(cases):
        run.ledger.returned(case.subject.id)
    return [case.subject.id for case in cases]


def fail(run: FleetRun, id: str, times: int = 2, reason: str = "no face") -> None:
    for _ in range(times):
        case = next(case for case in run.ledger.take(100) if case.subject.id == id)
        for other in list(run.ledger._out):
            if other != case.subject.id:
                run.ledger.returned(other)
        run.settle(Outcome(id, "error", reason), "worker")


def test_from_nothing_to_a_summary(fleet: Fleet) -> None:
    listing = fleet.listing("anna", "ben", "..")
    run = fleet.start(listing)
    assert (run.done, run.total, run.ledger.waiting, run.open) == (0, 2, 2, True)
    jobs = run.jobs_of(run.ledger.take(1))
    assert [(job.subject.id, job.name, job.attempts) for job in jobs] == [
        ("anna", run.recipe.name(listing.subjects[0]), 1)
    ]
    status = run.tick()
    assert (status.total, status.running, status.queued, status.failed, status.done) == (3, 1, 1, 1, 0)
    refine(run, run.ledger.case("anna"), psnr=30.0)
    fail(run, "ben")
    status = run.tick()
    assert (status.running, status.queued, status.failed, status.done, status.mean_psnr) == (0, 0, 2, 1, 30.0)
    assert not run.open
    rows = fleet.end(run)
    assert {id: row["outcome"] for id, row in rows.items()} == {"anna": "done", "ben": "failed", "..": "refused"}
    assert (rows["ben"]["reason"], rows["ben"]["attempts"], rows["ben"]["worker"]) == ("no face", 2, "worker")
    ended = read_status(fleet.out)
    assert (ended.state, ended.done, ended.failed, ended.total) == ("finished", 1, 2, 3)
    assert files.read_json(f"{fleet.out}/fleet.json")["config"]["output"] == fleet.out


def test_whoever_looks_sees_the_run_that_began(fleet: Fleet) -> None:
    fleet.outcomes(fleet.start(fleet.listing("anna")), "stopped")
    assert read_status(fleet.out).state == "stopped"
    fleet.start(fleet.listing("anna", "ben"))
    assert (read_status(fleet.out).state, read_status(fleet.out).queued) == ("running", 2)


def test_what_is_finished_is_skipped_by_its_name(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fleet.start(fleet.listing("anna", "ben", "cleo"))
    refine(first, first.ledger.take(1)[0], psnr=31.0)
    fleet.end(first, "stopped", alone=False)
    again = fleet.start(fleet.listing("anna", "ben", "cleo"))
    assert again.done == 1 and waiting(again) == ["ben", "cleo"]
    assert again.tick().mean_psnr == 31.0
    assert refine_all(again, psnr=33.0) == ["ben", "cleo"]
    assert fleet.end(again)["anna"]["psnr"] == 31.0

    monkeypatch.setattr(fleet_finished, "try_records", lambda out, names: iter(()))  # by the listing alone
    last = fleet.start(fleet.listing("anna", "ben", "cleo"))
    assert (last.done, last.ledger.open) == (3, False)


def test_another_clip_or_state_is_another_subject(fleet: Fleet) -> None:
    run = fleet.start(fleet.listing("anna", "ben"))
    refine_all(run)
    fleet.end(run)
    assert waiting(fleet.start(fleet.listing("anna=other", "ben"))) == ["anna"]
    changed = [FleetSubject(s.id, s.clip, "0a") for s in fleet.listing("ben").subjects]
    assert waiting(fleet.start(Listing(tuple(changed), (), ""))) == ["ben"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["refine.iterations=5"], "refine.iterations: 10000 then, 5 now"),
        (
            ["refine.seed=1", "evaluation.frames=2", "refine.log_every=7", "gate.min_psnr=1"],
            r"\(evaluation.frames: None then, 2 now; refine.seed: 0 then, 1 now\)",
        ),
    ],
)
def test_other_settings_are_refused_and_named(fleet: Fleet, changes: list[str], said: str) -> None:
    run = fleet.start(fleet.listing("anna"))
    before = (fleet.folder / "out/fleet.json").read_bytes(), (fleet.folder / "out/writer.json").read_bytes()
    with pytest.raises(SpatialAvatarError, match=rf"was made with other settings .*{said}.*--no-resume"):
        fleet.start(fleet.listing("anna"), *changes)
    assert ((fleet.folder / "out/fleet.json").read_bytes(), (fleet.folder / "out/writer.json").read_bytes()) == before
    run.tick()  # is still the one that writes


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": "spatialavatar-fleet", "version": 2}', "{"])
def test_settings_that_cannot_be_read(fleet: Fleet, content: str) -> None:
    files.write_bytes(f"{fleet.out}/fleet.json", content.encode())
    with pytest.raises(SpatialAvatarError, match=r"no readable fleet.json|not valid JSON"):
        fleet.start(fleet.listing("anna"))


def test_harmless_settings_may_be_others(fleet: Fleet) -> None:
    refine_all(fleet.start(fleet.listing("anna")))
    changes = [
        "refine.log_every=7",
        "refine.checkpoint_every=3",
        "gate.min_psnr=3",
        "workers.cpus=2",
        "attempts.errors=9",
    ]
    assert fleet.start(fleet.listing("anna"), *changes).done == 1
    assert files.read_json(f"{fleet.out}/fleet.json")["config"]["attempts"]["errors"] == 9


def test_a_foreign_folder_is_not_written_into(fleet: Fleet) -> None:
    files.write_bytes(f"{fleet.out}/thesis.tex", b"years")
    with pytest.raises(SpatialAvatarError, match="holds something else"):
        fleet.start(fleet.listing("anna"))
    assert files.list_folder(fleet.out) == ["thesis.tex"]


def test_all_of_it_again(fleet: Fleet) -> None:
    """With other settings, too: records of the same names are gone at once, those of others when theirs are made."""
    refine_all(fleet.start(fleet.listing("anna", "ben")))
    again = fleet.start(fleet.listing("anna", "ben"), again=True)
    assert again.done == 0 and listed(fleet.out, RECORDS) == set() and refine_all(again) == ["anna", "ben"]
    other = fleet.start(fleet.listing("anna", "ben"), "refine.seed=1", again=True)
    old = listed(fleet.out, RECORDS)
    refine(other, other.ledger.take(1)[0])
    assert len(listed(fleet.out, RECORDS)) == 3
    fleet.end(other)
    assert listed(fleet.out, RECORDS) - old == {other.recipe.name(subjects_of(other)[0])}
    assert {name.partition(".")[0] for name in listed(fleet.out, RECORDS) & old} == {"ben"}


def test_some_subjects_alone(fleet: Fleet) -> None:
    """The summary tells of all, whoever made them."""
    first = fleet.start(fleet.listing("anna", "ben", "cleo", "dora"))
    refine(first, first.ledger.take(1)[0], psnr=31.0)
    fail(first, "dora")
    fleet.end(first)
    run = fleet.start(fleet.listing("anna", "ben", "cleo", "dora"), only=("cleo", "anna", "cleo"))
    assert (run.total, run.done, waiting(run)) == (2, 1, ["cleo"])
    refine_all(run)
    rows = fleet.end(run)
    assert {id: row["outcome"] for id, row in rows.items()} == {
        "anna": "done",
        "ben": "missing",
        "cleo": "done",
        "dora": "failed",
    }
    assert rows["anna"]["psnr"] == 31.0 and rows["dora"]["reason"] == "no face"


def test_an_id_that_is_nearly_one(fleet: Fleet) -> None:
    with pytest.raises(SpatialAvatarError, match=r"--only anne: no subject of that id; did you mean anna\?"):
        fleet.start(fleet.listing("ben", "anna"), only=("ben", "anne"))
    with pytest.raises(SpatialAvatarError, match=r"--only xyz: no subject of that id; there are 2 others"):
        fleet.start(fleet.listing("ben", "anna"), only=("xyz",))
    assert not (fleet.folder / "out").exists()


def test_what_was_given_up_is_tried_again_when_asked_for(fleet: Fleet) -> None:
    first = fleet.start(fleet.listing("anna", "ben"))
    fail(first, "anna", times=2)
    fail(first, "ben", times=1)
    fleet.end(first, "stopped")
    second = fleet.start(fleet.listing("anna", "ben"))
    assert waiting(second) == ["ben"] and second.tick().failed == 1
    assert second.ledger.take(1)[0].attempts == 2, "the failure of the first run counts"
    second.settle(Outcome("ben", "error", "blurred"), "worker")
    assert {id: row["reason"] for id, row in fleet.end(second).items()} == {"anna": "no face", "ben": "blurred"}
    third = fleet.start(fleet.listing("anna", "ben"), retry_failed=True)
    assert [case.attempts for case in third.ledger.take(2)] == [1, 1] and third.tick().failed == 0
    for id in ("anna", "ben"):
        refine(third, third.ledger.case(id))
    assert fleet.outcomes(third) == {"anna": "done", "ben": "done"}
    assert listed(fleet.out, FAILURES) == set()


def test_crashes_alone_count_over_runs_and_those_among_others_do_not(fleet: Fleet) -> None:
    first = fleet.start(fleet.listing("anna", "ben"), "attempts.crashes=2")
    first.ledger.take(2)
    first.crashed(["anna", "ben"], False, "ended", "worker")
    assert listed(fleet.out, FAILURES) == set() and first.ledger.suspects == 2
    case = first.ledger.take_suspect()
    assert case is not None
    first.crashed([case.subject.id], True, "ended", "worker")
    fleet.end(first, "stopped")
    second = fleet.start(fleet.listing("anna", "ben"), "attempts.crashes=2")
    assert second.ledger.suspects == 1
    suspect = second.ledger.take_suspect()
    assert suspect is not None and suspect.subject.id == case.subject.id
    second.crashed([case.subject.id], True, "ended", "worker")
    assert second.tick().failed == 1


def test_a_lost_machine_and_a_silent_store(fleet: Fleet) -> None:
    run = fleet.start(fleet.listing("anna", "ben"), "attempts.stores=1", "attempts.crashes=1", "attempts.errors=1")
    run.ledger.take(2)
    run.lost(["anna"])
    run.settle(Outcome("ben", "store", "no answer"), "worker")
    for kind in ("memory", "stopped"):
        run.ledger.take(1)
        run.settle(Outcome("anna", kind), "worker")  # type: ignore[arg-type]
    status = run.tick()
    assert (status.queued, status.left, status.failed) == (1, 1, 0) and listed(fleet.out, FAILURES) == set()
    rows = fleet.end(run, "stopped")
    assert {id: row["outcome"] for id, row in rows.items()} == {"anna": "missing", "ben": "left"}
    assert (rows["ben"]["reason"], rows["ben"]["worker"], rows["ben"]["attempts"]) == ("no answer", "worker", 1)
    assert waiting(fleet.start(fleet.listing("anna", "ben"))) == ["anna", "ben"]


def test_another_gate_gives_another_verdict(fleet: Fleet) -> None:
    """On what is finished already: its record is written again, with nothing else changed."""
    first = fleet.start(fleet.listing("anna", "ben"), "gate.min_psnr=20")
    refine_all(first, psnr=30.0)
    assert fleet.outcomes(first) == {"anna": "done", "ben": "done"}
    name = first.recipe.name(subjects_of(first)[0])
    before = read_record(fleet.out, name)
    strict = fleet.start(fleet.listing("anna", "ben"), "gate.min_psnr=35")
    assert strict.tick().review == 2 and not strict.open
    assert fleet.outcomes(strict) == {"anna": "review", "ben": "review"}
    assert read_record(fleet.out, name) == {**before, "review": ["PSNR 30 dB, at least 35 is delivered"]}
    lenient = fleet.start(fleet.listing("anna", "ben"), "gate.min_psnr=null")
    assert lenient.tick().review == 0
    assert fleet.outcomes(lenient) == {"anna": "done", "ben": "done"} and read_record(fleet.out, name) == before


def test_a_damaged_record_is_made_again(fleet: Fleet) -> None:
    first = fleet.start(fleet.listing("anna", "ben"))
    refine_all(first)
    name = first.recipe.name(subjects_of(first)[0])
    (fleet.folder / "out" / RECORDS / f"{name}.json").write_bytes(b"{}")
    run = fleet.start(fleet.listing("anna", "ben"))
    assert run.open
    run.know_all()
    assert run.done == 1 and refine_all(run) == ["anna"]
    assert fleet.outcomes(run) == {"anna": "done", "ben": "done"} and read_record(fleet.out, name)["id"] == "anna"
    assert any(name in note for note in read_status(fleet.out).notes)


def follow(run: FleetRun) -> None:
    """Look at the list, and take in what was seen."""
    run.tick()
    run.tick()


def test_a_list_that_grows_and_shrinks(fleet: Fleet) -> None:
    run = fleet.start(fleet.listing("anna", "ben", "cleo"))
    run.ledger.take(1)
    fleet.listing("dora", "anna", "cleo")
    follow(run)
    assert run.total == 3 and waiting(run) == ["cleo", "dora"]
    refine(run, run.ledger.case("anna"))
    refine_all(run)
    assert not run.open and fleet.outcomes(run) == {"anna": "done", "cleo": "done", "dora": "done"}
    assert "has changed, 3 subjects from now on" in read_status(fleet.out).notes[0]


def test_who_joins_may_be_finished_already(fleet: Fleet) -> None:
    """By an earlier run with a longer list."""
    first = fleet.start(fleet.listing("anna", "ben"))
    refine_all(first, psnr=25.0)
    run = fleet.start(fleet.listing("ben"))
    assert (run.done, run.total) == (1, 1)
    fleet.listing("ben", "anna", "cleo")
    follow(run)
    assert (run.done, run.total, waiting(run)) == (2, 3, ["cleo"])
    refine_all(run, psnr=40.0)
    rows = fleet.end(run)
    assert {id: row["psnr"] for id, row in rows.items()} == {"anna": 25.0, "ben": 25.0, "cleo": 40.0}
    assert read_status(fleet.out).mean_psnr == 30.0


def test_failures_of_earlier_runs_count_for_who_joins(fleet: Fleet) -> None:
    first = fleet.start(fleet.listing("anna", "ben", "cleo"))
    fail(first, "anna", times=2)
    fail(first, "ben", times=1)
    fleet.end(first, "stopped")
    run = fleet.start(fleet.listing("cleo"))
    fleet.listing("anna", "ben", "cleo")
    follow(run)
    assert waiting(run) == ["cleo", "ben"] and run.tick().failed == 1
    assert {case.subject.id: case.attempts for case in run.ledger.take(2)} == {"cleo": 1, "ben": 2}
    run.settle(Outcome("ben", "error", "blurred"), "worker")
    refine(run, run.ledger.case("cleo"))
    assert fleet.outcomes(run) == {"anna": "failed", "ben": "failed", "cleo": "done"}


def test_who_left_the_list_is_not_tried_again(fleet: Fleet) -> None:
    run = fleet.start(fleet.listing("anna", "ben", "cleo"))
    fail(run, "ben")
    run.ledger.take(1)
    fleet.listing("cleo")
    follow(run)
    run.settle(Outcome("anna", "error", "no face"), "worker")
    assert waiting(run) == ["cleo"] and run.tick().failed == 0
    refine_all(run)
    assert not run.open and fleet.outcomes(run) == {"cleo": "done"}


def test_a_list_that_cannot_be_read_changes_nothing(fleet: Fleet) -> None:
    run = fleet.start(fleet.listing("anna"))
    files.write_bytes(fleet.folder / "m.csv", b"nothing of use")
    follow(run)
    assert waiting(run) == ["anna"]
    fleet.listing("anna", "ben")
    follow(run)
    assert waiting(run) == ["anna", "ben"]


def test_only_some_of_a_list_that_changes(fleet: Fleet) -> None:
    run = fleet.start(fleet.listing("anna", "ben"), only=("anna",))
    fleet.listing("anna", "ben", "cleo")
    follow(run)
    assert (run.total, waiting(run)) == (1, ["anna"])


@pytest.mark.parametrize("kind", ["done", "error", "crash", "lost", "store", "stopped"])
def test_another_clip_for_one_that_is_out(fleet: Fleet, kind: str) -> None:
    """Whatever becomes of the old clip, the new one is tried from the start."""
    run = fleet.start(fleet.listing("anna=old", "ben"), "attempts.errors=1", "attempts.crashes=1", "attempts.stores=1")
    [case] = run.ledger.take(1)
    fleet.listing("anna=new", "ben")
    follow(run)
    assert waiting(run) == ["ben"], "one try of a subject at a time"
    if kind == "done":
        refine(run, case)
    elif kind == "crash":
        run.crashed(["anna"], True, "ended", "worker")
    elif kind == "lost":
        run.lost(["anna"])
    else:
        run.settle(Outcome("anna", kind, "of the old clip"), "worker")  # type: ignore[arg-type]
    status = run.tick()
    assert (status.done, status.failed, status.left, status.queued) == (0, 0, 0, 2)
    cases = {case.subject.id: case for case in run.ledger.take(9)}
    assert cases["anna"].subject.clip == f"{fleet.folder}/new" and cases["anna"].attempts == 1
    for other in cases.values():
        refine(run, other)
    rows = fleet.end(run)
    assert not run.open and rows["anna"]["clip"] == f"{fleet.folder}/new" and rows["anna"]["outcome"] == "done"
    assert {name.partition(".")[2] for name in fleet.avatars() if name.startswith("anna")} == {
        rows["anna"]["avatar"].rpartition(".")[2]
    }


@pytest.mark.parametrize("before", ["waiting", "done", "failed", "given up", "left"])
def test_another_clip_under_the_same_id(fleet: Fleet, before: str) -> None:
    changes = ["attempts.errors=1", "attempts.stores=1"]
    run = fleet.start(fleet.listing("anna=old", "ben"), *changes)
    if before != "waiting":
        [case] = run.ledger.take(1)
        if before == "done":
            refine(run, case, psnr=5.0)
        else:
            run.settle(Outcome("anna", "store" if before == "left" else "error", "of the old clip"), "worker")
    if before == "given up":
        fleet.end(run, "stopped")
        run = fleet.start(fleet.listing("anna=old", "ben"), *changes)
        assert run.tick().failed == 1
    fleet.listing("anna=new", "ben")
    follow(run)
    status = run.tick()
    assert (status.done, status.failed, status.left, status.review, status.mean_psnr) == (0, 0, 0, 0, None)
    assert sorted(waiting(run)) == ["anna", "ben"]
    refine_all(run, psnr=30.0)
    assert run.tick().mean_psnr == 30.0
    rows = fleet.end(run)
    assert (rows["anna"]["outcome"], rows["anna"]["clip"]) == ("done", f"{fleet.folder}/new")
    assert len(fleet.avatars()) == len(listed(fleet.out, RECORDS)) == 2


def put(place: str) -> None:
    files.write_bytes(f"{place}/file", b"x")


def test_the_end_removes_what_is_superseded_and_nothing_else(fleet: Fleet) -> None:
    run = fleet.start(fleet.listing("anna", "ben", "a.b"))
    [anna, ben, dotted] = run.ledger.take(3)
    names = {case.subject.id: run.recipe.name(case.subject) for case in (anna, ben, dotted)}
    gone = [f"{AVATARS}/anna.0123456789ab", f"{UNFINISHED}/{names['anna']}", f"{UNFINISHED}/anna.other"]
    gone += [f"{RECORDS}/anna.0123456789ab.json", f"{FAILURES}/{names['anna']}.json", f"{FAILURES}/anna.x.json"]
    kept = [f"{AVATARS}/ben.0123456789ab", f"{UNFINISHED}/{names['ben']}", f"{RECORDS}/ben.0123456789ab.json"]
    kept += [f"{FAILURES}/{names['ben']}.json", f"{AVATARS}/stranger.0123456789ab", f"{RECORDS}/stranger.0.json"]
    kept += [f"{AVATARS}/anna.b.0123456789ab", f"{UNFINISHED}/anna.b.0", f"{RECORDS}/anna.b.0.json", "notes/mine"]
    for place in gone + kept:
        put(f"{fleet.out}/{place}") if not place.endswith(".json") else write_json(f"{fleet.out}/{place}")
    refine(run, anna)
    refine(run, dotted)
    run.finish("finished", alone=False)
    assert all(files.exists(f"{fleet.out}/{place}") for place in gone + kept)
    again = fleet.start(fleet.listing("anna", "ben", "a.b"))
    again.finish("finished", alone=True)
    assert [place for place in gone if files.exists(f"{fleet.out}/{place}")] == []
    assert [place for place in kept if not files.exists(f"{fleet.out}/{place}")] == []
    for case in (anna, dotted):
        record = read_record(fleet.out, names[case.subject.id])
        assert files.exists(f"{fleet.out}/{record['avatar']}/avatar.json")


def write_json(place: str) -> None:
    files.write_json(place, {})


def test_of_two_runs_in_one_output_the_older_ends(fleet: Fleet) -> None:
    """And leaves alone what the newer one writes."""
    older = fleet.start(fleet.listing("anna", "ben"))
    refine(older, older.ledger.take(1)[0])
    older.tick()
    newer = fleet.start(fleet.listing("anna", "ben"))
    put(f"{fleet.out}/{UNFINISHED}/{newer.recipe.name(subjects_of(newer)[0])}")
    older.tick()  # its write, which is refused
    with pytest.raises(TakenOver, match="a fleet that was started later writes here"):
        older.tick()
    before = {name: (fleet.folder / "out" / name).read_bytes() for name in ("status.json", "fleet.json", "writer.json")}
    for state in ("failed", "finished"):
        with pytest.raises(TakenOver):
            older.finish(state, alone=True)  # type: ignore[arg-type]
    assert {name: (fleet.folder / "out" / name).read_bytes() for name in before} == before
    assert not (fleet.folder / "out/summary.md").exists()
    assert files.exists(f"{fleet.out}/{UNFINISHED}/{newer.recipe.name(subjects_of(newer)[0])}")
    assert newer.done == 1 and refine_all(newer) == ["ben"]
    newer.tick()
    assert fleet.outcomes(newer) == {"anna": "done", "ben": "done"}


def test_in_a_store() -> None:
    """Nothing of it needs a disk."""
    where = "memory://fleet/run/out"
    config = FleetConfig(output=where, subjects="memory://fleet/run/m.csv")
    listing = Listing((FleetSubject("anna", "c"),), (Refused("x", "why"),), "")
    run = FleetRun(config, Recipe("h", "l"), listing, Selection())
    run.begin()
    refine_all(run)
    run.tick()
    run.finish("finished", alone=True)
    assert read_status(where).done == 1 and len(listed(where, RECORDS)) == 1
    assert files.exists(f"{where}/summary.parquet")


def test_the_rate_counts_what_is_partly_done(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(fleet_run.time, "monotonic", lambda: clock[0])
    run = fleet.start(fleet.listing("anna", "ben", "cleo", "dora"))
    refine(run, run.ledger.take(1)[0])
    run.ledger.take(1)
    run.partly_done = 0.5
    clock[0] += 60.0
    status = run.tick()
    assert status.subjects_per_hour == pytest.approx(90.0)
    assert status.seconds_left == pytest.approx(2.5 * 40.0)


def test_failures_are_kept_before_they_are_given_up(fleet: Fleet) -> None:
    run = fleet.start(fleet.listing("anna"))
    fail(run, "anna", times=1, reason="x" * 900)
    [name] = listed(fleet.out, FAILURES)
    kept = json.loads((fleet.folder / "out" / FAILURES / f"{name}.json").read_text())
    assert (kept["given_up"], len(kept["failures"]), kept["failures"][0]["reason"]) == (False, 1, "x" * 900)


def test_a_silent_store_is_no_attempt_and_no_failure_that_is_kept(fleet: Fleet) -> None:
    run = fleet.start(fleet.listing("anna"), "attempts.stores=3", "attempts.errors=2")
    for kind in ("store", "error", "store"):
        [case] = run.ledger.take(1)
        run.settle(Outcome("anna", kind, f"of the {kind}"), "worker")  # type: ignore[arg-type]
    [case] = run.ledger.take(1)
    assert case.attempts == 2
    [name] = listed(fleet.out, FAILURES)
    kept = files.read_json(f"{fleet.out}/{FAILURES}/{name}.json")
    assert [failure["kind"] for failure in kept["failures"]] == ["error"]
    run.settle(Outcome("anna", "store", "no answer"), "worker 2")
    row = fleet.end(run, "stopped")["anna"]
    assert (row["outcome"], row["reason"], row["worker"], row["attempts"]) == ("left", "no answer", "worker 2", 4)


@pytest.mark.parametrize("kind", ["error", "store", "shared", "crash"])
def test_what_failed_on_a_machine_goes_to_another(fleet: Fleet, kind: str) -> None:
    run = fleet.start(fleet.listing("anna"))
    run.ledger.take(1, "one", True)
    if kind == "crash":
        run.crashed(["anna"], True, "ended", "worker", "one")
    else:
        run.settle(Outcome("anna", kind, "why"), "worker", "one")  # type: ignore[arg-type]
    take = run.ledger.take_suspect if kind in ("shared", "crash") else lambda *asked: run.ledger.take(1, *asked)
    assert not take("one", True) and take("two", True)


def test_what_is_made_again_starts_from_nothing(fleet: Fleet) -> None:
    """No checkpoint is taken up, and what was given up is made, too."""
    first = fleet.start(fleet.listing("anna", "ben", "cleo"))
    refine(first, first.ledger.take(1)[0])
    fail(first, "ben")
    names = {id: first.recipe.name(subject) for id, subject in zip(("anna", "ben", "cleo"), subjects_of(first))}
    for id in ("anna", "cleo"):
        put(f"{fleet.out}/{UNFINISHED}/{names[id]}")
    fleet.end(first, "stopped", alone=False)
    again = fleet.start(fleet.listing("anna", "ben", "cleo"), again=True, only=("anna", "ben"))
    assert waiting(again) == ["anna", "ben"] and [case.attempts for case in again.ledger.take(2)] == [1, 1]
    assert files.list_folder(f"{fleet.out}/{UNFINISHED}") == [names["cleo"]]
    assert listed(fleet.out, FAILURES) == listed(fleet.out, RECORDS) == set()
    assert waiting(fleet.start(fleet.listing("anna", "ben", "cleo"))) == ["anna", "ben", "cleo"], "resumed before any"


def test_who_only_looks_takes_nothing_over(fleet: Fleet) -> None:
    """So a run that finds no cluster ends no other one."""
    older = fleet.start(fleet.listing("anna", "ben"))
    refine(older, older.ledger.take(1)[0])
    older.tick()
    before = {path: path.read_bytes() for path in (fleet.folder / "out").rglob("*") if path.is_file()}
    for again in (False, True):
        looking = fleet.look(fleet.listing("anna", "ben"), "gate.min_psnr=50", again=again)
        assert looking.open and looking.done == (0 if again else 1)
        looking.know_all()
    assert {path: path.read_bytes() for path in (fleet.folder / "out").rglob("*") if path.is_file()} == before
    older.tick()
    older.tick()
    looking.begin()
    with pytest.raises(TakenOver):
        older.finish("finished", alone=False)


class Hiccups:
    """A store that gives no records, and takes none, of some names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
        self.parts = parts
        read, write = files.read_bytes, files.write_bytes
        monkeypatch.setattr(files, "read_bytes", lambda where, *more: read(self.checked(where), *more))
        monkeypatch.setattr(files, "write_bytes", lambda where, data: write(self.checked(where), data))
        remove, list_folder = files.remove, files.list_folder
        monkeypatch.setattr(files, "remove", lambda where: remove(self.checked(where)))
        monkeypatch.setattr(files, "list_folder", lambda where: list_folder(self.checked(where)))

    def checked(self, where: Any) -> Any:
        if any(part in str(where) for part in self.parts):
            raise StoreError(f"{where}: the store did not answer")
        return where


def test_records_that_the_store_does_not_give_are_asked_for_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    refine_all(fleet.start(fleet.listing("anna", "ben")), psnr=31.0)
    store = Hiccups(monkeypatch, f"{RECORDS}/anna")
    run = fleet.start(fleet.listing("anna", "ben", "cleo"))
    assert run.tick().done == 2 and waiting(run) == ["cleo"]
    assert run.tick().mean_psnr == 31.0 and len(run._finished.records) == 1
    store.parts = ()
    run.tick()
    run.tick()
    assert len(run._finished.records) == 2
    refine_all(run, psnr=31.0)
    assert not run.open
    assert {row["psnr"] for row in fleet.end(run).values()} == {31.0} and read_status(fleet.out).notes == []


def test_records_that_are_never_given_are_noted(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    refine_all(fleet.start(fleet.listing("anna", "ben")))
    Hiccups(monkeypatch, f"{RECORDS}/anna")
    run = fleet.start(fleet.listing("anna", "ben"))
    run.know_all()
    assert not run.open and not run.tick().notes
    rows = fleet.end(run)
    assert [(rows[id]["outcome"], rows[id]["psnr"]) for id in ("anna", "ben")] == [("done", None), ("done", 30.0)]
    status = read_status(fleet.out)
    assert (status.state, status.done) == ("finished", 2)
    assert "1 records could not be read" in status.notes[0] and "did not answer" in status.notes[0]


@pytest.mark.parametrize("silent", [RECORDS, FAILURES, AVATARS])
def test_the_removal_comes_last_and_may_fail(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    run = fleet.start(fleet.listing("anna"))
    refine_all(run)
    Hiccups(monkeypatch, f"out/{silent}")
    told = run.finish("finished", alone=True)
    assert read_status(fleet.out).state == "finished" and (fleet.folder / "out/summary.md").exists()
    assert any("could not all be removed" in note for note in told.notes)


def test_without_a_summary_there_is_still_a_status(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fleet.start(fleet.listing("anna"))
    refine_all(run)
    Hiccups(monkeypatch, "summary.parquet")
    with pytest.raises(StoreError, match=r"summary\.parquet"):
        run.finish("finished", alone=True)
    status = read_status(fleet.out)
    assert (status.state, status.done) == ("finished", 1) and "the summary could not be written" in status.notes[0]


def test_those_that_were_passed_over_may_be_unknown(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    refine_all(fleet.start(fleet.listing("anna", "ben")))
    run = fleet.start(fleet.listing("anna", "ben"), only=("ben",))
    run.know_all()
    Hiccups(monkeypatch, f"{RECORDS}/anna")
    assert fleet.outcomes(run) == {"anna": "missing", "ben": "done"}
    assert "lacks those that --only passed over" in read_status(fleet.out).notes[0]


def test_a_changed_list_is_read_beside_the_loop(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the listing of records; what cannot be read leaves one note."""
    run = fleet.start(fleet.listing("anna"))
    store = Hiccups(monkeypatch, f"out/{RECORDS}")
    fleet.listing("anna", "ben")
    for _ in range(3):
        follow(run)
    assert waiting(run) == ["anna"]
    [note] = run.tick().notes
    assert "m.csv are not followed for now" in note and "did not answer" in note
    store.parts = ()
    run.tick()
    run.tick()
    run._looking = None
    run.tick()
    store.parts = (f"out/{RECORDS}",)
    run.tick()  # takes in what was read, and asks the store for nothing
    assert waiting(run) == ["anna", "ben"]


@pytest.mark.parametrize("on_disk", ["another", "damaged", "silent"])
def test_the_removal_keeps_what_the_record_on_disk_names(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, on_disk: str
) -> None:
    """A process that was thought dead may have written it after all."""
    run = fleet.start(fleet.listing("anna"))
    [case] = run.ledger.take(1)
    refine(run, case)
    name = run.recipe.name(case.subject)
    record = read_record(fleet.out, name)
    for avatar in ("anna.0", "anna.1"):
        put(f"{fleet.out}/{AVATARS}/{avatar}")
    if on_disk == "another":
        write_record(fleet.out, name, {**record, "avatar": f"{AVATARS}/anna.1"})
    elif on_disk == "damaged":
        write_json(f"{fleet.out}/{RECORDS}/{name}.json")
    else:
        Hiccups(monkeypatch, f"{RECORDS}/{name}")
    run.finish("finished", alone=True)
    kept = {record["avatar"].rpartition("/")[2], "anna.1"} | ({"anna.0"} if on_disk != "another" else set())
    assert set(fleet.avatars()) == kept


def test_verdicts_are_written_many_at_once_by_whoever_may_write(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    refine_all(fleet.start(fleet.listing("anna", "ben")), psnr=30.0)
    written: list[set[str]] = []
    write_records = fleet_finished.write_records

    def noting(out: Any, records: Any) -> None:
        written.append(set(records))
        write_records(out, records)

    monkeypatch.setattr(fleet_finished, "write_records", noting)
    strict = fleet.start(fleet.listing("anna", "ben", "cleo"), "gate.min_psnr=35")
    newer = fleet.start(fleet.listing("anna", "ben", "cleo"), "gate.min_psnr=35")
    strict._finished.read_on()
    strict._finished.judge_again()
    assert written == [], "another run has taken over"
    newer.tick()
    assert written == [listed(fleet.out, RECORDS)]
    assert all(read_record(fleet.out, name)["review"] for name in listed(fleet.out, RECORDS))


def test_only_writes_that_go_on_are_held(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fleet.start(fleet.listing("anna", "ben"), "attempts.errors=5")
    pending: Future[None] = Future()
    run._failure_writes.append(pending)
    fail(run, "anna", times=2)
    store = Hiccups(monkeypatch, FAILURES)
    fail(run, "ben", times=1)
    store.parts = ()
    [note] = run.tick().notes
    assert "a failure could not be kept" in note and run._failure_writes == [pending]
    pending.set_exception(StoreError("silent"))
    assert len(run.tick().notes) == 2 and run._failure_writes == []
