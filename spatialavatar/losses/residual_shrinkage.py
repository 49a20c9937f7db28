"""Residual shrinkage: what the residual head adds should be small (method.md section 3, Ldelta; paper, App. A.2).

Ldelta = 1 / |Omega| x sum over texels p and attributes a in {position, rotation, log-scale, colour} of |delta_a,p|_1
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def residual_shrinkage(deltas: Mapping[str, Float[Tensor, "B N _"]], batch: Tensor) -> Float[Tensor, " B"]:
    """Sum over attributes and channels, mean over texels; zeros where there is no residual head and so no delta.

    ``batch`` is any tensor of the batch, for its length and device.
    """
    total = torch.zeros(len(batch), device=batch.device)
    for delta in deltas.values():
        total = total + delta.to(torch.promote_types(delta.dtype, torch.float32)).abs().sum(-1).mean(-1)
    return total
