"""What sheets of pictures are put together from: 8 bits, titles, rows under each other."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

_TITLE = 26  # pixels above each picture


def to_bytes(picture: Float[Tensor, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """From [0, 1], clipped, to 8 bits."""
    return np.asarray((picture.clamp(0, 1) * 255).round().byte().cpu().numpy())


def titled(picture: UInt8[np.ndarray, "H W 3"], text: str) -> UInt8[np.ndarray, "H+26 W 3"]:
    """The picture under a white strip with a line of text."""
    strip = np.full((_TITLE, picture.shape[1], 3), 255, np.uint8)
    scale = min(0.5, 0.5 * picture.shape[1] / 230)
    cv2.putText(strip, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, scale, (20, 20, 20), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture], 0)


def stacked(sheets: Sequence[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "H W 3"]:
    """Sheets of any width under each other."""
    widest = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(s, ((0, 0), (0, widest - s.shape[1]), (0, 0)), constant_values=255) for s in sheets]
    return np.concatenate(padded, 0)
