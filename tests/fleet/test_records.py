"""Records: what their names say, what a listing tells, what a damaged one costs."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.fleet import records
from spatialavatar.fleet.records import (
    AVATARS,
    FAILURES,
    RECORDS,
    Failure,
    Recipe,
    id_in,
    listed,
    read_failures,
    read_record,
    read_records,
    remove,
    try_records,
    write_failure,
    write_record,
    write_records,
)
from spatialavatar.fleet.subjects import FleetSubject
from tests.builders.fleet_records import NO_METRICS, record_of

ANNA = FleetSubject("anna", "s3://lab/clips/anna", "0a")
RECIPE = Recipe("c" * 64, "l" * 64)


def test_the_digest_is_another_with_each_ingredient(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {
        RECIPE.digest(ANNA),
        Recipe("d" * 64, "l" * 64).digest(ANNA),
        Recipe("c" * 64, "m" * 64).digest(ANNA),
        Recipe("l" * 64, "c" * 64).digest(ANNA),
        RECIPE.digest(replace(ANNA, id="ben")),
        RECIPE.digest(replace(ANNA, clip="s3://lab/clips/anna2")),
        RECIPE.digest(replace(ANNA, state="0b")),
        RECIPE.digest(FleetSubject("anna", "s3://lab/clips/anna0a", "")),
    }
    monkeypatch.setattr(records, "VERSION", 2)
    assert len(digests | {RECIPE.digest(ANNA)}) == 9
    assert all(len(digest) == 12 and int(digest, 16) >= 0 for digest in digests)


def test_the_digest_is_the_same_in_every_process() -> None:
    """Of a program that comes later, too: a change here would have every avatar made again."""
    assert RECIPE.name(ANNA) == "anna.d92df80dc0da"


@pytest.mark.parametrize("id", ["a", "a.b", "a.b.json", "x" * 100, "a_-.0"])
def test_a_name_tells_the_id(id: str) -> None:
    assert id_in(RECIPE.name(FleetSubject(id, "c"))) == id


def test_a_listing_tells_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed(tmp_path, RECORDS) == set()
    names = set()
    for id in ("anna", "ben.json", "c.d"):
        subject = FleetSubject(id, "clip")
        write_record(tmp_path, RECIPE.name(subject), record_of(RECIPE, subject))
        names.add(RECIPE.name(subject))
    (tmp_path / RECORDS / f".{RECIPE.name(ANNA)}.json.x1.tmp").write_text("{")
    (tmp_path / RECORDS / ".hidden.json").write_text("{")
    (tmp_path / RECORDS / "notes.txt").write_text("mine")

    def no_reading(*arguments: Any) -> bytes:
        pytest.fail("read a record")

    monkeypatch.setattr(files, "read_bytes", no_reading)
    assert listed(tmp_path, RECORDS) == names


def test_a_record_is_read_as_written(tmp_path: Path) -> None:
    record = record_of(RECIPE, ANNA, review=["why"], psnr=31.5)
    write_record(tmp_path, RECIPE.name(ANNA), record)
    assert read_record(tmp_path, RECIPE.name(ANNA)) == record
    unmeasured = record_of(RECIPE, ANNA, **NO_METRICS)
    write_record(tmp_path, RECIPE.name(ANNA), unmeasured)
    assert read_record(tmp_path, RECIPE.name(ANNA)) == unmeasured


def damaged(**changes: Any) -> bytes:
    """A record with other fields; ``...`` takes one away."""
    value = {**record_of(RECIPE, ANNA), **changes}
    return json.dumps({key: content for key, content in value.items() if content is not ...}).encode()


DAMAGED = {
    "empty": b"",
    "half": damaged()[:40],
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "long number": b"9" * 10_000,
    "a list": b"[]",
    "another format": damaged(format="spatialavatar-fleet-failure"),
    "another version": damaged(version=2),
    "another id": damaged(id="ben"),
    "another digest": damaged(digest="0" * 12),
    "an id that is none": damaged(id=["anna"]),
    "metrics are a list": damaged(metrics=[]),
    "metrics are text": damaged(metrics={"psnr": "high"}),
    "review is text": damaged(review="bad"),
    "review holds numbers": damaged(review=[1]),
    "avatar is a number": damaged(avatar=3),
    "seconds are text": damaged(seconds="long"),
    "attempts are missing": damaged(attempts=...),
    "avatar is missing": damaged(avatar=...),
    "clip is missing": damaged(clip=...),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_told_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    ben = FleetSubject("ben", "clip")
    write_record(tmp_path, RECIPE.name(ben), record_of(RECIPE, ben))
    (tmp_path / RECORDS / f"{RECIPE.name(ANNA)}.json").write_bytes(DAMAGED[damage])
    with pytest.raises(SpatialAvatarError, match=RECIPE.name(ANNA)):
        read_record(tmp_path, RECIPE.name(ANNA))
    (first, problem), (second, record) = read_records(tmp_path, {RECIPE.name(ben), RECIPE.name(ANNA)})
    assert first == RECIPE.name(ANNA) and isinstance(problem, SpatialAvatarError)
    assert second == RECIPE.name(ben) and record == record_of(RECIPE, ben)


def test_records_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match="no such file"):
        read_record(tmp_path, "a.b")
    assert list(read_records(tmp_path, [])) == []


FAILED = [
    Failure("error", "a | reason\nof two lines", "process 1 on host", "2026-01-02T03:04:05Z"),
    Failure("crash", "", "", ""),
]


@pytest.mark.parametrize("given_up", [True, False])
def test_failures_are_read_as_written(tmp_path: Path, given_up: bool) -> None:
    name = RECIPE.name(ANNA)
    write_failure(tmp_path, name, ANNA, FAILED, given_up)
    write_failure(tmp_path, "none.0", ANNA, [], False)
    assert read_failures(tmp_path, [name, "none.0", "not.there"]) == {name: (FAILED, given_up), "none.0": ([], False)}
    assert listed(tmp_path, FAILURES) == {name, "none.0"} and listed(tmp_path, RECORDS) == set()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"[" * 100_000,
        b"{}",
        b'{"failures": 3, "given_up": true}',
        b'{"failures": ["x"], "given_up": true}',
        b'{"failures": [{"kind": "error"}], "given_up": true}',
        json.dumps({"failures": [{**asdict(FAILED[0]), "reason": 3}], "given_up": True}).encode(),
        json.dumps({"failures": [{**asdict(FAILED[0]), "more": "x"}], "given_up": True}).encode(),
        json.dumps({"failures": [asdict(FAILED[0])]}).encode(),
    ],
    ids=lambda content: str(content[:40]),
)
def test_damaged_failures_count_as_none(tmp_path: Path, content: bytes) -> None:
    files.write_bytes(tmp_path / FAILURES / "a.0.json", content)
    write_failure(tmp_path, "b.0", ANNA, FAILED, True)
    assert read_failures(tmp_path, ["a.0", "b.0"]) == {"b.0": (FAILED, True)}


def test_a_store_that_does_not_answer_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*arguments: Any) -> bytes:
        raise StoreError("no answer")

    monkeypatch.setattr(files, "read_bytes", silent)
    with pytest.raises(StoreError):
        list(read_records("memory://silent", ["a.0"]))
    with pytest.raises(StoreError):
        read_failures("memory://silent", ["a.0"])


def test_one_record_that_the_store_refuses_hides_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    people = [replace(ANNA, id=f"p{number}") for number in range(5)]
    write_records(tmp_path, {RECIPE.name(person): record_of(RECIPE, person) for person in people})
    names = [RECIPE.name(person) for person in people]
    read = files.read_bytes

    def refusing(where: Any) -> bytes:
        if names[1] in str(where):
            raise StoreError("refused")
        return read(where)

    monkeypatch.setattr(files, "read_bytes", refusing)
    found = dict(try_records(tmp_path, names))
    assert isinstance(found.pop(names[1]), StoreError)
    assert [record["id"] for record in found.values() if isinstance(record, dict)] == ["p0", "p2", "p3", "p4"]


def test_a_silent_store_is_not_asked_for_every_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question would take a minute."""
    asked: list[str] = []

    def silent(where: str) -> bytes:
        asked.append(where)
        raise StoreError("no answer")

    monkeypatch.setattr(files, "read_bytes", silent)
    found = dict(try_records("memory://silent", [f"p{number}.0" for number in range(1000)]))
    assert len(found) == 1000 and all(isinstance(record, StoreError) for record in found.values())
    assert len(asked) < 3 * records.READERS


def test_a_broken_disk_is_no_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "read_bytes", lambda where: (_ for _ in ()).throw(OSError(5, "input/output error")))
    [(_, problem)] = try_records(tmp_path, ["a.0"])
    assert isinstance(problem, StoreError) and "input/output error" in str(problem)


def test_removing(tmp_path: Path) -> None:
    for name in ("a.0", "b.0"):
        write_record(tmp_path, name, {})
        files.write_bytes(tmp_path / AVATARS / name / "avatar.json", b"{}")
    remove(tmp_path, RECORDS, ["a.0", "gone.0"])
    remove(tmp_path, AVATARS, ["b.0"])
    assert listed(tmp_path, RECORDS) == {"b.0"}
    assert files.list_folder(tmp_path / AVATARS) == ["a.0"]
