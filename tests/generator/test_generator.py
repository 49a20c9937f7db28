"""The assembled generator: its start, its invariances, and where its gradients go."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.decoder import Decoded
from spatialavatar.generator.generator import Generator
from spatialavatar.generator.pooling import AttentionPool
from spatialavatar.generator.sources import Sources
from spatialavatar.generator.warp import warp
from spatialavatar.head import HeadParams, texel_spacing
from spatialavatar.losses.jacobian import jacobian_penalty, rademacher
from spatialavatar.splat.binding import bind
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import LocalGaussians
from spatialavatar.splat.rasterize import rasterize
from spatialavatar.splat.template_skin import template_skin
from tests.builders.clips import tiny_head
from tests.builders.generators import awaken, tiny_drivers, tiny_generator, tiny_sources

HEAD = tiny_head()
POOLS = ["mean", "attention"]


def exact(**changes: Any) -> Generator:
    """Awake, in float64."""
    return awaken(tiny_generator(HEAD, **changes)).double().eval()


def sources_of(batch: int, ks: int | list[int], **changes: Any) -> Sources:
    return tiny_sources(HEAD, batch, ks, **changes).to(torch.float64)


def drivers(batch: int) -> tuple[HeadParams, Camera]:
    params, camera = tiny_drivers(HEAD, batch)
    return params.to(torch.float64), camera.to(torch.float64)


def rows(sources: Sources, subject: int, portraits: list[int]) -> Sources:
    """One subject with some of its portraits."""
    flat = [subject * sources.mask.shape[1] + k for k in portraits]
    return Sources(
        sources.images[subject : subject + 1, portraits],
        sources.params[flat],
        sources.camera[flat],
        sources.mask[subject : subject + 1, portraits],
    )


def values(decoded: Decoded) -> dict[str, Tensor]:
    return {
        **decoded.gaussians.tensors(),
        "position_offset": decoded.position_offset,
        "log_scale_offset": decoded.log_scale_offset,
        **{f"delta of {name}": delta for name, delta in decoded.deltas.items()},
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


# sources


@pytest.mark.parametrize("pool", POOLS)
def test_one_source_is_the_same_with_and_without_pooling(pool: str) -> None:
    """Encoder, warp and StyleUNet by hand, each subject's only portrait going straight through."""
    generator, sources = exact(pool=pool), sources_of(2, 1)
    encoded = generator.encoder(sources.images[:, 0])
    points = generator.layout.points(generator.head(sources.params), HEAD.faces)
    features, valid = warp(generator.dpt(encoded.maps), points, sources.camera)
    colors, _ = warp(sources.images[:, 0], points, sources.camera)
    texels = torch.cat([colors, valid, features], -1)
    maps = torch.cat([generator.layout.to_map(texels), generator.rest_map.expand(2, -1, -1, -1)], 1)
    expected = generator.layout.from_map(generator.unet(maps, encoded.cls))
    assert torch.equal(generator.encode(sources), expected)
    assert 0.1 < valid.mean() <= 1 and colors.std() > 0.1


@pytest.mark.parametrize("pool", POOLS)
def test_order_of_the_sources_does_not_matter(pool: str) -> None:
    generator, sources, driver = exact(pool=pool), sources_of(1, 4), drivers(1)
    expected = values(generator(sources, *driver))
    for order in ([3, 2, 1, 0], [1, 0, 3, 2]):
        assert_close(values(generator(rows(sources, 0, order), *driver)), expected)
    # the sources do matter: with one of them less it is another avatar
    fewer = generator(rows(sources, 0, [0, 1, 2]), *driver).gaussians
    assert (fewer.position - expected["position"]).abs().max() > 1e-4


@pytest.mark.parametrize("pool", POOLS)
def test_the_same_portrait_twice_counts_once(pool: str) -> None:
    generator, sources = exact(pool=pool), sources_of(1, 2)
    once, twice = (generator.encode(rows(sources, 0, which)) for which in ([1], [1, 1]))
    torch.testing.assert_close(twice, once, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pool", POOLS)
def test_a_sample_does_not_depend_on_its_batch(pool: str) -> None:
    """Mixed K; what the mask leaves out holds garbage."""
    generator, driver = exact(pool=pool).train(), drivers(3)
    sources = sources_of(3, [2, 1, 4])
    hidden = ~sources.mask
    garbage = dataclasses.replace(
        sources,
        images=sources.images.masked_fill(hidden[..., None, None, None], torch.nan),
        params=sources.params.map(lambda t: t.masked_fill(hidden.flatten()[:, None], torch.nan)),
        camera=dataclasses.replace(
            sources.camera,
            world_to_camera=sources.camera.world_to_camera.masked_fill(hidden.flatten()[:, None, None], torch.inf),
        ),
    )
    together = values(generator(garbage, *driver))
    for b, k in enumerate([2, 1, 4]):
        alone = generator(rows(sources, b, list(range(k))), driver[0][b], driver[1][b])
        assert_close({name: t[b : b + 1] for name, t in together.items()}, values(alone))


def test_which_places_the_sources_take_does_not_matter() -> None:
    generator, sources = exact(), sources_of(1, 3)
    gap = dataclasses.replace(sources, mask=torch.tensor([[True, False, True]]))
    torch.testing.assert_close(generator.encode(gap), generator.encode(rows(sources, 0, [0, 2])), atol=1e-12, rtol=0)


def test_image_token_and_tracking_all_matter() -> None:
    generator, sources = exact(), sources_of(1, 1)
    base = generator.encode(sources)
    other = sources_of(1, 1, seed=9)
    for name in ("images", "params", "camera"):
        changed = dataclasses.replace(sources, **{name: getattr(other, name)})
        assert (generator.encode(changed) - base).abs().max() > 1e-3, name


def test_a_subject_without_a_source() -> None:
    sources = tiny_sources(HEAD, 2, [1, 0])
    with pytest.raises(SpatialAvatarError, match="a subject without a single source"):
        tiny_generator(HEAD).encode(sources)


def test_sources_of_another_size() -> None:
    with pytest.raises(SpatialAvatarError, match=r"sources are 48 x 48 pixels, the encoder takes 32 x 32"):
        tiny_generator(HEAD).encode(tiny_sources(HEAD, 1, 1, size=48))


# the untrained generator


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "attention"}, {"decoder": {"color_channels": 32}}, {"decoder": {"residual": False}}],
    ids=["plain", "attention", "32 channels", "no residual"],
)
def test_untrained_renders_the_template_skin(changes: dict[str, Any]) -> None:
    generator = tiny_generator(HEAD, **changes)
    params, camera = tiny_drivers(HEAD, 2, size=40)
    decoded = generator(tiny_sources(HEAD, 2, [1, 3]), params, camera)
    layout, channels = generator.layout, generator.config.decoder.color_channels
    spacing = texel_spacing(HEAD, layout)
    skin = template_skin(HEAD.template, HEAD.faces, layout.face_index, layout.barycentric, spacing, channels)
    for name, expected in skin.tensors().items():
        assert torch.equal(decoded.gaussians.tensors()[name], expected.expand(2, *expected.shape[1:])), name
    assert not any(delta.any() for delta in decoded.deltas.values())
    assert bool(decoded.deltas) == generator.config.decoder.residual

    def picture(local: LocalGaussians) -> Tensor:
        return rasterize(bind(local, HEAD(params), HEAD.faces, layout.face_index), camera).features

    shown = picture(decoded.gaussians)
    both = LocalGaussians.cat([skin, skin])
    assert torch.equal(shown, picture(both)) and shown.max() > 0.3


def test_an_awake_generator_does_not() -> None:
    """Or the test above would pass on anything."""
    generator, (params, camera) = exact(), drivers(1)
    found = values(generator(sources_of(1, 1), params, camera))
    still = values(tiny_generator(HEAD).double()(sources_of(1, 1), params, camera))
    for name, value in found.items():
        assert (value - still[name]).abs().max() > 1e-3, name


def test_view_and_expression_matter() -> None:
    generator, (params, camera) = exact(), drivers(2)
    features = generator.encode(sources_of(1, 1))
    base = generator.decode(features, params[0], camera[0]).gaussians.position
    for changed in ((params[1], camera[0]), (params[0], camera[1])):
        assert (generator.decode(features, *changed).gaussians.position - base).abs().max() > 1e-3


# gradients


def train(generator: Generator, steps: int, before_step: Callable[[int], None] = lambda step: None) -> dict[str, float]:
    """A few steps towards random attributes; the largest gradient that each parameter has had."""
    sources, (params, camera) = tiny_sources(HEAD, 2, [3, 2]), tiny_drivers(HEAD, 2)
    random = torch.Generator().manual_seed(0)
    trained = [p for p in generator.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    largest: dict[str, float] = {}
    goal = {}
    for step in range(steps):
        optimizer.zero_grad()
        found = generator(sources, params, camera).gaussians.tensors()
        goal = goal or {n: t.detach() + torch.randn(t.shape, generator=random) for n, t in found.items()}
        torch.stack([mse_loss(t, goal[name]) for name, t in found.items()]).sum().backward()
        for name, parameter in generator.named_parameters():
            gradient = 0.0 if parameter.grad is None else parameter.grad.abs().max().item()
            largest[name] = max(largest.get(name, 0.0), gradient)
        before_step(step)
        optimizer.step()
    return largest


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "attention"}, {"encoder": {"frozen": False}}, {"decoder": {"residual": False, "color_channels": 32}}],
    ids=["frozen", "attention", "unfrozen", "no residual, 32 channels"],
)
def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(changes: dict[str, Any]) -> None:
    generator = tiny_generator(HEAD, **changes).train()
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    largest = train(generator, 3)
    trainable = {name for name, p in generator.named_parameters() if p.requires_grad}
    without = sorted(name for name in trainable if largest[name] == 0)
    assert not without, f"no gradient in three steps: {without}"
    frozen = before.keys() - trainable
    assert frozen == {name for name in before if generator.config.encoder.frozen and name.startswith("encoder.")}
    for name, parameter in generator.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name
    assert all(parameter.grad is None for name, parameter in generator.named_parameters() if name in frozen)


def test_the_residual_starts_at_zero_with_gradients_that_are_not() -> None:
    generator = tiny_generator(HEAD)
    seen: list[dict[str, bool]] = []

    def note(step: int) -> None:
        parameters = generator.named_parameters()
        seen.append({n: bool(p.grad.any()) for n, p in parameters if "residual" in n and p.grad is not None})

    train(generator, 3, note)
    by_step = [{name.removeprefix("decoder.residual.") for name, there in step.items() if there} for step in seen]
    convs = {f"convs.{name}.{part}" for name in ("position", "rotation", "log_scale", "color") for part in WB}
    last = {f"film.2.{part}" for part in WB}
    assert by_step == [convs, convs | last, convs | last | {f"film.0.{part}" for part in WB}]


WB = ("weight", "bias")


def test_gradient_checkpointing_and_the_jacobian_penalty_together() -> None:
    """The penalty's second backward goes through the checkpointed levels, too."""
    sources, driver, numbers = sources_of(2, [1, 2]), drivers(2), [5, 6]
    gradients = []
    for checkpointing in (False, True):
        generator = exact()
        generator.recompute_activations(checkpointing)
        terms = generator(sources, *driver, penalised=True).jacobian
        assert terms is not None
        signs = [s.double() for s in rademacher(0, numbers, generator.layout.count)]
        jacobian_penalty(terms, *signs).sum().backward()
        gradients.append({n: p.grad for n, p in generator.named_parameters() if p.grad is not None})
    assert "unet.stem.0.weight" in gradients[0] and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-12, rtol=1e-12)


def test_gradient_of_the_whole_against_finite_differences() -> None:
    """Along random directions of every trainable module at once, float64."""
    generator, sources, driver = exact(), sources_of(2, [1, 3]), drivers(2)
    trained = [p for p in generator.parameters() if p.requires_grad]
    random = torch.Generator().manual_seed(1)
    target = torch.randn(2, generator.layout.count, 3, generator=random, dtype=torch.float64)

    def loss() -> Tensor:
        gaussians = generator(sources, *driver).gaussians
        return ((gaussians.position + gaussians.log_scale + gaussians.color) * target).mean()

    gradients = torch.autograd.grad(loss(), trained, allow_unused=True)
    step = 1e-7  # small, for rectifiers have kinks
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=random, dtype=torch.float64) for p in trained]
        expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction) if g is not None)
        sides = []
        for sign in (1, -2):
            with torch.no_grad():
                for p, d in zip(trained, direction):
                    p.add_(sign * step * d)
                sides.append(loss().item())
        with torch.no_grad():
            for p, d in zip(trained, direction):
                p.add_(step * d)
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(expected, rel=1e-3)


# precision, channels, and what belongs to the generator


@pytest.mark.parametrize("pool", POOLS)
def test_bf16_autocast_stays_near_float32(pool: str) -> None:
    generator = awaken(tiny_generator(HEAD, pool=pool)).eval()
    sources, driver = tiny_sources(HEAD, 2, [1, 3]), tiny_drivers(HEAD, 2)
    full = generator(sources, *driver)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = generator(sources, *driver, penalised=True)
    assert mixed.jacobian is not None
    for name, value in values(full).items():
        found = values(mixed)[name]
        assert found.dtype == torch.float32, name
        spread = (value - value.mean()).norm()
        assert (found - value).norm() < 0.1 * spread, name
        assert not torch.equal(found, value), name  # it did compute in 16 bits
    mixed.gaussians.position.sum().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters() if p.grad is not None)


def test_bf16_keeps_the_geometry_of_the_warp_in_full_precision() -> None:
    """Colours come from the same pixels: 16 bits would move the texels by whole pixels of a large picture."""
    generator, sources = tiny_generator(HEAD), tiny_sources(HEAD, 1, 1)
    kept: list[Tensor] = []
    generator.pool.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    generator.encode(sources)
    with torch.autocast("cpu", torch.bfloat16):
        generator.encode(sources)
    assert torch.equal(kept[0][..., :4], kept[1][..., :4])  # colour and validity
    assert not torch.equal(kept[0][..., 4:], kept[1][..., 4:])


def test_more_than_three_channels_reach_the_picture() -> None:
    generator = awaken(tiny_generator(HEAD, decoder={"color_channels": 32}))
    params, camera = tiny_drivers(HEAD, 1)
    local = generator(tiny_sources(HEAD, 1, 2), params, camera).gaussians
    picture = rasterize(bind(local, HEAD(params), HEAD.faces, generator.layout.face_index), camera).features
    assert picture.shape == (1, 32, 32, 32) and (picture.std((0, 1, 2)) > 0).all()


def test_the_head_is_no_part_of_it() -> None:
    generator = tiny_generator(HEAD)
    assert generator.state_dict().keys() == dict(generator.named_parameters()).keys()
    assert generator.head is not HEAD
    generator.double()
    assert HEAD.template.dtype == torch.float32  # whoever shares the head keeps it as it was


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_it_to_16_bits_is_refused(dtype: torch.dtype) -> None:
    generator = tiny_generator(HEAD)
    with pytest.raises(SpatialAvatarError, match="autocast"):
        generator.to(dtype)
    assert {t.dtype for t in (*generator.parameters(), *generator.buffers()) if t.is_floating_point()} == {
        torch.float32
    }


def test_attention_is_asked_for_by_configuration() -> None:
    generator = tiny_generator(HEAD, pool="attention")
    assert isinstance(generator.pool, AttentionPool)
    assert not list(tiny_generator(HEAD).pool.parameters())


@pytest.mark.parametrize("resolution", [8, 16, 64])
@pytest.mark.parametrize("size", [32, 64])
def test_any_powers_of_two(resolution: int, size: int) -> None:
    generator = tiny_generator(HEAD, uv_resolution=resolution, encoder={"image_size": size})
    decoded = generator(tiny_sources(HEAD, 1, 1, size=size), *tiny_drivers(HEAD, 1))
    assert decoded.gaussians.count == generator.layout.count
    assert generator.layout.resolution == resolution
