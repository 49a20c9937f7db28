"""The objective of a batch: its terms, what each weight turns on, and recorded values that must not move."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.losses.l2sp import l2_sp
from spatialavatar.losses.photometric import composite_rendering
from spatialavatar.splat.binding import bind
from spatialavatar.splat.rasterize import rasterize
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import OptimizerConfig, TrainConfig
from spatialavatar.training.group import Alone
from spatialavatar.training.packed_batch import make_batch
from spatialavatar.training.pool import open_pool
from spatialavatar.training.setup import anchor_at, build_module, start_generator, training_head
from spatialavatar.training.step import render
from spatialavatar.training.trainer import NotFinite, Trainer
from tests.builders.generators import awaken, tiny_generator
from tests.builders.training import training_folder, training_in

GOLDEN = Path(__file__).parent / "golden_losses.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_folder(tmp_path_factory.mktemp("training"))


def trainer_of(config: TrainConfig, anchored: bool = False) -> Trainer:
    generator, _ = start_generator(config, training_head(config))
    anchor = anchor_at(generator) if anchored else None
    return Trainer(build_module(config, generator, anchor, "cpu"), config)


def batch_of(config: TrainConfig, step: int = 0) -> Batch:
    return make_batch(open_pool(config.data, training_head(config)), step, config)


def test_the_loss_is_the_weighted_sum_of_its_terms(folder: Path) -> None:
    config = training_in(folder, loss={"lambda_delta": 0.01, "lambda_ps": 0.5, "lambda_jac": 0.3})
    trainer = trainer_of(config)
    for step in range(2):  # so that offsets and deltas are not all zero
        trainer.step(batch_of(config, step))
    objective = trainer.module(batch_of(config, 2))
    weights = config.loss
    expected = {
        "l1": weights.lambda_1,
        "ms": weights.lambda_ms,
        "box": weights.lambda_box,
        "ps": 0.5,
        "ss": weights.lambda_ss,
        "jac": 0.3,
        "delta": 0.01,
    }
    assert objective.terms.keys() == expected.keys() | {"mse"}
    assert all(float(objective.terms[name]) > 0 for name in expected)
    total = sum(weight * float(objective.terms[name]) for name, weight in expected.items())
    assert float(objective.loss.detach()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", ["lambda_1", "lambda_ms", "lambda_box", "lambda_ps", "lambda_ss", "lambda_jac"])
def test_a_term_of_weight_zero_is_left_out(folder: Path, name: str) -> None:
    config = training_in(folder, loss={name: 0.0})
    terms = trainer_of(config).module(batch_of(config)).terms
    assert name.removeprefix("lambda_").replace("1", "l1") not in terms
    assert len(terms) == 6  # of seven: the other five, and the mse that is only reported


def test_a_batch_of_one_is_its_row_of_a_larger_batch(folder: Path) -> None:
    """The mean over samples, each computed alone: what sums over workers rests on."""
    config = training_in(folder, batch_size=3)
    alone = config.model_copy(update={"batch_size": 1})
    trainer, single = trainer_of(config), trainer_of(alone)
    together = trainer.module(batch_of(config)).terms
    apart = [single.module(batch_of(alone, step)).terms for step in range(3)]
    for name in together:
        mean = sum(float(terms[name]) for terms in apart) / 3
        assert float(together[name]) == pytest.approx(mean, rel=2e-5, abs=1e-7), name


def test_the_anchor_pulls_with_its_weight(folder: Path) -> None:
    plain, anchored = training_in(folder), training_in(folder, loss={"lambda_sp": 0.7})
    anchored = anchored.model_copy(update={"phase1_checkpoint": "named elsewhere"})
    batch = batch_of(plain)
    trainer = trainer_of(plain)
    anchor = anchor_at(trainer.module.generator)
    trainer.step(batch)
    moved = trainer.module.generator
    module = build_module(anchored, moved, anchor, "cpu")
    with_anchor, without = module(batch), trainer.module(batch)
    distance = l2_sp({n: p for n, p in moved.named_parameters() if p.requires_grad}, anchor)
    distance = distance.detach()
    assert float(distance) > 0
    assert float((with_anchor.loss - without.loss).detach()) == pytest.approx(0.7 * float(distance), rel=1e-3)
    names = [name for name, _ in moved.named_parameters()]
    pulled = torch.autograd.grad(with_anchor.loss, list(moved.parameters()), allow_unused=True)
    free = torch.autograd.grad(without.loss, list(moved.parameters()), allow_unused=True)
    for name, one, other in zip(names, pulled, free, strict=True):
        expected = 0.7 * (dict(moved.named_parameters())[name].detach() - anchor[name])
        difference = one if other is None else one - other
        assert torch.allclose(difference, expected, atol=2e-5), name


def test_every_trainable_weight_moves_and_no_frozen_one(folder: Path) -> None:
    changes = {"generator": training_in(folder).generator.model_dump() | {}}
    changes["generator"]["encoder"]["frozen"] = True
    config = training_in(folder, **changes)
    trainer = trainer_of(config)
    before = {name: p.detach().clone() for name, p in trainer.module.generator.named_parameters()}
    for step in range(3):
        trainer.step(batch_of(config, step))
    after = dict(trainer.module.generator.named_parameters())
    still = [name for name, p in after.items() if torch.equal(p, before[name])]
    assert all(name.startswith("encoder.backbone.") for name in still), still
    assert all(name in still for name in before if name.startswith("encoder.backbone."))


def test_checkpointed_activations_change_no_gradient(folder: Path) -> None:
    plain = training_in(folder)
    saving = plain.model_copy(update={"gradient_checkpointing": True})
    batch = batch_of(plain)
    gradients = []
    for config in (plain, saving):
        module = trainer_of(config).module
        module(batch).loss.backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-7), name  # type: ignore[arg-type]


def test_bf16_stays_near_single_precision(folder: Path) -> None:
    single = training_in(folder, loss={"lambda_jac": 0.1})
    half = single.model_copy(update={"precision": "bf16"})
    a, b = trainer_of(single), trainer_of(half)
    for step in range(3):
        first, _ = a.step(batch_of(single, step))
        second, _ = b.step(batch_of(half, step))
        # eight bits of mantissa, through a dozen layers and three steps
        assert float(second.loss.detach()) == pytest.approx(float(first.loss.detach()), rel=0.03)
    assert all(p.dtype == torch.float32 for p in b.module.parameters())


def test_a_loss_that_is_no_number_stops_before_the_weights_change(folder: Path) -> None:
    config = training_in(folder)
    trainer = trainer_of(config)
    batch = batch_of(config)
    batch.target.image[1, 3, 4, 0] = math.nan
    before = [p.detach().clone() for p in trainer.module.parameters()]
    with pytest.raises(NotFinite, match="loss is nan at step 1"):
        trainer.step(batch)
    assert all(torch.equal(p, q) for p, q in zip(trainer.module.parameters(), before, strict=True))


def test_a_gradient_that_is_no_number_stops_before_the_weights_change(folder: Path) -> None:
    config = training_in(folder)
    trainer = trainer_of(config)
    weight = trainer.module.generator.unet.stem[0].weight
    weight.register_hook(lambda gradient: gradient * math.nan)
    before = [p.detach().clone() for p in trainer.module.parameters()]
    with pytest.raises(NotFinite, match="gradient is nan at step 1"):
        trainer.step(batch_of(config))
    assert all(torch.equal(p, q) for p, q in zip(trainer.module.parameters(), before, strict=True))
    assert trainer.step_number == 0


def test_workers_stop_together(folder: Path) -> None:
    """One that is well stops when another one is not."""
    config = training_in(folder)
    generator, _ = start_generator(config, training_head(config))

    class WithOneThatFails(Alone):
        def mean(self, values: Sequence[float]) -> list[float]:
            assert all(math.isfinite(value) for value in values)
            return [math.nan for _ in values]

    trainer = Trainer(build_module(config, generator, None, "cpu"), config, group=WithOneThatFails())
    with pytest.raises(NotFinite, match="loss is not finite on another worker at step 1"):
        trainer.step(batch_of(config))
    assert not trainer.failed_here


def test_the_whole_gradient_is_clipped_to_its_norm(folder: Path) -> None:
    config = training_in(folder, optimizer={"learning_rate": 1e-3, "clip_norm": 1e-3})
    trainer = trainer_of(config)
    _, norm = trainer.step(batch_of(config))
    gradients = [p.grad for p in trainer.module.parameters() if p.grad is not None]
    clipped = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    assert norm > 1e-2 and clipped.item() == pytest.approx(1e-3, rel=1e-3)
    free = trainer_of(config.model_copy(update={"optimizer": OptimizerConfig(clip_norm=1e9)}))
    assert free.step(batch_of(config))[1] == pytest.approx(norm, rel=1e-5)
    whole = torch.stack([p.grad.square().sum() for p in free.module.parameters() if p.grad is not None]).sum().sqrt()
    assert whole.item() == pytest.approx(norm, rel=1e-5)


def test_further_colour_channels_change_no_picture(folder: Path) -> None:
    config = training_in(folder)
    generator = awaken(tiny_generator(training_head(config), decoder={"color_channels": 8})).eval()
    batch = batch_of(config)
    with torch.no_grad():
        decoded = generator(batch.sources, batch.target.params, batch.target.camera)
        shown = render(generator, decoded, batch)
        head, target = generator.head, batch.target
        world = bind(decoded.gaussians, head(target.params), head.faces, generator.layout.face_index)
        seen = rasterize(world, target.camera)
        whole = composite_rendering(seen.features, seen.alpha, target.region, batch.background)
    assert seen.features.shape[-1] == 8 and torch.equal(shown.prediction, whole)


def test_a_training_module_has_the_generators_state_alone(folder: Path) -> None:
    module = trainer_of(training_in(folder)).module
    names = {f"generator.{name}" for name in module.generator.state_dict()}
    assert module.state_dict().keys() == names


def test_missing_lpips_weights_stop_a_training_that_wants_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SPATIALAVATAR_LPIPS_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SpatialAvatarError, match="lambda_lp"):
        trainer_of(training_in(folder, loss={"lambda_lp": 1.0}))


def test_an_anchor_without_a_phase_1_checkpoint_is_refused(folder: Path) -> None:
    with pytest.raises(SpatialAvatarError, match="phase1_checkpoint"):
        trainer_of(training_in(folder, loss={"lambda_sp": 1e-3}))


@pytest.mark.parametrize("phase", [1, 2])
def test_recorded_losses(folder: Path, phase: int) -> None:
    """Twenty steps of a tiny training against recorded values: a refactoring keeps them.

    Record anew with ``python -m tests.training.record_golden`` after a change that is meant to change them. The
    tolerance is for other processors' order of summation, which twenty steps amplify.
    """
    losses = golden_run(folder, phase)
    recorded = json.loads(GOLDEN.read_text())[f"phase{phase}"]
    assert losses == pytest.approx(recorded, rel=2e-3)
    assert len(losses) == 20 and losses[-1] < losses[0]


def golden_run(folder: Path, phase: int) -> list[float]:
    changes: dict[str, Any] = {"steps": 20, "phase": phase}
    if phase == 2:
        changes |= {
            "optimizer": {"kind": "adamw", "lr_decay": 0.65},
            "schedule": {"kind": "cosine", "warmup_steps": 3, "end": 0.0},
            "loss": {"lambda_sp": 1e-3, "lambda_delta": 1e-2},
            "phase1_checkpoint": "named elsewhere",
        }
    config = training_in(folder, "mono" if phase == 1 else "takes", **changes)
    start = config.model_copy(
        update={"phase": 1, "phase1_checkpoint": None, "loss": config.loss.model_copy(update={"lambda_sp": 0})}
    )
    generator, _ = start_generator(start, training_head(config))
    anchor = anchor_at(generator) if phase == 2 else None
    trainer = Trainer(build_module(config, generator, anchor, "cpu"), config)
    pool = open_pool(config.data, training_head(config))
    return [float(trainer.step(make_batch(pool, step, config))[0].loss.detach()) for step in range(config.steps)]
