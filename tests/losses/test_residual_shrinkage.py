"""Residual shrinkage against a closed form."""

import torch

from spatialavatar.losses.residual_shrinkage import residual_shrinkage

CHANNELS = {"position": 3, "rotation": 4, "log_scale": 3, "color": 5}


def test_sum_over_attributes_and_channels_mean_over_texels() -> None:
    deltas = {name: torch.zeros(2, 10, channels) for name, channels in CHANNELS.items()}
    deltas["rotation"][0] = -0.5  # four channels of every texel
    deltas["color"][0, :5] = 0.2  # five channels of half the texels
    deltas["position"][1, 3, 1] = 1.0
    torch.testing.assert_close(residual_shrinkage(deltas, torch.zeros(2)), torch.tensor([2.0 + 0.5, 0.1]))


def test_gradient_is_finite_differences() -> None:
    g = torch.Generator().manual_seed(0)
    deltas = [torch.randn(2, 3, c, dtype=torch.float64, generator=g).requires_grad_() for c in CHANNELS.values()]
    assert torch.autograd.gradcheck(
        lambda *d: residual_shrinkage(dict(zip(CHANNELS, d)), torch.zeros(2)), deltas, eps=1e-7
    )


def test_without_a_residual_head_it_is_zero_for_each_sample() -> None:
    assert residual_shrinkage({}, torch.rand(3, 7)).tolist() == [0, 0, 0]


def test_bfloat16_is_summed_in_float32() -> None:
    delta = torch.full((1, 5000, 3), 0.01).bfloat16()
    expected = 3 * float(delta[0, 0, 0])
    torch.testing.assert_close(residual_shrinkage({"position": delta}, delta), torch.tensor([expected]))
