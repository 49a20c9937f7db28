"""Smooth noise from integer hashes alone: the same on every machine and library version."""

import numpy as np
from jaxtyping import Float, Float32

from spatialavatar.clip.synthetic.serial_kernel import inlined, serial_kernel


def value_noise(points: Float[np.ndarray, "N D"], seed: int) -> Float32[np.ndarray, " N"]:
    """Noise in [-1, 1] with features about 1 unit wide, D from 1 to 3."""
    n, dimensions = points.shape
    padded = np.zeros((n, 3))
    padded[:, :dimensions] = points
    return _value_noise(padded, seed & 0x7FFFFFFF)


def fractal_noise(points: Float[np.ndarray, "N D"], seed: int, octaves: int) -> Float32[np.ndarray, " N"]:
    """Octaves of noise, each at half the size and half the strength of the one before."""
    out = np.zeros(len(points), np.float32)
    for o in range(octaves):
        out += value_noise(points * 2.0**o, seed + 101 * o) / np.float32(2.0**o)
    return out


@inlined
def _hash(x: int, y: int, z: int, seed: int) -> float:
    h = (x * 374761393 + y * 668265263 + z * 2147483647 + seed * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 73244475) & 0xFFFFFFFF
    return ((h ^ (h >> 15)) & 0xFFFF) / 32767.5 - 1.0


@serial_kernel
def _value_noise(points: np.ndarray, seed: int) -> np.ndarray:
    out = np.empty(points.shape[0], np.float32)
    for i in range(points.shape[0]):
        x, y, z = np.floor(points[i, 0]), np.floor(points[i, 1]), np.floor(points[i, 2])
        tx, ty, tz = points[i, 0] - x, points[i, 1] - y, points[i, 2] - z
        tx, ty, tz = tx * tx * (3 - 2 * tx), ty * ty * (3 - 2 * ty), tz * tz * (3 - 2 * tz)
        ix, iy, iz = int(x), int(y), int(z)
        total = 0.0
        for c in range(8):
            a, b, d = c & 1, (c >> 1) & 1, c >> 2
            weight = (tx if a else 1 - tx) * (ty if b else 1 - ty) * (tz if d else 1 - tz)
            if weight != 0.0:
                total += weight * _hash(ix + a, iy + b, iz + d, seed)
        out[i] = total
    return out
