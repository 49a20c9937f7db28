"""The summary: its rows and their order, the page as Markdown, the sheet when thumbnails are missing or damaged."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from spatialavatar import files
from spatialavatar.clip.pictures import encode
from spatialavatar.fleet import summary
from spatialavatar.fleet.ledger import Case
from spatialavatar.fleet.records import Failure, Recipe
from spatialavatar.fleet.subjects import FleetSubject, Listing, Refused
from spatialavatar.fleet.summary import (
    OUTCOMES,
    SCHEMA,
    contact_sheet,
    means,
    ordered,
    row_of,
    row_of_failed,
    row_of_refused,
    rows_of,
    write_summary,
)
from tests.builders.fleet_records import NO_METRICS, record_of

RECIPE = Recipe("c", "l")


def person(id: str) -> FleetSubject:
    return FleetSubject(id, f"clips/{id}")


def done(id: str, psnr: float | None = 30.0, review: list[str] | None = None, **metrics: Any) -> dict[str, Any]:
    return row_of(record_of(RECIPE, person(id), review, psnr=psnr, **metrics))


def failed(id: str, reason: str) -> dict[str, Any]:
    return row_of_failed(
        Case(person(id), [Failure("error", "first", "w1", "t1"), Failure("crash", reason, "w2", "t2")])
    )


def page(folder: Path) -> list[str]:
    return (folder / "summary.md").read_text().splitlines()


def test_every_field_of_a_record_has_its_column() -> None:
    row = done("anna", psnr=31.5, review=["a", "b"])
    assert {name: row.get(name) for name in SCHEMA.names} == {
        "id": "anna",
        "outcome": "review",
        "reason": "a; b",
        "psnr": 31.5,
        "worst_psnr": 28.0,
        "ssim": 0.9,
        "lpips": 0.1,
        "mse": 0.001,
        "max_aspect_ratio": 4.0,
        "tracking_residual": 0.005,
        "split": "test",
        "frames": 3,
        "iterations": 12,
        "seconds": 1.5,
        "attempts": 1,
        "worker": "process 1 on host, CPU",
        "finished": "2026-01-02T03:04:05Z",
        "avatar": record_of(RECIPE, person("anna"))["avatar"],
        "clip": "clips/anna",
    }
    assert done("anna")["outcome"] == "done" and done("anna")["reason"] == ""


def test_what_did_not_become_an_avatar() -> None:
    row = failed("ben", "no face")
    assert row == {
        "id": "ben",
        "clip": "clips/ben",
        "outcome": "failed",
        "attempts": 2,
        "reason": "no face",
        "worker": "w2",
        "finished": "t2",
    }
    assert row_of_failed(Case(person("c")), "missing") == {
        "id": "c",
        "clip": "clips/c",
        "outcome": "missing",
        "attempts": 0,
    }
    silence = Failure("store", "no answer", "w3", "t3")
    left = Case(person("l"), [Failure("error", "first", "w1", "t1")], stores=2, store_failure=silence)
    assert row_of_failed(left, "left") == {
        "id": "l",
        "clip": "clips/l",
        "outcome": "left",
        "attempts": 3,
        "reason": "no answer",
        "worker": "w3",
        "finished": "t3",
    }
    assert row_of_failed(left)["reason"] == "first" and row_of_failed(left)["attempts"] == 1
    assert row_of_refused(Refused("x", "why")) == {"id": "x", "outcome": "refused", "reason": "why", "attempts": 0}


def test_a_row_for_each_that_is_listed() -> None:
    listing = Listing((person("a"), person("b"), person("c")), (Refused("d", "why"),), "")
    record = record_of(RECIPE, person("b"))
    rows = rows_of(
        listing,
        {"b": record, "stranger": record},
        {"c": ("left", Case(person("c"))), "b": ("failed", Case(person("b")))},
    )
    assert [(row["id"], row["outcome"]) for row in rows] == [
        ("a", "missing"),
        ("b", "done"),
        ("c", "left"),
        ("d", "refused"),
    ]


def test_what_needs_a_look_comes_first(tmp_path: Path) -> None:
    rows = [
        done("good", 40.0),
        done("fair", 30.0),
        done("as-fair", 30.0),
        done("odd", 50.0, review=["why"]),
        done("bad", 10.0, review=["why"]),
        done("unmeasured", None),
        row_of_failed(Case(person("new")), "missing"),
        row_of_failed(Case(person("silent")), "left"),
        row_of_refused(Refused("no", "why")),
        failed("f", "x"),
    ]
    expected = ["f", "no", "silent", "new", "bad", "odd", "unmeasured", "as-fair", "fair", "good"]
    assert [row["id"] for row in ordered(rows)] == [row["id"] for row in ordered(rows[::-1])] == expected
    write_summary(tmp_path, rows, {})
    table = pq.read_table(tmp_path / "summary.parquet")
    assert table.schema.equals(SCHEMA) and table.column("id").to_pylist() == expected
    assert [row["outcome"] for row in table.to_pylist()] == sorted((row["outcome"] for row in rows), key=OUTCOMES.index)
    assert table.to_pylist()[-1]["psnr"] == 40.0 and table.to_pylist()[0]["psnr"] is None


def test_nobody(tmp_path: Path) -> None:
    write_summary(tmp_path, [], {"state": "stopped"})
    table = pq.read_table(tmp_path / "summary.parquet")
    assert table.schema.equals(SCHEMA) and table.num_rows == 0
    assert "nobody" in page(tmp_path) and not (tmp_path / "sheet.jpg").exists()


def cells(row: str) -> list[str]:
    """Of a Markdown table: a bar after a backslash is text."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


@pytest.mark.parametrize("finished", [True, False])
def test_the_page_is_markdown(tmp_path: Path, finished: bool) -> None:
    """Whatever a reason holds: a table stands by itself, and each subject is one row of it."""
    rows = [failed("f", "a | b || c\nd\r\n\ne|")] + ([done("anna", 31.256)] if finished else [])
    write_summary(tmp_path, rows, {"state": "finished", "workers": 3})
    lines = page(tmp_path)
    assert lines[0] == "# Fleet" and lines[2] == ("1 failed, 1 done" if finished else "1 failed")
    assert lines[4:6] == ["- state: finished", "- workers: 3"]
    heads = [number for number, text in enumerate(lines) if text.startswith("| subject |")]
    assert len(heads) == 1 + finished
    for head in heads:
        assert lines[head - 1] == "" and set(lines[head + 1]) <= set("| -:")
    table = lines[heads[-1] :]
    assert len(table) == 2 + len(rows)
    assert all(len(cells(text)) == len(cells(table[0])) for text in table)
    row = dict(zip(cells(table[0]), cells(table[2])))
    assert (row["subject"], row["outcome"], row["reason"]) == ("f", "failed", "a \\| b \\|\\| c d e\\|")
    if finished:
        mean = dict(zip(cells(lines[heads[0]]), cells(lines[heads[0] + 2])))
        assert (mean["subject"], mean["PSNR"], mean["SSIM"]) == ("mean of the finished", "31.26", "0.900")
        assert dict(zip(cells(table[0]), cells(table[3])))["PSNR"] == "31.26"


def test_a_long_list_is_cut_on_the_page_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "LISTED", 3)
    write_summary(tmp_path, [failed(f"p{i}", "x") for i in range(5)], {})
    lines = page(tmp_path)
    assert [cells(text)[0] for text in lines if text.startswith("| p")] == ["p0", "p1", "p2"]
    assert lines[-1] == "2 more are in summary.parquet."
    assert pq.read_table(tmp_path / "summary.parquet").num_rows == 5


def test_means_are_of_what_was_measured_and_finished() -> None:
    rows = [done("a", 30.0), done("b", 40.0, review=["why"], lpips=None), failed("c", "x"), done("d", **NO_METRICS)]
    found = means(rows)
    assert (found["psnr"], found["lpips"], found["seconds"]) == (35.0, 0.1, 1.5)
    assert means([failed("c", "x")]) == dict.fromkeys(found)


def colour(number: int) -> tuple[int, int, int]:
    return (20 * number, 255 - 20 * number, 100)


def with_thumbnail(folder: Path, number: int, content: bytes | None = None) -> dict[str, Any]:
    """A finished subject of 10 dB and its number, whose thumbnail is of one colour."""
    row = done(f"p{number:02d}", 10.0 + number)
    picture = np.full((20, 160, 3), colour(number), np.uint8)
    files.write_bytes(folder / row["avatar"] / "thumbnail.jpg", encode(picture, "jpg") if content is None else content)
    return row


def shown(sheet: np.ndarray | None) -> list[int]:
    """Numbers of the subjects in a sheet, by the colours below their titles."""
    assert sheet is not None and sheet.shape[0] % 46 == 0
    middles = [sheet[top + 26 + 10, 80].astype(int) for top in range(0, sheet.shape[0], 46)]
    return [round(middle[0] / 20) for middle in middles]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0]),
        (2, [0, 1]),
        (5, [0, 1, 2, 4, 3]),
        (12, [0, 1, 2, 3, 4, 5, 11, 10, 9, 8, 7, 6]),
        (13, [0, 1, 2, 3, 4, 5, 12, 11, 10, 9, 8, 7]),
    ],
)
def test_the_sheet_shows_the_worst_and_the_best(tmp_path: Path, count: int, expected: list[int]) -> None:
    rows = [with_thumbnail(tmp_path, number) for number in range(count)]
    assert shown(contact_sheet(tmp_path, rows[::-1])) == expected


def test_thumbnails_that_are_missing_or_damaged_are_left_out(tmp_path: Path) -> None:
    rows = [with_thumbnail(tmp_path, number) for number in range(6)]
    whole = (tmp_path / rows[1]["avatar"] / "thumbnail.jpg").read_bytes()
    rows[0] = with_thumbnail(tmp_path, 0, b"")
    rows[2] = with_thumbnail(tmp_path, 2, b"\xff\xd8 no picture")
    rows[4] = with_thumbnail(tmp_path, 4, whole[:20])
    (tmp_path / rows[5]["avatar"] / "thumbnail.jpg").unlink()
    assert shown(contact_sheet(tmp_path, rows)) == [1, 3]
    write_summary(tmp_path, rows, {})
    sheet = cv2.imread(str(tmp_path / "sheet.jpg"))
    assert sheet is not None and sheet.shape == (2 * 46, 160, 3)


def test_without_any_thumbnail_there_is_no_sheet(tmp_path: Path) -> None:
    assert contact_sheet(tmp_path, [done("a"), done("b", None)]) is None
    assert contact_sheet(tmp_path, []) is None
    write_summary(tmp_path, [done("a")], {})
    assert not (tmp_path / "sheet.jpg").exists()


def test_thumbnails_of_any_width(tmp_path: Path) -> None:
    rows = [with_thumbnail(tmp_path, 0), with_thumbnail(tmp_path, 1, encode(np.zeros((20, 40, 3), np.uint8), "jpg"))]
    sheet = contact_sheet(tmp_path, rows)
    assert sheet is not None and sheet.shape == (92, 160, 3)
    assert (sheet[46 + 26 :, 40:] == 255).all(), "white beside the narrow one"
