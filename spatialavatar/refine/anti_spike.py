"""The hard part of the anti-spike regularisation: bounds on the log-scales (method.md section 4 (b); paper A.4).

Its soft part, the aspect loss, is in losses/aspect.py; the frozen start is in the loop.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def clamp_log_scale(
    log_scale: Float[Tensor, "*B N 3"],
    initial: Float[Tensor, "*B N 3"],
    aspect_bound: float,  # largest over smallest scale
    scale_range: float,  # a scale stays within initial / range .. initial * range
) -> Float[Tensor, "*B N 3"]:
    """First each log-scale to its absolute range, then its deviation from the Gaussian's mean to +- log(bound) / 2.

    The result's aspect ratio is at most ``aspect_bound`` for every Gaussian.
    """
    reach = math.log(scale_range)
    half = math.log(aspect_bound) / 2
    bounded = torch.minimum(torch.maximum(log_scale, initial - reach), initial + reach)
    mean = bounded.mean(-1, keepdim=True)
    return mean + (bounded - mean).clamp(-half, half)


def max_aspect_ratio(log_scale: Float[Tensor, "*B N 3"]) -> float:
    """Largest over all Gaussians of largest over smallest scale."""
    spread = log_scale.double().amax(-1) - log_scale.double().amin(-1)
    return math.exp(float(spread.max()))
