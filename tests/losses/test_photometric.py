"""Photometric loss: the torch specification against independent code, the fused kernels against the specification."""

from collections.abc import Callable

import numba
import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.losses import photometric_cpu
from spatialavatar.losses.photometric import (
    C1,
    C2,
    PhotometricTerms,
    composite,
    composite_rendering,
    photometric_loss,
    photometric_loss_torch,
    ssim,
    window,
)
from spatialavatar.splat.rasterize import Rendering

# B, H, W, C: odd, smaller than the window, one pixel, more than three channels, fewer rows than blocks
SHAPES = [(2, 37, 23, 3), (1, 4, 7, 5), (3, 1, 1, 4), (1, 13, 130, 3), (2, 64, 5, 32)]


def scene(shape: tuple[int, int, int, int], seed: int = 0) -> tuple[Rendering, Tensor, Tensor, Tensor]:
    """A random rendering, the target, a soft region and the background, float32."""
    batch, height, width, channels = shape
    g = torch.Generator().manual_seed(seed)
    features = torch.rand(batch, height, width, channels, generator=g)
    alpha = torch.rand(batch, height, width, generator=g)
    region = torch.rand(batch, height, width, generator=g).mul(2).clamp(max=1) * (alpha > 0.2)
    background = torch.rand(batch, 3, generator=g)
    matte = torch.rand(batch, height, width, generator=g)
    target = composite(torch.rand(batch, height, width, 3, generator=g), matte * region, background)
    return Rendering(features, alpha), target, region, background


def value_and_gradient(
    loss: Callable[..., PhotometricTerms],
    inputs: tuple[Rendering, Tensor, Tensor, Tensor],
    dtype: torch.dtype,
    **weights: float,
) -> dict[str, Tensor]:
    rendering, *rest = inputs
    features, alpha = (t.to(dtype).requires_grad_() for t in (rendering.features, rendering.alpha))
    terms = loss(Rendering(features, alpha), *(t.to(dtype) for t in rest), **weights)
    per_image = torch.arange(1, len(alpha) + 1, dtype=dtype)
    in_features, in_alpha = torch.autograd.grad((terms.total * per_image).sum(), (features, alpha))
    return {
        "l1": terms.l1,
        "ssim": terms.ssim,
        "total": terms.total.detach(),
        "features": in_features,
        "alpha": in_alpha,
    }


def ssim_by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """The same definition by scipy's Gaussian filter: radius 5, zeros outside."""

    def blur(picture: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(picture, 1.5, mode="constant", cval=0.0, radius=5)

    per_channel = []
    for x, y in zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        per_channel.append((2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2)))
    return float(np.mean(per_channel))


@pytest.mark.parametrize("shape", [(2, 37, 23, 3), (1, 4, 7, 1)])
def test_ssim_equals_scipy(shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(1)
    a, b = torch.rand(*shape, dtype=torch.float64, generator=g), torch.rand(*shape, dtype=torch.float64, generator=g)
    b = 0.5 * a + 0.5 * b
    expected = torch.tensor([ssim_by_scipy(x.numpy(), y.numpy()) for x, y in zip(a, b)], dtype=torch.float64)
    torch.testing.assert_close(ssim(a, b), expected, rtol=1e-12, atol=1e-12)


def test_ssim_of_equal_images_is_one() -> None:
    a = torch.rand(3, 20, 9, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ssim(a, a), torch.ones(3))


def test_composite_puts_the_background_where_matte_or_region_is_zero() -> None:
    background = torch.tensor([[0.1, 0.5, 0.9]])
    image = torch.full((1, 1, 3, 3), 0.7)
    matte, region = torch.tensor([[[1.0, 0.0, 1.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
    expected = torch.stack([image[0, 0, 0], background[0], background[0]])
    torch.testing.assert_close(composite(image, matte * region, background)[0, 0], expected)
    # a rendering with premultiplied features and the same alpha gives the same picture
    torch.testing.assert_close(composite_rendering(image * matte[..., None], matte, region, background)[0, 0], expected)


def test_gradients_of_the_twin_are_finite_differences() -> None:
    rendering, target, region, background = (
        t if isinstance(t, Rendering) else t.double() for t in scene((2, 6, 5, 4), seed=3)
    )

    def total(features: Tensor, alpha: Tensor) -> Tensor:
        return photometric_loss_torch(Rendering(features, alpha), target, region, background).total

    inputs = [t.double().requires_grad_() for t in (rendering.features, rendering.alpha)]
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [{}, {"l1_weight": 0.0, "ssim_weight": 1.3}], ids=["default", "ssim"])
def test_fused_equals_twin(shape: tuple[int, int, int, int], weights: dict[str, float]) -> None:
    inputs = scene(shape)
    fused = value_and_gradient(photometric_loss, inputs, torch.float32, **weights)
    truth = value_and_gradient(photometric_loss_torch, inputs, torch.float64, **weights)
    for name in ("l1", "ssim", "total"):
        torch.testing.assert_close(fused[name].double(), truth[name], rtol=1e-6, atol=1e-6)
    for name in ("features", "alpha"):
        largest = truth[name].abs().max()
        torch.testing.assert_close(fused[name].double(), truth[name], rtol=0, atol=1e-5 * float(largest))
    assert (fused["features"][..., 3:] == 0).all()


def test_fused_kernels_are_taken_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(
        photometric_cpu,
        "l1_and_ssim_cpu",
        lambda *arguments: called.append(arguments) or [torch.zeros(1)] * 3,
    )
    inputs = scene((1, 8, 8, 3))
    photometric_loss(*inputs)
    assert called
    # ... but not where they have no gradient
    inputs[1].requires_grad_()
    assert photometric_loss(*inputs).total.requires_grad
    assert len(called) == 1


def test_a_perfect_rendering_has_no_loss_and_no_gradient() -> None:
    rendering, _, region, background = scene((1, 20, 20, 3))
    target = composite_rendering(rendering.features, rendering.alpha, region, background)
    inputs = (rendering, target, region, background)
    torch.testing.assert_close(photometric_loss(*inputs).total, torch.zeros(1), atol=1e-6, rtol=0)
    # of SSIM alone: the L1 term's gradient is the sign of a rounding error here
    result = value_and_gradient(photometric_loss, inputs, torch.float32, l1_weight=0.0)
    assert result["features"].abs().max() * 20 * 20 * 3 < 1e-3


def test_outside_the_region_nothing_counts() -> None:
    rendering, target, region, background = scene((1, 24, 24, 3))
    region = torch.zeros_like(region)
    target = composite(target, rendering.alpha * region, background)
    result = value_and_gradient(photometric_loss, (rendering, target, region, background), torch.float32)
    torch.testing.assert_close(result["total"], torch.zeros(1), atol=1e-5, rtol=0)
    assert (result["features"] == 0).all() and (result["alpha"] == 0).all()


def test_alpha_has_a_gradient_on_a_bright_background() -> None:
    """Eq. 13 read with the matte on the rendered side would leave alpha without one."""
    rendering, target, region, background = scene((1, 16, 16, 3))
    result = value_and_gradient(
        photometric_loss, (rendering, target, torch.ones_like(region), background), torch.float32
    )
    assert (result["alpha"] != 0).all()


def test_fused_is_bitwise_repeatable_in_threads_and_batches() -> None:
    rendering, target, region, background = scene((3, 40, 33, 3))
    inputs = (rendering, target, region, background)
    runs = []
    threads = numba.get_num_threads()
    try:
        for count in (1, min(2, threads), 1):
            numba.set_num_threads(count)
            runs.append(value_and_gradient(photometric_loss, inputs, torch.float32))
    finally:
        numba.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(runs[0][name], other[name]) for name in other)
    alone = Rendering(rendering.features[:1], rendering.alpha[:1]), target[:1], region[:1], background[:1]
    first = value_and_gradient(photometric_loss, alone, torch.float32)
    assert all(torch.equal(runs[0][name][:1], first[name]) for name in first)


def test_inputs_need_not_be_contiguous() -> None:
    rendering, target, region, background = scene((2, 9, 12, 3))
    expected = photometric_loss(rendering, target, region, background).total
    strided = Rendering(
        rendering.features.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0), rendering.alpha.mT.contiguous().mT
    )
    got = photometric_loss(strided, target.flip(1).flip(1), region.mT.contiguous().mT, background)
    assert torch.equal(got.total, expected)


def test_a_broken_rendering_shows_in_the_loss() -> None:
    rendering, target, region, background = scene((1, 16, 16, 3))
    rendering.features[0, 3, 4, 1] = float("nan")
    assert photometric_loss(rendering, target, torch.ones_like(region), background).total.isnan().all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    rendering, target, region, background = scene((2, 8, 9, 3))
    for inputs, named in (
        ((target[:, :7], region, background), "target"),
        ((target, region[:1], background), "region"),
        ((target, region, background[0]), "background"),
    ):
        with pytest.raises(SpatialAvatarError, match=f"photometric loss: {named} is"):
            photometric_loss(rendering, *inputs)
    with pytest.raises(SpatialAvatarError, match="features is"):
        photometric_loss(Rendering(rendering.features[..., :2], rendering.alpha), target, region, background)


def test_kernel_constants_are_the_specification() -> None:
    torch.testing.assert_close(window(torch.float32), torch.tensor(photometric_cpu._WINDOW), rtol=1e-6, atol=0)
    assert np.float32(C1) == photometric_cpu._C1 and np.float32(C2) == photometric_cpu._C2
