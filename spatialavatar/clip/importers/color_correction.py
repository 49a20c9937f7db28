"""Colours of NeRSemble's cameras brought to one look: sRGB decode, polynomial matrix, sRGB encode.

The matrix [3 n] weighs n products of the linear R, G and B; which ones, and in which order, follows from n (Cheung,
Westland, Connah, Ripamonti 2004, "A comparative study of the characterisation of colour cameras by means of neural
networks and polynomial transforms"; Westland and Ripamonti 2004, table 8.2). n = 3 is the plain 3x3 matrix.
"""

from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from spatialavatar.clip.importers.foreign_json import numbers
from spatialavatar.errors import SpatialAvatarError

_SQUARES = "R G B RG RB GB RR GG BB"
_CUBES = f"{_SQUARES} RGB RRG GGB BBR RRB GGR BBG RRR GGG BBB"
_PRODUCTS = [
    "R G B",
    "R G B 1",
    "R G B RGB 1",
    "R G B RG RB GB 1",
    "R G B RG RB GB RGB 1",
    f"{_SQUARES} 1",
    f"{_SQUARES} RGB 1",
    f"{_SQUARES} RGB RRR GGG BBB 1",
    f"{_SQUARES} RGB RRG GGB BBR RRR GGG BBB",
    f"{_SQUARES} RGB RRG GGB BBR RRR GGG BBB 1",
    _CUBES,
    f"{_CUBES} 1",
    f"{_CUBES} RRGB RGGB RGBB",
    f"{_CUBES} RRRG RRRB GGGR GGGB BBBR BBBG RRGB RGGB RGBB RRGG RRBB GGBB RRRR GGGG BBBB 1",
]
PRODUCTS: dict[int, list[str]] = {len(text.split()): text.split() for text in _PRODUCTS}  # by n


def color_matrix(value: Any, where: str) -> Float[np.ndarray, "3 n"]:
    """The matrix as JSON holds it, checked; ``where`` names file and camera. Raises SpatialAvatarError."""
    matrix = numbers(value, (3, None), where)
    if matrix.shape[1] not in PRODUCTS:
        known = ", ".join(map(str, PRODUCTS))
        raise SpatialAvatarError(f"{where} holds rows of {matrix.shape[1]} numbers, a colour matrix has {known}")
    return matrix


def corrected(image: UInt8[np.ndarray, "H W 3"], matrix: Float[np.ndarray, "3 n"]) -> UInt8[np.ndarray, "H W 3"]:
    """The picture as the matrix makes it, rounded and clipped to 8 bits."""
    linear = _LINEAR[image]
    channels = {"R": linear[..., 0], "G": linear[..., 1], "B": linear[..., 2]}
    changed = np.zeros_like(linear)
    for weights, product in zip(matrix.T.astype(np.float32), PRODUCTS[matrix.shape[1]]):
        value = np.float32(1) if product == "1" else reduce(np.multiply, [channels[letter] for letter in product])
        changed += np.multiply.outer(value, weights)
    return (255 * _encoded(changed)).round().astype(np.uint8)


def _decoded(value: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    """IEC 61966-2-1: sRGB to linear light."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _encoded(linear: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    light = linear.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** np.float32(1 / 2.4) - np.float32(0.055))


_LINEAR = _decoded(np.arange(256) / 255).astype(np.float32)
