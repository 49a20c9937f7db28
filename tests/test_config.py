"""Configurations: YAML, overrides, and what a user reads when a key is wrong."""

import re
from pathlib import Path

import pytest

from spatialavatar.config import Config, load_config
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.refine.config import RefineConfig
from spatialavatar.training.config import TrainConfig

REPOSITORY = Path(__file__).parents[1]


def test_shipped_file_states_the_defaults() -> None:
    assert load_config(RefineConfig, REPOSITORY / "configs" / "refine.yaml") == RefineConfig()


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("iterations: 7\nanti_spike:\n  clamp: false\n  aspect_bound: 4\n")
    config = load_config(
        RefineConfig, file, ["iterations=9", "anti_spike.aspect_bound=20", "learning_rates.color=5e-2"]
    )
    assert (config.iterations, config.anti_spike.clamp, config.anti_spike.aspect_bound) == (9, False, 20)
    assert config.learning_rates.color == 0.05
    assert config.learning_rates.position == RefineConfig().learning_rates.position


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("iteration=5", "did you mean iterations?"),
        ("anti_spike.aspect_bond=5", "did you mean anti_spike.aspect_bound?"),
        ("iterations=-1", "iterations"),
        ("iterations=many", "found 'many'"),
        ("iterations", "expected key=value"),
        ("seed.deeper=1", "unknown key|seed"),
    ],
)
def test_wrong_override_is_named(override: str, expected: str) -> None:
    with pytest.raises(SpatialAvatarError, match=expected):
        load_config(RefineConfig, None, [override])


def test_a_section_that_is_null_can_be_filled(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: {synthetic: {identities: 3}}\nheld_out: null\n")
    config = load_config(TrainConfig, file, ["held_out.synthetic.identities=2", "held_out.synthetic.cameras=4"])
    assert config.held_out is not None and config.held_out.synthetic is not None
    assert (config.held_out.synthetic.identities, config.held_out.synthetic.cameras) == (2, 4)


def test_an_override_changes_one_of_two_sections_that_an_anchor_makes_alike(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: &people {synthetic: {identities: 3}}\nheld_out: *people\n")
    config = load_config(TrainConfig, file, ["held_out.synthetic.identities=2"])
    assert config.held_out is not None and config.held_out.synthetic is not None and config.data.synthetic is not None
    assert (config.data.synthetic.identities, config.held_out.synthetic.identities) == (3, 2)


class Part(Config):
    name: str
    size: int = 1


class Parts(Config):
    listed: tuple[Part, ...] = ()
    one: Part | None = None


@pytest.mark.parametrize(
    ("model", "override", "expected"),
    [
        (
            TrainConfig,
            "data.synthetic.identites=3",
            "unknown key data.synthetic.identites; did you mean data.synthetic.identities?",
        ),
        (TrainConfig, "held_out.shard.url=a", "unknown key held_out.shard; did you mean held_out.shards?"),
        (TrainConfig, "dta.clips=[a]", "unknown key dta; did you mean data?"),  # not: data is missing
        (TrainConfig, "learning_rate=1", "did you mean optimizer.learning_rate?"),
        (TrainConfig, "shards=a", "did you mean data.shards?"),
        (TrainConfig, "optimizer.zzz=1", "known keys: optimizer.kind, optimizer.learning_rate, optimizer.betas, "),
        (
            TrainConfig,
            "generator.encoder.architecture.dept=3",
            "architecture.dept: input should be 'embed_dim', 'depth'",
        ),
        (
            RefineConfig,
            "anti_spike=8",
            "anti_spike: expected keys below it, found 8; there are scale_freeze_iterations, ",
        ),
        (Parts, "listed=[{name: a}, {name: b, siz: 2}]", "unknown key listed.1.siz; did you mean listed.1.size?"),
        (Parts, "one.nam=a", "unknown key one.nam; did you mean one.name?"),
    ],
)
def test_nearest_key_is_looked_for_where_it_belongs(model: type[Config], override: str, expected: str) -> None:
    with pytest.raises(SpatialAvatarError, match=re.escape(expected)):
        load_config(model, None, [override])


@pytest.mark.parametrize("text", ["iterations: [", "- 1\n- 2\n"])
def test_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(SpatialAvatarError, match=r"broken\.yaml"):
        load_config(RefineConfig, file)
