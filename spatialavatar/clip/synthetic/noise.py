"""Smooth noise from integer hashes alone: the same on every machine and library version."""

import numpy as np
from jaxtyping import Float


def value_noise(points: Float[np.ndarray, "N D"], seed: int) -> Float[np.ndarray, " N"]:
    """Noise in [-1, 1] with features about 1 unit wide, D from 1 to 3."""
    cell = np.floor(points).astype(np.int64)
    t = (points - cell).astype(np.float32)
    t = t * t * (3 - 2 * t)
    dimensions = points.shape[1]
    total = np.zeros(len(points), np.float32)
    for corner in range(2**dimensions):
        bits = [(corner >> d) & 1 for d in range(dimensions)]
        weight = np.ones(len(points), np.float32)
        key = np.full(len(points), seed * 2654435761 % 2**32, np.uint64)
        for d, bit in enumerate(bits):
            weight *= t[:, d] if bit else 1 - t[:, d]
            key = _mix(key ^ ((cell[:, d] + bit) & 0xFFFFFFFF).astype(np.uint64))
        total += weight * ((key & np.uint64(0xFFFF)).astype(np.float32) / 32767.5 - 1.0)
    return total


def fractal_noise(points: Float[np.ndarray, "N D"], seed: int, octaves: int) -> Float[np.ndarray, " N"]:
    out = np.zeros(len(points), np.float32)
    for o in range(octaves):
        out += value_noise(points * 2.0**o, seed + 101 * o) / 2.0**o
    return out


def _mix(key: np.ndarray) -> np.ndarray:
    mask = np.uint64(0xFFFFFFFF)
    key = (key ^ (key >> np.uint64(16))) * np.uint64(0x45D9F3B) & mask
    key = (key ^ (key >> np.uint64(15))) * np.uint64(0x2C1B3C6D) & mask
    return key ^ (key >> np.uint64(13))
