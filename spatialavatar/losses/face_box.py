"""L1 on the face box, dilated by 1.65 (method.md section 3; paper, App. A.2).

Lbox = 1 / (|box| C) x sum over the box's pixels and channels of |prediction - target|.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def face_box_l1(
    prediction: Float[Tensor, "B H W C"],
    target: Float[Tensor, "B H W C"],
    box: Float[Tensor, "B 4"],  # x0 y0 x1 y1, pixels
    dilation: float = 1.65,
) -> Float[Tensor, " B"]:
    """Mean absolute difference over the pixels and channels of the dilated box; 0 where that box is empty."""
    inside = box_pixels(box, dilation, *prediction.shape[1:3])
    difference = (prediction - target).abs().mean(-1)
    count = inside.sum((1, 2)).clamp(min=1)
    return torch.where(inside, difference, 0.0).sum((1, 2)) / count


def box_pixels(box: Float[Tensor, "B 4"], dilation: float, height: int, width: int) -> Bool[Tensor, "B H W"]:
    """The pixels of each box, dilated about its centre, clipped to the image and rounded outwards to whole pixels.

    Pixel c covers [c, c + 1]. A box of no area, outside the image or with a value that is not finite (no face found)
    has no pixels.
    """
    low, high = box[:, :2], box[:, 2:]
    centre, half = (low + high) / 2, (high - low) / 2 * dilation
    size = box.new_tensor([width, height])
    low, high = (centre - half).clamp(min=0), torch.minimum(centre + half, size)
    there = (low < high).all(-1) & box.isfinite().all(-1)
    low, high = low.floor(), high.ceil()
    columns, rows = (torch.arange(n, device=box.device) for n in (width, height))
    across = (columns >= low[:, :1]) & (columns < high[:, :1])
    down = (rows >= low[:, 1:]) & (rows < high[:, 1:])
    return down[:, :, None] & across[:, None, :] & there[:, None, None]
