"""gsplat on CUDA against the reference: the same picture and the same gradients as the CPU backend promises."""

import pytest
import torch

from spatialavatar.splat.gaussians import WorldGaussians
from spatialavatar.splat.rasterize import rasterize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("batch", "cameras"), [(1, 1), (3, 3), (1, 3)])
@pytest.mark.parametrize("channels", [3, 1, 32])
def test_equals_reference(scenes, batch, cameras, channels):
    gaussians, camera = scenes.gaussians(batch=batch, channels=channels, seed=9), scenes.camera(batch=cameras)
    camera = camera.to(torch.float32)
    single = WorldGaussians(
        *[getattr(gaussians, n).detach().to("cuda", torch.float32).requires_grad_() for n in scenes.attributes]
    )
    double = scenes.as_leaves(WorldGaussians(*[getattr(single, n).cpu() for n in scenes.attributes]), torch.float64)
    on_gpu = rasterize(single, camera.to("cuda"))
    assert on_gpu.features.is_cuda and on_gpu.features.shape == (cameras, camera.height, camera.width, channels)
    ours = type(on_gpu)(on_gpu.features.cpu(), on_gpu.alpha.cpu())
    reference = rasterize(double, camera.to(torch.float64), backend="reference")
    safe = scenes.safe_pixels(double, camera)
    assert (ours.features - reference.features).abs()[safe].max() < 1e-4
    assert (ours.alpha - reference.alpha).abs()[safe].max() < 1e-4
    pairs = zip(
        scenes.attributes, scenes.gradients_of(ours, single, safe), scenes.gradients_of(reference, double, safe)
    )
    for name, got, expected in pairs:
        assert (got.cpu() - expected).norm() <= 1e-3 * expected.norm(), name


def test_cpu_backend_refuses_cuda_tensors(scenes):
    from spatialavatar.errors import SpatialAvatarError

    gaussians = scenes.gaussians(dtype=torch.float32).to("cuda")
    with pytest.raises(SpatialAvatarError, match="needs CPU tensors"):
        rasterize(gaussians, scenes.camera(dtype=torch.float32).to("cuda"), backend="cpu")
