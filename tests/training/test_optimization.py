"""Parameter groups by name, optimizers, and schedules at their corner steps and over a resume."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.config import OptimizerConfig, ScheduleConfig
from spatialavatar.training.optimization import (
    build_optimizer,
    build_scheduler,
    depth_from_output,
    learning_rate_factor,
    parameter_groups,
)

PHASE_1 = ScheduleConfig(kind="linear", decay_steps=160_000, end=0.1)
PHASE_2 = ScheduleConfig(kind="cosine", warmup_steps=2_000, end=0.1)

# ---- depth


@pytest.mark.parametrize(
    ("name", "blocks", "depth"),
    [
        ("unet.levels.0.conv.weight", 12, 0),
        ("decoder.heads.position.0.weight", 12, 0),
        ("decoder.residual.film.2.bias", 12, 0),
        ("pool.query", 12, 0),
        ("dpt.output.weight", 12, 1),
        ("dpt.output.0.bias", 12, 1),
        ("dpt.fusion.0.conv.weight", 12, 2),
        ("dpt.reassemble.0.project.weight", 12, 2),
        ("dpt.fusion.1.norm.weight", 12, 3),
        ("dpt.reassemble.2.project.bias", 12, 4),
        ("dpt.fusion.3.conv.weight", 12, 5),
        ("dpt.reassemble.3.project.weight", 12, 5),
        ("encoder.backbone.norm.weight", 12, 6),
        ("encoder.backbone.fc_norm.bias", 12, 6),
        ("encoder.backbone.blocks.11.mlp.fc2.weight", 12, 6),
        ("encoder.backbone.blocks.10.norm1.weight", 12, 7),
        ("encoder.backbone.blocks.1.gamma_1", 12, 16),
        ("encoder.backbone.blocks.0.attn.qkv.weight", 12, 17),
        ("encoder.backbone.patch_embed.proj.weight", 12, 18),
        ("encoder.backbone.cls_token", 12, 18),
        ("encoder.backbone.reg_token", 12, 18),
        ("encoder.backbone.pos_embed", 12, 18),
        ("encoder.backbone.norm_pre.weight", 12, 18),
        ("encoder.backbone.blocks.23.attn.proj.bias", 24, 6),
        ("encoder.backbone.blocks.0.attn.proj.bias", 24, 29),
        ("encoder.backbone.cls_token", 24, 30),
    ],
)
def test_depth_table(name: str, blocks: int, depth: int) -> None:
    assert depth_from_output(name, blocks) == depth


@pytest.mark.parametrize(
    "name",
    [
        "dpt.refine.weight",
        "dpt.fusion.4.conv.weight",
        "dpt.fusion.weight",
        "dpt.outputs.weight",
        "encoder.adapter.weight",
        "encoder.backbone.blocks.12.norm1.weight",  # of 12
        "encoder.backbone.head.weight",
        "encoder.backbone.cls_token_projection.weight",
        "encoder.backbone.normalise.weight",
        "unet",
        "lpips.net.0.weight",
        "",
    ],
)
def test_a_layer_without_a_depth_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no known layer"):
        depth_from_output(name, 12)


# ---- groups


class Backbone(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.patch_embed = nn.Conv2d(3, 4, 2)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(blocks))
        self.norm = nn.LayerNorm(4)


class TinyGenerator(nn.Module):
    """The module names of Generator, three blocks, next to nothing in them."""

    def __init__(self, frozen: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.backbone = Backbone(3).requires_grad_(not frozen)
        self.dpt = nn.Module()
        self.dpt.reassemble = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(4))
        self.dpt.fusion = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)) for _ in range(4))
        self.dpt.output = nn.Conv2d(4, 2, 1)
        self.unet = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
        self.decoder = nn.Linear(2, 2)
        self.scale = None


class Training(nn.Module):
    """A generator as a training step holds it, beside frozen weights that are not its own."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.lpips = nn.Linear(2, 2).requires_grad_(False)


def rates(module: nn.Module, **options: float) -> dict[nn.Parameter, tuple[float, float]]:
    groups = parameter_groups(module, **{"lr": 1.0, "lr_decay": 0.5, "weight_decay": 0.0, **options})
    return {p: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("frozen", [True, False])
def test_every_trainable_parameter_once_and_no_frozen_one(frozen: bool) -> None:
    generator = TinyGenerator(frozen)
    listed = [id(p) for g in parameter_groups(generator, 1e-4, 0.65, 0.0) for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in generator.parameters() if p.requires_grad)


def test_rates_fall_with_depth() -> None:
    generator = TinyGenerator(frozen=False)
    rate = {p: lr for p, (lr, _) in rates(generator).items()}
    backbone = generator.encoder.backbone
    for module, exponent in [
        (generator.unet, 0),
        (generator.decoder, 0),
        (generator.dpt.output, 1),
        (generator.dpt.fusion[0], 2),
        (generator.dpt.reassemble[0], 2),
        (generator.dpt.fusion[3], 5),
        (generator.dpt.reassemble[3], 5),
        (backbone.norm, 6),
        (backbone.blocks[2], 6),
        (backbone.blocks[0], 8),
        (backbone.patch_embed, 9),
    ]:
        assert {rate[p] for p in module.parameters()} == {0.5**exponent}
    assert rate[backbone.cls_token] == 0.5**9


def test_decay_of_one_is_one_rate() -> None:
    assert {lr for lr, _ in rates(TinyGenerator(frozen=False), lr=3e-4, lr_decay=1.0).values()} == {3e-4}


def test_weight_decay_spares_biases_norms_and_tokens() -> None:
    generator = TinyGenerator(frozen=False)
    decayed = {id(p) for p, (_, decay) in rates(generator, weight_decay=0.1).items() if decay == 0.1}
    weights = {id(m.weight) for m in generator.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert decayed == weights


def test_groups_are_the_same_inside_a_training_step_and_compiled() -> None:
    generator = TinyGenerator()
    plain = rates(generator)
    assert rates(Training(generator)) == plain
    generator.unet = torch.compile(generator.unet)  # wraps; compiles nothing before the first call
    assert any("_orig_mod" in name for name, _ in generator.named_parameters())
    assert rates(Training(generator)) == plain


def test_group_names_are_distinct_and_their_order_fixed() -> None:
    names = [group["name"] for group in parameter_groups(TinyGenerator(), 1e-4, 0.65, 0.0)]
    assert names[:4] == ["base", "base-vectors", "encoder-1", "encoder-1-vectors"]
    assert len(set(names)) == len(names) == 12
    assert names == [group["name"] for group in parameter_groups(TinyGenerator(), 1e-3, 1.0, 0.1)]


def test_an_unknown_trainable_layer_is_an_error() -> None:
    generator = TinyGenerator()
    generator.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        parameter_groups(generator, 1e-4, 0.65, 0.0)
    generator.extra.requires_grad_(False)
    parameter_groups(generator, 1e-4, 0.65, 0.0)


@pytest.mark.parametrize(("kind", "optimizer"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizer_of_the_config(kind: str, optimizer: type) -> None:
    config = OptimizerConfig(kind=kind, learning_rate=1e-4, betas=(0.8, 0.99), weight_decay=0.1, lr_decay=0.65)
    built = build_optimizer(TinyGenerator(), config)
    assert type(built) is optimizer
    for group in built.param_groups:
        assert group["betas"] == (0.8, 0.99)
        assert group["weight_decay"] == (0.0 if "vectors" in group["name"] else 0.1)
    assert {g["name"]: g["lr"] for g in built.param_groups}["encoder-5"] == pytest.approx(1e-4 * 0.65**5, rel=1e-12)


def test_nothing_to_train_is_one_line() -> None:
    with pytest.raises(SpatialAvatarError, match="nothing to train"):
        build_optimizer(TinyGenerator().requires_grad_(False), OptimizerConfig())


# ---- schedule


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1.0), (40_000, 0.775), (80_000, 0.55), (159_999, 0.1 + 0.9 / 160_000), (160_000, 0.1), (200_000, 0.1)],
)
def test_phase_1_falls_to_a_tenth_and_stays(step: int, factor: float) -> None:
    assert learning_rate_factor(step, 200_000, PHASE_1) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.0),
        (500, 0.25),
        (1_999, 1_999 / 2_000),
        (2_000, 1.0),
        (21_000, 0.55),
        (11_500, 0.1 + 0.45 * (1 + math.sqrt(0.5))),
        (40_000, 0.1),
    ],
)
def test_phase_2_warms_up_and_follows_a_cosine(step: int, factor: float) -> None:
    assert learning_rate_factor(step, 40_000, PHASE_2) == pytest.approx(factor, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedule_ends_at_zero(kind: str) -> None:
    config = ScheduleConfig(kind=kind, end=0.0)
    assert learning_rate_factor(10, 10, config) == pytest.approx(0, abs=1e-15)
    assert learning_rate_factor(9, 10, config) > 0


def test_constant_is_one_after_the_warm_up() -> None:
    config = ScheduleConfig(kind="constant", warmup_steps=4, end=0.1)
    factors = [learning_rate_factor(step, 10, config) for step in range(11)]
    assert factors == pytest.approx([0, 0.25, 0.5, 0.75] + [1.0] * 7, rel=1e-12)


def test_a_run_shorter_than_its_decay_is_its_beginning() -> None:
    short, long = ([learning_rate_factor(step, n, PHASE_1) for step in range(51)] for n in (50, 200_000))
    assert short == pytest.approx(long, rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup", "decay"), [(1, 0, None), (7, 3, 4), (3, 2, 1000), (977, 13, 501)])
def test_every_step_has_a_factor(kind: str, steps: int, warmup: int, decay: int | None) -> None:
    """Rises over the warm-up, falls after it, whatever the rounding of the pieces' ends."""
    config = ScheduleConfig(kind=kind, warmup_steps=warmup, decay_steps=decay)
    factors = [learning_rate_factor(step, steps, config) for step in range(steps + 1)]
    top = min(warmup, steps)
    assert all(b > a for a, b in pairwise(factors[: top + 1]))
    assert all(b <= a + 1e-12 for a, b in pairwise(factors[top:]))
    assert 0 <= min(factors) <= max(factors) <= 1 + 1e-12


def test_a_warm_up_beyond_the_decay_is_refused() -> None:
    with pytest.raises(SpatialAvatarError, match="warmup_steps is 50"):
        learning_rate_factor(0, 50, ScheduleConfig(warmup_steps=50))


def test_scheduler_sets_every_group_and_resumes_exactly() -> None:
    config = OptimizerConfig(learning_rate=1e-3, lr_decay=0.65)
    schedule = ScheduleConfig(kind="cosine", warmup_steps=3, end=0.1)

    def run(first: int, last: int, state: tuple[dict, dict, dict] | None = None) -> tuple[dict, dict, dict]:
        generator = TinyGenerator()
        optimizer = build_optimizer(generator, config)
        scheduler = build_scheduler(optimizer, schedule, 20)
        if state is not None:
            for part, saved in zip((generator, optimizer, scheduler), state):
                part.load_state_dict(saved)
        for step in range(first, last):
            factor = learning_rate_factor(step, 20, schedule)
            for group, base in zip(optimizer.param_groups, parameter_groups(generator, 1e-3, 0.65, 0.0)):
                assert group["lr"] == base["lr"] * factor
            for k, parameter in enumerate(generator.parameters()):
                parameter.grad = torch.full_like(parameter, math.sin(step + k))
            optimizer.step()
            scheduler.step()
        return generator.state_dict(), optimizer.state_dict(), scheduler.state_dict()

    torch.manual_seed(0)
    start = run(0, 0)
    unbroken = run(0, 20, start)
    resumed = run(9, 20, run(0, 9, start))
    for name, value in unbroken[0].items():
        assert torch.equal(value, resumed[0][name]), name
    assert [g["lr"] for g in unbroken[1]["param_groups"]] == [g["lr"] for g in resumed[1]["param_groups"]]
    assert unbroken[2] == resumed[2]
