"""Arrays out of other people's files, by type, element type and shape, before anything is computed from them.

A container may hold anything under a name that an array should have, and numpy would try to make an array of it: nested
lists that share their members take exponential time, an empty sparse matrix any amount of memory.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.unpickle import ChumpyArray

Shape = tuple[int | None, ...]  # None is any length


def numbers(location: files.Location, content: Mapping[str, Any], key: str, *shapes: Shape) -> np.ndarray:
    """``content[key]``, plain, chumpy or (only where a shape leaves nothing open) sparse, of one of ``shapes``.

    Raises SpatialAvatarError that names the file and the key.
    """
    value = content[key]
    if isinstance(value, ChumpyArray):
        try:
            value = np.asarray(value)
        except SpatialAvatarError as e:
            raise SpatialAvatarError(f"{location}: {key}: {e}") from None
    sparse = scipy.sparse.issparse(value)
    if not sparse and type(value) is not np.ndarray:
        raise SpatialAvatarError(f"{location}: {key} is a {type(value).__name__}, expected an array of numbers")
    if value.dtype.kind not in "biuf":
        raise SpatialAvatarError(f"{location}: {key} holds no numbers ({value.dtype.name}); the file is damaged")
    fitting = [shape for shape in shapes if _fits(value.shape, shape)]
    if not fitting:
        expected = " or ".join(str([n if n is not None else "any" for n in shape]) for shape in shapes)
        raise SpatialAvatarError(f"{location}: {key} has shape {list(value.shape)}, expected {expected}")
    if sparse and None in fitting[0]:
        raise SpatialAvatarError(f"{location}: {key} is a sparse matrix, expected a plain array")
    return value.toarray() if sparse else value


def indices(location: files.Location, content: Mapping[str, Any], key: str, *shapes: Shape) -> np.ndarray:
    """As ``numbers``, of whole numbers (in any element type) as int64."""
    array = numbers(location, content, key, *shapes)
    with np.errstate(invalid="ignore"):  # NaN and infinity are refused below
        whole = (array >= -(2**31)) & (array < 2**31) & (array % 1 == 0)
    if array.dtype.kind == "b" or not whole.all():
        raise SpatialAvatarError(f"{location}: {key} holds what is no index ({array.dtype.name}); the file is damaged")
    return array.astype(np.int64)


def texts(location: files.Location, content: Mapping[str, Any], key: str) -> list[str]:
    """A list of texts. Raises SpatialAvatarError."""
    value = content[key]
    if type(value) is not np.ndarray or value.ndim != 1 or value.dtype.kind != "U":
        raise SpatialAvatarError(f"{location}: {key} is no list of texts; the file is damaged")
    return [str(text) for text in value]


def _fits(actual: tuple[int, ...], shape: Shape) -> bool:
    return len(actual) == len(shape) and all(want in (None, n) for n, want in zip(actual, shape))
