"""The five heads and the residual head: start, bounds, and the gradients that the Jacobian penalty takes."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spatialavatar.generator.condition import POSE_AND_EYES, condition
from spatialavatar.generator.config import DecoderConfig
from spatialavatar.generator.decoder import CORRECTED, Decoded, GaussianDecoder
from spatialavatar.generator.view_encoding import harmonic_encoding, view_direction
from spatialavatar.head import build_layout, texel_spacing
from spatialavatar.splat.gaussians import LocalGaussians
from spatialavatar.splat.template_skin import rest_scale, template_skin
from tests.builders.clips import tiny_head
from tests.builders.generators import awaken_decoder, tiny_drivers

HEAD = tiny_head()
LAYOUT = build_layout(HEAD, 8)
CODES = HEAD.expression_codes + POSE_AND_EYES
FEATURES = 5


def decoder(awake: bool = True, seed: int = 0, **changes: Any) -> GaussianDecoder:
    torch.manual_seed(seed)
    values = {"feature_channels": FEATURES, "hidden_channels": 9, "residual_hidden": 6, **changes}
    made = GaussianDecoder(DecoderConfig(**values), HEAD, LAYOUT)
    return (awaken_decoder(made) if awake else made).double()


def inputs(batch: int = 2, seed: int = 0, scale: float = 1) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=random, dtype=torch.float64)

    return draw(batch, LAYOUT.count, FEATURES), draw(batch, 27), draw(batch, CODES)


def skin(channels: int = 3) -> LocalGaussians:
    made = template_skin(
        HEAD.template, HEAD.faces, LAYOUT.face_index, LAYOUT.barycentric, texel_spacing(HEAD, LAYOUT), channels
    )
    return made.to(torch.float64)


def rest() -> Tensor:
    return rest_scale(HEAD.template, HEAD.faces, LAYOUT.face_index).double()[:, None]


@pytest.mark.parametrize("channels", [3, 32])
def test_untrained_gives_the_template_skin_to_the_bit(channels: int) -> None:
    decoded = decoder(awake=False, color_channels=channels)(*inputs(scale=10))
    for name, expected in skin(channels).tensors().items():
        found = decoded.gaussians.tensors()[name]
        assert torch.equal(found, expected.expand_as(found)), name
    assert not decoded.position_offset.any() and not decoded.log_scale_offset.any()
    assert list(decoded.deltas) == list(CORRECTED)
    assert not any(delta.any() for delta in decoded.deltas.values())


@pytest.mark.parametrize("channels", [3, 32])
def test_shapes(channels: int) -> None:
    decoded = decoder(color_channels=channels)(*inputs(3))
    n = LAYOUT.count
    assert {name: tuple(t.shape) for name, t in decoded.gaussians.tensors().items()} == {
        "position": (3, n, 3),
        "rotation": (3, n, 4),
        "log_scale": (3, n, 3),
        "color": (3, n, channels),
        "opacity_logit": (3, n),
    }
    assert {name: t.shape[-1] for name, t in decoded.deltas.items()} == {
        "position": 3,
        "rotation": 4,
        "log_scale": 3,
        "color": channels,
    }


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-3, 1.0, 1e3, 1e6]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_bounds_hold_for_any_features(seed: int, scale: float, dtype: torch.dtype, residual: bool) -> None:
    net = decoder(seed=seed % 7, residual=residual, color_channels=5).to(dtype)
    decoded = net(*(t.to(dtype) for t in inputs(seed=seed, scale=scale)))
    g = decoded.gaussians
    slack = 1 + 4 * torch.finfo(dtype).eps
    assert all(t.isfinite().all() for t in g.tensors().values())
    assert (decoded.position_offset.abs() * rest() <= 0.02 * (1 + 1e-6)).all()  # metres; the skin is of float32
    assert (decoded.log_scale_offset.abs() <= math.log(10) * slack).all()
    assert (g.color[..., :3] >= 0).all() and (g.color[..., :3] <= 1).all()
    torch.testing.assert_close(g.rotation.norm(dim=-1), torch.ones(2, LAYOUT.count, dtype=dtype))
    start = skin().to(dtype)
    torch.testing.assert_close(g.position - start.position, decoded.position_offset, atol=1e-5, rtol=0)
    torch.testing.assert_close(g.log_scale - start.log_scale, decoded.log_scale_offset, atol=1e-5, rtol=0)


def test_bounds_are_reached_and_come_from_the_configuration() -> None:
    far = inputs(scale=1e4)
    decoded = decoder(position_bound=0.005, scale_bound=3)(*far)
    assert (decoded.position_offset.abs() * rest()).max().item() == pytest.approx(0.005, rel=1e-5)
    assert decoded.log_scale_offset.abs().max().item() == pytest.approx(math.log(3))
    colors = decoder(color_channels=6)(*far).gaussians.color
    assert colors[..., 3:].abs().max() > 2  # no bounds beyond RGB


def test_heads_are_perceptrons_on_59_channels() -> None:
    """Features and view side by side through one linear layer, as method.md has it."""
    net, (features, view, driver) = decoder(residual=False), inputs()
    head: Any = net.heads["opacity"]
    joined = torch.cat([features, view[:, None].expand(-1, LAYOUT.count, -1)], -1)
    weight = torch.cat([head.features.weight, head.view.weight], 1)
    first = torch.nn.functional.leaky_relu(joined @ weight.T + head.features.bias, 0.2)
    logit = head.output(torch.nn.functional.leaky_relu(head.hidden(first), 0.2)).squeeze(-1)
    found = net(features, view, driver).gaussians.opacity_logit
    torch.testing.assert_close(found, skin().opacity_logit + logit, atol=1e-12, rtol=0)
    assert DecoderConfig().feature_channels + view.shape[-1] == 59


def test_residual_is_film_then_a_linear_map() -> None:
    net, (features, view, driver) = decoder(), inputs()
    residual: Any = net.residual
    hidden = torch.nn.functional.silu(residual.film[0](driver))
    gamma_beta = residual.film[2](hidden).view(2, 4, 2, FEATURES)
    decoded = net(features, view, driver)
    for a, name in enumerate(CORRECTED):
        gamma, beta = gamma_beta[:, a, 0, None], gamma_beta[:, a, 1, None]
        expected = residual.convs[name]((1 + gamma) * features + beta)
        torch.testing.assert_close(decoded.deltas[name], expected, atol=1e-12, rtol=0)


def test_the_driver_changes_all_but_opacity_and_the_view_changes_all() -> None:
    net, (features, view, driver) = decoder(), inputs()
    base = net(features, view, driver).gaussians.tensors()
    by_driver = net(features, view, driver + 1).gaussians.tensors()
    by_view = net(features, view + 1, driver).gaussians.tensors()
    for name, value in base.items():
        assert torch.equal(by_driver[name], value) == (name == "opacity_logit"), name
        assert not torch.equal(by_view[name], value), name


def test_residual_does_not_see_the_view() -> None:
    net, (features, view, driver) = decoder(), inputs()
    for name, delta in net(features, view, driver).deltas.items():
        assert torch.equal(net(features, view + 1, driver).deltas[name], delta)


def test_without_the_residual_head() -> None:
    net, (features, view, driver) = decoder(residual=False), inputs()
    assert not [name for name, _ in net.named_parameters() if "residual" in name]
    decoded = net(features, view, driver)
    assert decoded.deltas == {}
    again = net(features, view, driver + 1)
    assert torch.equal(decoded.gaussians.color, again.gaussians.color)


def test_texels_and_samples_are_decoded_apart() -> None:
    net, (features, view, driver) = decoder(), inputs(3)
    base = net(features, view, driver).gaussians.position
    changed = features.clone()
    changed[1, 4] += 1
    differs = (net(changed, view, driver).gaussians.position != base).any(-1).nonzero().tolist()
    assert differs == [[1, 4]]
    alone = net(features[2:], view[2:], driver[2:]).gaussians.position
    torch.testing.assert_close(alone[0], base[2], atol=1e-12, rtol=0)


def test_at_a_driver_frame() -> None:
    """Parameters and camera, instead of what is computed from them."""
    net, (features, _, _) = decoder(), inputs()
    params, camera = (value.to(torch.float64) for value in tiny_drivers(HEAD, 2))
    found = net.at(features, params, camera)
    view = harmonic_encoding(view_direction(camera.world_to_camera))
    expected = net(features, view, condition(params))
    for name, value in expected.gaussians.tensors().items():
        assert torch.equal(found.gaussians.tensors()[name], value)
    assert net.at(features, params, camera, penalised=True).jacobian is not None


def assert_same(a: Decoded, b: Decoded) -> None:
    for name, value in a.gaussians.tensors().items():
        assert torch.equal(b.gaussians.tensors()[name], value), name
    assert torch.equal(a.position_offset, b.position_offset) and torch.equal(a.log_scale_offset, b.log_scale_offset)
    for name, value in a.deltas.items():
        assert torch.equal(b.deltas[name], value)


def test_penalised_changes_no_value() -> None:
    net, x = decoder(), inputs()
    plain, penalised = net(*x), net(*x, penalised=True)
    assert plain.jacobian is None and penalised.jacobian is not None
    assert_same(plain, penalised)


def test_penalised_changes_no_gradient() -> None:
    net, x = decoder(), inputs()
    gradients = []
    for penalised in (False, True):
        net.zero_grad()
        sum(t.sin().sum() for t in net(*x, penalised=penalised).gaussians.tensors().values()).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-12, rtol=1e-12)


def test_jacobian_terms_give_each_heads_gradient_apart() -> None:
    """Against the Jacobians of both attributes in the view, by forward and reverse rules on the decoder itself."""
    net, (features, view, driver) = decoder(), inputs()
    terms = net(features, view, driver, penalised=True).jacobian
    assert terms is not None
    random = torch.Generator().manual_seed(3)
    signs = [torch.randn(terms.position.shape, generator=random, dtype=torch.float64) for _ in range(2)]
    projected = (terms.position * signs[0]).sum() + (terms.log_scale * signs[1]).sum()
    found = torch.autograd.grad(projected, (terms.view_of_position, terms.view_of_log_scale), create_graph=True)
    bare = decoder(residual=False)
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if "residual" not in k})
    for b in range(2):

        def attributes(v: Tensor, b: int = b) -> tuple[Tensor, Tensor]:
            decoded = bare(features[b : b + 1], v[None], driver[b : b + 1])
            return decoded.gaussians.position[0], decoded.gaussians.log_scale[0]

        for gradient, sign, jacobian in zip(found, signs, torch.func.jacrev(attributes)(view[b])):
            expected = torch.einsum("nc,ncv->v", sign[b], jacobian)
            assert expected.norm() > 1e-3
            torch.testing.assert_close(gradient[b], expected, atol=1e-10, rtol=1e-10)
    # and it can be trained: the penalty's own gradient reaches the layers that see the view
    found[0].square().sum().backward()
    for name in ("position", "log_scale"):
        head: Any = net.heads[name]
        assert (head.view.weight.grad is not None) == (name == "position")
    penalised: Any = net.heads["position"]
    assert penalised.view.weight.grad.abs().max() > 0


def test_jacobian_terms_leave_the_residual_out() -> None:
    net, (features, view, driver) = decoder(), inputs()
    there, elsewhere = (net(features, view, d, penalised=True) for d in (driver, driver + 1))
    assert not torch.equal(there.position_offset, elsewhere.position_offset)
    assert there.jacobian is not None and elsewhere.jacobian is not None
    assert torch.equal(there.jacobian.position, elsewhere.jacobian.position)
    assert torch.equal(there.jacobian.log_scale, elsewhere.jacobian.log_scale)
    bounded = there.jacobian.position.abs() * rest()
    assert bounded.max() <= 0.02 * (1 + 1e-6)


def test_constants_are_no_part_of_the_state() -> None:
    assert {name for name in decoder().state_dict()} == {name for name, _ in decoder().named_parameters()}
