"""The CPU backend against the float64 reference, finite differences, and itself."""

import dataclasses

import numba
import pytest
import torch

from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import WorldGaussians
from spatialavatar.splat.projection import project
from spatialavatar.splat.rasterize import rasterize


def assert_equals_reference(scenes, gaussians, camera):
    """Values to 1e-4, gradients to 1e-3 of each tensor's norm, on pixels away from thresholds."""
    single, double = scenes.as_leaves(gaussians, torch.float32), scenes.as_leaves(gaussians, torch.float64)
    ours = rasterize(single, camera.to(torch.float32), backend="cpu")
    # the same float32 camera: a rounded principal point alone moves pixels by more than the kernels' error
    reference = rasterize(double, camera.to(torch.float32).to(torch.float64), backend="reference")
    safe = scenes.safe_pixels(double, camera)
    assert safe.float().mean() > 0.5
    assert (ours.features - reference.features).abs()[safe].max() < 1e-4
    assert (ours.alpha - reference.alpha).abs()[safe].max() < 1e-4
    visible = project(double, camera).visible
    pairs = zip(
        scenes.attributes, scenes.gradients_of(ours, single, safe), scenes.gradients_of(reference, double, safe)
    )
    for name, got, expected in pairs:
        assert got.isfinite().all(), name
        assert (got - expected).norm() <= 1e-3 * expected.norm(), name
        assert not got[~visible].any(), name
    return ours


@pytest.mark.parametrize(
    ("channels", "width", "height", "seed"),
    [(3, 37, 29, 0), (3, 1, 1, 1), (3, 64, 96, 2), (3, 9, 65, 3), (1, 37, 29, 4), (4, 33, 31, 5), (32, 37, 29, 6)],
)
def test_equals_reference(scenes, channels, width, height, seed):
    gaussians = scenes.gaussians(channels=channels, count=120, seed=seed)
    rendering = assert_equals_reference(scenes, gaussians, scenes.camera(width=width, height=height, seed=seed))
    assert rendering.features.shape == (1, height, width, channels)


def test_many_layers_that_end_rays(scenes):
    """Enough opaque layers that pixels are done and whole tiles stop early."""
    gaussians = scenes.gaussians(count=800, odd_ones=False, seed=7)
    with torch.no_grad():
        gaussians.scales.mul_(2)
        gaussians.opacities.clamp_(min=0.5)
    assert_equals_reference(scenes, gaussians, scenes.camera(width=40, height=40))


@pytest.mark.parametrize("channels", [3, 5])
def test_batch_equals_loop(scenes, channels):
    gaussians = scenes.as_leaves(scenes.gaussians(batch=3, channels=channels), torch.float32)
    camera = scenes.camera(batch=3, dtype=torch.float32)
    everywhere = torch.ones(3, camera.height, camera.width)
    together = rasterize(gaussians, camera)
    grads = scenes.gradients_of(together, gaussians, everywhere)
    loop = [rasterize(gaussians[b], camera[b]) for b in range(3)]
    assert torch.equal(together.features, torch.cat([r.features for r in loop]))
    assert torch.equal(together.alpha, torch.cat([r.alpha for r in loop]))
    joined = dataclasses.replace(together, features=torch.cat([r.features for r in loop]))
    joined = dataclasses.replace(joined, alpha=torch.cat([r.alpha for r in loop]))
    for got, expected in zip(scenes.gradients_of(joined, gaussians, everywhere), grads):
        assert torch.equal(got, expected)


def test_one_set_seen_by_many_cameras_sums_gradients(scenes):
    gaussians = scenes.as_leaves(scenes.gaussians(), torch.float32)
    camera = scenes.camera(batch=3, dtype=torch.float32)
    repeated = WorldGaussians(
        *[getattr(gaussians, n).expand(3, *[-1] * (getattr(gaussians, n).dim() - 1)) for n in scenes.attributes]
    )
    everywhere = torch.ones(3, camera.height, camera.width)
    shared, explicit = rasterize(gaussians, camera), rasterize(repeated, camera)
    assert torch.equal(shared.features, explicit.features)
    pairs = zip(
        scenes.gradients_of(shared, gaussians, everywhere), scenes.gradients_of(explicit, gaussians, everywhere)
    )
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 6])
def test_bitwise_equal_for_any_thread_count(scenes, channels):
    gaussians = scenes.as_leaves(scenes.gaussians(count=500, channels=channels), torch.float32)
    camera = scenes.camera(width=70, height=70, dtype=torch.float32)
    everywhere = torch.ones(1, 70, 70)

    def run():
        rendering = rasterize(gaussians, camera)
        return [rendering.features, rendering.alpha, *scenes.gradients_of(rendering, gaussians, everywhere)]

    default = numba.get_num_threads()
    try:
        runs = [run(), run()]
        for threads in range(1, min(3, default) + 1):
            numba.set_num_threads(threads)
            runs.append(run())
    finally:
        numba.set_num_threads(default)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other))


@pytest.mark.parametrize("channels", [3, 2])
def test_two_graphs_alive_at_once(scenes, channels):
    camera = scenes.camera(dtype=torch.float32)
    everywhere = torch.ones(1, camera.height, camera.width)
    sets = [scenes.as_leaves(scenes.gaussians(count=c, channels=channels, seed=c), torch.float32) for c in (60, 200)]
    alone = [scenes.gradients_of(rasterize(g, camera), g, everywhere) for g in sets]
    renderings = [rasterize(g, camera) for g in sets]
    for gaussians, rendering, expected in zip(sets, renderings, alone):
        for got, want in zip(scenes.gradients_of(rendering, gaussians, everywhere), expected):
            assert torch.equal(got, want)


@pytest.mark.parametrize("channels", [3, 2])
def test_nothing_to_see(scenes, channels):
    camera = scenes.camera(dtype=torch.float32)
    for gaussians in (
        scenes.gaussians(count=0, channels=channels, odd_ones=False),
        scenes.gaussians(channels=channels),
    ):
        gaussians = scenes.as_leaves(gaussians, torch.float32)
        with torch.no_grad():
            gaussians.means[..., 2] = -5
        rendering = rasterize(gaussians, camera)
        assert not rendering.features.any() and not rendering.alpha.any()
        grads = scenes.gradients_of(rendering, gaussians, torch.ones(1, camera.height, camera.width))
        assert not any(g.any() for g in grads)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("channels", [3, 2])
def test_unusable_gaussians_are_as_if_absent(scenes, value, channels):
    camera = scenes.camera(dtype=torch.float32)
    everywhere = torch.ones(1, camera.height, camera.width)
    for name in scenes.attributes:
        gaussians = scenes.as_leaves(scenes.gaussians(channels=channels, count=40), torch.float32)
        keep = torch.ones(40, dtype=torch.bool)
        keep[20:23] = False
        with torch.no_grad():
            getattr(gaussians, name)[0, ~keep] = value
        without = scenes.as_leaves(gaussians[:, keep], torch.float32)
        rendering, expected = rasterize(gaussians, camera), rasterize(without, camera)
        assert torch.equal(rendering.features, expected.features), name
        grads = scenes.gradients_of(rendering, gaussians, everywhere)
        for got, want in zip(grads, scenes.gradients_of(expected, without, everywhere)):
            assert torch.equal(got[:, keep], want) and not got[:, ~keep].any(), name


def test_zero_quaternion_is_skipped(scenes):
    gaussians = scenes.as_leaves(scenes.gaussians(), torch.float32)
    with torch.no_grad():
        gaussians.quats.zero_()
    rendering = rasterize(gaussians, scenes.camera(dtype=torch.float32))
    assert not rendering.alpha.any()
    grads = scenes.gradients_of(rendering, gaussians, torch.ones_like(rendering.alpha))
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("channels", [3, 2])
def test_finite_differences(scenes, channels):
    """Directional derivatives of Gaussians so large that no pixel meets a threshold."""
    gaussians = scenes.gaussians(count=5, channels=channels, odd_ones=False)
    with torch.no_grad():
        gaussians.scales.add_(0.3)
        gaussians.opacities.clamp_(0.2, 0.5)
        gaussians.means[..., 2] = torch.linspace(-0.3, 0.3, 5)  # no swaps in depth
    gaussians = scenes.as_leaves(gaussians, torch.float32)
    camera = scenes.camera(width=16, height=16, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(1, 16, 16, channels, generator=generator)

    def loss(g):
        return (rasterize(g, camera).features * weights).double().sum()

    grads = torch.autograd.grad(loss(gaussians), [getattr(gaussians, n) for n in scenes.attributes])
    for name, gradient in zip(scenes.attributes, grads):
        value = getattr(gaussians, name).detach()
        step = 0.005 * torch.randn(value.shape, generator=generator) * value.abs().mean()
        with torch.no_grad():
            ends = [loss(dataclasses.replace(gaussians, **{name: value + s * step})) for s in (1, -1)]
        difference = (ends[0] - ends[1]).item() / 2
        assert difference == pytest.approx((gradient * step).sum().item(), rel=1e-2, abs=1e-5), name


def test_sixteen_bit_floats_are_widened(scenes):
    gaussians = scenes.as_leaves(scenes.gaussians(), torch.float32)
    camera = scenes.camera(dtype=torch.float32)
    half = dataclasses.replace(gaussians, colors=gaussians.colors.detach().bfloat16().requires_grad_())
    rendering = rasterize(half, camera)
    assert rendering.features.dtype == torch.float32
    (gradient,) = torch.autograd.grad(rendering.features.sum(), [half.colors])
    assert gradient.dtype == torch.bfloat16 and gradient.any()


def test_default_dtype_does_not_matter(scenes):
    gaussians, camera = scenes.as_leaves(scenes.gaussians(), torch.float32), scenes.camera(dtype=torch.float32)
    expected = rasterize(gaussians, camera)
    torch.set_default_dtype(torch.float64)
    try:
        rendering = rasterize(gaussians, camera)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(rendering.features, expected.features) and torch.equal(rendering.alpha, expected.alpha)


def test_strided_inputs_and_gradients(scenes):
    gaussians = scenes.as_leaves(scenes.gaussians(), torch.float32)
    camera = scenes.camera(dtype=torch.float32)
    strided = dataclasses.replace(gaussians, means=gaussians.means.mT.contiguous().mT)
    expected = rasterize(gaussians, camera)
    rendering = rasterize(strided, camera)
    assert torch.equal(rendering.features, expected.features)
    a = torch.autograd.grad(rendering.features.sum() + rendering.alpha.sum(), gaussians.means)[0]
    b = torch.autograd.grad((expected.features * 1.0).sum() + (expected.alpha * 1.0).sum(), gaussians.means)[0]
    assert torch.equal(a, b)


def test_only_alpha_or_only_features(scenes):
    gaussians = scenes.as_leaves(scenes.gaussians(), torch.float32)
    rendering = rasterize(gaussians, scenes.camera(dtype=torch.float32))
    (by_alpha,) = torch.autograd.grad(rendering.alpha.sum(), [gaussians.opacities], retain_graph=True)
    (by_features,) = torch.autograd.grad(rendering.features.sum(), [gaussians.opacities])
    assert by_alpha.any() and by_features.any() and not torch.equal(by_alpha, by_features)


def test_equal_depths_are_drawn_in_order_of_index():
    """As gsplat's stable sort does."""
    count = 3
    gaussians = WorldGaussians(
        torch.tensor([0.0, 0.0, 1.0]).repeat(1, count, 1),
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(1, count, 1),
        torch.full((1, count, 3), 0.5),
        torch.eye(3)[None],
        torch.full((1, count), 0.5),
    )
    k = torch.tensor([[[10.0, 0, 0.5], [0, 10.0, 0.5], [0, 0, 1]]])
    rendering = rasterize(gaussians, Camera(torch.eye(4)[None], k, 1, 1))
    torch.testing.assert_close(rendering.features[0, 0, 0], torch.tensor([0.5, 0.25, 0.125]))
