"""Fused CPU kernels of ``photometric.photometric_loss_torch``: values in one sweep, gradients in a second.

The pictures are composited into planes (one per image and channel). SSIM needs four blurred moments of prediction p
and target y there, E[p], E[y], E[p^2 + y^2] and E[p y]: the variances only ever appear as a sum. Forward keeps the
derivatives of SSIM in E[p], E[p^2] and E[p y] at each pixel; backward blurs those three (the blur is its own
adjoint) and combines them:

    dSSIM/dp = blur(d/dE[p]) + 2 p blur(d/dE[p^2]) + y blur(d/dE[p y]).

Sums run over a fixed number of row blocks, so results do not depend on the number of threads or on the batch.
"""

from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.splat.cpu.runtime import NAN_SAFE_FASTMATH, kernel, kernel_guard

_BLOCKS = 16  # of rows, per image: the grain of the parallel loops and of the sums
_RADIUS = 5
# Half of photometric.window() (a test compares them), and its stabilising constants.
_W0, _W1, _W2, _W3, _W4, _W5 = (
    np.float32(w) for w in (0.00102838, 0.00759876, 0.03600077, 0.10936069, 0.21300554, 0.26601173)
)
_WINDOW = (_W0, _W1, _W2, _W3, _W4, _W5, _W4, _W3, _W2, _W1, _W0)
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


def l1_and_ssim_cpu(
    features: Float[Tensor, "B H W C"],
    alpha: Float[Tensor, "B H W"],
    target: Float[Tensor, "B H W 3"],
    region: Float[Tensor, "B H W"],
    background: Float[Tensor, "B 3"],
    l1_weight: float,
    ssim_weight: float,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """(l1, ssim, total) as in ``PhotometricTerms``; ``total`` is differentiable in features and alpha. float32.

    Raises SpatialAvatarError where the shapes do not fit together: the kernels read without looking.
    """
    shape = tuple(alpha.shape)
    expected = (
        ("features", features[..., :3], (*shape, 3)),
        ("target", target, (*shape, 3)),
        ("region", region, shape),
        ("background", background, (*shape[:1], 3)),
    )
    for name, tensor, size in expected:
        if tuple(tensor.shape) != size:
            raise SpatialAvatarError(f"photometric loss: {name} is {tuple(tensor.shape)}, {size} fits alpha {shape}")
    terms: tuple[Tensor, Tensor, Tensor] = _L1AndSsim.apply(
        features, alpha, target, region, background, l1_weight, ssim_weight
    )
    return terms


class _L1AndSsim(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        alpha: Tensor,
        target: Tensor,
        region: Tensor,
        background: Tensor,
        l1_weight: float,
        ssim_weight: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, height, width, channels = features.shape
        arrays = [t.detach().contiguous().numpy() for t in (features, alpha, target, region, background)]
        prediction_planes, target_planes = (np.empty((batch * 3, height, width), np.float32) for _ in range(2))
        derivatives = np.empty((3, batch * 3, height, width), np.float32)
        l1_sums, ssim_sums = (np.empty((batch, _BLOCKS), np.float64) for _ in range(2))
        with kernel_guard():
            _composite_planes(*arrays, prediction_planes, target_planes, l1_sums)
            _ssim_and_derivatives(prediction_planes, target_planes, derivatives, ssim_sums)
        count = height * width * 3
        l1 = torch.from_numpy(l1_sums.sum(1) / count)
        similarity = torch.from_numpy(ssim_sums.sum(1) / count)
        total = l1_weight * l1 + ssim_weight * (1 - similarity)
        ctx.planes = prediction_planes, target_planes, derivatives, arrays[3], arrays[4]
        ctx.weights = l1_weight / count, -ssim_weight / count
        ctx.channels = channels
        l1, similarity = l1.float(), similarity.float()
        ctx.mark_non_differentiable(l1, similarity)
        return l1, similarity, total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        prediction_planes, target_planes, derivatives, region, background = ctx.planes
        weights = np.array(ctx.weights) * gradients[2].double().numpy()[:, None]
        make = np.empty if ctx.channels == 3 else np.zeros
        features_gradient = make((*region.shape, ctx.channels), np.float32)
        alpha_gradient = np.empty(region.shape, np.float32)
        with kernel_guard():
            _gradients(
                prediction_planes,
                target_planes,
                derivatives,
                region,
                background,
                weights.astype(np.float32),
                features_gradient,
                alpha_gradient,
            )
        return torch.from_numpy(features_gradient), torch.from_numpy(alpha_gradient), None, None, None, None, None


@kernel(parallel=True, fastmath=NAN_SAFE_FASTMATH)
def _composite_planes(features, alpha, target, region, background, prediction_planes, target_planes, l1_sums):  # type: ignore[no-untyped-def]
    """``photometric.composite_rendering``, the target beside it in planes, and the sums of |p - y|."""
    batch, height, width = region.shape
    for task in numba.prange(batch * _BLOCKS):
        b, block = task // _BLOCKS, task % _BLOCKS
        total = 0.0
        for y in range(block * height // _BLOCKS, (block + 1) * height // _BLOCKS):
            for c in range(3):
                colour = background[b, c]
                p_row, y_row = prediction_planes[b * 3 + c, y], target_planes[b * 3 + c, y]
                row_sum = _ZERO
                for x in range(width):
                    p = colour + region[b, y, x] * (features[b, y, x, c] - alpha[b, y, x] * colour)
                    t = target[b, y, x, c]
                    p_row[x] = p
                    y_row[x] = t
                    row_sum += abs(p - t)
                total += row_sum
        l1_sums[b, block] = total


@kernel(parallel=True, fastmath=NAN_SAFE_FASTMATH)
def _ssim_and_derivatives(prediction_planes, target_planes, derivatives, ssim_sums):  # type: ignore[no-untyped-def]
    """Sums of SSIM over pixels and channels, and its derivatives in E[p], E[p^2], E[p y] at each pixel."""
    height, width = prediction_planes.shape[1:]
    for task in numba.prange(ssim_sums.size):
        b, block = task // _BLOCKS, task % _BLOCKS
        columns = np.zeros((4, width + 2 * _RADIUS), np.float32)
        moments = np.empty((4, width), np.float32)
        total = 0.0
        for plane in range(b * 3, b * 3 + 3):
            for y in range(block * height // _BLOCKS, (block + 1) * height // _BLOCKS):
                columns[:] = _ZERO
                for k in range(max(0, _RADIUS - y), min(2 * _RADIUS + 1, height + _RADIUS - y)):
                    row = y + k - _RADIUS
                    _add_moments(prediction_planes[plane, row], target_planes[plane, row], _WINDOW[k], columns)
                for i in range(4):
                    _blur_along_row(columns[i], moments[i])
                total += _ssim_row(
                    moments, derivatives[0, plane, y], derivatives[1, plane, y], derivatives[2, plane, y]
                )
        ssim_sums[b, block] = total


@kernel(parallel=True, fastmath=NAN_SAFE_FASTMATH)
def _gradients(  # type: ignore[no-untyped-def]
    prediction_planes, target_planes, derivatives, region, background, weights, features_gradient, alpha_gradient
):
    """Gradients of weights[b, 0] sum |p - y| + weights[b, 1] sum SSIM in the rendering's features and alpha."""
    batch, height, width = region.shape
    for task in numba.prange(batch * _BLOCKS):
        b, block = task // _BLOCKS, task % _BLOCKS
        l1_weight, ssim_weight = weights[b, 0], weights[b, 1]
        columns = np.zeros((3, width + 2 * _RADIUS), np.float32)
        blurred = np.empty((3, width), np.float32)
        row_gradient, alpha_row = np.empty(width, np.float32), np.empty(width, np.float32)
        for y in range(block * height // _BLOCKS, (block + 1) * height // _BLOCKS):
            alpha_row[:] = _ZERO
            for c in range(3):
                plane = b * 3 + c
                columns[:] = _ZERO
                for k in range(max(0, _RADIUS - y), min(2 * _RADIUS + 1, height + _RADIUS - y)):
                    row = y + k - _RADIUS
                    for i in range(3):
                        _add_scaled(derivatives[i, plane, row], _WINDOW[k], columns[i])
                for i in range(3):
                    _blur_along_row(columns[i], blurred[i])
                _gradient_row(
                    prediction_planes[plane, y],
                    target_planes[plane, y],
                    blurred,
                    l1_weight,
                    ssim_weight,
                    region[b, y],
                    row_gradient,
                )
                colour = background[b, c]
                for x in range(width):
                    alpha_row[x] -= colour * row_gradient[x]
                for x in range(width):
                    features_gradient[b, y, x, c] = row_gradient[x]
            for x in range(width):
                alpha_gradient[b, y, x] = alpha_row[x]


@kernel(inline=True, fastmath=NAN_SAFE_FASTMATH)
def _add_moments(p_row, y_row, weight, columns):  # type: ignore[no-untyped-def]
    p_sum, y_sum, square_sum, product_sum = columns[0, 5:], columns[1, 5:], columns[2, 5:], columns[3, 5:]
    for x in range(p_row.size):
        p, y = p_row[x], y_row[x]
        wp, wy = weight * p, weight * y
        p_sum[x] += wp
        y_sum[x] += wy
        square_sum[x] += wp * p + wy * y
        product_sum[x] += wp * y


@kernel(inline=True, fastmath=NAN_SAFE_FASTMATH)
def _add_scaled(row, weight, column):  # type: ignore[no-untyped-def]
    inner = column[5:]
    for x in range(row.size):
        inner[x] += weight * row[x]


@kernel(inline=True, fastmath=NAN_SAFE_FASTMATH)
def _blur_along_row(padded, blurred):  # type: ignore[no-untyped-def]
    for x in range(blurred.size):
        blurred[x] = (
            _W0 * (padded[x] + padded[x + 10])
            + _W1 * (padded[x + 1] + padded[x + 9])
            + _W2 * (padded[x + 2] + padded[x + 8])
            + _W3 * (padded[x + 3] + padded[x + 7])
            + _W4 * (padded[x + 4] + padded[x + 6])
            + _W5 * padded[x + 5]
        )


@kernel(inline=True, fastmath=NAN_SAFE_FASTMATH)
def _ssim_row(moments, in_mean, in_square, in_product):  # type: ignore[no-untyped-def]
    """The sum of SSIM over one row; fills its derivatives in E[p], E[p^2] and E[p y]."""
    total = _ZERO
    for x in range(in_mean.size):
        mean_p, mean_y, squares, product = moments[0, x], moments[1, x], moments[2, x], moments[3, x]
        square_of_means = mean_p * mean_p + mean_y * mean_y
        luminance = _TWO * mean_p * mean_y + _C1
        structure = _TWO * (product - mean_p * mean_y) + _C2
        per_luminance = _ONE / (square_of_means + _C1)
        per_structure = _ONE / (squares - square_of_means + _C2)
        scale = per_luminance * per_structure
        value = luminance * structure * scale
        total += value
        square = -value * per_structure
        cross = _TWO * luminance * scale
        in_square[x] = square
        in_product[x] = cross
        in_mean[x] = (
            _TWO * mean_y * structure * scale - _TWO * mean_p * (value * per_luminance + square) - mean_y * cross
        )
    return total


@kernel(inline=True, fastmath=NAN_SAFE_FASTMATH)
def _gradient_row(p_row, y_row, blurred, l1_weight, ssim_weight, region_row, gradient):  # type: ignore[no-untyped-def]
    for x in range(gradient.size):
        p, y = p_row[x], y_row[x]
        sign = l1_weight if p > y else (-l1_weight if p < y else _ZERO)
        similarity = blurred[0, x] + _TWO * p * blurred[1, x] + y * blurred[2, x]
        gradient[x] = region_row[x] * (sign + ssim_weight * similarity)
