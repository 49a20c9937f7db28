"""Image metrics against closed forms."""

import json

import pytest
import torch

from spatialavatar.evaluation.metrics import PSNR_CAP, mse, psnr, ssim
from spatialavatar.losses import photometric


def test_mse_and_psnr_of_a_known_difference() -> None:
    a = torch.rand(2, 9, 7, 3, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[0] += 0.1  # MSE 0.01: 20 dB
    b[1, :3] += 0.3  # a third of the rows: MSE 0.03
    torch.testing.assert_close(mse(a, b), torch.tensor([0.01, 0.03]))
    torch.testing.assert_close(psnr(a, b), torch.tensor([20.0, 15.228787]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_images_have_finite_metrics(dtype: torch.dtype) -> None:
    a = torch.rand(1, 16, 16, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    metrics = {metric.__name__: metric(a, a).item() for metric in (mse, psnr, ssim)}
    assert metrics["psnr"] == pytest.approx(PSNR_CAP, abs=1e-4)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_psnr_is_capped_only_beyond_the_cap() -> None:
    a = torch.zeros(2, 4, 4, 3, dtype=torch.float64)
    b = a + torch.tensor([10**-4.9, 10**-5.1], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(psnr(a, b), torch.tensor([98.0, PSNR_CAP], dtype=torch.float64))


def test_ssim_falls_with_noise() -> None:
    g = torch.Generator().manual_seed(0)
    a, noise = torch.rand(3, 32, 32, 3, generator=g), torch.randn(3, 32, 32, 3, generator=g)
    strength = torch.tensor([0.02, 0.1, 0.4])[:, None, None, None]
    low, middle, high = ssim(a, a + strength * noise)
    assert 1 > low > middle > high > -1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_the_losses(dtype: torch.dtype, channels: int) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 21, 34, channels, dtype=dtype, generator=g) for _ in range(2))
    truth = photometric.ssim(a.double(), b.double()).to(dtype)
    torch.testing.assert_close(ssim(a, b), truth, rtol=0, atol=1e-6)


def test_ssim_has_a_gradient_where_asked_for() -> None:
    a = torch.rand(1, 12, 12, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(ssim(a, torch.zeros_like(a)).sum(), a)
    assert (gradient != 0).any()
