"""``spatialavatar demo`` from end to end, at sizes that say nothing about quality."""

import json
from functools import cache
from pathlib import Path

import cv2
import pytest

from spatialavatar import files
from spatialavatar.avatar import read_avatar
from spatialavatar.cli import demo
from spatialavatar.head.builtin import generate_head
from tests.builders.generators import tiny_generator_config

PEOPLE = {"identities": 2, "instants": 3, "texture_size": 32}
SIZES = {"SIZE": 48, "UV_RESOLUTION": 16, "FRAMES": 4, "HELD_OUT": 1, "DRIVER_FRAMES": 2, "CAMERAS": 3, "SHEET_ROWS": 1}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialavatar.head.builtin.generate_head", cache(generate_head))
    for name, value in SIZES.items():
        monkeypatch.setattr(demo, name, value)
    training = {
        **demo.TRAINING,
        "generator": tiny_generator_config(encoder={"frozen": False}).model_dump(),
        "data": {"synthetic": PEOPLE},
        "held_out": {"synthetic": PEOPLE},
        "held_out_samples": 1,
        "batch_size": 2,
        "resolution": 32,
    }
    monkeypatch.setattr(demo, "TRAINING", training)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_every_stage_leaves_its_result(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "demo"
    done = run("demo", "--out", out, "--generator-steps", 2, "--iterations", 2, "--device", "cpu")
    assert done.code == 0, done.err
    assert [line[:3] for line in done.err.splitlines() if line[1:3] == "/7"] == [f"{n}/7" for n in range(1, 8)]
    assert read_avatar(out / "one-shot").kind == "generated" and read_avatar(out / "avatar").kind == "static"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["iterations"] == 2 and metrics["one_portrait"].keys() == {"test", "view"}
    for made in ("refined", "one portrait"):
        for split in ("unseen frames", "unseen view"):
            assert f"{made}, {split} " in done.out
    assert cv2.imread(str(out / "contact_sheet.png")).shape == (2 * (48 + 26), 4 * 48, 3)
    assert (out / "animation.mp4").stat().st_size > 500

    assert run("demo", "--out", out, "--generator-steps", 0, "--iterations", 0, "--device", "cpu").code == 0
    assert not {"generator", "one-shot"} & set(files.list_folder(out)), "of the earlier demo"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["iterations"] == 0 and metrics["one_portrait"] is None


def test_what_belongs_to_no_demo_is_kept(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "thesis.tex").write_text("years")
    for options in ([], ["--force"]):
        done = run("demo", "--out", tmp_path, "--generator-steps", 0, *options)
        assert done.code == 2 and "generator" in done.err.splitlines()[-1]
    assert files.list_folder(tmp_path) == ["generator"] and (tmp_path / "generator" / "thesis.tex").exists()


@pytest.mark.parametrize("option", ["--iterations", "--generator-steps"])
def test_numbers_below_zero_are_refused_before_any_work(run, tmp_path: Path, option: str) -> None:  # type: ignore[no-untyped-def]
    done = run("demo", "--out", tmp_path / "demo", option, "-1")
    assert done.code == 2 and option in done.err and not (tmp_path / "demo").exists()


@pytest.mark.parametrize(("steps", "warm_up"), [(2, 0), (100, 10), (250, 25), (4000, 25)])
def test_a_short_training_warms_up_for_a_tenth_of_it(steps: int, warm_up: int) -> None:
    config = demo._training(steps)
    assert config is not None and config.schedule.warmup_steps == warm_up
