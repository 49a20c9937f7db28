"""The projection twin against gsplat's torch reference, closed forms and finite differences."""

import dataclasses

import pytest
import torch
from gsplat.cuda._torch_impl import _fully_fused_projection

from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import WorldGaussians
from spatialavatar.splat.projection import project, world_covariance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_gsplat(scenes, dtype):
    camera = scenes.camera(batch=3, dtype=dtype)
    gaussians = scenes.gaussians(batch=3, dtype=dtype)
    # an opacity above 1 makes gsplat's CUDA box equal to its torch reference's, 3.33 standard deviations
    gaussians = dataclasses.replace(gaussians, opacities=torch.full_like(gaussians.opacities, 1.05))
    ours = project(gaussians, camera)
    radii, means2d, depths, conics, _ = _fully_fused_projection(
        gaussians.means,
        world_covariance(gaussians.quats, gaussians.scales),
        camera.world_to_camera[:, None],
        camera.intrinsics[:, None],
        camera.width,
        camera.height,
    )
    assert torch.equal(ours.radii.int(), radii[:, 0])
    assert torch.equal(ours.visible, (radii[:, 0] > 0).all(-1))
    seen = ours.visible
    assert 50 < seen.sum() < seen.numel()
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 1e-4}
    torch.testing.assert_close(ours.means2d[seen], means2d[:, 0][seen], **tolerance)
    torch.testing.assert_close(ours.depths[seen], depths[:, 0][seen], **tolerance)
    torch.testing.assert_close(ours.conics[seen], conics[:, 0][seen], **tolerance)


def test_gradients_equal_gsplat(scenes):
    camera = scenes.camera(batch=2)
    camera = dataclasses.replace(camera, world_to_camera=camera.world_to_camera.requires_grad_())
    gaussians = scenes.gaussians(batch=2)
    inputs = [gaussians.means, gaussians.quats, gaussians.scales, camera.world_to_camera]
    ours = project(gaussians, camera)
    _, means2d, depths, conics, _ = _fully_fused_projection(
        gaussians.means,
        world_covariance(gaussians.quats, gaussians.scales),
        camera.world_to_camera[:, None],
        camera.intrinsics[:, None],
        camera.width,
        camera.height,
    )
    seen = ours.visible[..., None]
    generator = torch.Generator().manual_seed(3)
    v_means2d, v_conics, v_depths = (
        torch.randn(*seen.shape[:2], k, generator=generator, dtype=torch.float64) * seen for k in (2, 3, 1)
    )
    loss = (ours.means2d * v_means2d).sum() + (ours.conics * v_conics).sum() + (ours.depths * v_depths[..., 0]).sum()
    theirs = (
        torch.where(seen, means2d[:, 0], 0).mul(v_means2d).sum()
        + torch.where(seen, conics[:, 0], 0).mul(v_conics).sum()
    )
    theirs = theirs + torch.where(seen[..., 0], depths[:, 0], 0).mul(v_depths[..., 0]).sum()
    for a, b in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(theirs, inputs)):
        finite = b.isfinite()  # gsplat divides by the depth of the Gaussian in the camera's centre
        assert a.isfinite().all() and finite.float().mean() > 0.9
        torch.testing.assert_close(a[finite], b[finite], rtol=1e-7, atol=1e-7)


def test_round_gaussian_on_the_axis():
    gaussians = WorldGaussians(
        torch.tensor([[[0.0, 0.0, 2.0]]]),
        torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]),
        torch.full((1, 1, 3), 0.1),
        torch.ones(1, 1, 3),
        torch.ones(1, 1),
    )
    k = torch.tensor([[[100.0, 0, 32.5], [0, 50.0, 20.0], [0, 0, 1]]])
    projected = project(gaussians, Camera(torch.eye(4)[None], k, 64, 48))
    # standard deviations 100 px/m x 0.1 m / 2 m, and half of that in y
    torch.testing.assert_close(projected.means2d[0, 0], torch.tensor([32.5, 20.0]))
    torch.testing.assert_close(projected.conics[0, 0], torch.tensor([1 / 25.3, 0.0, 1 / 6.55]))
    assert projected.radii[0, 0].tolist() == [17, 9]


def test_finite_differences(scenes):
    gaussians, camera = scenes.gaussians(count=6, odd_ones=False), scenes.camera()

    def screen(means, quats, scales, pose):
        moved = dataclasses.replace(gaussians, means=means, quats=quats, scales=scales)
        projected = project(moved, dataclasses.replace(camera, world_to_camera=pose))
        return projected.means2d, projected.conics, projected.depths

    pose = camera.world_to_camera.requires_grad_()
    assert torch.autograd.gradcheck(screen, (gaussians.means, gaussians.quats, gaussians.scales, pose))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_culled(scenes, value):
    camera = scenes.camera()
    for name in scenes.attributes:
        gaussians = scenes.gaussians()
        with torch.no_grad():
            getattr(gaussians, name)[0, 20:22] = value
        projected = project(gaussians, camera)
        assert not projected.visible[0, 20:22].any()
        everything = projected.means2d.sum() + projected.conics.sum()
        grads = torch.autograd.grad(everything, [gaussians.means, gaussians.quats, gaussians.scales])
        assert all(g.isfinite().all() for g in grads)


def test_a_camera_stands_where_its_own_frame_has_its_origin():
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)).Q
    pose = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    pose[:, :3, :3], pose[:, :3, 3] = rotation, torch.randn(4, 3, generator=generator, dtype=torch.float64)
    camera = Camera(pose, torch.eye(3, dtype=torch.float64).repeat(4, 1, 1), 8, 8)
    origin = torch.cat([camera.position, torch.ones(4, 1, dtype=torch.float64)], -1)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).expand(4, 4)
    torch.testing.assert_close((pose @ origin[..., None]).squeeze(-1), expected, atol=1e-12, rtol=0)
