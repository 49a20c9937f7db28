"""The UV warp against scipy's sampler and against pictures whose every value is known."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from spatialavatar.generator.warp import warp
from spatialavatar.splat.camera import Camera

WIDTH, HEIGHT = 40, 24


def scene(count: int = 2, seed: int = 0) -> tuple[Tensor, Camera]:
    """Points that fall inside the image, outside of it, and behind the camera, float64."""
    random = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.5, 0.4, 0.15], dtype=torch.float64)
    points = (torch.rand(count, 200, 3, generator=random, dtype=torch.float64) - 0.5) * spread
    points[:, :20, 2] -= 2  # behind: the camera stands at z = 0.6 and looks to -z ...
    points[:, :20, 2] *= -1  # ... so that what lies at +2 is behind it
    world_to_camera = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    world_to_camera[:, :3, :3] = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    world_to_camera[:, 2, 3] = 0.6
    world_to_camera[:, 0, 3] = 0.01 * torch.arange(count)
    intrinsics = torch.tensor([[60.0, 0, 19], [0, 55, 13], [0, 0, 1]], dtype=torch.float64).repeat(count, 1, 1)
    return points, Camera(world_to_camera, intrinsics, WIDTH, HEIGHT)


def projected(points: Tensor, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y in pixels and which lie in the image, by numpy alone."""
    p, m, k = points.numpy(), camera.world_to_camera.numpy(), camera.intrinsics.numpy()
    seen = np.einsum("bij,bnj->bni", m[:, :3, :3], p) + m[:, None, :3, 3]
    x = k[:, None, 0, 0] * seen[..., 0] / seen[..., 2] + k[:, None, 0, 2]
    y = k[:, None, 1, 1] * seen[..., 1] / seen[..., 2] + k[:, None, 1, 2]
    inside = (x >= 0) & (x <= camera.width) & (y >= 0) & (y <= camera.height) & (seen[..., 2] > 0.01)
    return x, y, inside


@pytest.mark.parametrize(("w", "h"), [(WIDTH, HEIGHT), (13, 7), (80, 96), (1, 1)])
def test_is_bilinear_sampling_where_the_points_project(w: int, h: int) -> None:
    points, camera = scene()
    picture = torch.rand(2, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampled, valid = warp(picture, points, camera)
    x, y, inside = projected(points, camera)
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_array_equal(valid[..., 0].numpy(), inside)
    for b in range(2):
        # scipy counts pixel centres from 0
        where = np.stack([y[b] * h / HEIGHT - 0.5, x[b] * w / WIDTH - 0.5])
        for c in range(3):
            expected = map_coordinates(picture[b, c].numpy(), where, order=1, mode="nearest")
            np.testing.assert_allclose(sampled[b, :, c], np.where(inside[b], expected, 0), atol=1e-12)


def test_what_is_behind_the_camera_is_not_seen() -> None:
    points, camera = scene()
    x, y, inside = projected(points, camera)
    mirrored = (x > 0) & (x < WIDTH) & (y > 0) & (y < HEIGHT) & ~inside
    assert mirrored[:, :20].any()  # their projections through the back fall into the image
    sampled, valid = warp(torch.ones(2, 1, 4, 4, dtype=torch.float64), points, camera)
    assert not sampled[:, :20].any() and not valid[:, :20].any()


def test_outside_is_zero_and_inside_one() -> None:
    points, camera = scene()
    sampled, valid = warp(torch.ones(2, 2, 5, 9, dtype=torch.float64), points, camera)
    torch.testing.assert_close(sampled, valid.expand(-1, -1, 2))  # up to the very edge: no fading to black
    assert set(valid.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("scale", [0.5, 1, 3])
def test_pixel_centres_lie_at_a_half(scale: float) -> None:
    """A picture that holds its own coordinates gives back where each point projects, whatever its size."""
    points, camera = scene()
    w, h = int(WIDTH * scale), int(HEIGHT * scale)
    column = (torch.arange(w, dtype=torch.float64) + 0.5) / scale
    row = (torch.arange(h, dtype=torch.float64) + 0.5) / scale
    picture = torch.stack([column.expand(h, w), row[:, None].expand(h, w)]).expand(2, -1, -1, -1)
    sampled, _ = warp(picture, points, camera)
    x, y, inside = projected(points, camera)
    margin = 0.5 / scale  # beyond the outermost centres a picture goes on as it ends
    inner = inside & (x > margin) & (x < WIDTH - margin) & (y > margin) & (y < HEIGHT - margin)
    assert inner.sum() > 50
    np.testing.assert_allclose(sampled.numpy()[inner], np.stack([x, y], -1)[inner], atol=1e-10)


def test_gradients_of_the_picture() -> None:
    points, camera = scene(1)
    picture = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: warp(p, points, camera)[0], (picture,))


def test_damaged_points_and_half_precision() -> None:
    """A point that is no number is not seen; features of 16 bits come out at the points' precision."""
    points, camera = scene(1)
    broken = points.clone()
    broken[0, 50:53] = torch.tensor([[torch.nan, 0, 0], [0, torch.inf, 0], [0, 0, -torch.inf]])
    picture = torch.rand(1, 2, 5, 6, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    sampled, valid = warp(picture, broken.float(), camera.to(torch.float32))
    assert sampled.dtype == torch.float32
    assert sampled.isfinite().all() and not valid[0, 50:53].any()
    sampled.sum().backward()
    assert picture.grad is not None and picture.grad.isfinite().all()
