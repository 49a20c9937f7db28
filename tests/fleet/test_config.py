"""What a fleet can be told: no passwords; which settings make another avatar."""

from typing import Any

import pytest
from pydantic import BaseModel

from spatialavatar.config import load_config
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.config import FleetConfig, config_hash, holds_credentials

SECRET = "wJalrXUtnFEMI"
PLACES = ["subjects", "output", "head", "checkpoint", "encoder_weights", "evaluation.lpips_weights"]
# what an avatar, its metrics and its log do not depend on, or what counts by its content: generator, LPIPS
HARMLESS = {"subjects", "output", "allow", "head", "checkpoint", "encoder_weights", "evaluation.lpips_weights"}
HARMLESS |= {"refine.checkpoint_every", "refine.log_every", "refine.frame_memory_gb"}
PARTS = ("gate.", "attempts.", "workers.")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", [f"s3://AKIA:{SECRET}@lab/x", f"S3://{SECRET}@lab", f"https://AKIA:a/{SECRET}@h/x"])
def test_passwords_are_refused_and_never_said(place: str, text: str) -> None:
    with pytest.raises(SpatialAvatarError, match="holds a user or password") as e:
        load_config(FleetConfig, None, [f"{place}={text}"])
    assert place in str(e.value) and SECRET not in str(e.value)


SIGNED = [
    f"https://account.blob.core.windows.net/c/x?sv=2022-11-02&sig={SECRET}",
    f"azure://account/c/x?SIG={SECRET}",
    f"https://lab.s3.amazonaws.com/x?X-Amz-Algorithm=A&X-Amz-Credential={SECRET}",
    f"s3://lab/x?AWSAccessKeyId={SECRET}&Expires=1",
    f"gs://lab/x?GoogleAccessId=a@b&Expires=1&Signature={SECRET}",
    f"gs://lab/x?x-goog-credential={SECRET}",
    f"http://host/x?a=1;access_token={SECRET}",
    f"https://host:8080/x?token={SECRET}",
]


@pytest.mark.parametrize("text", SIGNED)
@pytest.mark.parametrize("place", ["subjects", "checkpoint"])
def test_signed_urls_are_refused_and_never_said(place: str, text: str) -> None:
    with pytest.raises(SpatialAvatarError, match="or is signed") as e:
        load_config(FleetConfig, None, [f"{place}='{text}'"])
    assert place in str(e.value) and SECRET not in str(e.value)


def test_passwords_of_allowed_folders() -> None:
    with pytest.raises(SpatialAvatarError, match=r"allow.*holds a user or password") as e:
        load_config(FleetConfig, None, [f"allow=[s3://lab/a, 's3://AKIA:{SECRET}@lab/b']"])
    assert SECRET not in str(e.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "s3://lab/a@b", "clips/me@home:x", "http://host:8080/a@b", "http://host:8080", "a:b@c", "file:///a:b@c"),
        *("https://host/x?download=1&part=2", "s3://lab/token=3/x", "clips/what?sig=1", "s3://lab/x?design=a"),
    ],
)
def test_what_is_no_password(text: str) -> None:
    assert not holds_credentials(text)


def leaves(model: BaseModel, prefix: str = "") -> list[str]:
    found = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else [prefix + name]
    return found


def changed(model: BaseModel, name: str) -> Any:
    """The same with another value under a dotted name."""
    head, _, rest = name.partition(".")
    value = getattr(model, head)
    others: dict[type, Any] = {bool: lambda: not value, int: lambda: value + 1, float: lambda: value + 1.0}
    others |= {str: lambda: "white" if head == "background" else value + "x", list: lambda: ["x"]}
    if rest:
        return model.model_copy(update={head: changed(value, rest)})
    return model.model_copy(update={head: 3 if value is None else others[type(value)]()})


@pytest.mark.parametrize("name", leaves(FleetConfig()))
def test_the_hash_is_another_with_each_setting_that_matters(name: str) -> None:
    before, after = (
        config_hash(config, "generator", "lpips") for config in (FleetConfig(), changed(FleetConfig(), name))
    )
    assert (before == after) == (name in HARMLESS or name.startswith(PARTS))


def test_the_hash_is_another_with_generator_and_lpips() -> None:
    pairs = [(generator, lpips) for generator in (None, "g", "h") for lpips in (None, "g", "l")]
    assert len({config_hash(FleetConfig(), *pair) for pair in pairs}) == len(pairs)


def test_without_a_generator_nobody_looks_at_sources() -> None:
    assert config_hash(FleetConfig(sources=1), None, None) == config_hash(FleetConfig(sources=4), None, None)
    assert config_hash(FleetConfig(sources=1), "g", None) != config_hash(FleetConfig(sources=4), "g", None)
