"""The harmonic encoding of the target camera's viewing axis (paper eq. 6, with method.md's correction)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

FREQUENCIES = 4
VIEW_CHANNELS = 3 + 2 * 3 * FREQUENCIES


def view_direction(world_to_camera: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 3"]:
    """The camera's viewing axis in the world (the head's frame in canonical form): third row of the rotation, unit."""
    return normalize(world_to_camera[:, 2, :3], dim=-1)


def harmonic_encoding(direction: Float[Tensor, "B 3"]) -> Float[Tensor, "B 27"]:
    """[d, sin(2^k pi d), cos(2^k pi d)] for k = 0..3."""
    angles = [2**k * math.pi * direction for k in range(FREQUENCIES)]
    return torch.cat([direction, *(part for angle in angles for part in (angle.sin(), angle.cos()))], -1)
