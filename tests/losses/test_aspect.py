"""Aspect loss: the torch specification against closed forms, the fused kernel against the specification."""

import math
from collections.abc import Callable

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from spatialavatar.losses import aspect, aspect_cpu
from spatialavatar.losses.aspect import aspect_loss, aspect_loss_torch, log_axis_ratio, projected_spread
from spatialavatar.splat import projection
from spatialavatar.splat.binding import quaternion_to_rotation
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import WorldGaussians

LOSSES = pytest.mark.parametrize("loss", [aspect_loss, aspect_loss_torch], ids=["fused", "twin"])
AXIS_ALIGNED = (1.0, 0.0, 0.0, 0.0)


def gaussians(means: Tensor, quats: Tensor, scales: Tensor) -> WorldGaussians:
    batch, count = means.shape[:2]
    return WorldGaussians(means, quats, scales, means.new_full((batch, count, 3), 0.5), means.new_ones(batch, count))


def one(mean: tuple[float, ...], scale: tuple[float, ...], quat: tuple[float, ...] = AXIS_ALIGNED) -> WorldGaussians:
    return gaussians(*(torch.tensor([[values]]) for values in (mean, quat, scale)))


def camera(batch: int = 1, dtype: torch.dtype = torch.float32) -> Camera:
    """At the origin, looking along +z: 100 x 80 pixels, focal lengths 120 and 110."""
    intrinsics = torch.tensor([[120.0, 0, 50], [0, 110, 40], [0, 0, 1]], dtype=dtype)
    return Camera(torch.eye(4, dtype=dtype).repeat(batch, 1, 1), intrinsics.repeat(batch, 1, 1), 100, 80)


def turned_camera(batch: int) -> Camera:
    view = torch.eye(4).repeat(batch, 1, 1)
    for b in range(batch):
        view[b, :3, :3] = quaternion_to_rotation(torch.tensor([1.0, 0.1, 0.2 * b, -0.05]))
        view[b, :3, 3] = torch.tensor([0.02, -0.01, 0.4 + 0.1 * b])
    return Camera(view, camera(batch).intrinsics, 100, 80)


def random_gaussians(batch: int, count: int, spread: float) -> WorldGaussians:
    """Some behind the camera, some outside the picture and far outside the field of view."""
    g = torch.Generator().manual_seed(4)
    means = torch.randn(batch, count, 3, generator=g) * spread
    quats = torch.randn(batch, count, 4, generator=g) * torch.rand(batch, count, 1, generator=g).mul(3)
    return gaussians(means, quats, torch.exp(torch.randn(batch, count, 3, generator=g) - 5))


def value_and_gradient(
    loss: Callable[[WorldGaussians, Camera, float], Tensor],
    g: WorldGaussians,
    view: Camera,
    tau: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    inputs = [t.detach().to(dtype).requires_grad_() for t in (g.means, g.quats, g.scales)]
    value = loss(gaussians(*inputs), view.to(dtype), tau)
    per_subject = torch.arange(1, len(value) + 1, dtype=dtype)
    return [value.detach(), *torch.autograd.grad((value * per_subject).sum(), inputs)]


@LOSSES
def test_thin_splat_in_front_of_the_camera(loss: Callable[..., Tensor]) -> None:
    """On the optical axis J is diagonal: the ratio on the screen is (fx sx) / (fy sy)."""
    splat = one((0.0, 0.0, 2.0), (0.06, 0.002, 0.01))
    expected = math.log(120 * 0.06 / (110 * 0.002)) - 0.5
    torch.testing.assert_close(loss(splat, camera(), 0.5), torch.tensor([expected]), rtol=1e-5, atol=0)
    # a turn in the image plane changes only what the different focal lengths make of it
    quarter = one((0.0, 0.0, 2.0), (0.06, 0.002, 0.01), (math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)))
    expected = math.log(110 * 0.06 / (120 * 0.002)) - 0.5
    torch.testing.assert_close(loss(quarter, camera(), 0.5), torch.tensor([expected]), rtol=1e-5, atol=0)


@LOSSES
def test_below_the_threshold_is_free(loss: Callable[..., Tensor]) -> None:
    splat = one((0.0, 0.0, 2.0), (0.02, 0.01, 0.01))
    value, *gradients = value_and_gradient(loss, splat, camera(), math.log(3), torch.float32)
    assert value.item() == 0 and all((g == 0).all() for g in gradients)


@LOSSES
@pytest.mark.parametrize("tau", [0.0, math.log(3)])
def test_round_splats_have_finite_gradients(loss: Callable[..., Tensor], tau: float) -> None:
    """Round on the screen exactly: the discriminant is zero, its root has no derivative there."""
    view = Camera(camera().world_to_camera, torch.tensor([[[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]]), 100, 80)
    splat = one((0.0, 0.0, 2.0), (0.01, 0.01, 0.01))
    value, *gradients = value_and_gradient(loss, splat, view, tau, torch.float32)
    assert 0 <= value.item() <= 2e-6
    assert all(g.isfinite().all() for g in gradients)
    assert all(g.abs().max() < 1e3 for g in gradients)  # 1 / 0.01 is the natural size


@LOSSES
def test_the_mean_is_over_the_visible(loss: Callable[..., Tensor]) -> None:
    thin = (0.06, 0.002, 0.01)
    means = torch.tensor(
        [
            [0.0, 0.0, 2.0],  # seen
            [0.0, 0.0, -2.0],  # behind
            [0.0, 0.0, 0.005],  # nearer than the near plane
            [5.0, 0.0, 2.0],  # outside the picture
            [0.9, 0.0, 2.0],  # centre outside, footprint touches
        ]
    )
    g = gaussians(means[None], torch.tensor(AXIS_ALIGNED).expand(1, 5, 4), torch.tensor(thin).expand(1, 5, 3))
    inside = gaussians(means[None, [0, 4]], g.quats[:, :2], g.scales[:, :2])
    value, *gradients = value_and_gradient(loss, g, camera(), 0.5, torch.float32)
    torch.testing.assert_close(value, loss(inside, camera(), 0.5))
    assert value.item() > 1
    for gradient in gradients:
        assert (gradient[0, 1:4] == 0).all()
    assert (gradients[2][0, [0, 4]] != 0).any(-1).all()


@LOSSES
def test_none_visible_is_zero(loss: Callable[..., Tensor]) -> None:
    value, *gradients = value_and_gradient(
        loss, one((0.0, 0.0, -1.0), (0.1, 0.001, 0.01)), camera(), 0.5, torch.float32
    )
    assert value.item() == 0 and all((g == 0).all() for g in gradients)


@LOSSES
@pytest.mark.parametrize("attribute", ["means", "quats", "scales"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_visible(loss: Callable[..., Tensor], attribute: str, broken: float) -> None:
    g = random_gaussians(1, 20, 0.05)
    sound = gaussians(g.means[:, 1:], g.quats[:, 1:], g.scales[:, 1:])
    getattr(g, attribute)[0, 0, 1] = broken
    value, *gradients = value_and_gradient(loss, g, turned_camera(1), 0.5, torch.float32)
    torch.testing.assert_close(value, loss(sound, turned_camera(1), 0.5))
    assert all((gradient[0, 0] == 0).all() and gradient.isfinite().all() for gradient in gradients)


def test_covariance_is_the_splatters() -> None:
    g, view = random_gaussians(2, 200, 0.1), turned_camera(2)
    in_camera = g.means @ view.world_to_camera[:, :3, :3].mT + view.world_to_camera[:, None, :3, 3]
    seen = in_camera[..., 2] > 0.05
    spread = projected_spread(g, view)
    expected = projection.screen_covariance(in_camera, projection.world_covariance(g.quats, g.scales), view)
    torch.testing.assert_close((spread @ spread.mT)[seen], expected[seen], rtol=1e-3, atol=1e-4)


def test_log_axis_ratio_is_that_of_the_eigenvalues() -> None:
    spread = torch.randn(1, 50, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    least, largest = torch.linalg.eigvalsh(spread @ spread.mT).unbind(-1)
    torch.testing.assert_close(log_axis_ratio(spread), 0.5 * (largest / least).log(), rtol=1e-9, atol=1e-9)


def test_gradients_of_the_twin_are_finite_differences() -> None:
    g = random_gaussians(2, 12, 0.05)
    view = turned_camera(2).to(torch.float64)
    inputs = [t.double().requires_grad_() for t in (g.means, g.quats, g.scales)]
    assert torch.autograd.gradcheck(lambda *t: aspect_loss_torch(gaussians(*t), view, 0.3), inputs, eps=1e-7)


@pytest.mark.parametrize(("batch", "count", "spread"), [(1, 1, 0.02), (2, 7, 0.1), (3, 1500, 0.25)])
def test_fused_equals_twin(batch: int, count: int, spread: float) -> None:
    g, view = random_gaussians(batch, count, spread), turned_camera(batch)
    fused = value_and_gradient(aspect_loss, g, view, 0.4, torch.float32)
    truth = value_and_gradient(aspect_loss_torch, g, view, 0.4, torch.float64)
    for got, expected in zip(fused, truth):
        largest = float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5 * largest)


def test_one_subject_in_many_views_and_many_in_one() -> None:
    g, view = random_gaussians(2, 60, 0.1), turned_camera(2)
    for some, views in ((g[0], view), (g, view[1])):
        fused = value_and_gradient(aspect_loss, some, views, 0.4, torch.float32)
        truth = value_and_gradient(aspect_loss_torch, some, views, 0.4, torch.float64)
        for got, expected in zip(fused, truth):
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_fused_kernel_is_taken_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(aspect_cpu, "aspect_loss_cpu", lambda *arguments: called.append(arguments) or torch.zeros(1))
    aspect_loss(random_gaussians(1, 3, 0.1), turned_camera(1), 0.5)
    assert called
    view = turned_camera(1)
    view.intrinsics.requires_grad_()  # no gradient there in the kernel
    assert aspect_loss(random_gaussians(1, 30, 0.05), view, 0.1).requires_grad
    assert len(called) == 1


def test_fused_is_bitwise_repeatable_in_threads_and_batches() -> None:
    g, view = random_gaussians(2, 700, 0.1), turned_camera(2)
    threads = numba.get_num_threads()
    runs = []
    try:
        for count in (1, min(2, threads), 1):
            numba.set_num_threads(count)
            runs.append(value_and_gradient(aspect_loss, g, view, 0.4, torch.float32))
    finally:
        numba.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other))
    first = value_and_gradient(aspect_loss, g[0], view[0], 0.4, torch.float32)
    assert all(torch.equal(a[:1], b) for a, b in zip(runs[0], first))


def test_kernel_constants_are_the_specification() -> None:
    for name in ("NEAR", "FAR", "EPS2D"):
        assert np.float32(getattr(projection, name)) == getattr(aspect_cpu, f"_{name}")
    names = (
        "FOOTPRINT",
        "JACOBIAN_MARGIN",
        "LEAST_QUATERNION",
        "LEAST_MEAN",
        "LEAST_DISCRIMINANT",
        "LEAST_DETERMINANT",
    )
    for name in names:
        assert np.float32(getattr(aspect, name)) == getattr(aspect_cpu, f"_{name}")
