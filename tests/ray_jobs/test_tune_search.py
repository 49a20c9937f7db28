"""Whom a sweep stops, and what it still knows of that when another program goes on with it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spatialavatar.errors import StoreError
from tests.builders.training import tiny_training

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("deepspeed", reason="deepspeed is not installed")

from ray_jobs import tune_search
from ray_jobs.train_places import Places
from ray_jobs.tune_config import AshaConfig, EvaluateConfig, TrialPlan
from ray_jobs.tune_result import Ended, read_ended
from ray_jobs.tune_search import Halving
from ray_jobs.tune_trial import Trials

ASHA = AshaConfig(grace_period=2, reduction_factor=2)


class Board:
    """The sweep's board, in this process."""

    def __init__(self) -> None:
        self.ended: dict[str, Ended] = {}
        self.messages: list[str] = []
        self.end = SimpleNamespace(remote=self.ended.__setitem__)
        self.update = SimpleNamespace(remote=lambda name, progress, messages: self.messages.extend(messages))


def trials_of(out: Path, curves: dict[str, dict[int, float]], todo: str) -> Trials:
    """Trials, by a letter each, with their held-out PSNR so far by step."""
    for name, curve in curves.items():
        lines = [json.dumps({"step": step, "held_out_psnr": psnr}) for step, psnr in curve.items()]
        (out / "trials" / name).mkdir(parents=True)
        (out / "trials" / name / "train.jsonl").write_text("\n".join(lines))
    config = tiny_training("clips/*", out / "head", steps=16)
    plans = {name: TrialPlan(name, {}, config, config.data) for name in curves}
    places = dict.fromkeys(todo, Places(1, 1.0, False, 1))
    return Trials(str(out), plans, places, dict.fromkeys(curves, "print"), EvaluateConfig(), {}, {}, None)


def reports(halving: Halving, name: str, step: int, psnr: float) -> str:
    """What becomes of a trial that has come to a step."""
    trial = SimpleNamespace(trial_id=f"of this program: {name}", config={"variant": name})
    halving.on_trial_add(None, trial)
    return halving.on_trial_result(None, trial, {"step": step, "held_out_psnr": psnr})


def test_who_is_stopped_is_written_down_at_once(tmp_path: Path) -> None:
    board = Board()
    halving = Halving(ASHA, trials_of(tmp_path, {"a": {}, "b": {}}, "ab"), board)
    assert reports(halving, "a", 2, 30.0) == "CONTINUE" and reports(halving, "b", 2, 10.0) == "STOP"
    stopped = Ended(stopped=2, held_out_psnr=10.0)
    assert board.ended == {"b": stopped}
    assert [read_ended(str(tmp_path), name, "print", {}) for name in "ab"] == [None, stopped]


def test_a_store_that_refuses_is_no_reason_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise StoreError("s3://lab: refused")

    monkeypatch.setattr(tune_search, "write_ended", refuse)
    board = Board()
    halving = Halving(ASHA, trials_of(tmp_path, {"a": {2: 20.0}, "b": {}}, "ab"), board)
    assert reports(halving, "b", 2, 10.0) == "STOP" and "b" in board.ended
    assert board.messages == ["stopped, which another program will not know: s3://lab: refused"]


@pytest.mark.parametrize("todo", ["cd", "d"], ids=["c goes on, too", "c is done"])
def test_another_program_knows_how_all_stood(tmp_path: Path, todo: str) -> None:
    """The first two were stopped, the third went on: a newcomer is measured against them, not against nobody."""
    trials = trials_of(tmp_path, {"a": {2: 10.0}, "b": {2: 12.0}, "c": {2: 20.0, 4: 22.0}, "d": {}}, todo)
    assert reports(Halving(ASHA, trials, Board()), "d", 2, 11.0) == "STOP"
    assert reports(Halving(ASHA, trials, Board()), "d", 2, 15.0) == "CONTINUE"
    assert reports(Halving(ASHA, trials, Board()), "d", 4, 15.0) == "STOP"  # where c alone has been


def test_a_trial_that_goes_on_counts_once(tmp_path: Path) -> None:
    """It reports again what an earlier program had heard, and goes on where it went on then."""
    trials = trials_of(tmp_path, {"a": {2: 30.0, 3: 30.0}, "b": {2: 20.0}, "c": {}}, "ac")
    halving = Halving(ASHA, trials, Board())
    assert reports(halving, "a", 2, 30.0) == "CONTINUE"
    assert reports(halving, "c", 2, 25.0) == "CONTINUE"  # the median of the two others
    assert reports(halving, "c", 4, 1.0) == "CONTINUE"  # the first there
