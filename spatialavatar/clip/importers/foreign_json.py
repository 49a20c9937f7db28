"""JSON that other tools wrote: read with a limit, numbers taken out of it with their shapes checked."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from spatialavatar import files
from spatialavatar.clip.arrays import ROTATION_TOLERANCE
from spatialavatar.errors import SpatialAvatarError, in_short

LARGEST_FILE = 200 << 20  # bytes; an hour of video takes about half
_LARGEST_NUMBER = 1e9  # nothing in trackers' files comes near: metres, radians, pixels


def read_foreign_json(location: files.Location, max_bytes: int = LARGEST_FILE) -> dict[str, Any]:
    """Raises SpatialAvatarError: no such file, too large, no JSON object."""
    try:
        value = json.loads(files.read_bytes(location, max_bytes))
    except (ValueError, RecursionError) as e:  # also numbers of thousands of digits, thousands of nested brackets
        raise SpatialAvatarError(
            f"{location}: not usable JSON ({in_short(e, 120, plain=True)}); it may be truncated, get it again"
        ) from None
    if not isinstance(value, dict):
        raise SpatialAvatarError(f"{location}: not what the tracker writes, expected a JSON object")
    return value


def numbers(value: Any, shape: Sequence[int | None], what: str) -> Float64[np.ndarray, "*shape"]:
    """The array of nested lists of finite numbers. ``None`` in ``shape`` is any length; ``what`` names file and field.

    Raises SpatialAvatarError for anything else.
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # lists of unequal lengths
        array = np.empty(0, object)
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape))
    if array.dtype.kind not in "iuf" or not fits:
        wanted = " x ".join("n" if n is None else str(n) for n in shape)
        found = f"{' x '.join(map(str, array.shape))} numbers" if array.dtype.kind in "iuf" else "something else"
        raise SpatialAvatarError(f"{what} holds {found}, expected {wanted or 'one'} number{'s' if shape else ''}")
    array = array.astype(np.float64)
    if not (np.abs(array) <= _LARGEST_NUMBER).all():
        raise SpatialAvatarError(f"{what} holds NaN, infinity or a number beyond {_LARGEST_NUMBER:.0e}")
    return array


def rigid_matrix(value: Any, what: str) -> Float64[np.ndarray, "4 4"]:
    """A rotation and a position or translation. Raises SpatialAvatarError for anything else."""
    matrix = numbers(value, (4, 4), what)
    rotation = matrix[:3, :3]
    off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    determinant = np.linalg.det(rotation)
    if off > ROTATION_TOLERANCE or determinant < 0 or np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise SpatialAvatarError(
            f"{what} is no rotation and position (R R^T differs from the identity by {off:.3g}, determinant "
            f"{determinant:.3g}, last row {' '.join(f'{v:.3g}' for v in matrix[3])})"
        )
    return matrix
