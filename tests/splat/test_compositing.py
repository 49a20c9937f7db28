"""The compositing twin: closed forms, independence of tiles, thresholds, finite differences."""

import pytest
import torch

from spatialavatar.splat.compositing import composite, composite_pixels
from spatialavatar.splat.projection import project


def stack_of(opacities):
    """Flat Gaussians behind each other, seen at their centres."""
    opacities = torch.tensor(opacities, dtype=torch.float64)
    count = len(opacities)
    conics = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).repeat(count, 1)
    pixel = torch.zeros(1, 2, dtype=torch.float64)
    colors = torch.eye(count, dtype=torch.float64)
    features, alpha = composite_pixels(pixel, torch.zeros(count, 2, dtype=torch.float64), conics, colors, opacities)
    return features[0], alpha[0]


def test_over_operator():
    weights, alpha = stack_of([0.5, 0.25, 1.0])
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.125, 0.999 * 0.375], dtype=torch.float64))
    torch.testing.assert_close(alpha, weights.sum())


def test_thresholds():
    weights, _ = stack_of([1 / 256, 1 / 254])
    assert weights[0] == 0 and weights[1] == pytest.approx(1 / 254)
    # the third would leave 1e-6: the pixel is done before it, and the fourth is not drawn either
    weights, alpha = stack_of([0.99, 0.9, 0.999, 0.01])
    assert weights.tolist() == pytest.approx([0.99, 0.009, 0, 0])
    assert alpha == pytest.approx(0.999)


@pytest.mark.parametrize("tile", [1, 7, 16])
def test_tiles_do_not_matter(scenes, tile):
    gaussians, camera = scenes.gaussians(batch=2, count=40), scenes.camera(batch=2, width=21, height=18)
    projected = project(gaussians, camera)
    whole = composite(projected, gaussians.colors, gaussians.opacities, 21, 18, tile=1000)
    tiled = composite(projected, gaussians.colors, gaussians.opacities, 21, 18, tile=tile)
    torch.testing.assert_close(tiled, whole, rtol=1e-12, atol=1e-12)


def test_finite_differences():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(5, 2, generator=generator, dtype=torch.float64) * 4
    means2d = torch.rand(6, 2, generator=generator, dtype=torch.float64).mul(4).requires_grad_()
    conics = torch.tensor([0.2, 0.05, 0.3], dtype=torch.float64).repeat(6, 1).requires_grad_()
    colors = torch.rand(6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    opacities = torch.full((6,), 0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(composite_pixels, (pixels, means2d, conics, colors, opacities))
