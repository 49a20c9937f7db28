"""The generator's configuration: what it refuses, and that it survives a round trip."""

import pytest

from spatialavatar.config import load_config
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator import GeneratorConfig


def test_defaults_are_method_mds() -> None:
    config = GeneratorConfig()
    assert (config.uv_resolution, config.pool) == (256, "mean")
    assert (config.encoder.backbone, config.encoder.image_size) == ("vit_base_patch16_dinov3", 512)
    assert config.encoder.frozen
    assert config.encoder.weights != "random"  # must be asked for
    assert (config.decoder.feature_channels, config.decoder.position_bound, config.decoder.scale_bound) == (
        32,
        0.02,
        10,
    )
    assert config.decoder.residual


def test_round_trip() -> None:
    config = load_config(GeneratorConfig, None, ["encoder.layers=[1,2,3,4]", "decoder.color_channels=32"])
    assert config.encoder.layers == (1, 2, 3, 4)
    assert GeneratorConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("uv_resolution=100", "uv_resolution: .*power of two"),
        ("uv_resolution=4", "uv_resolution: "),
        ("pool=max", "pool: .*'mean' or 'attention'"),
        ("encoder.image_size=16", r"encoder\.image_size: "),
        ("encoder.layers=[1,2,3]", r"encoder\.layers.*: "),
        ("decoder.color_channels=2", r"decoder\.color_channels: "),
        ("decoder.scale_bound=1", r"decoder\.scale_bound: "),
        ("decoder.position_bound=0", r"decoder\.position_bound: "),
        ("encoder.wieghts=random", r"unknown key encoder\.wieghts; did you mean encoder\.weights"),
    ],
)
def test_bad_values_are_named(override: str, named: str) -> None:
    with pytest.raises(SpatialAvatarError, match=named) as error:
        load_config(GeneratorConfig, None, [override])
    assert "\n" not in str(error.value)
