"""The evaluation of a trained variant: clips that cannot be measured, and what its numbers are tied to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.evaluation import generator_report
from spatialavatar.generator.checkpoint import FILE, write_generator
from tests.builders.clips import tiny_clip
from tests.builders.generators import awaken, tiny_generator
from tests.builders.training import tiny_clips, tiny_head_file, tiny_training

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("deepspeed", reason="deepspeed is not installed")

import ray

from ray_jobs.tune_config import EvaluateConfig, TrialPlan, TuneConfig
from ray_jobs.tune_result import Ended, fingerprint, read_ended, write_ended, write_result
from ray_jobs.tune_trial import evaluate_generator

WANTED = EvaluateConfig(k=(1, 2), targets=1)


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialPlan:
    """A trained generator, to be shown two sound people, one of four frames, and one with damaged pictures."""
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [])
    head, head_file = tiny_head_file(tmp_path)
    (tmp_path / "run").mkdir()
    write_generator(tmp_path / "run" / FILE, awaken(tiny_generator(head)), {"resolution": 32})
    clips = tiny_clips(tmp_path / "clips", count=4)
    shutil.rmtree(tmp_path / "clips/clip1")
    tiny_clip(tmp_path / "clips/clip1", instants=4, width=32, height=32, seed=1)
    for picture in (tmp_path / "clips/clip2/images").iterdir():
        picture.write_bytes(b"")
    config = tiny_training(clips, head_file)
    return TrialPlan("a", {}, config, config.data)


def test_a_clip_that_cannot_be_measured_costs_no_other(trial: TrialPlan, tmp_path: Path) -> None:
    found = evaluate_generator(trial, WANTED, str(tmp_path / "run"), {}, None)
    assert [Path(row["identity"]).name for row in found["rows"]] == ["clip0"] * 2 + ["clip3"] * 2
    assert [Path(fault["clip"]).name for fault in found["failed"]] == ["clip1", "clip2"]
    assert "too short to show anything" in found["failed"][0]["reason"]
    assert "clip2/images/" in found["failed"][1]["reason"]
    assert found["summary"]["failed"] == 2 and found["summary"]["overall"]["cases"] == 4

    sweep = TuneConfig(train="train.yaml", grid={"steps": [1]})
    write_result(str(tmp_path), sweep, [trial], {"a": Ended(evaluation=found["summary"])})
    said = "a: 2 clips could not be measured, with reasons in trials/a/evaluation.json"
    assert said in (tmp_path / "table.md").read_text().splitlines()


def test_an_unexpected_exception_is_that_clips_own(
    trial: TrialPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = generator_report.measure_subject

    def strange(*given: Any, **named: Any) -> Any:
        if given[2] == 0:
            raise IndexError("out of\nrange")
        return measure(*given, **named)

    monkeypatch.setattr(generator_report, "measure_subject", strange)
    found = evaluate_generator(trial, WANTED, str(tmp_path / "run"), {}, None)
    assert found["failed"][0]["reason"] == "IndexError: out of range" and len(found["failed"]) == 3


def test_nothing_to_tell_of_fails(trial: TrialPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for picture in tmp_path.glob("clips/*/images/*"):
        picture.write_bytes(b"")
    with pytest.raises(SpatialAvatarError, match=r"none of 4 clips could be measured: .*clip0/images/"):
        evaluate_generator(trial, WANTED, str(tmp_path / "run"), {}, None)

    def away(*_: Any, **__: Any) -> None:
        raise StoreError("the store does not answer")

    monkeypatch.setattr(generator_report, "measure_subject", away)
    with pytest.raises(StoreError):
        evaluate_generator(trial, WANTED, str(tmp_path / "run"), {}, None)


def test_an_evaluation_is_tied_to_what_it_was_made_with(trial: TrialPlan, tmp_path: Path) -> None:
    """Other estimators, LPIPS weights or another protocol: it is done again, and a stopped trial stays stopped."""
    sweep = TuneConfig(train="train.yaml", grid={"steps": [1]})
    print_, measures = fingerprint(trial, sweep), {"estimators": {}, "lpips": None, "protocol": 1}
    out, where = str(tmp_path / "out"), tmp_path / "out/trials/a/evaluation.json"
    where.parent.mkdir(parents=True)
    where.write_text(json.dumps({"config": print_, "measures": measures, "summary": {"overall": {}}}))
    assert read_ended(out, "a", print_, measures) == Ended(evaluation={"overall": {}})
    others: list[dict[str, Any]] = [{"estimators": {"identity": "faces 1.2"}}, {"lpips": "0123"}, {"protocol": 2}]
    for other in others:
        assert read_ended(out, "a", print_, {**measures, **other}) is None
    write_ended(out, "b", print_, Ended(stopped=3, held_out_psnr=9.0))
    assert read_ended(out, "b", print_, {**measures, **others[0]}) == Ended(stopped=3, held_out_psnr=9.0)
