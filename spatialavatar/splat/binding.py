"""Triangle frames and the binding of Gaussians to them (method.md section 1; paper eq. 1).

``bind_torch`` is the specification; ``splat/cpu/bind.py`` is its fused twin on the CPU.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spatialavatar.splat.gaussians import LocalGaussians, WorldGaussians

SLIVER = 1e-4  # a triangle lower than this share of its side counts as degenerate
_TINY = 1e-12


@dataclass(frozen=True)
class TriangleFrames:
    """Frame of each triangle: a point x in it lies at ``rotation @ x * scale + centroid`` in the world."""

    centroid: Float[Tensor, "*B F 3"]  # metres
    rotation: Float[Tensor, "*B F 3 3"]  # columns a0 (first edge), a1 (normal), a2 = a0 x a1; det +1
    scale: Float[Tensor, "*B F"]  # metres: mean of the first edge's length and the height over it


def triangle_frames(vertices: Float[Tensor, "*B V 3"], faces: Int[Tensor, "F 3"]) -> TriangleFrames:
    """(c, R, s) of each triangle. On a degenerate triangle R is still a rotation, and all gradients are finite."""
    v0, v1, v2 = (vertices[..., faces[:, k], :] for k in range(3))
    first, second = v1 - v0, v2 - v0
    a0 = _unit(first, _any_direction(first), _TINY)
    # a sliver's cross product is rounding noise, which need not be at right angles to a0
    a1 = _unit(torch.linalg.cross(a0, second), _perpendicular(a0.detach()), SLIVER * _norm(second.detach()) + _TINY)
    a2 = torch.linalg.cross(a0, a1)
    length = _norm(first)
    height = (a2 * second).sum(-1).abs()
    return TriangleFrames((v0 + v1 + v2) / 3, torch.stack([a0, a1, a2], -1), (length + height) / 2)


def rotation_to_quaternion(rotation: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 4"]:
    """Unit quaternion wxyz of a rotation matrix, by the best conditioned of the four classical branches."""
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = rotation.flatten(-2).unbind(-1)
    # four times the square of each of w, x, y, z
    squares = torch.stack([1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1)
    by_branch = torch.stack(
        [
            torch.stack([squares[..., 0], m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, squares[..., 1], m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, squares[..., 2], m21 + m12], -1),
            torch.stack([m10 - m01, m02 + m20, m21 + m12, squares[..., 3]], -1),
        ],
        -2,
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    return torch.nn.functional.normalize(by_branch.gather(-2, best).squeeze(-2), dim=-1)


def quaternion_to_rotation(quaternion: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 3 3"]:
    """Rotation matrix of a quaternion wxyz, normalised first."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    row0 = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1)
    row1 = torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1)
    row2 = torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1)
    return torch.stack([row0, row1, row2], -2)


def quaternion_multiply(p: Float[Tensor, "*B 4"], q: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 4"]:
    """Hamilton product p (x) q, wxyz: the rotation q followed by the rotation p."""
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ],
        -1,
    )


def bind(
    local: LocalGaussians, vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], face_index: Int[Tensor, " N"]
) -> WorldGaussians:
    """Place Gaussians on a posed mesh: x = R x_local s + c, q = q_face (x) q_local, scale = exp(log_scale) s.

    Colours pass through; opacity is the sigmoid of its logit. In float32 on the CPU, with a mesh that needs no
    gradient, the fused kernels do it; otherwise ``bind_torch``.
    """
    tensors = [*local.tensors().values(), vertices]
    if all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and not vertices.requires_grad:
        from spatialavatar.splat.cpu.bind import bind_cpu  # here, because numba takes a second to import

        return bind_cpu(local, vertices, faces, face_index)
    return bind_torch(local, vertices, faces, face_index)


def bind_torch(
    local: LocalGaussians, vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], face_index: Int[Tensor, " N"]
) -> WorldGaussians:
    """``bind`` in plain torch, for any device and precision; differentiable in the mesh, too."""
    of_faces = triangle_frames(vertices, faces)
    rotation, scale = of_faces.rotation[:, face_index], of_faces.scale[:, face_index, None]
    means = (rotation @ local.position[..., None]).squeeze(-1) * scale + of_faces.centroid[:, face_index]
    face_quaternion = rotation_to_quaternion(of_faces.rotation)[:, face_index]
    local_rotation = torch.nn.functional.normalize(local.rotation, dim=-1)
    quats = quaternion_multiply(face_quaternion.expand_as(local_rotation), local_rotation)
    scales = local.log_scale.exp() * scale
    return WorldGaussians(means, quats, scales, local.color, torch.sigmoid(local.opacity_logit))


def _norm(x: Tensor) -> Tensor:
    """Length with a finite gradient at zero."""
    squared = (x * x).sum(-1)
    zero = squared < _TINY**2
    return torch.where(zero, torch.zeros_like(squared), torch.where(zero, torch.ones_like(squared), squared).sqrt())


def _unit(x: Tensor, fallback: Tensor, least: Tensor | float) -> Tensor:
    """x to unit length, or ``fallback`` where it is shorter than ``least``."""
    length = _norm(x)
    degenerate = (length < least)[..., None]
    length = length[..., None]
    return torch.where(degenerate, fallback, x / torch.where(degenerate, torch.ones_like(length), length))


def _any_direction(like: Tensor) -> Tensor:
    return like.new_tensor([1.0, 0.0, 0.0]).expand_as(like)


def _perpendicular(direction: Tensor) -> Tensor:
    """Some unit vector at right angles to a unit vector."""
    axes = torch.eye(3, dtype=direction.dtype, device=direction.device)
    least = axes[direction.abs().argmin(-1)]
    return torch.nn.functional.normalize(torch.linalg.cross(direction, least), dim=-1)
