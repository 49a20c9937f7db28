"""Fused CPU kernel of ``aspect.aspect_loss_torch``: value and gradient of each Gaussian in one sweep.

The names are those of the twin: with U = J W R S in pixels, a = |U_0|^2, b = U_0 . U_1, c = |U_1|^2, n = U_0 x U_1,

    0.5 log(l_max / l_min) = log l_max - log |n|,   l_max = m + sqrt(d),   m = (a + c) / 2,   d = ((a - c) / 2)^2 + b^2.

Backward goes U -> J, R S -> means, quats, scales. Sums run over a fixed number of blocks of Gaussians, so results do
not depend on the number of threads or on the batch.
"""

import math
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from spatialavatar.splat.cpu.runtime import NAN_SAFE_FASTMATH, kernel, kernel_guard

_BLOCKS = 16  # of Gaussians, per subject: the grain of the parallel loop and of the sums
_LARGEST = np.float32(1e30)  # pixels^2
# The constants of aspect.py and splat/projection.py (a test compares them).
_NEAR, _FAR, _EPS2D, _FOOTPRINT, _JACOBIAN_MARGIN = (np.float32(v) for v in (0.01, 1e10, 0.3, 3.33, 0.15))
_LEAST_QUATERNION, _LEAST_MEAN, _LEAST_DISCRIMINANT, _LEAST_DETERMINANT = (
    np.float32(v) for v in (1e-30, 1e-16, 1e-12, 1e-24)
)
_ZERO, _HALF, _ONE, _TWO = (np.float32(v) for v in (0, 0.5, 1, 2))


def aspect_loss_cpu(
    means: Float[Tensor, "B N 3"],
    quats: Float[Tensor, "B N 4"],
    scales: Float[Tensor, "B N 3"],
    world_to_camera: Float[Tensor, "B 4 4"],
    intrinsics: Float[Tensor, "B 3 3"],
    width: int,
    height: int,
    tau: float,
) -> Float[Tensor, " B"]:
    """``aspect.aspect_loss`` in float32; differentiable in means, quats and scales."""
    # The kernel reads without looking; like the twin, it takes one subject in many views and many in one.
    batch, count = max(len(means), len(world_to_camera)), means.shape[1]
    means, quats, scales = (t.expand(batch, count, size) for t, size in ((means, 3), (quats, 4), (scales, 3)))
    world_to_camera, intrinsics = world_to_camera.expand(batch, 4, 4), intrinsics.expand(batch, 3, 3)
    loss: Tensor = _Aspect.apply(means, quats, scales, world_to_camera, intrinsics, width, height, tau)
    return loss


class _Aspect(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        world_to_camera: Tensor,
        intrinsics: Tensor,
        width: int,
        height: int,
        tau: float,
    ) -> Tensor:
        batch, count = means.shape[:2]
        arrays = [t.detach().contiguous().numpy() for t in (means, quats, scales, world_to_camera, intrinsics)]
        gradients = [np.empty((batch, count, size), np.float32) for size in (3, 4, 3)]
        sums, visible = np.empty((batch, _BLOCKS), np.float64), np.empty((batch, _BLOCKS), np.int64)
        with kernel_guard():
            _aspect(*arrays, float(width), float(height), float(tau), sums, visible, *gradients)
        ctx.gradients = [torch.from_numpy(gradient) for gradient in gradients]
        ctx.visible = torch.from_numpy(np.maximum(visible.sum(1), 1))
        return (torch.from_numpy(sums.sum(1)) / ctx.visible).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = (gradients[0] / ctx.visible).float()[:, None, None]
        means, quats, scales = (gradient * scale for gradient in ctx.gradients)
        return means, quats, scales, None, None, None, None, None


@kernel(parallel=True, fastmath=NAN_SAFE_FASTMATH)
def _aspect(  # type: ignore[no-untyped-def]
    means,
    quats,
    scales,
    world_to_camera,
    intrinsics,
    width,
    height,
    tau,
    sums,
    visible,
    means_gradient,
    quats_gradient,
    scales_gradient,
):
    """Sum and number of the visible Gaussians per block; gradients of the sum."""
    batch, count = means.shape[:2]
    for task in numba.prange(batch * _BLOCKS):
        b, block = task // _BLOCKS, task % _BLOCKS
        fx, fy, cx, cy = intrinsics[b, 0, 0], intrinsics[b, 1, 1], intrinsics[b, 0, 2], intrinsics[b, 1, 2]
        image_width, image_height, least = np.float32(width), np.float32(height), np.float32(tau)
        margin_x, margin_y = _JACOBIAN_MARGIN * image_width / fx, _JACOBIAN_MARGIN * image_height / fy
        least_squared_ratio = math.exp(_TWO * least)
        least_u, most_u = -cx / fx - margin_x, (image_width - cx) / fx + margin_x
        least_v, most_v = -cy / fy - margin_y, (image_height - cy) / fy + margin_y
        w = world_to_camera[b]
        total, seen = 0.0, 0
        for i in range(block * count // _BLOCKS, (block + 1) * count // _BLOCKS):
            means_gradient[b, i, :] = _ZERO
            quats_gradient[b, i, :] = _ZERO
            scales_gradient[b, i, :] = _ZERO
            m0, m1, m2 = means[b, i, 0], means[b, i, 1], means[b, i, 2]
            z = w[2, 0] * m0 + w[2, 1] * m1 + w[2, 2] * m2 + w[2, 3]
            if not _NEAR < z < _FAR:
                continue
            per_z = _ONE / z
            x_over_z = (w[0, 0] * m0 + w[0, 1] * m1 + w[0, 2] * m2 + w[0, 3]) * per_z
            y_over_z = (w[1, 0] * m0 + w[1, 1] * m1 + w[1, 2] * m2 + w[1, 3]) * per_z
            u, v = min(max(x_over_z, least_u), most_u), min(max(y_over_z, least_v), most_v)

            # J W: J has fx / z, -fx u / z in its first row, fy / z, -fy v / z in its second
            jx, jy = fx * per_z, fy * per_z
            x0, x1, x2 = jx * (w[0, 0] - u * w[2, 0]), jx * (w[0, 1] - u * w[2, 1]), jx * (w[0, 2] - u * w[2, 2])
            y0, y1, y2 = jy * (w[1, 0] - v * w[2, 0]), jy * (w[1, 1] - v * w[2, 1]), jy * (w[1, 2] - v * w[2, 2])

            # R of the normalised quaternion, and U = J W R S, of which p is the first row and q the second
            qw, qx, qy, qz = quats[b, i, 0], quats[b, i, 1], quats[b, i, 2], quats[b, i, 3]
            squared = qw * qw + qx * qx + qy * qy + qz * qz
            if not squared > _LEAST_QUATERNION:
                continue
            per_length = _ONE / math.sqrt(squared)
            qw, qx, qy, qz = qw * per_length, qx * per_length, qy * per_length, qz * per_length
            r00, r01, r02 = _ONE - _TWO * (qy * qy + qz * qz), _TWO * (qx * qy - qw * qz), _TWO * (qx * qz + qw * qy)
            r10, r11, r12 = _TWO * (qx * qy + qw * qz), _ONE - _TWO * (qx * qx + qz * qz), _TWO * (qy * qz - qw * qx)
            r20, r21, r22 = _TWO * (qx * qz - qw * qy), _TWO * (qy * qz + qw * qx), _ONE - _TWO * (qx * qx + qy * qy)
            s0, s1, s2 = scales[b, i, 0], scales[b, i, 1], scales[b, i, 2]
            # without S first: backward needs these rows for the scales
            e0, e1, e2 = x0 * r00 + x1 * r10 + x2 * r20, x0 * r01 + x1 * r11 + x2 * r21, x0 * r02 + x1 * r12 + x2 * r22
            f0, f1, f2 = y0 * r00 + y1 * r10 + y2 * r20, y0 * r01 + y1 * r11 + y2 * r21, y0 * r02 + y1 * r12 + y2 * r22
            p0, p1, p2 = e0 * s0, e1 * s1, e2 * s2
            q0, q1, q2 = f0 * s0, f1 * s1, f2 * s2
            covariance_a, covariance_c = p0 * p0 + p1 * p1 + p2 * p2, q0 * q0 + q1 * q1 + q2 * q2

            radius_x = np.ceil(_FOOTPRINT * math.sqrt(covariance_a + _EPS2D))
            radius_y = np.ceil(_FOOTPRINT * math.sqrt(covariance_c + _EPS2D))
            column, row = fx * x_over_z + cx, fy * y_over_z + cy
            across = column + radius_x > _ZERO and column - radius_x < image_width
            down = row + radius_y > _ZERO and row - radius_y < image_height
            finite = covariance_a + covariance_c < _LARGEST  # false for NaN, too
            if not (across and down and finite):
                continue
            seen += 1

            mean = _HALF * (covariance_a + covariance_c)
            floored = max(mean, _LEAST_MEAN)
            per_mean = _ONE / floored
            half_difference = _HALF * (covariance_a - covariance_c) * per_mean
            off_diagonal = (p0 * q0 + p1 * q1 + p2 * q2) * per_mean
            n0, n1, n2 = p1 * q2 - p2 * q1, p2 * q0 - p0 * q2, p0 * q1 - p1 * q0
            n0, n1, n2 = n0 * per_mean, n1 * per_mean, n2 * per_mean
            discriminant = half_difference * half_difference + off_diagonal * off_diagonal
            determinant = n0 * n0 + n1 * n1 + n2 * n2
            root = math.sqrt(max(discriminant, _LEAST_DISCRIMINANT))
            determinant = max(determinant, _LEAST_DETERMINANT)
            if (_ONE + root) * (_ONE + root) <= least_squared_ratio * determinant:
                continue
            total += math.log1p(root) - _HALF * math.log(determinant) - least

            # log(1 + root) - 0.5 log(determinant) in half_difference, off_diagonal, n, then in the mean, then in U
            in_square = _HALF / (root * (_ONE + root)) if discriminant > _LEAST_DISCRIMINANT else _ZERO
            in_half, in_off = _TWO * in_square * half_difference, _TWO * in_square * off_diagonal
            in_n = -_ONE / determinant if determinant > _LEAST_DETERMINANT else _ZERO
            in_mean = _ZERO
            if mean > _LEAST_MEAN:
                in_mean = -(in_half * half_difference + in_off * off_diagonal + in_n * determinant) * per_mean
            in_a, in_c = in_mean + in_half * per_mean, in_mean - in_half * per_mean  # of a and c, times two
            in_b = in_off * per_mean
            n0, n1, n2 = in_n * n0 * per_mean, in_n * n1 * per_mean, in_n * n2 * per_mean
            gp0 = in_a * p0 + in_b * q0 + q1 * n2 - q2 * n1
            gp1 = in_a * p1 + in_b * q1 + q2 * n0 - q0 * n2
            gp2 = in_a * p2 + in_b * q2 + q0 * n1 - q1 * n0
            gq0 = in_c * q0 + in_b * p0 + n1 * p2 - n2 * p1
            gq1 = in_c * q1 + in_b * p1 + n2 * p0 - n0 * p2
            gq2 = in_c * q2 + in_b * p2 + n0 * p1 - n1 * p0

            scales_gradient[b, i, 0] = gp0 * e0 + gq0 * f0
            scales_gradient[b, i, 1] = gp1 * e1 + gq1 * f1
            scales_gradient[b, i, 2] = gp2 * e2 + gq2 * f2

            # in the rows of J W: (gradient of U) S R^T
            gp0, gp1, gp2, gq0, gq1, gq2 = gp0 * s0, gp1 * s1, gp2 * s2, gq0 * s0, gq1 * s1, gq2 * s2
            gx0, gx1, gx2 = (
                gp0 * r00 + gp1 * r01 + gp2 * r02,
                gp0 * r10 + gp1 * r11 + gp2 * r12,
                gp0 * r20 + gp1 * r21 + gp2 * r22,
            )
            gy0, gy1, gy2 = (
                gq0 * r00 + gq1 * r01 + gq2 * r02,
                gq0 * r10 + gq1 * r11 + gq2 * r12,
                gq0 * r20 + gq1 * r21 + gq2 * r22,
            )
            # rows of J W are (fx / z) (W_0 - u W_2) and (fy / z) (W_1 - v W_2)
            in_u = -jx * (gx0 * w[2, 0] + gx1 * w[2, 1] + gx2 * w[2, 2])
            in_v = -jy * (gy0 * w[2, 0] + gy1 * w[2, 1] + gy2 * w[2, 2])
            in_x, in_y = _ZERO, _ZERO
            in_z = -(gx0 * x0 + gx1 * x1 + gx2 * x2 + gy0 * y0 + gy1 * y1 + gy2 * y2) * per_z
            if least_u <= x_over_z <= most_u:
                in_x = in_u * per_z
                in_z -= in_x * x_over_z
            if least_v <= y_over_z <= most_v:
                in_y = in_v * per_z
                in_z -= in_y * y_over_z
            for k in range(3):
                means_gradient[b, i, k] = in_x * w[0, k] + in_y * w[1, k] + in_z * w[2, k]

            # in R: (J W)^T (gradient of U) S, then in the unit quaternion, then in the quaternion
            g00, g01, g02 = x0 * gp0 + y0 * gq0, x0 * gp1 + y0 * gq1, x0 * gp2 + y0 * gq2
            g10, g11, g12 = x1 * gp0 + y1 * gq0, x1 * gp1 + y1 * gq1, x1 * gp2 + y1 * gq2
            g20, g21, g22 = x2 * gp0 + y2 * gq0, x2 * gp1 + y2 * gq1, x2 * gp2 + y2 * gq2
            gw = _TWO * (qx * (g21 - g12) + qy * (g02 - g20) + qz * (g10 - g01))
            gx = _TWO * (qy * (g01 + g10) + qz * (g02 + g20) + qw * (g21 - g12) - _TWO * qx * (g11 + g22))
            gy = _TWO * (qx * (g01 + g10) + qz * (g12 + g21) + qw * (g02 - g20) - _TWO * qy * (g00 + g22))
            gz = _TWO * (qx * (g02 + g20) + qy * (g12 + g21) + qw * (g10 - g01) - _TWO * qz * (g00 + g11))
            along = gw * qw + gx * qx + gy * qy + gz * qz
            quats_gradient[b, i, 0] = (gw - along * qw) * per_length
            quats_gradient[b, i, 1] = (gx - along * qx) * per_length
            quats_gradient[b, i, 2] = (gy - along * qy) * per_length
            quats_gradient[b, i, 3] = (gz - along * qz) * per_length
        sums[b, block] = total
        visible[b, block] = seen
