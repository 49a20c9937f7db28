"""The configurations that ship: each loads, and those of the paper say what the paper and method.md say."""

import itertools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from spatialavatar.cli import demo
from spatialavatar.config import Config, load_config
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.config import FleetConfig
from spatialavatar.generator.config import GeneratorConfig
from spatialavatar.refine.config import RefineConfig
from spatialavatar.training.config import (
    DataConfig,
    SamplerConfig,
    ScheduleConfig,
    ShardData,
    SyntheticData,
    TrainConfig,
)
from spatialavatar.training.optimization import learning_rate_factor

CONFIGS = Path(__file__).parents[1] / "configs"
WRITTEN = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}
SWEEPS = {name for name in WRITTEN if "tune/" in name}  # tests/ray_jobs/test_tune.py
FLEETS = {"fleet.yaml", "dev/fleet.yaml"}
EXPLAINING = ("refine.yaml", "fleet.yaml", "phase1.yaml", "phase2.yaml", "tune/lambda_sp.yaml")  # others refer to them
TRAINING = sorted(WRITTEN - SWEEPS - FLEETS - {"refine.yaml"})
PAPER = {  # method.md section 3; paper A.2 and Table 7
    "phase1.yaml": {
        "phase": 1,
        "phase1_checkpoint": None,
        "steps": 200_000,
        "batch_size": 48,
        "precision": "fp32",
        "optimizer": {
            "kind": "adam",
            "learning_rate": 2.5e-4,
            "betas": (0.9, 0.999),
            "weight_decay": 0.0,
            "clip_norm": 5.0,
            "lr_decay": 1.0,
        },
        "schedule": {"kind": "linear", "warmup_steps": 0, "decay_steps": 160_000, "end": 0.1},
        "sampler": {
            "max_sources": 4,
            "temperature_start": 2.0,
            "temperature_end": 0.5,
            "temperature_share": 0.25,
            "cross_time": 0.25,
            "draws_per_clip": 4,
        },
        "loss.lambda_delta": 0.0,
        "loss.lambda_sp": 0.0,
    },
    "phase2.yaml": {
        "phase": 2,
        "steps": 40_000,
        "batch_size": 12,
        "precision": "bf16",
        "optimizer": {
            "kind": "adamw",
            "learning_rate": 1e-4,
            "betas": (0.9, 0.999),
            "weight_decay": 0.0,
            "clip_norm": 5.0,
            "lr_decay": 0.65,
        },
        "schedule": {"kind": "cosine", "warmup_steps": 2_000, "decay_steps": None, "end": 0.0},
        "sampler.max_sources": 4,
        "sampler.cross_time": 0.25,
        "loss.lambda_delta": 1e-2,
        "loss.lambda_sp": 1e-3,
    },
}
BOTH_PHASES = {
    "loss.lambda_1": 1.0,
    "loss.lambda_ms": 1.0,
    "loss.lambda_lp": 1.0,
    "loss.lambda_box": 1.0,
    "loss.lambda_ps": 1e-2,
    "loss.lambda_ss": 1e-2,
    "loss.lambda_jac": 1e-1,
    "loss.face_box_dilation": 1.65,
    "generator.uv_resolution": 256,
    "generator.pool": "mean",
    "generator.encoder.backbone": "vit_base_patch16_dinov3",
    "generator.encoder.weights": "hub",
    "generator.encoder.image_size": 512,
    "generator.encoder.frozen": True,
    "generator.decoder.feature_channels": 32,
    "generator.decoder.color_channels": 3,
    "generator.decoder.position_bound": 0.02,
    "generator.decoder.scale_bound": 10.0,
    "generator.decoder.residual": True,
}


def test_every_file_loads() -> None:
    assert {"phase1.yaml", "phase2.yaml", "dev/phase1.yaml", "dev/phase2.yaml"} <= set(TRAINING)
    load_config(RefineConfig, CONFIGS / "refine.yaml")
    for name in TRAINING:
        config = load_config(TrainConfig, CONFIGS / name)
        assert "phase2" not in name or config.phase == 2
    for name in FLEETS:
        load_config(FleetConfig, CONFIGS / name)


def test_refinement_is_explained_with_its_defaults() -> None:
    written = yaml.safe_load((CONFIGS / "refine.yaml").read_text())
    assert leaves(written) == fields(RefineConfig)
    assert load_config(RefineConfig, CONFIGS / "refine.yaml") == RefineConfig()


def test_fleet_is_explained_with_its_defaults_but_for_what_is_marked() -> None:
    written = yaml.safe_load((CONFIGS / "fleet.yaml").read_text())
    assert leaves(written) == fields(FleetConfig)
    defaults = FleetConfig(refine=RefineConfig(checkpoint_every=2000))
    assert load_config(FleetConfig, CONFIGS / "fleet.yaml") == defaults


def test_small_fleet_is_small() -> None:
    config = load_config(FleetConfig, CONFIGS / "dev" / "fleet.yaml")
    assert (config.refine.iterations, config.refine.resolution, config.refine.uv_resolution) == (400, 128, 64)
    assert config.refine.anti_spike.aspect_from < config.refine.iterations / 10, "most iterations have all losses"
    assert config.gate == FleetConfig().gate and config.refine.checkpoint_every < config.refine.iterations


@pytest.mark.parametrize("name", PAPER)
def test_paper_settings(name: str) -> None:
    values = load_config(TrainConfig, CONFIGS / name).model_dump()
    for key, expected in (BOTH_PHASES | PAPER[name]).items():
        assert lookup(values, key) == expected, key


@pytest.mark.parametrize("name", PAPER)
def test_paper_settings_are_spelled_out(name: str) -> None:
    written = yaml.safe_load((CONFIGS / name).read_text())
    assert leaves(written, whole={"data.shards", "held_out"}) == fields(TrainConfig)


@pytest.mark.parametrize("name", EXPLAINING)
def test_every_value_is_explained(name: str) -> None:
    """By a comment behind it, whose unit and source are for a person to judge, or by the line above."""
    lines = (CONFIGS / name).read_text().splitlines()
    values = [(above, line) for above, line in itertools.pairwise(lines) if re.match(r" *\w+: *[^ #{]", line)]
    assert len(values) > 10
    assert not [line for above, line in values if "# " not in line and not above.lstrip().startswith("# ")]


@pytest.mark.parametrize("section", [SyntheticData, ShardData])
def test_sections_that_are_optional_are_explained(section: type[Config]) -> None:
    text = (CONFIGS / "phase1.yaml").read_text()
    assert not [key for key in section.model_fields if not re.search(rf"\b{key}: ", text)]


def test_first_phase_is_the_default_but_for_what_is_marked() -> None:
    config = load_config(TrainConfig, CONFIGS / "phase1.yaml")
    defaults = TrainConfig(
        data=DataConfig(shards=ShardData(url="data/celebv-hq", part="train")),
        held_out=DataConfig(shards=ShardData(url="data/celebv-hq", part="held_out")),
        sampler=SamplerConfig(draws_per_clip=4),
        schedule=ScheduleConfig(decay_steps=160_000),
        gradient_checkpointing=True,
    )
    assert config == defaults


def test_first_phase_falls_to_a_tenth_and_stays() -> None:
    config = load_config(TrainConfig, CONFIGS / "phase1.yaml")
    factors = [learning_rate_factor(step, config.steps, config.schedule) for step in (0, 80_000, 160_000, 199_999)]
    assert factors == pytest.approx([1, 0.55, 0.1, 0.1])


@pytest.mark.parametrize("place", ["dev/", ""])
def test_second_phase_goes_on_with_the_first_ones_generator(place: str) -> None:
    first, second = (load_config(TrainConfig, CONFIGS / f"{place}phase{n}.yaml") for n in (1, 2))
    assert first.generator == second.generator
    assert second.loss.lambda_sp > 0 and second.loss.lambda_delta > 0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.lambda_jacobian=1", "did you mean loss.lambda_jac?"),
        ("generator.encoder.freeze=true", "did you mean generator.encoder.frozen?"),
        ("batchsize=3", "did you mean batch_size?"),
        ("phase=3", "phase"),
        ("generator.uv_resolution=200", "power of two"),
        ("data.synthetic={identities: 3}", "one of data.synthetic, data.clips and data.shards"),
    ],
)
def test_unknown_keys_and_values_are_refused(override: str, expected: str) -> None:
    with pytest.raises(SpatialAvatarError, match=expected):
        load_config(TrainConfig, CONFIGS / "phase1.yaml", [override])


def test_the_demo_trains_the_small_generator() -> None:
    config = load_config(TrainConfig, CONFIGS / "dev" / "phase1.yaml")
    assert GeneratorConfig.model_validate(demo.TRAINING["generator"]) == config.generator


def lookup(values: dict[str, Any], key: str) -> Any:
    for step in key.split("."):
        values = values[step]
    return values


def leaves(values: dict[str, Any], prefix: str = "", whole: Collection[str] = ()) -> set[str]:
    found: set[str] = set()
    for key, value in values.items():
        nested = isinstance(value, dict) and value and prefix + key not in whole
        found |= leaves(value, f"{prefix}{key}.", whole) if nested else {prefix + key}
    return found


def fields(model: type[BaseModel], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        nested = field.annotation
        is_model = isinstance(nested, type) and issubclass(nested, BaseModel)
        found |= fields(nested, f"{prefix}{name}.") if is_model else {prefix + name}  # type: ignore[arg-type]
    return found


def test_every_configuration_that_is_named_exists() -> None:
    root = CONFIGS.parent
    parts = [root / part for part in ("README.md", "docs", "cluster", "configs", "ray_jobs", "spatialavatar")]
    files = [path for part in parts for path in (part, *part.rglob("*"))]
    texts = [path for path in files if path.suffix in {".md", ".py", ".sh", ".yaml"}]
    named = {(name, path) for path in texts for name in re.findall(r"\bconfigs/([\w/]+\.yaml)", path.read_text())}
    assert {path.name for _, path in named} >= {"README.md", "cluster.md", "train.py", "tune.py", "rayjob.yaml"}
    assert not [(name, path) for name, path in named if name not in WRITTEN]
