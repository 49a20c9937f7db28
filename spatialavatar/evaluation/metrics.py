"""Image metrics per image, on values in [0, 1] (method.md section 5).

Every metric takes pictures [B H W 3] and returns one number for each; all numbers are finite, because metrics files
are JSON. Higher is better for PSNR and SSIM, lower for MSE and LPIPS.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.losses import photometric
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.losses.psnr import PSNR_CAP, mse, psnr

__all__ = ["PSNR_CAP", "Lpips", "mean", "mse", "psnr", "ssim"]


def mean(values: Iterable[float | None]) -> float | None:
    """Of the numbers that there are, whatever their order; None without any."""
    present = [v for v in values if v is not None]
    return math.fsum(present) / len(present) if present else None


def ssim(a: Float[Tensor, "B H W C"], b: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """``losses.photometric.ssim``: 11 x 11 window of sigma 1.5, zero padding.

    RGB pictures in float32 on the CPU go through the loss's fused kernels, some fifty times faster.
    """
    if a.shape[-1] != 3 or a.requires_grad or b.requires_grad:
        return photometric.ssim(a, b)
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (a, b)):
        return photometric.ssim(a, b)
    from spatialavatar.losses.photometric_cpu import l1_and_ssim_cpu  # here, because numba takes a second to import

    everywhere, black = a.new_ones(a.shape[:3]), a.new_zeros(len(a), 3)
    return l1_and_ssim_cpu(a, everywhere, b, everywhere, black, 0.0, 1.0)[1]
