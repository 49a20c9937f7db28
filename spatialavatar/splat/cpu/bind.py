"""Fused CPU kernels of ``splat.binding.bind_torch``: Gaussians placed on a posed mesh, and the exact way back.

The frame of each face is computed once, then each Gaussian reads its parent's. No gradient flows to the mesh, which
is frozen wherever speed matters; ``splat.binding.bind_torch`` has that gradient, too.
"""

import math
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.splat.cpu.runtime import NAN_SAFE_FASTMATH, kernel, kernel_guard
from spatialavatar.splat.gaussians import LocalGaussians, WorldGaussians

_BLOCKS = 16  # of faces or Gaussians, per subject: the grain of the parallel loops
_TINY, _SLIVER = np.float32(1e-12), np.float32(1e-4)  # as in binding.py
_ZERO, _HALF, _ONE, _THREE = (np.float32(v) for v in (0, 0.5, 1, 3))

# Columns of a face's frame: centroid 3, rotation 9 (row-major), quaternion 4 (wxyz), scale.
_CENTROID, _ROTATION, _QUATERNION, _SCALE, _FRAME_SIZE = 0, 3, 12, 16, 17


def bind_cpu(
    local: LocalGaussians, vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], face_index: Int[Tensor, " N"]
) -> WorldGaussians:
    """``splat.binding.bind_torch`` for float32 on the CPU; differentiable in the local Gaussians alone.

    Raises SpatialAvatarError when ``vertices`` require a gradient, or when types or batches do not fit.
    """
    if vertices.requires_grad:
        raise SpatialAvatarError(
            "bind_cpu has no gradient for the mesh: detach the vertices, or use spatialavatar.splat.binding.bind_torch"
        )
    for name, tensor in {**local.tensors(), "vertices": vertices}.items():
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            raise SpatialAvatarError(
                f"bind_cpu takes float32 on the CPU, but {name} is {tensor.dtype} on {tensor.device}: "
                "convert it, or use spatialavatar.splat.binding.bind_torch"
            )
    if vertices.shape[0] != local.batch or face_index.shape[0] != local.count:
        raise SpatialAvatarError(
            f"bind_cpu: {local.batch} x {local.count} Gaussians do not fit {vertices.shape[0]} meshes "
            f"and {face_index.shape[0]} parent faces"
        )
    for name, index, size in (("face_index", face_index, faces.shape[0]), ("faces", faces, vertices.shape[1])):
        if index.numel() and not (index.min() >= 0 and index.max() < size):  # the kernels read without looking
            raise SpatialAvatarError(
                f"bind_cpu: {name} must lie in 0..{size - 1}; head and UV layout do not fit together"
            )
    frames = _face_frames(vertices, faces)
    means, quats, scales = _Bind.apply(local.position, local.rotation, local.log_scale, frames, face_index)
    # row by row: torch rounds the last few elements of an array otherwise than the rest, which would tie a subject's
    # numbers to its place in the batch
    opacities = torch.stack([torch.sigmoid(row) for row in local.opacity_logit])
    return WorldGaussians(means, quats, scales, local.color, opacities)


def _face_frames(vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"]) -> np.ndarray:
    """``binding.triangle_frames`` and their quaternions, [B, F, 17]."""
    frames = np.empty((vertices.shape[0], faces.shape[0], _FRAME_SIZE), np.float32)
    with kernel_guard():
        _frames(vertices.contiguous().numpy(), faces.long().contiguous().numpy(), frames)
    return frames


class _Bind(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, position: Tensor, rotation: Tensor, log_scale: Tensor, frames: np.ndarray, face_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        parents = face_index.long().contiguous().numpy()
        rotation = rotation.detach().contiguous()
        means, quats = (torch.empty(t.shape, dtype=torch.float32) for t in (position, rotation))
        # vectorised, unlike a kernel's, and row by row as the opacities; times s in the kernel
        scales = torch.stack([row.exp() for row in log_scale.detach()])
        with kernel_guard():
            _place(
                position.detach().contiguous().numpy(),
                rotation.numpy(),
                frames,
                parents,
                means.numpy(),
                quats.numpy(),
                scales.numpy(),
            )
        ctx.frames, ctx.parents = frames, parents
        ctx.save_for_backward(rotation, scales)
        return means, quats, scales

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rotation, scales = ctx.saved_tensors
        means_gradient, quats_gradient, scales_gradient = gradients
        in_position, in_rotation = (torch.empty(t.shape, dtype=torch.float32) for t in gradients[:2])
        with kernel_guard():
            _place_backward(
                means_gradient.contiguous().numpy(),
                quats_gradient.contiguous().numpy(),
                rotation.numpy(),
                ctx.frames,
                ctx.parents,
                in_position.numpy(),
                in_rotation.numpy(),
            )
        return in_position, in_rotation, scales_gradient * scales, None, None


@kernel(parallel=True, fastmath=NAN_SAFE_FASTMATH)
def _place(position, rotation, frames, parents, means, quats, scales):  # type: ignore[no-untyped-def]
    """x = R x_local s + c; q = q_face (x) unit(q_local); ``scales`` holds exp(log_scale) and is multiplied by s."""
    batch, count = position.shape[:2]
    for task in numba.prange(batch * _BLOCKS):
        b, block = task // _BLOCKS, task % _BLOCKS
        for i in range(block * count // _BLOCKS, (block + 1) * count // _BLOCKS):
            frame = frames[b, parents[i]]
            scale = frame[_SCALE]
            x, y, z = position[b, i, 0] * scale, position[b, i, 1] * scale, position[b, i, 2] * scale
            for k in range(3):
                row = _ROTATION + 3 * k
                means[b, i, k] = frame[row] * x + frame[row + 1] * y + frame[row + 2] * z + frame[_CENTROID + k]
                scales[b, i, k] *= scale

            w, x, y, z = rotation[b, i, 0], rotation[b, i, 1], rotation[b, i, 2], rotation[b, i, 3]
            per_length = _ONE / max(math.sqrt(w * w + x * x + y * y + z * z), _TINY)
            w, x, y, z = w * per_length, x * per_length, y * per_length, z * per_length
            pw, px, py, pz = frame[_QUATERNION], frame[_QUATERNION + 1], frame[_QUATERNION + 2], frame[_QUATERNION + 3]
            quats[b, i, 0] = pw * w - px * x - py * y - pz * z
            quats[b, i, 1] = pw * x + px * w + py * z - pz * y
            quats[b, i, 2] = pw * y - px * z + py * w + pz * x
            quats[b, i, 3] = pw * z + px * y - py * x + pz * w


@kernel(parallel=True, fastmath=NAN_SAFE_FASTMATH)
def _place_backward(  # type: ignore[no-untyped-def]
    means_gradient, quats_gradient, rotation, frames, parents, in_position, in_rotation
):
    """Gradients in the local position, s R^T g, and in the local rotation: conj(q_face) (x) g through unit()."""
    batch, count = means_gradient.shape[:2]
    for task in numba.prange(batch * _BLOCKS):
        b, block = task // _BLOCKS, task % _BLOCKS
        for i in range(block * count // _BLOCKS, (block + 1) * count // _BLOCKS):
            frame = frames[b, parents[i]]
            scale = frame[_SCALE]
            x, y, z = means_gradient[b, i, 0], means_gradient[b, i, 1], means_gradient[b, i, 2]
            for k in range(3):
                column = _ROTATION + k
                in_position[b, i, k] = scale * (frame[column] * x + frame[column + 3] * y + frame[column + 6] * z)

            gw, gx, gy, gz = (
                quats_gradient[b, i, 0],
                quats_gradient[b, i, 1],
                quats_gradient[b, i, 2],
                quats_gradient[b, i, 3],
            )
            pw, px, py, pz = frame[_QUATERNION], frame[_QUATERNION + 1], frame[_QUATERNION + 2], frame[_QUATERNION + 3]
            uw = pw * gw + px * gx + py * gy + pz * gz
            ux = pw * gx - px * gw - py * gz + pz * gy
            uy = pw * gy + px * gz - py * gw - pz * gx
            uz = pw * gz - px * gy + py * gx - pz * gw
            w, x, y, z = rotation[b, i, 0], rotation[b, i, 1], rotation[b, i, 2], rotation[b, i, 3]
            per_length = _ONE / max(math.sqrt(w * w + x * x + y * y + z * z), _TINY)
            w, x, y, z = w * per_length, x * per_length, y * per_length, z * per_length
            along = uw * w + ux * x + uy * y + uz * z
            in_rotation[b, i, 0] = (uw - along * w) * per_length
            in_rotation[b, i, 1] = (ux - along * x) * per_length
            in_rotation[b, i, 2] = (uy - along * y) * per_length
            in_rotation[b, i, 3] = (uz - along * z) * per_length


@kernel(parallel=True, fastmath=NAN_SAFE_FASTMATH)
def _frames(vertices, faces, frames):  # type: ignore[no-untyped-def]
    """``binding.triangle_frames`` with its fallbacks on degenerate triangles."""
    batch, count = vertices.shape[0], faces.shape[0]
    for task in numba.prange(batch * _BLOCKS):
        b, block = task // _BLOCKS, task % _BLOCKS
        for f in range(block * count // _BLOCKS, (block + 1) * count // _BLOCKS):
            frame = frames[b, f]
            v0, v1, v2 = vertices[b, faces[f, 0]], vertices[b, faces[f, 1]], vertices[b, faces[f, 2]]
            for k in range(3):
                frame[_CENTROID + k] = (v0[k] + v1[k] + v2[k]) / _THREE

            ax, ay, az = v1[0] - v0[0], v1[1] - v0[1], v1[2] - v0[2]
            sx, sy, sz = v2[0] - v0[0], v2[1] - v0[1], v2[2] - v0[2]
            length = math.sqrt(ax * ax + ay * ay + az * az)
            if length < _TINY:
                length, ax, ay, az = _ZERO, _ONE, _ZERO, _ZERO
            else:
                ax, ay, az = ax / length, ay / length, az / length
            nx, ny, nz = ay * sz - az * sy, az * sx - ax * sz, ax * sy - ay * sx
            area = math.sqrt(nx * nx + ny * ny + nz * nz)
            if area < _SLIVER * math.sqrt(sx * sx + sy * sy + sz * sz) + _TINY:
                # some direction at right angles: a0 x the axis that a0 has least of
                if abs(ax) <= abs(ay) and abs(ax) <= abs(az):
                    nx, ny, nz = _ZERO, az, -ay
                elif abs(ay) <= abs(az):
                    nx, ny, nz = -az, _ZERO, ax
                else:
                    nx, ny, nz = ay, -ax, _ZERO
                area = math.sqrt(nx * nx + ny * ny + nz * nz)
            nx, ny, nz = nx / area, ny / area, nz / area
            bx, by, bz = ay * nz - az * ny, az * nx - ax * nz, ax * ny - ay * nx
            height = abs(bx * sx + by * sy + bz * sz)
            frame[_SCALE] = (length + height) * _HALF
            frame[_ROTATION + 0], frame[_ROTATION + 1], frame[_ROTATION + 2] = ax, nx, bx
            frame[_ROTATION + 3], frame[_ROTATION + 4], frame[_ROTATION + 5] = ay, ny, by
            frame[_ROTATION + 6], frame[_ROTATION + 7], frame[_ROTATION + 8] = az, nz, bz
            _rotation_to_quaternion(frame)


@kernel(inline=True, fastmath=NAN_SAFE_FASTMATH)
def _rotation_to_quaternion(frame):  # type: ignore[no-untyped-def]
    """``binding.rotation_to_quaternion`` of the frame's rotation, into its quaternion."""
    m00, m01, m02 = frame[_ROTATION + 0], frame[_ROTATION + 1], frame[_ROTATION + 2]
    m10, m11, m12 = frame[_ROTATION + 3], frame[_ROTATION + 4], frame[_ROTATION + 5]
    m20, m21, m22 = frame[_ROTATION + 6], frame[_ROTATION + 7], frame[_ROTATION + 8]
    # four times the square of each of w, x, y, z; the largest names the best conditioned branch
    ww, xx, yy, zz = _ONE + m00 + m11 + m22, _ONE + m00 - m11 - m22, _ONE - m00 + m11 - m22, _ONE - m00 - m11 + m22
    if ww >= xx and ww >= yy and ww >= zz:
        w, x, y, z = ww, m21 - m12, m02 - m20, m10 - m01
    elif xx >= yy and xx >= zz:
        w, x, y, z = m21 - m12, xx, m10 + m01, m02 + m20
    elif yy >= zz:
        w, x, y, z = m02 - m20, m10 + m01, yy, m21 + m12
    else:
        w, x, y, z = m10 - m01, m02 + m20, m21 + m12, zz
    length = math.sqrt(w * w + x * x + y * y + z * z)
    frame[_QUATERNION + 0], frame[_QUATERNION + 1] = w / length, x / length
    frame[_QUATERNION + 2], frame[_QUATERNION + 3] = y / length, z / length
