"""The names that a pickle may mention, and what is done where it calls them."""

import codecs
import math
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from spatialavatar.unpickle.chumpy_array import COMPUTED, OPERAND, ChumpyArray
from spatialavatar.unpickle.values import (
    DTYPE_CODE,
    Global,
    PlainDtype,
    Refused,
    dtype_of,
    expect,
    flat,
    raw_bytes,
    shape_of,
    shorten,
)

if TYPE_CHECKING:
    from spatialavatar.unpickle.machine import Machine

SPARSE: dict[str, Any] = {
    f"scipy.sparse.{name}": getattr(scipy.sparse, name)
    for name in ("csc_matrix", "csr_matrix", "coo_matrix", "csc_array", "csr_array", "coo_array")
}
MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
    **{f"scipy.sparse.{dash}{kind}": "scipy.sparse" for kind in ("csc", "csr", "coo") for dash in ("", "_")},
}


def describe(value: Any) -> str:
    """What a pickle holds, for a message: never its content, which may be anything."""
    return shorten(value.name) if isinstance(value, Global | ChumpyArray) else f"a {type(value).__name__}"


def _call_reconstruct(machine: "Machine", kind: Any, shape: Any = (), code: Any = b"") -> Any:
    if kind != Global("numpy.ndarray"):
        raise Refused(f"an array of the type {describe(kind)}")
    return machine.new_array()


def _call_dtype(machine: "Machine", code: Any, align: Any = False, copy: Any = False) -> PlainDtype:
    if type(code) is not str or not DTYPE_CODE.fullmatch(code):
        raise Refused("an array of structured or foreign elements")
    return PlainDtype(code)


def _call_scalar(machine: "Machine", dtype: Any, raw: Any = b"") -> Any:
    kind = dtype_of(dtype)
    content = raw_bytes(raw)
    if kind.hasobject or len(content) != kind.itemsize:
        raise pickle.UnpicklingError("a number of the wrong size")
    machine.spend(kind.itemsize)
    return np.frombuffer(content, kind)[0]


def _call_frombuffer(machine: "Machine", buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    kind, content = dtype_of(dtype), raw_bytes(buffer)
    if kind.hasobject or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array in a form that numpy does not write")
    if len(content) != math.prod(shape_of(shape)) * kind.itemsize:
        raise pickle.UnpicklingError("an array whose size is not that of its data")
    machine.spend(len(content))
    return np.frombuffer(content, kind).reshape(shape_of(shape), order=order).copy(order="K")


def _call_reconstructor(machine: "Machine", kind: Any, base: Any, state: Any = None) -> Any:
    if base != Global("builtins.object") or state is not None:
        raise Refused(f"an object of {describe(kind)} on a foreign base")
    return machine.new(kind)


def _call_encode(machine: "Machine", text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("text in an encoding other than latin-1")
    machine.spend(len(text))
    return codecs.encode(text, "latin-1")


def _call_ordered_dict(machine: "Machine", items: Any = ()) -> dict[Any, Any]:
    machine.spend(100 * len(items))
    if type(items) is dict:
        return dict(items)
    return {flat(key): value for key, value in items}


def _call_set(machine: "Machine", items: Any = ()) -> set[Any]:
    members = items if type(items) is tuple else expect(items, list)
    machine.spend(50 * len(members))
    return {flat(v) for v in members}


def _call_bytes(machine: "Machine", content: Any = b"", encoding: Any = "latin-1") -> bytes:
    data = raw_bytes(content)
    machine.spend(len(data))
    return data


def _call_complex(machine: "Machine", real: float, imaginary: float) -> complex:
    return complex(real, imaginary)


CALLS: dict[str, Callable[..., Any]] = {
    "numpy._core.multiarray._reconstruct": _call_reconstruct,
    "numpy._core.multiarray.scalar": _call_scalar,
    "numpy._core.numeric._frombuffer": _call_frombuffer,
    "numpy.dtype": _call_dtype,
    "copyreg._reconstructor": _call_reconstructor,
    "_codecs.encode": _call_encode,
    "collections.OrderedDict": _call_ordered_dict,
    "collections.defaultdict": lambda machine, factory=None: {},
    "builtins.set": _call_set,
    "builtins.frozenset": lambda machine, items=(): frozenset(_call_set(machine, items)),
    "builtins.bytes": _call_bytes,
    "builtins.bytearray": lambda machine, *arguments: bytearray(_call_bytes(machine, *arguments)),
    "builtins.complex": _call_complex,
}
NAMES = {
    *CALLS,
    *SPARSE,
    *OPERAND,
    *COMPUTED,
    "numpy.ndarray",
    # as the base in copyreg._reconstructor and as the factory of a defaultdict
    *(f"builtins.{name}" for name in ("object", "list", "dict", "int", "float", "str", "tuple")),
}
