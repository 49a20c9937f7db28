"""MS-SSIM in its multi-sigma form at full resolution (Zhao et al. 2017, "Loss functions for image restoration").

With Gaussian windows of sigma in {0.5, 1, 2, 4, 8} pixels, for each channel and pixel p

    MS-SSIM(p) = l_8(p) x product over sigma of cs_sigma(p),
    l  = (2 mu_a mu_b + C1) / (mu_a^2 + mu_b^2 + C1),
    cs = (2 cov_ab + C2) / (var_a + var_b + C2),

all exponents 1, C1 and C2 as in SSIM, and the mean over pixels and channels; the loss is 1 - MS-SSIM (method.md
section 3). A window reaches 4 sigma to each side (scipy's default; 6e-5 of the weight lies beyond) and sees zeros
outside the image, so that every pixel counts. Zhao et al. cut every window to 33 x 33 pixels, 2 sigma for the widest.

A blur is two products with banded matrices, M_H X M_W. That is more arithmetic than a separable convolution, and on
the CPU fifteen times quicker; the width of the window costs nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.losses.photometric import C1, C2

SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)  # pixels
TRUNCATE = 4.0  # standard deviations on each side


def ms_ssim(a: Float[Tensor, "B H W C"], b: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """Similarity of images in [0, 1], 1 for equal ones; computed in float32 at least, under autocast, too."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    first, second = (picture.to(dtype).movedim(-1, 1) for picture in (a, b))
    moments = torch.stack([first, first * first + second * second, first * second])
    similarity = torch.ones((), dtype=dtype, device=a.device)
    for sigma in SIGMAS:
        mean_a, squares, product = blur(moments, sigma).unbind()
        mean_b = blur(second, sigma)  # by itself, because a target needs no backward
        mean_product, mean_squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
        similarity = similarity * (2 * (product - mean_product) + C2) / (squares - mean_squares + C2)
    luminance = (2 * mean_product + C1) / (mean_squares + C1)  # at the last, the widest sigma
    return (similarity * luminance).mean((1, 2, 3))


def blur(planes: Float[Tensor, "*P H W"], sigma: float) -> Float[Tensor, "*P H W"]:
    """Gaussian blur over zero padding."""
    blurred: Tensor = _Blur.apply(planes, sigma)
    return blurred


@cache
def band(size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "S S"]:
    """The symmetric matrix that blurs along one axis; the untruncated rows sum to 1."""
    radius = round(TRUNCATE * sigma)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    total = torch.exp(-(offset**2) / (2 * sigma**2)).sum()
    position = torch.arange(size, dtype=torch.float64)
    apart = (position[:, None] - position).abs()
    weights = torch.exp(-(apart**2) / (2 * sigma**2)) / total
    return torch.where(apart <= radius, weights, 0.0).to(device, dtype)


class _Blur(torch.autograd.Function):
    """Its own adjoint, because the matrices are symmetric; so the backward, too, is kept from low precision."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, sigma: float) -> Tensor:
        ctx.sigma = sigma
        height, width = planes.shape[-2:]
        with _full_precision(planes.device):
            rows = band(height, sigma, planes.dtype, planes.device) @ planes
            return rows @ band(width, sigma, planes.dtype, planes.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return blur(gradients[0], ctx.sigma), None


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32: E[x^2] - E[x]^2 beside C2 = 9e-4 has no room for ten bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
