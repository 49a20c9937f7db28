"""MS-SSIM against a direct computation with dense two-dimensional windows, and its precision."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from spatialavatar.losses import ms_ssim as module
from spatialavatar.losses.ms_ssim import ms_ssim


def pictures(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(shape, dtype=dtype, generator=g), torch.rand(shape, dtype=dtype, generator=g)
    return a, 0.7 * a + 0.3 * b


def directly(a: np.ndarray, b: np.ndarray) -> float:
    """One picture [H W C]; every window as a dense square over zero padding."""
    similarity = np.ones(a.shape)
    for sigma in (0.5, 1, 2, 4, 8):
        offset = np.arange(-int(4 * sigma), int(4 * sigma) + 1)
        window = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * sigma**2))
        window /= window.sum()

        def local(x: np.ndarray, window: np.ndarray = window) -> np.ndarray:
            planes = [scipy.ndimage.convolve(plane, window, mode="constant") for plane in np.moveaxis(x, -1, 0)]
            return np.stack(planes, -1)

        mean_a, mean_b = local(a), local(b)
        variance_a, variance_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
        covariance = local(a * b) - mean_a * mean_b
        similarity *= (2 * covariance + 0.03**2) / (variance_a + variance_b + 0.03**2)
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return float((luminance * similarity).mean())


@pytest.mark.parametrize("shape", [(2, 19, 34, 3), (1, 5, 2, 1), (1, 1, 1, 2)])
def test_equals_a_direct_computation(shape: tuple[int, ...]) -> None:
    a, b = pictures(shape)
    for second in (b, 1 - a):  # contrary contrast: products of negative terms
        expected = torch.tensor([directly(x, y) for x, y in zip(a.numpy(), second.numpy())], dtype=torch.float64)
        torch.testing.assert_close(ms_ssim(a, second), expected, rtol=1e-10, atol=1e-12)


def test_equal_pictures_are_one_and_noise_lowers_it() -> None:
    g = torch.Generator().manual_seed(0)
    a, noise = torch.rand(3, 40, 33, 3, generator=g), torch.randn(3, 40, 33, 3, generator=g)
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(3), rtol=0, atol=1e-6)
    low, middle, high = ms_ssim(a, a + torch.tensor([0.02, 0.1, 0.4])[:, None, None, None] * noise)
    assert 1 > low > middle > high > -1


def test_gradients_are_finite_differences() -> None:
    a, b = (picture.requires_grad_() for picture in pictures((2, 6, 5, 2)))
    assert torch.autograd.gradcheck(ms_ssim, (a, b), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_pictures_have_finite_gradients(level: float) -> None:
    a = torch.full((1, 20, 20, 3), level, requires_grad=True)
    ms_ssim(a, torch.rand(1, 20, 20, 3, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert a.grad.isfinite().all() and (a.grad != 0).any()


def test_float32_keeps_its_digits_where_a_picture_is_nearly_flat() -> None:
    """A bright surface with faint detail: E[x^2] - E[x]^2 is a millionth of its terms."""
    a, b = pictures((1, 48, 48, 3))
    a, b = 0.9 + 1e-3 * a, 0.9 + 1e-3 * b
    assert abs(float(ms_ssim(a.float(), b.float()) - ms_ssim(a, b))) < 1e-5


def value_and_gradient(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a = a.clone().requires_grad_()
    value = ms_ssim(a, b)
    (gradient,) = torch.autograd.grad(value.sum(), a)
    return value.detach(), gradient


def test_autocast_does_not_lower_the_precision() -> None:
    a, b = pictures((1, 24, 24, 3), torch.float32)
    expected = value_and_gradient(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradient(a, b)
    for x, y in zip(found, expected):
        assert x.dtype == torch.float32 and torch.equal(x, y)
    low = value_and_gradient(a.bfloat16(), b.bfloat16())
    assert low[0].dtype == torch.float32
    torch.testing.assert_close(low[0], ms_ssim(a.bfloat16().double(), b.bfloat16().double()).float())


def test_forward_and_backward_blur_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32, where a run has allowed it, is off for the blur and on again behind it."""
    seen = []
    band = module.band

    def watched(*arguments: object) -> Tensor:
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return band(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "band", watched)
    a, b = pictures((1, 8, 8, 3), torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with torch.autocast("cpu", torch.bfloat16):
            value_and_gradient(a, b)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {("highest", False)}
    assert len(seen) == 5 * 2 * (2 + 1)  # sigmas x axes x (two blurs, and one backward: the target needs none)


def test_band_is_the_truncated_gaussian() -> None:
    matrix = module.band(200, 8.0, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=0)
    assert matrix[100].sum().item() == pytest.approx(1, rel=1e-12)
    assert int((matrix[100] > 0).sum()) == 65
    assert (matrix[100, 108] / matrix[100, 100]).item() == pytest.approx(math.exp(-0.5), rel=1e-12)
