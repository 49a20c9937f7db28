"""The condition of the residual head: what the target's face does (paper eq. 7)."""

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.head.params import HeadParams

POSE_AND_EYES = 12


def condition(params: HeadParams) -> Float[Tensor, "B E+12"]:
    """Expression, pose (root, jaw) and eyes of canonical parameters; 112 numbers for FLAME.

    In the canonical form the root rotation is zero, as it is in the paper's tracker. Shape and neck are left out.
    """
    return torch.cat([params.expression, params.global_rotation, params.jaw, params.eyes], -1)
