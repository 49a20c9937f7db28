"""Sample sheets: what the generator makes of some samples, one row each: sources | target | render."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from spatialavatar.losses.psnr import psnr
from spatialavatar.sheets import titled, to_bytes
from spatialavatar.training.batch import Batch
from spatialavatar.training.step import Pictures


def sample_sheet(batch: Batch, pictures: Pictures, rows: int) -> UInt8[np.ndarray, "H W 3"]:
    """The batch's first ``rows`` samples, over the backgrounds that the loss saw."""
    values = psnr(pictures.prediction, pictures.target)
    height, width = pictures.target.shape[1:3]
    columns = batch.sources.mask.shape[1]
    lines = []
    for b in range(min(rows, batch.sources.batch)):
        cells = []
        for k in range(columns):
            there = bool(batch.sources.mask[b, k])
            picture = to_bytes(batch.sources.images[b, k].movedim(0, -1)) if there else None
            blank = np.full((height, width, 3), 255, np.uint8)
            shown = blank if picture is None else _fitted(picture, width, height)
            cells.append(titled(shown, f"source {k + 1}" if there else ""))
        cells.append(titled(to_bytes(pictures.target[b]), "target"))
        cells.append(titled(to_bytes(pictures.prediction[b]), f"render, {float(values[b]):.1f} dB"))
        lines.append(np.concatenate(cells, 1))
    return np.concatenate(lines, 0)


def _fitted(picture: UInt8[np.ndarray, "h w 3"], width: int, height: int) -> UInt8[np.ndarray, "H W 3"]:
    """Scaled into a cell, aspect kept, on white."""
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    cell = np.full((height, width, 3), 255, np.uint8)
    cell[: size[1], : size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cell


def mean_psnr(shown: Sequence[Pictures]) -> float:
    """Over all samples, dB."""
    return float(torch.cat([psnr(p.prediction, p.target) for p in shown]).mean())
