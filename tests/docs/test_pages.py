"""The pages' commands run as they stand, in order, in a folder that has what they name, at sizes that take seconds."""

import importlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.command import run
from spatialavatar.cli import main
from spatialavatar.head import write_head
from spatialavatar.head.builtin import generate_head
from spatialavatar.head.convert import convert_head
from spatialavatar.losses import lpips_weights
from spatialavatar.shards.ingest import ingest
from spatialavatar.shards.ingest_config import IngestConfig
from tests.builders.clips import tiny_clip
from tests.builders.flame_like import flame_like, write_flame_pickle, write_template_obj
from tests.builders.generators import tiny_generator_config
from tests.builders.trackers.gagavatar_track import track_folder
from tests.docs.commands import ROOT, Command, commands_of

WALKED = ("README.md", "docs/own_video.md", "docs/data.md", "docs/training.md")
SIZES = {"--iterations": "2", "--resolution": "40", "--uv-resolution": "16", "--frames": "6", "--test-last": "2"}
ADDED = {  # sizes that a page leaves to the program
    "spatialavatar refine": ["--iterations", "--resolution"],
    "spatialavatar animate": ["--resolution", "--frames"],
    "spatialavatar evaluate": ["--resolution"],
    "spatialavatar clip synthesize": [],
}
ELSEWHERE = (
    "spatialavatar head convert ICT-FaceKit/",  # a large checkout: tests/head/test_convert_ict.py
    "spatialavatar demo",  # minutes: tests/cli/test_demo.py
)
CONVERT = ["convert", "generic_model.pkl", "--uv", "head_template.obj", "--out", "flame2020.head.safetensors"]
generate_once = cache(generate_head)
PEOPLE = {"identities": 2, "instants": 4, "texture_size": 32}


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_weights, "_download", lambda url: (_ for _ in ()).throw(OSError("no network in tests")))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader of the pages stands: FLAME's files, what a tracker wrote, configurations."""
    monkeypatch.chdir(tmp_path)
    arrays = flame_like()
    write_flame_pickle(tmp_path / "generic_model.pkl", arrays)
    write_template_obj(tmp_path / "head_template.obj", arrays)
    for name in ("anna", "ben"):
        track_folder(frames=6, name=name, size=64).write(tmp_path / "tracked" / name)
    for phase in (1, 2):
        people = {"synthetic": {**PEOPLE, "cameras": 1 if phase == 1 else 4}}
        write_training(tmp_path / f"configs/dev/phase{phase}.yaml", phase, people)
        write_training(tmp_path / f"configs/phase{phase}.yaml", phase, {"shards": {"url": "data/yours"}})
    return tmp_path


@pytest.fixture
def data(reader: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a converted head, clips and shards."""
    file = reader / "flame2020.head.safetensors"
    head = write_head(file, *convert_head(reader / "generic_model.pkl", uv=reader / "head_template.obj"))
    for name, cameras in (("clips", 1), ("takes", 4)):
        for seed in range(2):
            parts: dict[str, Any] = {"head": head, "params": head.neutral(4), "cameras": cameras}
            tiny_clip(reader / name / str(seed), instants=4, identity=f"person{seed}", **parts)
    for source, output in (("clips", "shards"), ("clips", "shards/celebv-hq"), ("takes", "shards/nersemble")):
        ingest(IngestConfig(source=f"{reader}/{source}", output=f"{reader}/{output}", head=str(file)))
    return reader


def write_training(file: Path, phase: int, data: dict[str, Any]) -> None:
    """A training of two steps in the place of one that takes minutes or days."""
    values = {
        "phase": phase,
        "phase1_checkpoint": None if phase == 1 else "runs/phase1",
        "generator": tiny_generator_config(encoder={"frozen": False}).model_dump(mode="json"),
        "data": data,
        "held_out": None if "shards" in data else {**data},
        "held_out_samples": 1,
        "loss": {"lambda_lp": 0.0},
        "steps": 2,
        "batch_size": 2,
        "resolution": 32,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(values))


def sized(command: Command) -> list[str]:
    """The command's words with other numbers, and with those that it leaves to the program."""
    words = list(command.words)
    for i, word in enumerate(words[:-1]):
        words[i + 1] = SIZES.get(word, words[i + 1])
    for option in ADDED.get(command.name, []):
        words += [] if option in words else [option, SIZES[option]]
    if command.name == "spatialavatar clip synthesize":
        words += ["--size", "48"]
    if command.name == "spatialavatar refine" and not {"--init", "--uv-resolution"} & set(words):
        words += ["--uv-resolution", SIZES["--uv-resolution"]]
    return words


def walk(
    page: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], jobs: Sequence[str] = ()
) -> list[str]:
    """Run the page's commands in this process; their names.

    Of what runs on Ray only ``jobs``; nothing that names a store, is submitted, or runs elsewhere.
    """
    ran = []
    for command in commands_of(page):
        ours = command.words[0] == "spatialavatar" or (command.words[0] == "python" and command.name in jobs)
        if ours and not str(command).startswith(ELSEWHERE) and "s3://" not in str(command):
            execute(sized(command), monkeypatch, capfd)
            ran.append(command.name)
    return ran


def execute(words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It must end with 0."""
    monkeypatch.setattr("spatialavatar.head.builtin.generate_head", generate_once)
    try:
        if words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[2:])
            run(importlib.import_module(words[2]).app, words[2])
        else:
            monkeypatch.setattr(sys, "argv", words)
            main.run()
        code: object = 0
    except SystemExit as e:
        code = e.code
    assert code in (0, None), f"{' '.join(words)}\n{capfd.readouterr().err}"


def test_readme(reader: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    execute(["spatialavatar", "head", *CONVERT], monkeypatch, capfd)
    for words in (
        "import tracked/ben --head flame2020.head.safetensors --out clips/ben",
        "synthesize --frames 2 --size 48 --out clips/someone",
    ):
        execute(["spatialavatar", "clip", *words.split()], monkeypatch, capfd)
    assert len(walk("README.md", monkeypatch, capfd)) == 5
    assert (reader / "anna_as_ben.mp4").stat().st_size and (reader / "avatars/someone/avatar.json").exists()


def test_own_video(reader: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    walk("docs/own_video.md", monkeypatch, capfd)
    made = ("inspect.png", "metrics.json", "sheet.png", "anna_as_ben.mp4", "around.mp4", "someone.png")
    assert not [name for name in made if not (reader / name).stat().st_size]
    assert (reader / "avatars/anna/point_cloud.ply").exists() and (reader / "avatars/someone-too/avatar.json").exists()


def test_data(data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    walk("docs/data.md", monkeypatch, capfd)
    assert (data / "sample.png").stat().st_size


def test_training(data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    walk("docs/training.md", monkeypatch, capfd)
    assert {path.name for path in (data / "runs").iterdir()} >= {"phase1", "paper", "on-clips", "on-shards"}


@pytest.mark.slow
def test_data_with_its_ingest(
    reader: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    execute(["spatialavatar", "head", *CONVERT], monkeypatch, capfd)
    assert "ray_jobs.ingest" in walk("docs/data.md", monkeypatch, capfd, ["ray_jobs.ingest"])


@pytest.mark.slow
def test_fleet(
    reader: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fleet = yaml.safe_load((ROOT / "configs/dev/fleet.yaml").read_text())
    fleet["refine"] |= {"iterations": 30, "resolution": 48, "uv_resolution": 16}
    (reader / "configs/dev/fleet.yaml").write_text(yaml.safe_dump(fleet))
    ran = walk("docs/fleet.md", monkeypatch, capfd, ["ray_jobs.refine"])
    assert {"ray_jobs.refine", "spatialavatar fleet list", "spatialavatar fleet report"} <= set(ran)
    assert (reader / "fleet/sheet.jpg").stat().st_size
