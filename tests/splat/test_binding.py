"""Triangle frames and the binding: rotations, degenerate triangles, equivariance, gradients."""

import pytest
import torch

from spatialavatar.splat.binding import (
    bind,
    quaternion_multiply,
    quaternion_to_rotation,
    rotation_to_quaternion,
    triangle_frames,
)
from spatialavatar.splat.gaussians import LocalGaussians

FACES = torch.tensor([[0, 1, 2], [2, 1, 3], [4, 5, 0]])


def mesh(seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 6, 3, generator=generator, dtype=torch.float64)


def local_gaussians(batch=2, count=5, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return LocalGaussians(
        normal(batch, count, 3),
        normal(batch, count, 4),
        normal(batch, count, 3),
        normal(batch, count, 3),
        normal(batch, count),
    )


def some_rotation(seed=5):
    generator = torch.Generator().manual_seed(seed)
    return quaternion_to_rotation(torch.randn(4, generator=generator, dtype=torch.float64))


def same_rotations(p, q):
    """Up to the sign of the quaternion."""
    torch.testing.assert_close(quaternion_to_rotation(p), quaternion_to_rotation(q), rtol=1e-10, atol=1e-10)


def test_frames_are_rotations_with_the_normal_second():
    vertices = mesh()
    frames = triangle_frames(vertices, FACES)
    identity = torch.eye(3, dtype=torch.float64).expand(2, 3, 3, 3)
    torch.testing.assert_close(frames.rotation.mT @ frames.rotation, identity)
    torch.testing.assert_close(torch.linalg.det(frames.rotation), torch.ones(2, 3, dtype=torch.float64))
    v0, v1, v2 = (vertices[:, FACES[:, k]] for k in range(3))
    normal = torch.linalg.cross(v1 - v0, v2 - v0)
    torch.testing.assert_close(frames.rotation[..., 1], normal / normal.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(frames.rotation[..., 0], (v1 - v0) / (v1 - v0).norm(dim=-1, keepdim=True))
    # the height over the first edge is twice the area over its length
    length = (v1 - v0).norm(dim=-1)
    torch.testing.assert_close(frames.scale, (length + normal.norm(dim=-1) / length) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "triangle",
    [
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[1, 2, 3], [1, 2, 3], [0, 1, 0]],
        [[0, 0, 0], [1, 0, 0], [2, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [1e-8, 0, 0], [0, 1e-8, 0]],
    ],
)
def test_degenerate_triangles_are_finite(triangle, dtype):
    vertices = torch.tensor([triangle], dtype=dtype, requires_grad=True)
    local = LocalGaussians(*[t[:1, :2].to(dtype) for t in local_gaussians().tensors().values()])
    frames = triangle_frames(vertices, FACES[:1])
    torch.testing.assert_close(torch.linalg.det(frames.rotation), torch.ones(1, 1, dtype=dtype))
    world = bind(local, vertices, FACES[:1], torch.zeros(2, dtype=torch.long))
    total = world.means.sum() + world.quats.sum() + world.scales.sum()
    (gradient,) = torch.autograd.grad(total, vertices)
    assert all(t.isfinite().all() for t in (world.means, world.quats, world.scales, gradient))


def test_slivers_have_rotations():
    """Collinear corners in float32: their cross product is rounding noise that points anywhere."""
    random = torch.Generator().manual_seed(5)
    start, direction, along = (torch.randn(200, 1, n, generator=random) for n in (3, 3, 1))
    steps = torch.cat([torch.zeros(200, 1, 1), torch.ones(200, 1, 1), along], 1)
    vertices = (start + steps * direction).requires_grad_()
    frames = triangle_frames(vertices, FACES[:1])
    identity = torch.eye(3).expand(200, 1, 3, 3)
    torch.testing.assert_close(frames.rotation.mT @ frames.rotation, identity, rtol=0, atol=2e-3)  # SLIVER / 1e-7
    (gradient,) = torch.autograd.grad(frames.rotation.sum() + frames.scale.sum(), vertices)
    assert gradient.isfinite().all()
    local = LocalGaussians(
        *[t[:1, :2].float().expand(200, *t[:1, :2].shape[1:]) for t in local_gaussians().tensors().values()]
    )
    fused = bind(local, vertices.detach(), FACES[:1], torch.zeros(2, dtype=torch.long))
    assert fused.quats.isfinite().all()
    torch.testing.assert_close(fused.quats.norm(dim=-1), torch.ones(200, 2))


def test_moves_with_the_mesh():
    """Rotating, scaling and translating the mesh does the same to the Gaussians (method.md section 1)."""
    vertices, local = mesh(), local_gaussians()
    face_index = torch.tensor([0, 1, 2, 0, 2])
    rotation, factor, shift = some_rotation(), 1.7, torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    before = bind(local, vertices, FACES, face_index)
    after = bind(local, factor * vertices @ rotation.mT + shift, FACES, face_index)
    torch.testing.assert_close(after.means, factor * before.means @ rotation.mT + shift)
    torch.testing.assert_close(after.scales, factor * before.scales)
    same_rotations(
        after.quats, quaternion_multiply(rotation_to_quaternion(rotation).expand_as(before.quats), before.quats)
    )
    torch.testing.assert_close(after.opacities, torch.sigmoid(local.opacity_logit))
    assert torch.equal(after.colors, local.color)


def test_known_placement():
    """On a right triangle in the x-z plane with both legs 2 the scale is 2 and the normal is -y."""
    vertices = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 0, 2]]], dtype=torch.float64)
    frames = triangle_frames(vertices, FACES[:1])
    assert frames.scale.item() == pytest.approx(2)
    torch.testing.assert_close(frames.rotation[0, 0, :, 1], torch.tensor([0.0, -1, 0], dtype=torch.float64))
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    local = LocalGaussians(
        torch.tensor([[[0.0, 1.0, 0.0]]], dtype=torch.float64), torch.eye(4, dtype=torch.float64)[None, :1],
        torch.zeros(1, 1, 3, dtype=torch.float64), one.expand(1, 1, 3), one[..., 0],
    )  # fmt: skip
    world = bind(local, vertices, FACES[:1], torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(world.means[0, 0], torch.tensor([2 / 3, -2, 2 / 3], dtype=torch.float64))


def test_gradients():
    vertices = mesh(batch=1).requires_grad_()
    local = [t.requires_grad_() for t in local_gaussians(batch=1).tensors().values()]
    face_index = torch.tensor([0, 1, 2, 0, 2])

    def place(vertices, *local):
        world = bind(LocalGaussians(*local), vertices, FACES, face_index)
        return world.means, quaternion_to_rotation(world.quats), world.scales, world.opacities

    assert torch.autograd.gradcheck(place, (vertices, *local))


def test_quaternions_and_matrices():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    half_turns = torch.eye(4, dtype=torch.float64)  # where three of the four branches divide by zero
    q = torch.cat([q, half_turns, half_turns + 1e-9])
    rotation = quaternion_to_rotation(q)
    same_rotations(rotation_to_quaternion(rotation), q)
    torch.testing.assert_close(rotation_to_quaternion(rotation).norm(dim=-1), torch.ones(len(q), dtype=torch.float64))
    p = q.flip(0)
    torch.testing.assert_close(
        quaternion_to_rotation(quaternion_multiply(p, q)), quaternion_to_rotation(p) @ quaternion_to_rotation(q)
    )
