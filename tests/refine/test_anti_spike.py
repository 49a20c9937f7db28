"""The clamp: bounds hold for anything, and nothing within them moves."""

import math

import pytest
import torch

from spatialavatar.refine.anti_spike import clamp_log_scale, max_aspect_ratio

BOUND, RANGE = 8.0, 10.0


def spiky(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    initial = torch.randn(2, 500, 3, generator=random) - 3
    return initial, initial + 4 * torch.randn(2, 500, 3, generator=random)


@pytest.mark.parametrize("bound", [1.5, 8.0, 20.0])
def test_aspect_ratio_is_within_the_bound_in_float32(bound: float) -> None:
    initial, log_scale = spiky(0)
    assert max_aspect_ratio(log_scale) > 1000
    clamped = clamp_log_scale(log_scale, initial, bound, RANGE)
    assert math.log(max_aspect_ratio(clamped)) <= math.log(bound) + 1e-6


def test_absolute_range_holds_before_the_spread_is_narrowed() -> None:
    initial = torch.full((1, 1, 3), -2.0)
    far = initial + 50
    torch.testing.assert_close(clamp_log_scale(far, initial, BOUND, RANGE), initial + math.log(RANGE))
    torch.testing.assert_close(clamp_log_scale(initial - 50, initial, BOUND, RANGE), initial - math.log(RANGE))


def test_scales_within_the_bounds_do_not_move() -> None:
    random = torch.Generator().manual_seed(1)
    initial = torch.randn(1, 400, 3, generator=random).double()
    noise = torch.rand(1, 400, 3, generator=random).double() - 0.5
    centred = noise - noise.mean(-1, keepdim=True)  # at most 2/3
    within = initial.mean(-1, keepdim=True) + 0.74 * centred * math.log(BOUND)
    kept = (within - initial).abs().amax(-1) < math.log(RANGE)
    torch.testing.assert_close(clamp_log_scale(within, initial, BOUND, RANGE)[kept], within[kept], rtol=0, atol=1e-14)
    assert kept.sum() > 200


def test_max_aspect_ratio_of_a_known_gaussian() -> None:
    log_scale = torch.tensor([[[0.0, 0.0, 0.0], [math.log(6), 0.0, -math.log(2)]]])
    assert max_aspect_ratio(log_scale) == pytest.approx(12.0, rel=1e-6)
