"""Front-to-back alpha compositing of projected Gaussians, in plain torch (any dtype, differentiable).

The specification of the splatter's second half (Kerbl et al. 2023, eq. 3; thresholds as in gsplat 1.5.3).
``splat/cpu/compositing.py`` is its compiled twin.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.splat.projection import ALPHA_MIN, ProjectedGaussians

ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4  # a pixel is done before the Gaussian that would take it to or below this


def composite(
    projected: ProjectedGaussians,
    colors: Float[Tensor, "B N C"],
    opacities: Float[Tensor, "B N"],
    width: int,
    height: int,
    tile: int = 16,
) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W"]]:
    """Premultiplied features and alpha. Square tiles of ``tile`` pixels bound the memory and do not change values."""
    pictures = [
        _composite_one(
            projected.means2d[b],
            projected.conics[b],
            projected.depths[b],
            projected.radii[b],
            projected.visible[b],
            colors[min(b, len(colors) - 1)],
            opacities[min(b, len(opacities) - 1)],
            (width, height, tile),
        )
        for b in range(len(projected.means2d))
    ]
    return torch.stack([features for features, _ in pictures]), torch.stack([alpha for _, alpha in pictures])


def composite_pixels(
    pixels: Float[Tensor, "P 2"],
    means2d: Float[Tensor, "N 2"],
    conics: Float[Tensor, "N 3"],
    colors: Float[Tensor, "N C"],
    opacities: Float[Tensor, " N"],
) -> tuple[Float[Tensor, "P C"], Float[Tensor, " P"]]:
    """Features and alpha of pixels (centres, px) seen through N Gaussians, nearest first.

    sigma_i = (A dx^2 + C dy^2) / 2 + B dx dy;  alpha_i = min(0.999, opacity_i exp(-sigma_i)), skipped below 1/255;
    T_i = prod_{j < i} (1 - alpha_j);  features = sum_i alpha_i T_i c_i;  alpha = 1 - T_end.
    """
    dx, dy = (means2d - pixels[:, None]).unbind(-1)
    a, b, c = conics.unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities * torch.exp(-sigma)).clamp(max=ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, torch.zeros_like(alpha))
    with torch.no_grad():
        not_done = torch.cumprod(1 - alpha, -1) > TRANSMITTANCE_MIN
    alpha = torch.where(not_done, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, -1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], -1)
    return (alpha * before) @ colors, 1 - after[:, -1]


def _composite_one(
    means2d: Float[Tensor, "N 2"],
    conics: Float[Tensor, "N 3"],
    depths: Float[Tensor, " N"],
    radii: Float[Tensor, "N 2"],
    visible: Tensor,
    colors: Float[Tensor, "N C"],
    opacities: Float[Tensor, " N"],
    size: tuple[int, int, int],
) -> tuple[Float[Tensor, "H W C"], Float[Tensor, "H W"]]:
    width, height, tile = size
    (candidates,) = visible.nonzero(as_tuple=True)
    order = candidates[torch.argsort(depths[candidates], stable=True)]
    low, high = (means2d - radii)[order].detach(), (means2d + radii)[order].detach()
    rows = []
    for top in range(0, height, tile):
        row = []
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            touching = (low[:, 0] < right) & (high[:, 0] > left) & (low[:, 1] < bottom) & (high[:, 1] > top)
            near_first = order[touching]
            ys = torch.arange(top, bottom, dtype=means2d.dtype, device=means2d.device) + 0.5
            xs = torch.arange(left, right, dtype=means2d.dtype, device=means2d.device) + 0.5
            pixels = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], -1).flatten(0, 1)
            if len(near_first):
                features, alpha = composite_pixels(
                    pixels, means2d[near_first], conics[near_first], colors[near_first], opacities[near_first]
                )
            else:
                features, alpha = colors.new_zeros(len(pixels), colors.shape[-1]), colors.new_zeros(len(pixels))
            row.append(torch.cat([features, alpha[:, None]], -1).unflatten(0, (len(ys), len(xs))))
        rows.append(torch.cat(row, 1))
    picture = torch.cat(rows, 0)
    return picture[..., :-1], picture[..., -1]
