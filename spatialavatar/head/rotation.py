"""Rotations as axis-angle vectors and matrices."""

import torch
from jaxtyping import Float
from torch import Tensor


def axis_angle_to_matrix(axis_angle: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Rodrigues' formula R = I + a K + b K^2 with a = sin(t)/t, b = (1 - cos t)/t^2; radians.

    Smooth at zero: below 1e-4 rad (in t^2: 1e-8) a and b come from their series, whose gradient is finite.
    """
    squared = (axis_angle * axis_angle).sum(-1)
    small = squared < 1e-8
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    a = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
    b = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / safe)
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + a[..., None, None] * skew + b[..., None, None] * (skew @ skew)
