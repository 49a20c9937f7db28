"""The DPT head: sizes, norms, and that every layer and every parameter has a say."""

import pytest
import torch
from torch import Tensor

from spatialavatar.generator.dpt import DPT, LEVELS, UPSAMPLING

TOKENS = 6


def dpt(channels: int = 16, seed: int = 0) -> DPT:
    torch.manual_seed(seed)
    return DPT(TOKENS, channels, 5).double()


def maps(count: int, height: int, width: int, seed: int = 1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(count, TOKENS, height, width, generator=random, dtype=torch.float64) for _ in range(LEVELS)]


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 3), (4, 4), (5, 7), (32, 32)])
def test_eight_times_the_patch_grid(height: int, width: int) -> None:
    """Odd grids, whose half is rounded, as well."""
    out = dpt(8)(tuple(maps(1, height, width)))
    assert UPSAMPLING == 8
    assert out.shape == (1, 5, 8 * height, 8 * width) and out.isfinite().all()


@pytest.mark.parametrize("channels", [8, 12, 17, 32, 48, 256])
def test_group_norm_alone_with_groups_that_can_be_normalised(channels: int) -> None:
    """No group of fewer than eight channels: a single channel on a one-pixel map is always normalised to zero."""
    net = dpt(channels)
    norms = [m for m in net.modules() if "norm" in type(m).__name__.lower()]
    assert norms and all(isinstance(m, torch.nn.GroupNorm) for m in norms)
    for norm in norms:
        assert isinstance(norm, torch.nn.GroupNorm)
        assert channels / norm.num_groups >= 8 and norm.num_groups <= 32
    assert next(m for m in dpt(256).modules() if isinstance(m, torch.nn.GroupNorm)).num_groups == 32


def test_one_small_portrait() -> None:
    """The coarsest level has one pixel; in training mode torch refuses to normalise a single number."""
    net = dpt(8).train()
    assert net(tuple(maps(1, 2, 2))).isfinite().all()


@pytest.mark.parametrize("grid", [2, 4])
def test_every_parameter_has_a_gradient(grid: int) -> None:
    net = dpt()
    out = net(tuple(maps(2, grid, grid)))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


def test_every_layer_matters() -> None:
    net, layers = dpt(), maps(1, 4, 4)
    base = net(tuple(layers))
    for level in range(LEVELS):
        changed = list(layers)
        changed[level] = changed[level] + torch.randn_like(changed[level])
        assert (net(tuple(changed)) - base).abs().max() > 1e-3


def test_a_sample_does_not_depend_on_its_batch() -> None:
    net, layers = dpt().train(), maps(3, 4, 4)
    together = net(tuple(layers))
    for m in range(3):
        alone = net(tuple(layer[m : m + 1] for layer in layers))
        torch.testing.assert_close(alone[0], together[m], atol=1e-12, rtol=0)
