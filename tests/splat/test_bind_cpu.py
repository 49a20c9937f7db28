"""The fused binding against its torch specification."""

import dataclasses
from collections.abc import Callable

import numba
import pytest
import torch
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.splat.binding import bind, bind_torch, quaternion_to_rotation
from spatialavatar.splat.cpu.bind import bind_cpu
from spatialavatar.splat.gaussians import LocalGaussians, WorldGaussians

Scene = tuple[LocalGaussians, Tensor, Tensor, Tensor]


def scene(batch: int = 2, count: int = 500, channels: int = 3) -> Scene:
    """Gaussians on random triangles; the first five are degenerate in ways that leave no rounding error."""
    g = torch.Generator().manual_seed(0)
    vertices = torch.randn(batch, 40, 3, generator=g) * 0.1
    vertices[:, 2:5] = torch.tensor([[0.0, 0.25, 0], [0.0, 0.5, 0], [0.0, 1, 0]])
    vertices[:, 5:8] = torch.tensor([[0.5, 0.0, 0], [0.25, 0.0, 0], [1.0, 0.0, 0]])
    faces = torch.stack([torch.randperm(40, generator=g)[:3] for _ in range(300)])
    # a point; an edge of no length; no area, along y and against x; the third corner on the first
    faces[:5] = torch.tensor([[7, 7, 7], [9, 9, 11], [2, 3, 4], [5, 6, 7], [5, 7, 5]])
    face_index = torch.randint(300, (count,), generator=g)
    face_index[:5] = torch.arange(5)
    local = LocalGaussians(
        torch.randn(batch, count, 3, generator=g),
        torch.randn(batch, count, 4, generator=g),
        torch.randn(batch, count, 3, generator=g),
        torch.rand(batch, count, channels, generator=g),
        torch.randn(batch, count, generator=g),
    )
    return local, vertices, faces, face_index


def values_and_gradients(
    function: Callable[..., WorldGaussians], inputs: Scene, dtype: torch.dtype
) -> dict[str, Tensor]:
    local, vertices, *rest = inputs
    leaves = {name: t.to(dtype).requires_grad_() for name, t in local.tensors().items()}
    world = function(LocalGaussians(**leaves), vertices.to(dtype), *rest)
    outputs = {f.name: getattr(world, f.name) for f in dataclasses.fields(world)}
    g = torch.Generator().manual_seed(1)
    into = [torch.randn(o.shape, generator=g).to(dtype) for o in outputs.values()]
    gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), into)
    detached = {name: t.detach() for name, t in outputs.items()}
    return detached | {f"in {name}": t for name, t in zip(leaves, gradients)}


@pytest.mark.parametrize(("batch", "count", "channels"), [(2, 500, 3), (1, 5, 32), (3, 17, 1)])
def test_fused_equals_twin(batch: int, count: int, channels: int) -> None:
    inputs = scene(batch, count, channels)
    fused = values_and_gradients(bind_cpu, inputs, torch.float32)
    truth = values_and_gradients(bind_torch, inputs, torch.float64)
    for name, expected in truth.items():
        largest = float(expected.abs().max())
        torch.testing.assert_close(fused[name].double(), expected, rtol=1e-5, atol=2e-6 * largest)


def test_degenerate_triangles_get_the_twins_rotation() -> None:
    local, vertices, faces, face_index = scene(count=5)
    unturned = dataclasses.replace(local, rotation=torch.tensor([1.0, 0, 0, 0]).expand_as(local.rotation))
    fused, twin = (f(unturned, vertices, faces, face_index) for f in (bind_cpu, bind_torch))
    rotation = quaternion_to_rotation(fused.quats)
    torch.testing.assert_close(rotation, quaternion_to_rotation(twin.quats), rtol=0, atol=1e-6)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), rtol=0, atol=1e-6)
    torch.testing.assert_close(fused.means, twin.means, rtol=0, atol=1e-6)


def test_every_branch_of_the_quaternion() -> None:
    """Triangles turned by half turns and near them: each of w, x, y, z is the largest somewhere."""
    turns = torch.eye(4).repeat_interleave(20, 0)
    turns = turns + 0.1 * torch.randn(80, 4, generator=torch.Generator().manual_seed(2))
    triangle = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0.2, 0, -1.0]])
    vertices = (quaternion_to_rotation(turns)[:, None] @ triangle[..., None]).reshape(1, 240, 3)
    faces = torch.arange(240).reshape(80, 3)
    local, *_ = scene(1, 80)
    fused, truth = (
        values_and_gradients(f, (local, vertices, faces, torch.arange(80)), dtype)
        for f, dtype in ((bind_cpu, torch.float32), (bind_torch, torch.float64))
    )
    torch.testing.assert_close(fused["quats"].double(), truth["quats"], rtol=0, atol=1e-6)


def test_zero_rotation_is_the_twins() -> None:
    local, *rest = scene(1, 8)
    local.rotation[0, 3] = 0
    fused, twin = (f(local, *rest).quats for f in (bind_cpu, bind_torch))
    torch.testing.assert_close(fused, twin)
    assert (fused[0, 3] == 0).all()


def test_gradients_of_the_twin_are_finite_differences() -> None:
    local, vertices, faces, face_index = scene(1, 9)
    leaves = [t.double().requires_grad_() for t in local.tensors().values()]

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        world = bind_torch(LocalGaussians(*tensors), vertices.double(), faces, face_index)
        return world.means, world.quats, world.scales, world.opacities

    assert torch.autograd.gradcheck(outputs, leaves)


def test_colour_passes_through() -> None:
    local, *rest = scene()
    assert bind_cpu(local, *rest).colors is local.color


def test_gradient_of_one_output_alone() -> None:
    """Autograd hands zeros for the outputs that the loss does not use."""
    local, *rest = scene(1, 20)
    local.position.requires_grad_()
    bind_cpu(local, *rest).means.sum().backward()
    assert local.position.grad is not None and (local.position.grad != 0).any()


def test_bind_takes_the_kernels_unless_the_mesh_needs_a_gradient() -> None:
    local, vertices, faces, face_index = scene(1, 30)
    exact = bind_cpu(local, vertices, faces, face_index).means
    assert torch.equal(bind(local, vertices, faces, face_index).means, exact)
    vertices.requires_grad_()
    assert bind(local, vertices, faces, face_index).means.requires_grad


def test_strided_and_int32_inputs() -> None:
    local, vertices, faces, face_index = scene(2, 30)
    expected = values_and_gradients(bind_cpu, (local, vertices, faces, face_index), torch.float32)
    strided = LocalGaussians(
        **{name: t.movedim(1, 0).contiguous().movedim(0, 1) for name, t in local.tensors().items()}
    )
    assert not strided.position.is_contiguous()
    inputs = strided, vertices.mT.contiguous().mT, faces.int(), face_index.int()
    got = values_and_gradients(bind_cpu, inputs, torch.float32)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-9)


def test_bitwise_repeatable_in_threads_and_batches() -> None:
    inputs = scene()
    threads = numba.get_num_threads()
    runs = []
    try:
        for count in (1, min(2, threads), 1):
            numba.set_num_threads(count)
            runs.append(values_and_gradients(bind_cpu, inputs, torch.float32))
    finally:
        numba.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(runs[0][name], other[name]) for name in other)
    local, vertices, faces, face_index = inputs
    alone = bind_cpu(local[0], vertices[:1], faces, face_index)
    assert torch.equal(alone.means, runs[0]["means"][:1]) and torch.equal(alone.quats, runs[0]["quats"][:1])


def test_clear_errors() -> None:
    local, vertices, faces, face_index = scene(2, 30)
    with pytest.raises(SpatialAvatarError, match="no gradient for the mesh: detach"):
        bind_cpu(local, vertices.clone().requires_grad_(), faces, face_index)
    with pytest.raises(SpatialAvatarError, match=r"position is torch\.float64"):
        bind_cpu(local.to(torch.float64), vertices, faces, face_index)
    with pytest.raises(SpatialAvatarError, match="2 x 30 Gaussians do not fit 1 meshes"):
        bind_cpu(local, vertices[:1], faces, face_index)
    with pytest.raises(SpatialAvatarError, match="29 parent faces"):
        bind_cpu(local, vertices, faces, face_index[1:])
    with pytest.raises(SpatialAvatarError, match=r"face_index must lie in 0\.\.299"):
        bind_cpu(local, vertices, faces, face_index + 299)
    with pytest.raises(SpatialAvatarError, match=r"faces must lie in 0\.\.38"):
        bind_cpu(local, vertices[:, :39], faces, face_index)
