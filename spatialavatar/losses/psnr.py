"""Mean squared error and PSNR of images in [0, 1]: no term of an objective, but what tells how far it has come."""

import torch
from jaxtyping import Float
from torch import Tensor

PSNR_CAP = 100.0  # dB: what equal images get, whose PSNR is infinite


def mse(a: Float[Tensor, "B H W C"], b: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """Mean squared error over pixels and channels."""
    return ((a - b) ** 2).mean((1, 2, 3))


def psnr(a: Float[Tensor, "B H W C"], b: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio in dB for a peak of 1, at most ``PSNR_CAP``."""
    least = 10 ** (-PSNR_CAP / 10)
    return -10 * torch.log10(mse(a, b).clamp(min=least))
