"""A fleet's manifest: its kinds, its rows, what a clip of it can name, and what it cannot."""

import csv
import io
import json
import posixpath
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.fleet import manifest as fleet_manifest
from spatialavatar.fleet.manifest import place_of
from spatialavatar.fleet.subjects import FleetSubject, Listing, read_subjects, source_version

ROWS = [{"id": "anna", "clip": "clips/anna"}, {"id": "Ben_2", "clip": "shards#b/2"}, {"id": "0.c-3", "clip": "c d"}]
SECRET = "wJalrXUtnFEMI"


def table_of(rows: list[dict[str, Any]], kind: str) -> bytes:
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read(folder: Path, rows: list[dict[str, Any]], kind: str = "jsonl", **options: Any) -> Listing:
    (folder / f"people.{kind}").write_bytes(table_of(rows, kind))
    return read_subjects(folder / f"people.{kind}", **options)


def refusal(folder: Path, row: dict[str, Any], **options: Any) -> str:
    """Why a row is refused that stands before a sound one."""
    listing = read(folder, [row, {"id": "sound", "clip": "sound"}], **options)
    assert [subject.id for subject in listing.subjects] == ["sound"]
    [refused] = listing.refused
    return refused.reason


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_manifest(tmp_path: Path, kind: str) -> None:
    """In its order; other columns are passed over; clips lie beside it."""
    listing = read(tmp_path, [{"note": "x", **row, "age": 3} for row in ROWS], kind)
    assert listing.subjects == tuple(FleetSubject(row["id"], f"{tmp_path}/{row['clip']}") for row in ROWS)
    assert listing.refused == ()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_manifest(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"m.{kind}").write_bytes(b"\xef\xbb\xbf" + table_of(ROWS, kind).replace(b"\n", b"\r\n"))
    assert [subject.id for subject in read_subjects(tmp_path / f"m.{kind}").subjects] == ["anna", "Ben_2", "0.c-3"]


def test_blank_lines_of_jsonl_and_line_separators_in_a_text(tmp_path: Path) -> None:
    """U+2028 and U+0085 break lines of text, but not of JSON."""
    (tmp_path / "m.jsonl").write_text('\n{"id": "a", "clip": "x\u2028y\u0085z"}\n  \n{"id": "b", "clip": "y"}')
    listing = read_subjects(tmp_path / "m.jsonl")
    assert [s.clip for s in listing.subjects] == [f"{tmp_path}/x\u2028y\u0085z", f"{tmp_path}/y"]


def test_whole_numbers_are_ids(tmp_path: Path) -> None:
    assert [s.id for s in read(tmp_path, [{"id": n, "clip": "c"} for n in (7, 0)], "parquet").subjects] == ["7", "0"]


def test_the_first_of_two_rows_with_one_id_is_taken(tmp_path: Path) -> None:
    rows = [{"id": "a", "clip": "../x"}, {"id": "a", "clip": "1"}, {"id": "b", "clip": "2"}, {"id": "a", "clip": "3"}]
    listing = read(tmp_path, rows)
    assert [(s.id, s.clip) for s in listing.subjects] == [("a", f"{tmp_path}/1"), ("b", f"{tmp_path}/2")]
    assert [refused.reason[:6] for refused in listing.refused] == ["row 1:", "row 4:"]
    assert listing.refused[1].reason == "row 4: the id is that of row 2, too; the first is taken"


@pytest.mark.parametrize(
    "id", ["", " a", "a\n", "a/b", "..", ".a", "-a", "ä", "a" * 101, "a\x00", "a#b", None, 1.5, True]
)
def test_what_is_no_id(tmp_path: Path, id: Any) -> None:
    reason = refusal(tmp_path, {"id": id, "clip": "c"})
    assert reason.startswith("row 1: id is ") and "expected letters a-z, digits" in reason
    assert reason.isprintable() and reason.isascii()


@pytest.mark.parametrize("clip", ["", None, 3, ["a"], {"a": 1}])
def test_what_is_no_clip(tmp_path: Path, clip: Any) -> None:
    assert "row 1: clip is " in refusal(tmp_path, {"id": "a", "clip": clip})


def test_a_line_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,clip\na\nb,x,further,columns\n")
    listing = read_subjects(tmp_path / "m.csv")
    assert [s.id for s in listing.subjects] == ["b"]
    assert listing.refused[0].reason == "row 1: clip is None, expected a place"


@pytest.mark.parametrize(
    ("clip", "why"),
    [
        ("..", "leads out of its folder"),
        ("../other", "leads out of its folder"),
        ("a/../../b", "leads out of its folder"),
        ("a/..", "leads out of its folder"),
        ("shards#../../x", "leads out of its folder"),
        ("a/%2e%2E/b", "leads out of its folder"),
        ("./a", "leads out of its folder"),
        ("/etc", "outside the manifest's folder"),
        ("//etc", "outside the manifest's folder"),
        ("file:///etc/passwd", "outside the manifest's folder"),
        ("~", "outside the manifest's folder"),
        ("~root/x", "outside the manifest's folder"),
        ("s3://lab/x", "outside the manifest's folder"),
        ("http://10.0.0.1/meta", "outside the manifest's folder"),
        ("/", "expected a plain path or URL"),
        ("simplecache::s3://lab/x", "expected a plain path or URL"),
        ("zip://a::/etc/x", "expected a plain path or URL"),
        ("a://b://c", "expected a plain path or URL"),
        ("..\\x", "expected a plain path or URL"),
        ("a\nb", "expected a plain path or URL"),
        ("a\x00b", "expected a plain path or URL"),
        ("a\x7f", "expected a plain path or URL"),
    ],
)
def test_a_clip_outside(tmp_path: Path, clip: str, why: str) -> None:
    reason = refusal(tmp_path, {"id": "a", "clip": clip})
    assert why in reason and reason.isprintable()


ALLOWED = ["s3://lab/clips", "/data", "memory://m/"]


@pytest.mark.parametrize(
    ("clip", "place"),
    [
        ("s3://lab/clips/a", "s3://lab/clips/a"),
        ("s3://lab/clips/a/b/", "s3://lab/clips/a/b"),
        ("/data/a", "/data/a"),
        ("file:///data/a", "/data/a"),
        ("memory://m/a#k", "memory://m/a#k"),
        ("s3://lab/fleet/own", "s3://lab/fleet/own"),  # the manifest's own folder, in full
        ("own", "s3://lab/fleet/own"),
        ("s3://lab/clips", None),  # the folder of clips is none itself
        ("s3://lab/clipsofothers/a", None),
        ("s3://lab/fleets/a", None),
        ("s3://lab2/clips/a", None),
        ("s3a://lab/clips/a", None),
        ("gs://lab/clips/a", None),
        ("/database/a", None),
        ("/data/../etc", None),
        ("s3://lab/clips/../secret", None),
        ("s3://lab/clips/%2e%2e/secret", None),
    ],
)
def test_folders_that_are_allowed(clip: str, place: str | None) -> None:
    if place is not None:
        assert place_of(clip, "s3://lab/fleet", ALLOWED) == place
    else:
        with pytest.raises(ValueError, match=r"outside the manifest's folder|leads out of"):
            place_of(clip, "s3://lab/fleet", ALLOWED)


def test_a_folder_is_allowed_by_whatever_name_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    row = {"id": "a", "clip": f"{tmp_path}/elsewhere/a"}
    for allow in ("elsewhere/", f"{tmp_path}/elsewhere", f"file://{tmp_path}/elsewhere"):
        assert read(tmp_path / "in", [row], allow=[allow]).subjects[0].clip == f"{tmp_path}/elsewhere/a"
    assert "outside" in refusal(tmp_path / "in", row, allow=["else"])


def test_a_clip_under_the_root_of_all(tmp_path: Path) -> None:
    assert place_of("/anywhere/a", str(tmp_path), ["/"]) == "/anywhere/a"


@pytest.mark.parametrize(
    "clip",
    [
        f"s3://AKIA:{SECRET}@lab/x",
        f"s3://{SECRET}@lab/x",
        f"s3://AKIA:{SECRET[:6]}/{SECRET}@lab/x",
        f" s3://AKIA:{SECRET}@lab/x",
        f"simplecache::s3://AKIA:{SECRET}@lab/x",
        f"clips/s3://AKIA:{SECRET}@lab/x",
        f"https://me:{SECRET}@host:80/../x",
    ],
)
def test_passwords_are_refused_and_never_said(tmp_path: Path, clip: str) -> None:
    reason = refusal(tmp_path, {"id": "a", "clip": clip}, allow=["s3://lab"])
    assert "credentials come from the environment" in reason
    assert SECRET not in reason and SECRET[:6] not in reason
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "clip": clip}))
    with pytest.raises(SpatialAvatarError) as e:
        read_subjects(tmp_path / "m.jsonl")
    assert SECRET not in str(e.value)


@pytest.mark.parametrize("clip", ["s3://lab/clips/me@home", "http://lab:8080/a@b", "a@b/c:d@e"])
def test_an_at_sign_in_a_path_is_no_password(clip: str) -> None:
    assert place_of(clip, "s3://lab/fleet", ["s3://lab/clips", "http://lab:8080"]).endswith(clip)


PIECES = ["..", ".", "~", "a", "lab", "data", "datas", "clips", "%2e%2e", "%2E.", "%2f..", "#", "::", "\\", "\n", " "]
PIECES += ["s3:", "file:", "s3://", "file://", "memory://", "://", "S3://", "s3://lab", "lab2", "@", ":", "?", ""]
ROOTS = ["s3://lab/fleet", "/data/fleet", "memory://data", "http://lab/fleet"]


def inside(place: str, root: str) -> bool:
    """By what a store or a disk makes of it: '..' taken literally and as a server reads it."""

    def parts(text: str) -> list[str]:
        scheme, _, path = text.rpartition("://")
        return [scheme, *(part for part in posixpath.normpath("/" + path).split("/") if part)]

    return all(parts(form)[: len(parts(root))] == parts(root) for form in (place, unquote(place)))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=7),
    st.sampled_from(["", "/"]),
    st.sampled_from(ROOTS),
    st.lists(st.sampled_from(["s3://lab/clips", "/data", "memory://clips", "file:///data"]), max_size=2),
)
@example(["s3://lab", "clips", "..", "x"], "/", "/data/fleet", ["s3://lab/clips"])
@example(["file://", "data", "a"], "/", "s3://lab/fleet", ["/data"])
def test_no_place_ever_lies_outside(pieces: list[str], between: str, folder: str, allowed: list[str]) -> None:
    roots = [files.absolute(root) for root in allowed]
    try:
        place = place_of(between.join(pieces), folder, roots)
    except ValueError as e:
        assert str(e).isprintable()
        return
    assert any(inside(place, root) and not inside(root, place) for root in [folder, *roots]), place


GOOD = table_of(ROWS, "parquet")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("parquet", b""),
        ("parquet", GOOD[:-9]),
        ("parquet", b"PAR1" + b"\xff" * 60 + b"PAR1"),
        ("csv", b""),
        ("csv", b"id,clip\n\xff\xfe,x\n"),
        ("csv", b'id,clip\na,"never closed\n'),
        ("csv", b"id,clip\na," + b"x" * 200_000 + b"\n"),
        ("csv", b"id;clip\na;b\n"),
        ("csv", b"id\na\n"),
        ("csv", b"id,clip\n"),
        ("jsonl", b""),
        ("jsonl", b'{"id": "a", "clip"'),
        ("jsonl", b'["a", "b"]\n'),
        ("jsonl", b"\xff\n"),
        ("jsonl", b"[" * 100_000),
        ("jsonl", b'{"id": ' + b"9" * 10_000 + b', "clip": "x"}'),
        ("jsonl", b'{"name": "a", "path": "x"}'),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value[:24]),
)
def test_a_damaged_manifest_is_one_error(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / f"m.{kind}").write_bytes(content)
    with pytest.raises(SpatialAvatarError, match=rf"m\.{kind}: ") as e:
        read_subjects(tmp_path / f"m.{kind}")
    assert "\n" not in str(e.value) and len(str(e.value)) < 700


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_flipped_byte_of_a_parquet_manifest(at: int, flip: int) -> None:
    """Other rows, or one plain error; never another."""
    where = "memory://fleet/flipped/m.parquet"
    files.write_bytes(where, GOOD[:at] + bytes([GOOD[at] ^ flip]) + GOOD[at + 1 :])
    try:
        listing = read_subjects(where)
    except SpatialAvatarError:
        return
    assert all(subject.clip.startswith("memory://fleet/flipped/") for subject in listing.subjects)


def test_what_a_table_lacks_is_named(tmp_path: Path) -> None:
    for kind in ("csv", "parquet"):
        (tmp_path / f"m.{kind}").write_bytes(table_of([{"ID": "a", "clip": "x"}], kind))
        with pytest.raises(SpatialAvatarError, match=r"lacks the column\(s\) id; there are ID, clip"):
            read_subjects(tmp_path / f"m.{kind}")


def test_a_huge_manifest_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_manifest, "LARGEST_MANIFEST", 10)
    with pytest.raises(SpatialAvatarError, match="is this the right file"):
        read(tmp_path, ROWS)


def test_a_store_that_does_not_answer_is_not_a_damaged_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_bytes("memory://fleet/silent/m.csv", b"id,clip\na,b\n")

    def silent(*arguments: Any) -> bytes:
        raise StoreError("no answer")

    monkeypatch.setattr(files, "read_bytes", silent)
    with pytest.raises(StoreError):
        read_subjects("memory://fleet/silent/m.csv")


def test_the_version_of_a_manifest_is_another_when_it_is_written_again(tmp_path: Path) -> None:
    before = read(tmp_path, ROWS).version
    assert source_version(tmp_path / "people.jsonl") == before
    assert read(tmp_path, [*ROWS, {"id": "new", "clip": "x"}]).version != before
