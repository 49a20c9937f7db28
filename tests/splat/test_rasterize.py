"""What all backends share: backgrounds, the choice of backend, and errors that say what to do."""

import dataclasses

import pytest
import torch

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.splat.rasterize import Rendering, rasterize


def test_over_backgrounds():
    features, alpha = torch.rand(2, 4, 5, 3), torch.rand(2, 4, 5)
    rendering = Rendering(features, alpha)
    background = torch.rand(2, 3)
    expected = features + (1 - alpha)[..., None] * background[:, None, None]
    torch.testing.assert_close(rendering.over(background), expected)
    torch.testing.assert_close(rendering.over(background[0])[0], expected[0])


def test_auto_on_the_cpu_is_the_cpu_backend(scenes):
    gaussians, camera = scenes.gaussians(dtype=torch.float32), scenes.camera(dtype=torch.float32)
    assert torch.equal(rasterize(gaussians, camera).features, rasterize(gaussians, camera, backend="cpu").features)


def test_reference_has_gradients_for_cameras(scenes):
    gaussians, camera = scenes.gaussians(count=20), scenes.camera(width=9, height=7)
    camera = dataclasses.replace(camera, world_to_camera=camera.world_to_camera.requires_grad_())
    rendering = rasterize(gaussians, camera, backend="reference")
    (gradient,) = torch.autograd.grad(rendering.features.sum(), [camera.world_to_camera])
    assert gradient.isfinite().all() and gradient.any()


def test_camera_gradients_on_the_cpu_are_refused(scenes):
    camera = scenes.camera(dtype=torch.float32)
    camera = dataclasses.replace(camera, intrinsics=camera.intrinsics.requires_grad_())
    with pytest.raises(SpatialAvatarError, match=r"no gradients for cameras.*backend='reference'"):
        rasterize(scenes.gaussians(dtype=torch.float32), camera)
    with torch.no_grad():
        assert rasterize(scenes.gaussians(dtype=torch.float32), camera).alpha.any()


def test_double_precision_on_the_cpu_is_refused(scenes):
    with pytest.raises(SpatialAvatarError, match=r"float32, means is torch\.float64"):
        rasterize(scenes.gaussians(), scenes.camera())


def test_shapes_are_checked(scenes):
    gaussians, camera = scenes.gaussians(dtype=torch.float32), scenes.camera(dtype=torch.float32)
    with pytest.raises(SpatialAvatarError, match=r"scales has shape \(1, 80, 2\), expected \(1, 80, 3\)"):
        rasterize(dataclasses.replace(gaussians, scales=gaussians.scales[..., :2]), camera)
    with pytest.raises(SpatialAvatarError, match=r"opacities has shape \(80,\), expected \(B, N\)"):
        rasterize(dataclasses.replace(gaussians, opacities=gaussians.opacities[0]), camera)
    with pytest.raises(SpatialAvatarError, match="2 sets of Gaussians with 3 cameras"):
        rasterize(scenes.gaussians(batch=2, dtype=torch.float32), scenes.camera(batch=3, dtype=torch.float32))
    with pytest.raises(SpatialAvatarError, match="no channels"):
        rasterize(dataclasses.replace(gaussians, colors=gaussians.colors[..., :0]), camera)
    with pytest.raises(SpatialAvatarError, match="at least 1 x 1"):
        rasterize(gaussians, dataclasses.replace(camera, width=0))


def test_unknown_backend(scenes):
    with pytest.raises(SpatialAvatarError, match="expected auto, gsplat, cpu or reference"):
        rasterize(scenes.gaussians(dtype=torch.float32), scenes.camera(dtype=torch.float32), backend="vulkan")


def test_gsplat_without_cuda_tensors(scenes):
    with pytest.raises(SpatialAvatarError, match="needs CUDA tensors"):
        rasterize(scenes.gaussians(dtype=torch.float32), scenes.camera(dtype=torch.float32), backend="gsplat")
