"""The benchmark page says what the records say, all of them, and its commands exist."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.page import PAGE, RESULTS, ROOT, page
from benchmarks.page_records import BENCHMARKS


def test_the_committed_page_is_that_of_the_records() -> None:
    assert page() == PAGE.read_text(), "run python benchmarks/page.py and commit docs/benchmarks.md"


def test_every_record_and_every_picture_is_on_it() -> None:
    linked = set(re.findall(r"\(\.\./benchmarks/results/([^)]+)\)", page()))
    assert linked == {file.name for file in RESULTS.iterdir()} - {"README.md"}


# Each benchmark's main, up to where its options are read.
PARSE = """
import argparse, importlib, json, shlex, sys
class Parsed(Exception):
    pass
def parsed(parser, parse=argparse.ArgumentParser.parse_args):
    parse(parser)
    raise Parsed
argparse.ArgumentParser.parse_args = parsed
for command in json.load(sys.stdin):
    python, *sys.argv = shlex.split(command)
    try:
        importlib.import_module(sys.argv[0].removesuffix(".py").replace("/", ".")).main()
    except Parsed:
        pass
"""


@pytest.mark.slow
def test_its_commands_are_ones_that_the_scripts_take() -> None:
    commands = sorted({command for command, _ in BENCHMARKS.values()})
    named = re.findall(r"benchmarks/\S+", " ".join(commands))
    assert [name for name in named if not (ROOT / name).exists()] == []
    run = subprocess.run([sys.executable, "-c", PARSE], cwd=ROOT, input=json.dumps(commands), text=True, timeout=300)
    assert run.returncode == 0


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def copy(file: Path, to: str, **changes: object) -> None:
    """A record beside ``file``, with other values at its top."""
    document = json.loads(file.read_text()) | changes
    file.with_name(to).write_text(json.dumps(document))


def test_a_newer_record_takes_the_older_ones_place(results: Path) -> None:
    file = next(results.glob("stream-*.json"))
    values = json.loads(file.read_text())["results"]
    values["alpha"]["prepared on one core, frames/s"] = 123.4
    copy(file, "stream-2030-01-01.json", date="2030-01-01T00:00:00Z", results=values)
    text = page(results)
    assert "| 123.4 frames/s | machine " in text
    assert file.name in text  # among all records


def test_a_record_of_a_gpu_ends_the_sentence_that_there_is_none(results: Path) -> None:
    before = page(results)
    assert "No CUDA number exists yet" in before
    file = next(results.glob("rasterizer-*.json"))
    machine = json.loads(file.read_text())["machine"] | {"gpus": ["NVIDIA Something"]}
    copy(file, "rasterizer-2030-01-01.json", date="2030-01-01T00:00:00Z", machine=machine)
    text = page(results)
    assert "No CUDA number exists yet" not in text
    assert re.search(r"gsplat, forward and backward.*\[rasterizer-2030-01-01\]", text)
    overview, overview_before = (one.split("## What was never measured")[0] for one in (text, before))
    assert overview == overview_before  # which goes on telling what CPUs do


def test_a_record_that_nobody_explained_is_named(results: Path) -> None:
    copy(next(results.glob("fleet-*.json")), "mystery.json", name="mystery")
    with pytest.raises(KeyError, match=r"mystery\.json: say in BENCHMARKS"):
        page(results)
