"""``spatialavatar train`` and ``spatialavatar model``: what a person types, reads, and gets."""

import json
import re
import shlex
import signal
from pathlib import Path

import pytest
import yaml

from spatialavatar.cli import train as command
from spatialavatar.config import load_config
from spatialavatar.generator.checkpoint import read_facts
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.run import train
from tests.builders.training import tiny_clips, tiny_head_file, tiny_training


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that trains four steps on three tiny clips."""
    folder = tmp_path_factory.mktemp("training")
    _, head = tiny_head_file(folder)
    file = folder / "tiny.yaml"
    values = tiny_training(tiny_clips(folder / "clips"), head).model_dump(mode="json")
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """A run that was never stopped."""
    train(load_config(TrainConfig, config), config.parent / "whole")
    return config.parent / "whole"


def test_a_run_says_where_everything_is(run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    done = run("train", "--config", config, "--device", "cpu")
    assert done.code == 0, done.err
    name = f"{config.parent.name}-tiny"  # after the configuration's folder and name
    folder = tmp_path / "runs" / name
    assert f"4 steps of 3 samples at 32 pixels in fp32 on cpu -> runs/{name}" in done.err
    last = done.err[done.err.index("training: 4/4") :].splitlines()[0]
    assert re.search(r"loss \d\.\d+, \d+\.\d dB, held out \d+\.\d dB, \d+\.\d samples/s$", last)
    for promised in re.findall(rf"runs/{name}/\S+", done.err):
        assert (tmp_path / promised.rstrip(";")).exists(), promised
    assert f"spatialavatar reconstruct CLIP#0 --checkpoint runs/{name}" in done.err
    assert [json.loads(line)["step"] for line in (folder / "train.jsonl").read_text().splitlines()] == [2, 4, 4]

    taken = run("train", "--config", config, "--device", "cpu")
    assert taken.code == 2
    assert "--resume" in taken.err and "--force" in taken.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(  # type: ignore[no-untyped-def]
    run, config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    stopped = tmp_path / "stopped"
    note = command.Speed.note

    def interrupt(status: command.Speed, state) -> str:  # type: ignore[no-untyped-def]
        if state.step == 3:
            signal.raise_signal(number)
        return note(status, state)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(command.Speed, "note", interrupt)
        done = run("train", "--config", config, "--out", stopped, "--device", "cpu")
    assert done.code == 130
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir())[-1] == "step-00000003"
    advice = re.search(r"go on with: spatialavatar (.+)", done.err)
    assert advice is not None, done.err

    resumed = run(*shlex.split(advice[1]))
    assert resumed.code == 0, resumed.err
    assert read_facts(stopped).hash == read_facts(whole).hash


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--config configs/dev/phase1.yaml"),
        (["--resume"], "--config configs/dev/phase1.yaml"),
        (["--config", "{config}", "--set", "stepz=3"], "did you mean steps?"),
        (["--config", "{config}", "--steps", "0"], "steps"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--resume", "--out", "nowhere"], "nowhere: no training run here"),
        (["--resume", "--force", "--config", "{config}"], "give one of them"),
        (["--config", "{config}", "--device", "cuda:x"], "--device cuda:x"),
        (["--config", "{config}", "--set", "data.clips=[nowhere/*]"], "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(  # type: ignore[no-untyped-def]
    run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("train", *(argument.format(config=config) for argument in arguments))
    assert done.code == 2
    assert expected in done.err.splitlines()[-1]
    assert "Traceback" not in done.err and "samples at" not in done.err, "no plan of what cannot be"
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_model_summary_of_a_configuration_and_of_a_run(run, config: Path, whole: Path) -> None:  # type: ignore[no-untyped-def]
    by_config = run("model", "summary", "--config", config, "--batch-size", "6", "--sources", "2")
    by_checkpoint = run("model", "summary", "--checkpoint", whole, "--batch-size", "6", "--sources", "2")
    assert by_config.code == by_checkpoint.code == 0, by_checkpoint.err
    assert by_config.out == by_checkpoint.out
    assert "training at batch 6, fp32" in by_config.out and "one person of 2 source(s)" in by_config.out
    for name in ("encoder", "dpt", "pool", "unet", "decoder.heads", "decoder.residual", "in all"):
        assert re.search(rf"^{re.escape(name)} +[\d,]+ ", by_config.out, re.MULTILINE), name
    assert "phase 1, step 4" in by_checkpoint.err
    assert "not counted: " not in by_config.out and "(--ops)" in by_config.out
    named = run("model", "summary", "--config", config, "--ops").out
    assert "not counted: " in named and "(--ops)" not in named


def test_runs_are_named_after_their_configurations() -> None:
    for file, expected in (
        ("configs/phase1.yaml", "runs/phase1"),
        ("configs/dev/phase1.yaml", "runs/dev-phase1"),
        ("phase1.yaml", "runs/phase1"),
        ("../phase1.yaml", "runs/phase1"),
        ("/data/mine/try.2.yaml", "runs/mine-try.2"),
    ):
        assert command.default_folder(file) == expected


def test_advice_can_be_pasted_for_any_folder(config: Path) -> None:
    settings = load_config(TrainConfig, config)
    said = command._outcome(settings, "runs/my first", "c", 1.0, None)
    lines = [shlex.split(line) for line in said.splitlines() if line.startswith("  spatialavatar")]
    assert lines[0][4] == "runs/my first" and "phase1_checkpoint=runs/my first" in lines[1]
    many = settings.model_copy(
        update={"data": settings.data.model_copy(update={"clips": tuple(f"clips/{i}" for i in range(90))})}
    )
    assert "clips in clips/0, clips/1, clips/2 and 87 more\n" in command.plan(many, "cpu", "out")


def test_model_summary_of_what_says_nothing_of_training(run, whole: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "generator.safetensors"
    newest = sorted((whole / "checkpoints").iterdir())[-1]
    file.write_bytes((newest / "generator.safetensors").read_bytes())
    done = run(
        "model", "summary", "--checkpoint", file, "--batch-size", "6", "--head", whole.parent / "tiny.head.safetensors"
    )
    assert done.code == 2 and "--batch-size 6" in done.err.splitlines()[-1]
    assert run("model", "summary", "--checkpoint", file, "--batch-size", "0").code == 2
    (tmp_path / "checkpoint.json").write_text(json.dumps({"config": {"stepz": 3}}))
    done = run("model", "summary", "--checkpoint", file)
    assert done.code == 2 and "checkpoint.json: holds no configuration" in done.err and done.err.count("\n") == 1


def test_model_summary_needs_one_of_two(run, config: Path) -> None:  # type: ignore[no-untyped-def]
    for arguments in ([], ["--config", config, "--checkpoint", "run"]):
        done = run("model", "summary", *arguments)
        assert done.code == 2
        assert "either --config FILE or --checkpoint CKPT" in done.err
