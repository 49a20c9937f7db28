"""Smoothness over the UV square: total variation of per-texel offsets (method.md section 3, "TV").

    TV(x) = 1 / |Omega| x sum over pairs (p, q) of |x_q - x_p|_1,

where q is the texel to the right of p or the one below it. A pair counts only if both texels hold a Gaussian and lie
in one UV chart: texels on either side of a seam are not neighbours on the head. ``x`` are the offsets from the initial
attributes: local positions themselves jump by about 1 between texels of different faces.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spatialavatar.head.uv_layout import UVLayout


def texel_pairs(layout: UVLayout) -> Int[Tensor, "P 2"]:
    """Gaussians (p, q) with q to the right of p, then those with q below p."""
    r = layout.resolution
    owner = layout.texel.new_full((r * r,), -1)
    owner[layout.texel] = torch.arange(layout.count, device=owner.device)
    owner = owner.view(r, r)
    right = torch.stack([owner[:, :-1], owner[:, 1:]], -1).view(-1, 2)
    down = torch.stack([owner[:-1], owner[1:]], -1).view(-1, 2)
    pairs = torch.cat([right, down])
    pairs = pairs[(pairs >= 0).all(-1)]
    return pairs[layout.chart[pairs[:, 0]] == layout.chart[pairs[:, 1]]]


def total_variation(values: Float[Tensor, "B N C"], pairs: Int[Tensor, "P 2"]) -> Float[Tensor, " B"]:
    """Sum over pairs and channels of the absolute differences, over N; at least in float32."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    first, second = (values.index_select(1, side) for side in pairs.unbind(-1))
    return (second - first).abs().sum((1, 2)) / values.shape[1]
