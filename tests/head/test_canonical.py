"""The canonical form shows the same picture (method.md section 1)."""

import pytest
import torch

from spatialavatar.head.canonical import canonical
from spatialavatar.splat.camera import Camera
from tests.head.test_model import random_params, small_head


def cameras(batch: int, per_row: int, seed: int = 0) -> torch.Tensor:
    """World-to-camera matrices that see the head, [B, C, 4, 4]."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(batch, per_row, 3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.linalg.det(q)[..., None, None].sign()
    matrices = torch.eye(4, dtype=torch.float64).repeat(batch, per_row, 1, 1)
    matrices[..., :3, :3] = q
    matrices[..., :3, 3] = torch.tensor([0.1, -0.2, 6.0], dtype=torch.float64)
    return matrices


def pixels(head, params, world_to_camera):
    intrinsics = torch.tensor([[3000.0, 0, 256], [0, 3100, 250], [0, 0, 1]], dtype=torch.float64)
    camera = Camera(world_to_camera, intrinsics.expand(len(world_to_camera), 3, 3), 512, 512)
    return camera.project(head(params))


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("offset", [True, False])
def test_same_pixels(follow, offset):
    head = small_head(follow)
    params = random_params(head, batch=3, offset=offset)
    matrices = cameras(3, 1)[:, 0]
    still, moved = canonical(head, params, matrices)
    assert not still.global_rotation.any() and not still.translation.any()
    assert torch.equal(still.neck, params.neck) and torch.equal(still.expression, params.expression)
    for before, after in zip(pixels(head, params, matrices), pixels(head, still, moved)):
        torch.testing.assert_close(after, before, atol=1e-9, rtol=0)


def test_several_cameras_a_row():
    head = small_head()
    params = random_params(head, batch=2)
    matrices = cameras(2, 3)
    still, moved = canonical(head, params, matrices)
    for c in range(3):
        _, alone = canonical(head, params, matrices[:, c])
        torch.testing.assert_close(moved[:, c], alone, atol=0, rtol=0)
        torch.testing.assert_close(
            pixels(head, still, moved[:, c])[0], pixels(head, params, matrices[:, c])[0], atol=1e-9, rtol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_idempotent_to_the_bit(dtype):
    head = small_head().to(dtype)
    once = canonical(head, random_params(head).to(dtype), cameras(2, 2).to(dtype))
    twice = canonical(head, *once)
    assert once[1].dtype == dtype and torch.equal(once[1], twice[1])
    assert torch.equal(once[0].shape, twice[0].shape)


def test_rotations_stay_rotations():
    head = small_head()
    _, moved = canonical(head, random_params(head), cameras(2, 1)[:, 0])
    rotation = moved[:, :3, :3]
    identity = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    torch.testing.assert_close(rotation @ rotation.mT, identity, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2, dtype=torch.float64))
    expected = torch.tensor([0.0, 0, 0, 1], dtype=torch.float64).expand(2, 4)
    torch.testing.assert_close(moved[:, 3], expected, atol=0, rtol=0)
