"""How objects that were made empty get their state: dtypes, arrays, sparse matrices."""

import math
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialavatar.unpickle.values import PlainDtype, Refused, dtype_of, expect, raw_bytes, shape_of

if TYPE_CHECKING:
    from spatialavatar.unpickle.machine import Machine


def build_dtype(dtype: PlainDtype, state: Any) -> None:
    # (version, byte order, subdtype, names, fields, ...): only the byte order matters for plain elements
    if type(state) is not tuple or len(state) < 5 or dtype.state_seen or any(s is not None for s in state[2:5]):
        raise Refused("an array of structured elements")
    if state[1] not in ("<", ">", "|", "="):
        raise pickle.UnpicklingError("an unknown byte order")
    dtype.order, dtype.state_seen = state[1], True


def build_array(machine: "Machine", array: np.ndarray, state: Any) -> None:
    if type(state) is not tuple or len(state) not in (4, 5):
        raise pickle.UnpicklingError("an array without its state")
    shape, dtype, fortran, raw = state[-4:]
    shape, kind = shape_of(shape), dtype_of(dtype)
    count = math.prod(shape)
    if kind.hasobject:
        content: Any = list(expect(raw, list))
        size = len(content)
    else:
        content = raw_bytes(raw)
        size = len(content) // kind.itemsize if len(content) % kind.itemsize == 0 else -1
    if size != count:
        raise pickle.UnpicklingError("an array whose size is not that of its data")
    machine.spend(count * kind.itemsize)
    np.ndarray.__setstate__(array, (1, shape, kind, bool(fortran), content))  # type: ignore[arg-type]


def build_sparse(machine: "Machine", matrix: Any, state: Any) -> None:
    state = expect(state, dict)
    shape = shape_of(state.get("_shape", state.get("shape")))
    names = ["indices", "indptr"] if matrix.format in ("csc", "csr") else ["row", "col"]
    indices = [state.get(name) for name in names]
    if matrix.format == "coo" and "coords" in state:  # since scipy 1.13
        indices = list(expect(state["coords"], tuple)[:2])
    parts = [state.get("data"), *indices]
    if any(id(p) in machine.unbuilt for p in parts):  # its content would come after the checks below
        raise pickle.UnpicklingError("a sparse matrix of arrays that are not complete")
    if (
        len(shape) != 2
        or len(parts) != 3
        or not all(type(p) is np.ndarray and p.ndim == 1 and p.dtype.kind in "biufc" for p in parts)
    ):
        raise pickle.UnpicklingError("a sparse matrix whose state is not its shape and plain arrays")
    data, first, second = (p for p in parts if p is not None)
    machine.spend(data.nbytes + first.nbytes + second.nbytes)
    if matrix.format == "coo":
        _check_indices(first, shape[0], len(data))
        _check_indices(second, shape[1], len(data))
        made = type(matrix)((data, (first, second)), shape=shape)
    else:
        major, minor = shape if matrix.format == "csr" else shape[::-1]
        _check_indices(second, len(first) + 1, major + 1)
        # scipy's own check lets a falling indptr with a negative end pass, and then reads beyond its arrays
        if second[0] != 0 or second[-1] > len(first) or (second[1:] < second[:-1]).any():
            raise pickle.UnpicklingError("a sparse matrix whose rows overlap")
        _check_indices(first, minor, len(data))
        made = type(matrix)((data, first, second), shape=shape)
        made.check_format(full_check=True)
    vars(matrix).update(vars(made))


def _check_indices(indices: np.ndarray, below: int, count: int) -> None:
    if indices.dtype.kind not in "iu" or len(indices) != count:
        raise pickle.UnpicklingError("a sparse matrix whose indices do not fit its values")
    if count and (indices.min() < 0 or indices.max() >= below):
        raise pickle.UnpicklingError("a sparse matrix with entries beyond its shape")
