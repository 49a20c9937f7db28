"""Modulated convolutions against weights modulated sample by sample, and the U-Net around them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from spatialavatar.generator.config import StyleUNetConfig
from spatialavatar.generator.style_unet import ModulatedConv, StyleUNet

CONFIG = StyleUNetConfig(channels=8, max_channels=16, coarsest=4, style_channels=12)
IN, SHOWN, CLS, OUT = 7, 4, 10, 5


def unet(resolution: int = 16, config: StyleUNetConfig = CONFIG, seed: int = 0) -> StyleUNet:
    torch.manual_seed(seed)
    return StyleUNet(config, resolution, IN, SHOWN, CLS, OUT).double()


def inputs(batch: int, resolution: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, IN, resolution, resolution, generator=random, dtype=torch.float64)
    return maps, torch.randn(batch, CLS, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_is_karras_eqs_1_and_3(size: int, demodulate: bool) -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(IN, OUT, 12, size, demodulate).double()
    torch.nn.init.normal_(conv.bias)
    x = inputs(3)[0]
    style = torch.randn(3, 12, dtype=torch.float64)
    expected = []
    for sample, s in zip(x, style):
        scale = (
            conv.affine.weight @ s / 12**0.5 + conv.affine.bias
        )  # equalised: weights of unit variance, scaled in use
        weight = conv.weight / (IN * size * size) ** 0.5 * scale[None, :, None, None]  # eq. 1
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()  # eq. 3
        expected.append(conv2d(sample[None], weight, conv.bias, padding=size // 2))
    torch.testing.assert_close(conv(x, style), torch.cat(expected), atol=1e-12, rtol=0)


def test_demodulated_output_has_the_inputs_variance() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(64, 64, 12)
    style = 5 * torch.randn(4, 12)  # scales far from 1
    out = conv(torch.randn(4, 64, 32, 32), style)
    assert ((out.std((1, 2, 3)) - 1).abs() < 0.1).all()


def test_output_starts_as_small_as_told() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(64, 64, 12, size=1, demodulate=False, start=0.1)
    out = conv(torch.randn(4, 64, 32, 32), torch.zeros(4, 12))
    assert float(out.std()) == pytest.approx(0.1, rel=0.1)


def test_weights_have_unit_variance_whatever_their_layers_width() -> None:
    """Equalised learning rate: one step of Adam is the same share of each."""
    for width in (4, 64):
        net = unet(16, CONFIG.model_copy(update={"channels": width, "max_channels": width}))
        styled = [m for m in net.modules() if isinstance(m, ModulatedConv)]
        spreads = [float(m.weight.std()) for m in styled if m.weight.numel() > 100]
        assert spreads and all(0.85 < spread < 1.15 for spread in spreads)
        assert net(*inputs(2)).std() < 10


def test_what_is_shown_has_a_way_past_the_levels() -> None:
    """At the start the output follows the shown channels, texel by texel."""
    net = unet()
    maps, cls = inputs(1)
    base = net(maps, cls)

    def change(channel: int) -> Tensor:
        changed = maps.clone()
        changed[0, channel, 3, 5] += 1
        return (net(changed, cls) - base)[0, :, 3, 5].abs().sum()

    assert change(0) > 3 * change(IN - 1)
    torch.testing.assert_close(
        net(maps, cls) - net.output(*_last_input(net, maps, cls)),
        conv2d(maps[:, :SHOWN], net.shortcut.weight, net.shortcut.bias),
        atol=1e-12,
        rtol=0,
    )


def _last_input(net: StyleUNet, maps: Tensor, cls: Tensor) -> tuple[Tensor, Tensor]:
    kept: list[tuple[Tensor, Tensor]] = []
    handle = net.output.register_forward_pre_hook(lambda _, inputs: kept.append(inputs))
    net(maps, cls)
    handle.remove()
    return kept[0]


def test_skips_enter_as_scale_and_shift() -> None:
    """SFT: what the skip and the style make of a map is a factor, near 1, and a term for each value."""
    block: Any = unet().up[0].sft
    random = torch.Generator().manual_seed(2)
    x, skip = (torch.randn(2, 8, 6, 6, generator=random, dtype=torch.float64) for _ in range(2))
    style = torch.randn(2, 12, generator=random, dtype=torch.float64)
    shift = block(torch.zeros_like(x), skip, style)
    factor = block(torch.ones_like(x), skip, style) - shift
    torch.testing.assert_close(block(x, skip, style), x * factor + shift, atol=1e-12, rtol=0)
    other = block(torch.ones_like(x), skip + 1, style) - block(torch.zeros_like(x), skip + 1, style)
    assert shift.std() > 0.1 and factor.std() > 0.1
    assert (other - factor).abs().max() > 0.1  # the factor comes from the skip ...
    restyled = block(torch.ones_like(x), skip, style.flip(0)) - block(torch.zeros_like(x), skip, style.flip(0))
    assert (restyled - factor).abs().max() > 0.01  # ... under the style


@pytest.mark.parametrize("resolution", [1, 2, 4, 8, 16, 32, 64])
def test_every_power_of_two(resolution: int) -> None:
    """Down to the coarsest level and below it, where there is nothing to halve."""
    net = unet(resolution)
    out = net(*inputs(2, resolution))
    assert out.shape == (2, OUT, resolution, resolution) and out.isfinite().all()
    assert net.constant.shape[-1] == min(resolution, 4)


@pytest.mark.parametrize("coarsest", [1, 2, 8, 64])
def test_levels_end_at_the_coarsest(coarsest: int) -> None:
    config = CONFIG.model_copy(update={"coarsest": coarsest})
    net = unet(16, config)
    assert net.constant.shape[-1] == min(coarsest, 16)
    assert net(*inputs(1)).shape == (1, OUT, 16, 16)


def test_widths_double_up_to_the_largest() -> None:
    net = unet(32)
    assert net.constant.shape[1] == 16
    assert [up.second.conv.weight.shape[0] for up in net.up] == [8, 16, 16]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    net = unet()
    maps, cls = inputs(3)
    together = net(maps, cls)
    for b in range(3):
        torch.testing.assert_close(net(maps[b : b + 1], cls[b : b + 1])[0], together[b], atol=1e-12, rtol=0)
    assert not [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)]
    assert not list(net.buffers())  # nothing that could gather statistics, either


def test_same_in_training_and_evaluation() -> None:
    """No noise is drawn."""
    net = unet()
    x = inputs(2)
    assert torch.equal(net.train()(*x), net.eval()(*x))


def test_maps_reach_every_place_and_the_token_too() -> None:
    net = unet()
    maps, cls = inputs(1)
    base = net(maps, cls)
    assert (net(maps, cls + torch.randn_like(cls)) - base).abs().amin((0, 1)).min() > 1e-9
    # one texel's change is seen where it is, by the skip, and everywhere, by the coarsest level
    changed = maps.clone()
    changed[0, :, 3, 5] += 1
    difference = (net(changed, cls) - base).abs().sum(1)[0]
    assert difference.argmax().item() == 3 * 16 + 5
    assert difference.min() > 0


def test_the_tokens_length_does_not_matter() -> None:
    """It is normalised first, as StyleGAN2's latent."""
    net = unet()
    maps, cls = inputs(2)
    torch.testing.assert_close(net(maps, 100 * cls), net(maps, cls), atol=1e-6, rtol=0)


def test_gradient_checkpointing_changes_nothing() -> None:
    net = unet()
    maps, cls = inputs(2)
    results = []
    for checkpointing in (False, True):
        net.recompute = checkpointing
        net.zero_grad()
        x = maps.clone().requires_grad_()
        out = net(x, cls)
        out.square().sum().backward()
        assert x.grad is not None
        results.append([out.detach(), x.grad, *(p.grad for p in net.parameters())])
    for plain, checkpointed in zip(*results):
        assert plain is not None and plain.abs().max() > 0
        assert torch.equal(plain, checkpointed)


def test_gradient_checkpointing_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    net = unet(32)
    maps, cls = inputs(2, 32)

    def kept(checkpointing: bool) -> int:
        net.recompute = checkpointing
        total = 0

        def count(t: Tensor) -> Tensor:
            nonlocal total
            total += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            net(maps, cls)
        return total

    assert kept(True) < kept(False) / 2


def test_gradients_against_finite_differences() -> None:
    net = unet(4, CONFIG.model_copy(update={"channels": 4, "coarsest": 2}))
    x = [t.requires_grad_() for t in inputs(1, 4)]
    assert torch.autograd.gradcheck(net, x)
