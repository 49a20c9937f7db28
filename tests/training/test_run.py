"""A training run in one process: what it leaves behind, exact resumption, phases, and how it stops."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from safetensors.numpy import load_file

from spatialavatar import files, tensor_files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import complete_checkpoints, read_facts, read_generator
from spatialavatar.training import run as runs
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.folder_pool import FolderPool
from spatialavatar.training.optimization import learning_rate_factor
from spatialavatar.training.pool import open_pool
from spatialavatar.training.progress import Progress, StopTraining
from spatialavatar.training.run import train
from spatialavatar.training.setup import licence_of, training_head
from spatialavatar.training.trainer import Trainer
from tests.builders.generators import tiny_generator, tiny_generator_config
from tests.builders.training import training_folder, training_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_folder(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def phase1(folder: Path) -> Path:
    """An undisturbed run of four steps."""
    train(training_in(folder), folder / "phase1")
    return folder / "phase1"


def phase2_config(folder: Path, phase1: Path, **changes: Any) -> TrainConfig:
    loss = {"lambda_sp": 1e-3, "lambda_delta": 1e-2} | changes.pop("loss", {})
    values: dict[str, Any] = {
        "phase": 2,
        "phase1_checkpoint": str(phase1),
        "optimizer": {"kind": "adamw", "lr_decay": 0.65},
        "schedule": {"kind": "cosine", "warmup_steps": 1, "end": 0.0},
        "precision": "bf16",
    }
    return training_in(folder, "takes", loss=loss, **{**values, **changes})


class Killed(Exception):
    pass


def kill_at(step: int) -> Any:
    def observe(progress: Progress) -> None:
        if progress.step == step:
            raise Killed  # as a crash does: nothing is saved

    return observe


def weights(run: Path) -> dict[str, np.ndarray]:
    newest = Path(complete_checkpoints(run)[-1])
    return {**load_file(newest / "generator.safetensors"), **load_file(newest / "optimizer.safetensors")}


def log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "performance")} for line in lines]


def assert_same_tensors(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not np.array_equal(first[name], second[name])]
    assert different == []


def assert_same_end(a: Path, b: Path) -> None:
    assert_same_tensors(a, b)
    assert log(a) == log(b)


def test_a_run_leaves_what_it_says(phase1: Path, folder: Path) -> None:
    assert [Path(step).name for step in complete_checkpoints(phase1)] == ["step-00000002", "step-00000004"]
    assert {p.name for p in phase1.iterdir()} >= {"config.yaml", "train.jsonl", "sheets", "tensorboard", "checkpoints"}
    lines = log(phase1)
    assert [line["step"] for line in lines] == [2, 4, 4]
    assert {"loss", "l1", "ms", "jac", "mse", "gradient_norm", "learning_rate"} <= lines[0].keys()
    schedule = training_in(folder).schedule
    rates = [1e-3 * learning_rate_factor(step, 4, schedule) for step in (1, 3)]  # of the steps that were done
    assert [line["learning_rate"] for line in lines[:2]] == pytest.approx(rates)
    assert lines[2].keys() == {"step", "held_out_psnr"}
    facts = read_facts(phase1)
    assert facts.training["phase"] == 1 and facts.training["step"] == 4 and facts.training["samples"] == 12
    assert facts.training["resolution"] == 32 and facts.training["licence"] == "not stated"
    generator, _ = read_generator(phase1, training_head(training_in(folder)))
    assert not generator.training


def test_sheet_shows_sources_target_and_render(phase1: Path) -> None:
    import cv2

    sheet = cv2.imread(str(phase1 / "sheets" / "step-00000004.png"))
    columns = sheet.shape[1] // 32
    assert sheet.shape[1] % 32 == 0 and 3 <= columns <= 6  # one to four sources, target, render
    assert sheet.std() > 20


@pytest.mark.parametrize("killed_at", [2, 3])
def test_a_killed_run_ends_as_an_undisturbed_one(folder: Path, phase1: Path, killed_at: int) -> None:
    """At 2 right after the checkpoint, at 3 with a step after it that is done again."""
    out = folder / f"killed{killed_at}"
    with pytest.raises(Killed):
        train(training_in(folder), out, observe=kill_at(killed_at))
    train(training_in(folder), out, resume=True)
    assert_same_end(out, phase1)


def test_a_checkpoint_within_a_window_of_the_log_resumes_exactly(folder: Path) -> None:
    config = training_in(folder, log_every=4, checkpoint_every=1)
    train(config, folder / "window")
    with pytest.raises(Killed):
        train(config, folder / "window-killed", observe=kill_at(3))
    train(config, folder / "window-killed", resume=True)
    assert_same_end(folder / "window-killed", folder / "window")


def test_phase_2_resumes_exactly_with_its_anchor(folder: Path, phase1: Path) -> None:
    config = phase2_config(folder, phase1)
    train(config, folder / "two")
    with pytest.raises(Killed):
        train(config, folder / "two-killed", observe=kill_at(3))
    anchor = load_file(folder / "two-killed" / "anchor.safetensors")
    start = load_file(Path(complete_checkpoints(phase1)[-1]) / "generator.safetensors")
    assert anchor.keys() == start.keys() and all(np.array_equal(anchor[name], start[name]) for name in anchor)
    train(config, folder / "two-killed", resume=True)
    assert_same_end(folder / "two-killed", folder / "two")
    parent = read_facts(folder / "two").training["parent"]
    assert parent["generator"] == read_facts(phase1).hash


def test_resuming_at_another_step_than_the_kill_would_differ(folder: Path, phase1: Path) -> None:
    """The comparison above can fail: other samples give other weights."""
    train(training_in(folder, seed=1), folder / "other")
    one, other = weights(phase1), weights(folder / "other")
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_stopping_writes_a_checkpoint_of_the_very_step(folder: Path, phase1: Path) -> None:
    out = folder / "stopped"

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise StopTraining

    with pytest.raises(StopTraining):
        train(training_in(folder), out, observe=stop)
    assert complete_checkpoints(out)[-1].endswith("step-00000003")
    train(training_in(folder), out, resume=True)
    assert_same_end(out, phase1)


def test_a_half_written_newest_checkpoint_is_passed_over(folder: Path, phase1: Path) -> None:
    out = folder / "half"
    with pytest.raises(Killed):
        train(training_in(folder, checkpoint_every=1), out, observe=kill_at(3))
    (Path(complete_checkpoints(out)[-1]) / "checkpoint.json").unlink()
    resumed_from: list[int] = []
    train(training_in(folder), out, resume=True, observe=lambda p: resumed_from.append(p.step))
    assert resumed_from[0] == 2
    assert_same_tensors(out, phase1)


def test_a_damaged_checkpoint_is_named(folder: Path) -> None:
    out = folder / "damaged"
    with pytest.raises(Killed):
        train(training_in(folder), out, observe=kill_at(2))
    file = Path(complete_checkpoints(out)[-1]) / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(SpatialAvatarError, match=r"no checkpoint can be read.*do not belong together.*--force"):
        train(training_in(folder), out, resume=True)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "generator.safetensors", "checkpoint.json"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    folder: Path, phase1: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = folder / f"passed-{name}"
    with pytest.raises(Killed):
        train(training_in(folder, checkpoint_every=1), out, observe=kill_at(3))
    file = Path(complete_checkpoints(out)[-1]) / name
    file.write_bytes(file.read_bytes()[:-7])
    resumed_from: list[int] = []
    train(training_in(folder, keep_checkpoints=1), out, resume=True, observe=lambda p: resumed_from.append(p.step))
    assert resumed_from[0] == 2
    assert "passed over" in caplog.text and "step-00000003" in caplog.text and "\n" not in caplog.messages[-1]
    assert_same_tensors(out, phase1)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("change", [{"version": 2}, {"config": {"optimizer": {"kind": "lion"}}}])
def test_a_checkpoint_of_a_newer_program_stays(folder: Path, change: dict[str, Any]) -> None:
    out = folder / f"newer-{next(iter(change))}"
    with pytest.raises(Killed):
        train(training_in(folder, checkpoint_every=1), out, observe=kill_at(3))
    before = complete_checkpoints(out)
    record = Path(before[-1]) / "checkpoint.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    with pytest.raises(SpatialAvatarError, match=r"step-00000003.*go on with the version of this program that wrote"):
        train(training_in(folder), out, resume=True)
    assert complete_checkpoints(out) == before


def test_a_run_that_another_training_took_over_is_left_to_it(folder: Path, phase1: Path) -> None:
    """The forgotten one, ahead by a step, ends at its next checkpoint; the other's are all that stay."""
    out = folder / "taken-over"

    def start_over(progress: Progress) -> None:
        if progress.step == 3:
            train(training_in(folder), out, force=True)

    with pytest.raises(SpatialAvatarError, match=r"a training that was started later writes here \(process \d+ on "):
        train(training_in(folder, steps=6, checkpoint_every=1), out, observe=start_over)
    assert_same_end(out, phase1)
    assert [Path(step).name for step in complete_checkpoints(out)] == ["step-00000002", "step-00000004"]


def test_only_the_newest_checkpoints_are_kept(folder: Path) -> None:
    out = folder / "kept"
    train(training_in(folder, checkpoint_every=1, keep_checkpoints=2), out)
    assert [Path(step).name for step in complete_checkpoints(out)] == ["step-00000003", "step-00000004"]
    assert len(list((out / "checkpoints").iterdir())) == 2


def test_another_configuration_does_not_resume_a_run(folder: Path) -> None:
    out = folder / "changed"
    with pytest.raises(Killed):
        train(training_in(folder), out, observe=kill_at(2))
    with pytest.raises(SpatialAvatarError, match=r"optimizer\.weight_decay: 0\.0 then, 0\.1 now"):
        train(training_in(folder, optimizer={"weight_decay": 0.1}), out, resume=True)
    with pytest.raises(SpatialAvatarError, match=r"generator\.encoder\.frozen: False then, True now"):
        generator = tiny_generator_config(encoder={"frozen": True}).model_dump()
        train(training_in(folder, generator=generator), out, resume=True)


def test_what_changes_nothing_may_change_at_resumption(folder: Path, phase1: Path) -> None:
    out = folder / "freely-changed"
    with pytest.raises(Killed):
        train(training_in(folder), out, observe=kill_at(2))
    train(training_in(folder, data={"memory_gb": 0.0}, checkpoint_every=1), out, resume=True)
    assert_same_end(out, phase1)


def test_a_lower_rate_leads_on_and_is_recorded(folder: Path, phase1: Path) -> None:
    out = folder / "slower"
    with pytest.raises(Killed):
        train(training_in(folder), out, observe=kill_at(2))
    slower = training_in(folder, optimizer={"learning_rate": 1e-4, "clip_norm": 1.0})
    newest = train(slower, out, resume=True)
    assert files.read_json(f"{newest}/checkpoint.json")["config"]["optimizer"]["learning_rate"] == 1e-4
    first, second = log(out)[:2]
    assert first == log(phase1)[0] and second["learning_rate"] < 0.2 * log(phase1)[1]["learning_rate"]


def test_a_taken_folder_is_refused_and_force_starts_over(folder: Path, phase1: Path) -> None:
    out = folder / "again"
    train(training_in(folder, steps=2), out)
    with pytest.raises(SpatialAvatarError, match="--resume"):
        train(training_in(folder), out)
    train(training_in(folder), out, force=True)
    assert_same_end(out, phase1)


def test_a_loss_that_is_no_number_keeps_the_batch_and_the_last_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "nan"
    made = runs.batches

    def poisoned(*arguments: Any) -> Any:
        for step, batch in enumerate(made(*arguments)):
            if step == 2:
                batch.arrays["background"][0] = np.nan
            yield batch

    monkeypatch.setattr(runs, "batches", poisoned)
    with pytest.raises(
        SpatialAvatarError,
        match=r"loss is nan at step 3; its batch .* kept in .*step-00000002 with --resume --set .*rate=0.0005",
    ):
        train(training_in(folder), out)
    kept, metadata = tensor_files.read_tensors(out / "failed-batch.safetensors")
    assert metadata["step"] == "3" and np.isnan(kept["background"][0]).all()
    assert kept["numbers"].tolist() == [6, 7, 8]
    assert complete_checkpoints(out)[-1].endswith("step-00000002")
    monkeypatch.setattr(runs, "batches", made)
    train(training_in(folder, optimizer={"learning_rate": 5e-4}), out, resume=True)
    assert not (out / "failed-batch.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": {"decoder": {"color_channels": 32}}}, "decoder.color_channels: 3 there, 32 here"),
        ({"generator": {"uv_resolution": 16}}, "uv_resolution: 32 there, 16 here"),
        ({"generator": {"encoder": {"architecture": {"embed_dim": 48, "depth": 4, "num_heads": 2}}}}, "encoder.archi"),
    ],
)
def test_phase_2_keeps_the_architecture_of_phase_1(
    folder: Path, phase1: Path, changes: dict[str, Any], message: str
) -> None:
    config = phase2_config(folder, phase1)
    generator = config.generator.model_dump()
    for name, value in changes["generator"].items():
        generator[name] = {**generator[name], **value} if isinstance(value, dict) else value
    changed = TrainConfig.model_validate({**config.model_dump(), "generator": generator})
    with pytest.raises(SpatialAvatarError, match=message):
        train(changed, folder / "never")


def test_a_missing_phase_1_checkpoint_is_named(folder: Path) -> None:
    with pytest.raises(SpatialAvatarError, match="nowhere"):
        train(phase2_config(folder, folder / "nowhere"), folder / "never")


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"lambda_sp": 0.0}},
        {"loss": {"lambda_jac": 0.0}},
        {"sampler": {"cross_time": 0.0}},
        {"schedule": {"kind": "constant"}},
        {"optimizer": {"kind": "adam", "lr_decay": 1.0}},
    ],
    ids=["no anchor", "no jacobian", "no cross-time", "constant rate", "no layer-wise decay"],
)
def test_the_ablations_run_by_configuration(folder: Path, phase1: Path, changes: dict[str, Any]) -> None:
    out = folder / f"ablation-{'-'.join(changes)}-{next(iter(next(iter(changes.values()))))}"
    train(phase2_config(folder, phase1, steps=2, **changes), out)
    assert len(log(out)) == 2


@pytest.mark.parametrize("change", [{"decoder": {"residual": False}}, {"pool": "attention"}])
def test_the_architectural_ablations_run(folder: Path, change: dict[str, Any]) -> None:
    plain = training_in(folder).generator.model_dump()
    for name, value in change.items():
        plain[name] = {**plain[name], **value} if isinstance(value, dict) else value
    out = folder / f"ablation-{next(iter(change))}"
    train(training_in(folder, generator=plain, steps=2), out)
    assert len(log(out)) == 2


# what a run takes from Phase 1, and what it needs of it later


def test_phase_2_resumes_without_its_phase_1_run(folder: Path, phase1: Path) -> None:
    parent = folder / "parent-copy"
    shutil.copytree(phase1, parent)
    out = folder / "orphan"
    with pytest.raises(Killed):
        train(phase2_config(folder, parent), out, observe=kill_at(2))
    shutil.rmtree(parent)
    train(phase2_config(folder, folder / "gone"), out, resume=True)
    assert read_facts(out).training["parent"]["generator"] == read_facts(phase1).hash
    train(phase2_config(folder, phase1), folder / "undisturbed")
    assert_same_tensors(out, folder / "undisturbed")


def test_another_anchor_is_noticed(folder: Path, phase1: Path) -> None:
    out = folder / "anchor"
    with pytest.raises(Killed):
        train(phase2_config(folder, phase1), out, observe=kill_at(2))
    arrays, _ = tensor_files.read_tensors(out / "anchor.safetensors")
    tensor_files.write_tensors(out / "anchor.safetensors", {name: array + 1 for name, array in arrays.items()})
    with pytest.raises(SpatialAvatarError, match=r"anchor\.safetensors: not the weights that this run is anchored at"):
        train(phase2_config(folder, phase1), out, resume=True)


@pytest.mark.parametrize("first_frozen", [True, False])
def test_a_backbone_from_a_file_frozen_in_one_phase_alone(folder: Path, first_frozen: bool) -> None:
    """Frozen, then trained, and the other way round; each result is read without a look at the configuration."""
    weights_file = folder / f"encoder-{first_frozen}.safetensors"
    torch.manual_seed(3)
    backbone = timm.create_model("vit_small_patch16_dinov3", num_classes=0)
    safetensors.torch.save_file(backbone.state_dict(), weights_file)

    def architecture(frozen: bool) -> dict[str, Any]:
        encoder = {"backbone": "vit_small_patch16_dinov3", "architecture": {}, "weights": str(weights_file)}
        return tiny_generator_config(encoder={**encoder, "frozen": frozen}).model_dump()

    one, two = folder / f"one-{first_frozen}", folder / f"two-{first_frozen}"
    train(training_in(folder, generator=architecture(first_frozen), steps=1, batch_size=1), one)
    second = phase2_config(folder, one, generator=architecture(not first_frozen), steps=2, batch_size=1, schedule={})
    with pytest.raises(Killed):
        train(second, two, observe=kill_at(2))
    if not first_frozen:
        weights_file.unlink()  # what was trained lies in the runs
    head = training_head(second)
    (before, _), (after, facts) = (read_generator(run, head) for run in (one, two))
    assert facts.backbone_in_file and not (first_frozen and read_facts(one).backbone_in_file)
    assert (before.encoder.checksum() == after.encoder.checksum()) != first_frozen
    assert before.encoder.checksum() == facts.encoder_checksum or first_frozen
    if first_frozen:
        safetensors.torch.save_file({k: v + 1e-3 for k, v in backbone.state_dict().items()}, weights_file)
        with pytest.raises(SpatialAvatarError, match="was trained on encoder weights"):
            train(second, folder / "other-weights")
        assert not (folder / "other-weights" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase": 2}, r"--set phase1_checkpoint=runs/phase1"),
        ({"phase1_checkpoint": "somewhere"}, r"phase1_checkpoint somewhere: Phase 1 starts from new weights"),
        ({"phase": 2, "phase1_checkpoint": "nowhere"}, r"^phase1_checkpoint: nowhere: no training run, checkpoint"),
    ],
)
def test_a_phase_and_its_checkpoint_belong_together(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpatialAvatarError, match=message):
        train(training_in(folder, **changes), folder / "never")
    assert not (folder / "never" / "config.yaml").exists()


def test_the_terms_of_both_phases_and_of_the_encoder_are_kept_once(folder: Path) -> None:
    head = training_head(training_in(folder))
    pool = open_pool(training_in(folder).data, head)
    generator = tiny_generator(head)
    parent = {"generator": "x", "training": {"licence": "CC-BY-4.0; image encoder x (its terms); not stated"}}
    assert licence_of(generator, pool, None) == "not stated"
    assert licence_of(generator, pool, parent) == "CC-BY-4.0; image encoder x (its terms); not stated"
    assert licence_of(generator, pool, {"generator": "x", "training": {}}) == "not stated"


def test_phase_2_carries_phase_1s_terms(folder: Path, phase1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderPool, "licence", property(lambda self: "the takes' terms"))
    train(phase2_config(folder, phase1, steps=1, schedule={}), folder / "terms")
    assert read_facts(folder / "terms").training["licence"] == "not stated; the takes' terms"


# whose folder it is


def test_force_leaves_a_foreign_folder_alone(folder: Path) -> None:
    out = folder / "foreign"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "mine").write_text("precious")
    with pytest.raises(SpatialAvatarError, match=r"foreign: holds checkpoints, but no config\.yaml"):
        train(training_in(folder), out, force=True)
    (out / "config.yaml").write_text("iterations: 5\n")
    with pytest.raises(SpatialAvatarError, match=r"foreign: its config\.yaml is no training run's"):
        train(training_in(folder), out, force=True)
    assert (out / "checkpoints" / "mine").read_text() == "precious"


def test_a_run_does_not_replace_the_one_it_goes_on_from(folder: Path, phase1: Path) -> None:
    before = weights(phase1)
    for parent in (phase1, Path(complete_checkpoints(phase1)[-1])):
        with pytest.raises(SpatialAvatarError, match="holds phase1_checkpoint"):
            train(phase2_config(folder, parent), phase1, force=True)
    assert weights(phase1).keys() == before.keys()


def test_what_is_wrong_leaves_the_earlier_run_whole(folder: Path) -> None:
    out = folder / "kept-run"
    train(training_in(folder, steps=2), out)
    with pytest.raises(SpatialAvatarError, match="nowhere"):
        train(training_in(folder, held_out={"clips": ("nowhere/*",)}), out, force=True)
    assert complete_checkpoints(out) and len(log(out)) == 2


def test_unfinished_folders_go_with_the_next_checkpoint(folder: Path) -> None:
    out = folder / "swept"
    with pytest.raises(Killed):
        train(training_in(folder), out, observe=kill_at(3))
    (out / "checkpoints" / "step-00000001").mkdir()
    (out / "checkpoints" / "notes").mkdir()
    train(training_in(folder), out, resume=True)
    names = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert names == ["notes", "step-00000002", "step-00000004"]


def test_a_finished_run_returns_at_once(folder: Path, phase1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "open_pool", lambda *_: pytest.fail("there is nothing to do"))
    seen: list[int] = []
    assert train(training_in(folder), phase1, resume=True, observe=lambda p: seen.append(p.step)).endswith("00000004")
    assert seen == [4]
    with pytest.raises(SpatialAvatarError, match="seed: 0 then, 1 now"):
        train(training_in(folder, seed=1), phase1, resume=True)


def test_memory_that_does_not_suffice_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Trainer, batch: Batch) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(Trainer, "step", full)
    with pytest.raises(SpatialAvatarError, match=r"at step 1 with batch_size 3.*gradient_checkpointing.*summary") as e:
        train(training_in(folder), folder / "full")
    assert "\n" not in str(e.value)


def test_memory_that_does_not_suffice_for_a_sheet_costs_the_sheet_alone(
    folder: Path, phase1: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr("spatialavatar.training.loop.sample_sheet", full)
    train(training_in(folder), folder / "no-sheets")
    assert "no sample sheet at step 4: out of memory on cpu" in caplog.text
    assert_same_tensors(folder / "no-sheets", phase1)


# stops that nothing can catch, places that are no disk

KILLED = """
import os, signal, sys
from spatialavatar.config import load_config
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.run import train

def observe(progress):
    if progress.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)

train(load_config(TrainConfig, sys.argv[1]), sys.argv[2], observe=observe)
"""


@pytest.mark.slow
def test_a_process_killed_at_once_is_resumed(folder: Path, phase1: Path) -> None:
    out, config = folder / "sigkill", folder / "sigkill.yaml"
    config.write_text(yaml.safe_dump(training_in(folder).model_dump(mode="json")))
    done = subprocess.run([sys.executable, "-c", KILLED, str(config), str(out)], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert [Path(step).name for step in complete_checkpoints(out)] == ["step-00000002"]
    train(training_in(folder), out, resume=True)
    assert_same_tensors(out, phase1)


def test_a_run_on_a_store(folder: Path, phase1: Path) -> None:
    out = "memory://training/run"
    with pytest.raises(Killed):
        train(training_in(folder), out, observe=kill_at(3))
    train(training_in(folder), out, resume=True)
    for name in ("generator.safetensors", "optimizer.safetensors"):
        found, _ = tensor_files.read_tensors(f"{complete_checkpoints(out)[-1]}/{name}")
        expected, _ = tensor_files.read_tensors(f"{complete_checkpoints(phase1)[-1]}/{name}")
        assert found.keys() == expected.keys() and all(np.array_equal(found[n], expected[n]) for n in found)
    lines = [json.loads(line) for line in files.read_bytes(f"{out}/train.jsonl").decode().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4]
