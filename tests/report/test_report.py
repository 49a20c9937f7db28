"""The page of results: every kind of folder, as its own writer leaves it; nothing outside the page; hostile words."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml

from spatialavatar import files
from spatialavatar.clip.pictures import encode
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.footage import Fault
from spatialavatar.evaluation.results import write_report as write_evaluation
from spatialavatar.evaluation.subjects import Settings
from spatialavatar.evaluation.table import METRICS, VARIANT, Column, csv_table
from spatialavatar.fleet.ledger import Case
from spatialavatar.fleet.records import THUMBNAIL, Failure, Recipe
from spatialavatar.fleet.status import Status, write_status
from spatialavatar.fleet.subjects import FleetSubject, Refused
from spatialavatar.fleet.summary import row_of, row_of_failed, row_of_refused, write_summary
from spatialavatar.report import read_section, read_steps, write_page
from spatialavatar.report.content import Facts, Figure, Problem, Section, Table
from spatialavatar.report.curves import draw
from spatialavatar.shards.entry import Rejected
from spatialavatar.training.run import train
from tests.builders.fleet_records import record_of
from tests.builders.shards import tiny_shards
from tests.builders.training import training_folder, training_in

HOSTILE = '<script>alert(1)</script> & "quotes"'


class Read(HTMLParser):
    """What a browser would fetch or run, and the words that a person reads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.sources += [str(given[name]) for name in ("src", "srcset", "data") if name in given]
        self.links += [str(given["href"])] if "href" in given else []
        self.ids |= {str(given["id"])} if "id" in given else set()
        assert not [name for name in given if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def data_set(folder: Path) -> str:
    tiny_shards(folder, clips=3, rejected=[Rejected("lost", "tracked/lost", HOSTILE, 2)])
    return str(folder)


def training(folder: Path) -> str:
    source = training_folder(folder.parent / "source")
    train(training_in(source, sheet_every=2), folder)
    with open(folder / "train.jsonl", "a") as log:
        log.write('{"step": 5, "lo')  # a writer that was killed
    return str(folder)


def sweep(folder: Path) -> str:
    trials: dict[str, Any] = {"a": {}, "b": {}}
    files.write_bytes(f"{folder}/sweep.yaml", yaml.safe_dump({"sweep": {}, "trials": trials}).encode())
    columns = (VARIANT, Column("set.loss.lambda_sp", "lambda_sp"), *METRICS, Column("paper.psnr", "paper", 2))
    columns = (*columns, Column("note", "note"))
    rows = [
        {"variant": "a", "set.loss.lambda_sp": "0.001", "psnr": 21.5, "ssim": 0.8, "paper.psnr": 24.94},
        {"variant": "b", "set.loss.lambda_sp": "0", "note": "failed"},
    ]
    files.write_bytes(f"{folder}/table.csv", csv_table(columns, rows).encode())
    files.write_json(f"{folder}/ended/b.json", {"config": "hash", "failed": HOSTILE})
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "held_out_psnr": 19.0}, {"step": 2, "loss": 1.0}]
    files.write_bytes(f"{folder}/trials/a/train.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return str(folder)


def fleet(folder: Path) -> str:
    recipe = Recipe("c", "l")
    people = [FleetSubject(name, f"clips/{name}") for name in ("anna", "ben", "cid")]
    finished = [row_of(record_of(recipe, people[0], psnr=31.25)), row_of(record_of(recipe, people[1], ["too flat"]))]
    for row in finished:
        picture = np.full((8, 32, 3), 90, np.uint8)
        files.write_bytes(f"{folder}/{row['avatar']}/{THUMBNAIL}", encode(picture, "jpg"))
    lost = row_of_failed(Case(people[2], [Failure("error", HOSTILE, "w", "t"), Failure("error", HOSTILE, "w", "t")]))
    write_summary(str(folder), [*finished, lost, row_of_refused(Refused("dora", "twice in the list"))], {})
    write_status(
        str(folder),
        Status("finished", total=4, done=2, review=1, failed=2, workers_lost=1, updated="2026-01-02T03:04:05Z"),
    )
    files.write_json(f"{folder}/fleet.json", {})
    return str(folder)


def evaluation(folder: Path) -> str:
    rows = [{"identity": "anna", "k": k, "psnr": 20.0 + k, "ssim": 0.9, "lpips": None} for k in (1, 4)]
    results = {"clip0": {"key": "clip0", "identity": "anna", "rows": rows}}
    settings, faults = Settings(generator="hash"), [Fault("clip1", "too short")]
    write_evaluation(str(folder), {"data": "shards"}, settings, results, faults, {"lpips": "no weights"})
    return str(folder)


def avatars(folder: Path) -> str:
    means = {"psnr": 30.0, "ssim": 0.95, "lpips": 0.05, "mse": 0.001}
    results = {
        f"person {n}": {"key": f"person {n}", "identity": "anna", "report": {**means, "psnr": 30.0 + n, "frames": 3}}
        for n in (1, 2)
    }
    write_evaluation(str(folder), {"data": "shards"}, Settings(generator=None), results, [], {})
    return str(folder)


def one_avatar(folder: Path) -> str:
    manifest = {"kind": "static", "layout": {"count": 4096}, "head": {"id": "tiny", "licence": "CC0-1.0"}}
    files.write_json(f"{folder}/avatar.json", manifest)
    files.write_json(f"{folder}/metrics.json", {"psnr": 31.0, "ssim": 0.9, "frames": 4, "split": "test"})
    lines = [{"iteration": n, "loss": 1 / n, "max_aspect_ratio": 2.0} for n in (1, 2)]
    files.write_bytes(f"{folder}/refine.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return str(folder)


KINDS: dict[str, Callable[[Path], str]] = {
    "data": data_set, "training": training, "sweep": sweep, "fleet": fleet, "evaluation": evaluation,
    "avatars": avatars, "avatar": one_avatar,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("world")
    return {name: make(folder / name) for name, make in KINDS.items()}


@pytest.fixture(scope="module")
def sections(world: dict[str, str]) -> dict[str, Section]:
    return {name: read_section(location) for name, location in world.items()}


def parts(section: Section, kind: type) -> list[Any]:
    return [part for part in section.parts if isinstance(part, kind)]


def test_headlines(sections: dict[str, Section]) -> None:
    assert sections["data"].headline == "3 people, 3 clips, 12 frames, 1 rejected"
    assert re.fullmatch(r"4 of 4 steps, held-out PSNR \d+\.\d\d dB", sections["training"].headline)
    assert sections["sweep"].headline == "1 of 2 variants measured, best a: 21.50 dB"
    assert sections["fleet"].headline == "2 of 4 subjects refined, mean PSNR 30.62 dB"
    assert sections["evaluation"].headline == "1 subject, PSNR 22.50 dB, the mean of all pictures"
    assert sections["avatars"].headline == "2 subjects, PSNR 31.50 dB, the mean of the avatars"
    assert sections["avatar"].headline == "static, 4,096 Gaussians, PSNR 31.00 dB on 4 test frames"


def test_every_source_is_there(world: dict[str, str], sections: dict[str, Section]) -> None:
    for name, section in sections.items():
        assert section.location == world[name] and section.parts
        for part in [*section.parts, *section.problems]:
            assert "*" in part.source or files.exists(part.source), part.source


def test_problems_and_their_handling(sections: dict[str, Section]) -> None:
    told = {name: {(p.what, p.reason) for p in section.problems} for name, section in sections.items()}
    assert told == {
        "data": {("lost", HOSTILE)},
        "training": set(),
        "sweep": {("b", HOSTILE)},
        "fleet": {
            ("1 worker lost", "the process, or its machine, ended"),
            ("ben", "too flat"),
            ("cid", HOSTILE),
            ("dora", "twice in the list"),
        },
        "evaluation": {("clip1", "too short")},
        "avatars": set(),
        "avatar": set(),
    }
    given_up = next(p for p in sections["fleet"].problems if p.what == "cid")
    assert given_up.handling.startswith("given up after 2 attempts")


def test_tables_hold_what_was_measured(sections: dict[str, Section]) -> None:
    variants = parts(sections["sweep"], Table)[0]
    assert [column.title for column in variants.columns] == [
        "variant", "lambda_sp", "PSNR", "SSIM", "PSNR (paper)", "note",
    ]  # fmt: skip
    assert variants.notes == ["not measured: LPIPS, CSIM, AED, APD, AKD (table.md says why)"]
    reenactment = parts(sections["evaluation"], Table)[0]
    assert [(row["name"], row["psnr"]) for row in reenactment.rows] == [("K = 1", 21.0), ("K = 4", 24.0), ("all", 22.5)]
    assert reenactment.notes == ["LPIPS: no weights"]
    subjects = parts(sections["fleet"], Table)[1]
    assert [row["id"] for row in subjects.rows] == ["cid", "dora", "ben", "anna"], "who needs a look comes first"


def test_pictures_and_curves(sections: dict[str, Section]) -> None:
    kinds = {name: [part.kind for part in parts(section, Figure)] for name, section in sections.items()}
    assert kinds == {
        "data": ["jpeg"], "training": ["svg", "png"], "sweep": ["svg"], "fleet": ["jpeg"], "evaluation": [],
        "avatars": [], "avatar": ["svg"],
    }  # fmt: skip
    losses = parts(sections["training"], Figure)[0].data.decode()
    assert "held-out PSNR" in losses and "before their weights" in losses
    panels = {"loss": {"": [(1.0, 2.0), (2.0, 1.0)]}}
    assert draw(panels) == draw(panels)


LOG = "logs/a b#1 %.log"
STEPS = (
    {
        "title": "ingest",
        "command": "run <this>",
        "began": 60.0,
        "seconds": 30.0,
        "exit_code": 0,
        "log": "logs/a b#1 %.log",
    },
    {"title": "a worker was killed", "command": "", "began": 70.0, "seconds": 0, "exit_code": 0, "log": ""},
    {"title": "fleet", "command": "run that", "began": 100.0, "seconds": 80.0, "exit_code": 2, "log": ""},
)


@pytest.mark.parametrize("place", ["absolute", "relative"])
def test_page_stands_alone(
    sections: dict[str, Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / LOG).touch()
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in STEPS))
    monkeypatch.chdir(tmp_path)
    folder = f"{tmp_path}/" if place == "absolute" else ""
    write_page(f"{folder}page.html", [read_steps(f"{folder}steps.jsonl"), *sections.values()], HOSTILE)
    text = (tmp_path / "page.html").read_text()
    read = Read(text)
    assert not read.tags & {"script", "link", "iframe", "object", "form"}
    assert read.sources and all(source.startswith("data:image/") for source in read.sources)
    assert "url(" not in text.split("</style>")[0] and "@import" not in text
    for link in read.links:
        where = urlsplit(link)
        assert not where.scheme and not where.netloc and not where.query
        if where.path:
            assert (tmp_path / unquote(where.path)).exists() and not where.fragment, link
        else:
            assert where.fragment in read.ids
    assert "./logs/a%20b%231%20%25.log" in read.links
    assert HOSTILE in read.words, "shown, not run"
    assert "2 commands in 2.0 minutes" in read.words
    assert {"done", "event", "exit code 2", "00:01:10", "run <this>", "31.25"} <= set(read.words)


def test_many_problems_are_cut_with_their_number(tmp_path: Path) -> None:
    problems = [Problem(f"p{number}", "r", "h", "s3://bucket/a") for number in range(53)]
    write_page(tmp_path / "page.html", [Section("Fleet", "s3://bucket", "well", [], problems)])
    words = Read((tmp_path / "page.html").read_text()).words
    assert "p49" in words and "p50" not in words and "3 more" in words and "53" in words


def test_sources_in_a_store_are_named_without_links(tmp_path: Path) -> None:
    facts = Facts({"a": "b"}, "s3://bucket/fleet/status.json")
    problem = Problem("x", "y", "z", "s3://bucket/fleet/summary.parquet")
    write_page(tmp_path / "page.html", [Section("Fleet", "s3://bucket/fleet", "well", [facts], [problem])])
    read = Read((tmp_path / "page.html").read_text())
    assert set(read.links) == {"#s0", "#problems"}
    assert {"s3://bucket/fleet/summary.parquet", "from s3://bucket/fleet/status.json"} <= set(read.words)


def test_what_cannot_be_reported(tmp_path: Path, world: dict[str, str]) -> None:
    def refused(location: Path, text: str) -> None:
        with pytest.raises(SpatialAvatarError, match=text):
            read_section(str(location))

    refused(tmp_path / "nothing", "no such folder; expected the folder of a data set")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    refused(tmp_path / "other", "nothing that can be reported")
    at_work = tmp_path / "at_work"
    files.write_bytes(f"{at_work}/config.yaml", b"steps: 4\n")
    files.write_bytes(f"{at_work}/train.jsonl", b'{"step": 2, "held_out_psnr": 3.0}\n')
    refused(at_work, "no step in it yet")
    files.write_bytes(f"{at_work}/train.jsonl", b'{"step": 1}\nnot this\n{"step": 2}\n')
    refused(at_work, r"train.jsonl, line 2: not JSON")
    begun = tmp_path / "begun"
    files.write_json(f"{begun}/fleet.json", {})
    refused(begun, "no summary.parquet yet; write it with: spatialavatar fleet report")
    files.write_bytes(f"{begun}/summary.parquet", b"PAR1")
    refused(begun, "not a fleet's table")
    foreign = tmp_path / "foreign"
    files.write_json(f"{foreign}/evaluation.json", {"format": "other"})
    refused(foreign, "not an evaluation's")
    files.write_json(f"{foreign}/evaluation.json", {"format": "spatialavatar-evaluation"})
    refused(foreign, "cannot be reported as an evaluation .KeyError: 'summary'.; restore its files, or leave it out")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("[]", "expected an object"),
        ('{"title": "a"}', "line 1: command is missing"),
        ("{\n{}", "line 1: not JSON"),
        *((json.dumps({**STEPS[0], "log": log}), "log is a file beside")
          for log in ("/etc/passwd", "../x", "javascript:alert(1)", "s3://b/c", "a//../b")),
        *((json.dumps({**STEPS[0], name: value}), "are times in seconds")
          for name, value in (("began", float("nan")), ("began", 1e20), ("seconds", -1), ("seconds", float("inf")))),
    ],
)  # fmt: skip
def test_damaged_steps(tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "steps.jsonl").write_text(line + "\n")
    with pytest.raises(SpatialAvatarError, match=text):
        read_steps(str(tmp_path / "steps.jsonl"))
