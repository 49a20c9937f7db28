"""DeepSpeed's engine against the plain one: the same training in any number of processes and any ZeRO stage."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from spatialavatar import tensor_files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import complete_checkpoints
from spatialavatar.losses.lpips_weights import WEIGHTS_VARIABLE
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.pool import open_pool
from spatialavatar.training.run import train
from spatialavatar.training.stream import Share, batches
from tests.builders.lpips import random_alexnet
from tests.builders.processes import in_group
from tests.builders.training import training_folder, training_in

STEPS = 8
pytest.importorskip("deepspeed", reason="deepspeed is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Clips, a Phase-1 run, LPIPS weights, and ``plain``: Phase 2 of it in one process."""
    folder = training_folder(tmp_path_factory.mktemp("engine"))
    safetensors.torch.save_file(random_alexnet(), folder / "alexnet.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WEIGHTS_VARIABLE, str(folder / "alexnet.safetensors"))
        train(training_in(folder, steps=2), folder / "phase1")
        train(phase_2(folder), folder / "plain")
        yield folder


def phase_2(folder: Path, **changes: Any) -> TrainConfig:
    """All terms, clipping at work, rates by layer; a checkpoint after every step."""
    values: dict[str, Any] = {
        "phase": 2,
        "phase1_checkpoint": str(folder / "phase1"),
        "batch_size": 4,
        "steps": STEPS,
        "log_every": 1,
        "checkpoint_every": 1,
        "keep_checkpoints": STEPS,
        "loss": {"lambda_lp": 1.0, "lambda_jac": 0.1, "lambda_sp": 1e-3, "lambda_delta": 1e-2},
        "optimizer": {"kind": "adamw", "learning_rate": 1e-3, "lr_decay": 0.65, "clip_norm": 0.05},
        "schedule": {"kind": "cosine", "warmup_steps": 2, "end": 0.0},
    }
    return training_in(folder, "takes", **{**values, **changes})


def spread(config: dict[str, Any], out: str, poison: tuple[int, int] | None = None) -> str | None:
    """In each process: the training with DeepSpeed on its share; what it failed with. ``poison``: rank, step."""
    from ray_jobs.deepspeed_engine import DeepSpeedEngine
    from spatialavatar.training.group import Distributed

    settings, group = TrainConfig.model_validate(config), Distributed()

    def stream(head: Any, first: int) -> Any:
        ours = batches(open_pool(settings.data, head, settings.phase), settings, first, group.share)
        with contextlib.closing(ours):
            for step, batch in enumerate(ours, first):
                if poison == (group.share.rank, step):
                    batch.arrays["background"][0] = np.nan
                if poison is not None and poison[1] < 0 and poison == (-group.share.rank - 1, -step):
                    raise SpatialAvatarError("a frame that cannot be read")
                yield batch

    try:
        train(settings, out, group=group, make_engine=DeepSpeedEngine, resume=True, stream=stream)
    except SpatialAvatarError as e:
        return str(e)
    return None


def log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def assert_same_curve(run: Path, other: Path) -> None:
    found, expected = log(run), log(other)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for name in ("loss", "l1", "lp", "jac", "sp", "delta", "gradient_norm"):
        values = [[line[name] for line in lines] for lines in (found, expected)]
        # of terms that begin at nothing, such as the anchor's, rounding is all that there is at first
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-7, err_msg=name)


def moments(run: Path, step: int) -> dict[str, np.ndarray]:
    return tensor_files.read_tensors(run / f"checkpoints/step-{step:08d}/optimizer.safetensors")[0]


def assert_same_first_gradient(run: Path, other: Path) -> None:
    """Adam's first moment after one step is a tenth of the clipped gradient."""
    found, expected = moments(run, 1), moments(other, 1)
    assert found.keys() == expected.keys()
    slots = [name for name in expected if name.endswith("/exp_avg")]
    whole = np.sqrt(sum(float((expected[name].astype(np.float64) ** 2).sum()) for name in slots))
    assert 10 * whole == pytest.approx(0.05, rel=1e-4)  # clipped
    for name in slots:
        assert np.linalg.norm(found[name] - expected[name]) <= 1e-5 * max(np.linalg.norm(expected[name]), 1e-3 * whole)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_processes_train_as_one(folder: Path, stage: int) -> None:
    """Gradients of the first step, losses over all; the anchor stays what it was."""
    out = folder / f"two-{stage}"
    config = phase_2(folder, distributed={"zero_stage": stage}).model_dump(mode="json")
    assert in_group(spread, 2, folder / "results", config, str(out)) == [None, None]
    assert_same_curve(out, folder / "plain")
    assert_same_first_gradient(out, folder / "plain")
    anchors = [tensor_files.read_tensors(run / "anchor.safetensors")[0] for run in (out, folder / "plain")]
    assert all(np.array_equal(anchors[0][name], anchors[1][name]) for name in anchors[1])


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_any_number_of_processes(folder: Path) -> None:
    """Written by one process, ZeRO 0; two steps of two with ZeRO 2, two of four with ZeRO 1, the last ones of one."""
    out = folder / "elastic"
    shutil.copytree(folder / "plain", out)
    for number, (world, stage) in enumerate([(2, 2), (4, 1), (1, 0)], 1):
        for checkpoint in complete_checkpoints(out):
            if int(checkpoint[-8:]) > 2 * number:
                shutil.rmtree(checkpoint)
        start = moments(out, 2 * number)
        config = phase_2(folder, distributed={"zero_stage": stage}, checkpoint_every=2).model_dump(mode="json")
        assert in_group(restored_and_spread, world, folder / "results", config, str(out)) == [None] * world
        again = tensor_files.read_tensors(folder / "results" / "moments.safetensors")[0]
        assert again.keys() >= start.keys() and all(np.array_equal(again[name], start[name]) for name in start)
        unused = [name for name in again.keys() - start.keys() if not name.endswith("/step")]
        assert not any(again[name].any() for name in unused)  # ZeRO has moments of what no gradient reaches
        assert_same_curve(out, folder / "plain")


def restored_and_spread(config: dict[str, Any], out: str) -> str | None:
    restored(config, out)
    return spread(config, out)


def restored(config: dict[str, Any], out: str) -> None:
    """Put the newest checkpoint's moments into an engine, and write what the engine says that it has."""
    from ray_jobs.deepspeed_engine import DeepSpeedEngine
    from spatialavatar.training.checkpoint import newest_checkpoint
    from spatialavatar.training.setup import build_module, read_anchor, training_head

    settings = TrainConfig.model_validate(config)
    found = newest_checkpoint(out, settings)
    assert found is not None
    anchor = read_anchor(f"{out}/anchor.safetensors", found.state.anchor)
    module = build_module(settings, found.generator(settings, training_head(settings)), anchor, "cpu")
    engine = DeepSpeedEngine(module, settings)
    engine.restore(found.moments)
    arrays = engine.moments()
    if int(os.environ["RANK"]) == 0:
        tensor_files.write_tensors(Path(out).parent / "results" / "moments.safetensors", arrays)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_all_processes(folder: Path) -> None:
    """On the second of two at the third step: both end with the same line, its rows are kept, and then it goes on."""
    out = folder / "nan"
    config = phase_2(folder, checkpoint_every=2).model_dump(mode="json")
    first, second = in_group(spread, 2, folder / "results", config, str(out), (1, 2))
    assert first == second and "loss is nan at step 3" in first
    assert "samples [10, 11]" in first and "failed-batches/rank-1.safetensors" in first
    kept, metadata = tensor_files.read_tensors(out / "failed-batches" / "rank-1.safetensors")
    assert metadata["step"] == "3" and np.isnan(kept["background"][0]).all()
    assert [Path(step).name for step in complete_checkpoints(out)] == ["step-00000002"]
    assert in_group(spread, 2, folder / "results", config, str(out)) == [None, None]
    assert_same_curve(out, folder / "plain")
    assert not (out / "failed-batches").exists()


@pytest.mark.slow
def test_an_error_in_one_process_is_every_process_error(folder: Path) -> None:
    config = phase_2(folder).model_dump(mode="json")
    found = in_group(spread, 2, folder / "results", config, str(folder / "unread"), (-2, -1))
    assert found == ["a frame that cannot be read"] * 2


def test_rows_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(SpatialAvatarError, match="batch_size 4 cannot be shared evenly by 3 workers"):
        Share(0, 3).rows(4)
