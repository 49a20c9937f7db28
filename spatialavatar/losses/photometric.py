"""The photometric loss of the refinement: 0.8 L1 + 0.2 (1 - SSIM) over one random background (method.md section 4).

Everything here is the readable specification in torch. ``photometric_loss`` takes the fused twin in
``photometric_cpu.py`` for float32 on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

if TYPE_CHECKING:
    from spatialavatar.splat.rasterize import Rendering

WINDOW_RADIUS = 5  # pixels: an 11 x 11 window (Wang et al. 2004)
WINDOW_SIGMA = 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


@dataclass(frozen=True)
class PhotometricTerms:
    """The loss of each image and its two parts; gradients flow from ``total`` alone."""

    l1: Float[Tensor, " B"]  # mean absolute difference over pixels and channels
    ssim: Float[Tensor, " B"]  # structural similarity, 1 for equal images
    total: Float[Tensor, " B"]  # l1_weight * l1 + ssim_weight * (1 - ssim)


def composite(
    image: Float[Tensor, "B H W 3"],
    coverage: Float[Tensor, "B H W"],  # matte inside the region of interest, 0 outside
    background: Float[Tensor, "B 3"],
) -> Float[Tensor, "B H W 3"]:
    """The target over a background b: m I + (1 - m) b inside the region of interest, b outside."""
    return torch.lerp(background[:, None, None], image, coverage[..., None])


def composite_rendering(
    features: Float[Tensor, "B H W C"],
    alpha: Float[Tensor, "B H W"],
    region: Float[Tensor, "B H W"],
    background: Float[Tensor, "B 3"],
) -> Float[Tensor, "B H W 3"]:
    """The prediction over the same background: F + (1 - alpha) b inside the region, b outside.

    F are the first three channels of the premultiplied ``features``.
    """
    colour = background[:, None, None]
    return colour + region[..., None] * (features[..., :3] - alpha[..., None] * colour)


def ssim(a: Float[Tensor, "B H W C"], b: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """Structural similarity of images in [0, 1], mean over pixels and channels (Wang et al. 2004, eq. 13).

    11 x 11 Gaussian window of sigma 1.5 over zero padding, so that every pixel counts, those at the border too.
    """
    batch, height, width, channels = a.shape
    first = a.movedim(-1, 1).reshape(batch * channels, 1, height, width)
    second = b.movedim(-1, 1).reshape(batch * channels, 1, height, width)
    moments = torch.cat([first, second, first * first, second * second, first * second])
    mean_a, mean_b, square_a, square_b, product = _blur(moments).chunk(5)
    variance_a, variance_b = square_a - mean_a * mean_a, square_b - mean_b * mean_b
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return (luminance * structure).reshape(batch, -1).mean(-1)


def photometric_loss(
    rendering: Rendering,
    target: Float[Tensor, "B H W 3"],
    region: Float[Tensor, "B H W"],
    background: Float[Tensor, "B 3"],
    *,
    l1_weight: float = 0.8,
    ssim_weight: float = 0.2,
) -> PhotometricTerms:
    """Loss of a rendering against a target made by ``composite`` with the same region and background.

    Only the first three feature channels count. Differentiable in the rendering's features and alpha.
    """
    features, alpha = rendering.features, rendering.alpha
    inputs = (features, alpha, target, region, background)
    given = (target, region, background)
    if all(t.device.type == "cpu" and t.dtype == torch.float32 for t in inputs) and not any(
        t.requires_grad for t in given
    ):
        from spatialavatar.losses.photometric_cpu import l1_and_ssim_cpu  # here, because numba takes a second to import

        return PhotometricTerms(*l1_and_ssim_cpu(*inputs, l1_weight, ssim_weight))
    return photometric_loss_torch(rendering, target, region, background, l1_weight=l1_weight, ssim_weight=ssim_weight)


def photometric_loss_torch(
    rendering: Rendering,
    target: Float[Tensor, "B H W 3"],
    region: Float[Tensor, "B H W"],
    background: Float[Tensor, "B 3"],
    *,
    l1_weight: float = 0.8,
    ssim_weight: float = 0.2,
) -> PhotometricTerms:
    """The twin of the fused kernels, for any device and precision."""
    prediction = composite_rendering(rendering.features, rendering.alpha, region, background)
    l1 = (prediction - target).abs().mean((1, 2, 3))
    similarity = ssim(prediction, target)
    total = l1_weight * l1 + ssim_weight * (1 - similarity)
    return PhotometricTerms(l1.detach(), similarity.detach(), total)


@cache
def window(dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Float[Tensor, " 11"]:
    """The Gaussian window along one axis; its sum is 1."""
    offset = torch.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-(offset**2) / (2 * WINDOW_SIGMA**2))
    return (weights / weights.sum()).to(device, dtype)


def _blur(planes: Float[Tensor, "P 1 H W"]) -> Float[Tensor, "P 1 H W"]:
    weights = window(planes.dtype, planes.device)
    # E[x^2] - E[x]^2 beside C2 = 9e-4 has no room for TF32's ten bits
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        rows = conv2d(planes, weights.view(1, 1, -1, 1), padding=(WINDOW_RADIUS, 0))
        return conv2d(rows, weights.view(1, 1, 1, -1), padding=(0, WINDOW_RADIUS))
