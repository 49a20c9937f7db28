"""Reading other people's pickles without running anything of theirs.

FLAME's files and trackers' results are pickles, and a pickle is a program. This reader runs that program on a machine
of its own: a global is never imported but looked up in a table of names, and what is "called" is a function of this
module that checks its arguments. Admitted are numpy arrays, scalars and plain dtypes, scipy.sparse matrices, plain
containers, and chumpy's arrays as inert holders of their state (``ChumpyArray``; no chumpy code). Strings of Python 2
are decoded as latin-1. Modules are known under their old and new paths (numpy.core, scipy.sparse.csc, __builtin__).

Memory and work are bounded by the size of the file. Whatever a call makes of what the file already holds (arrays,
scalars, copies of containers and bytes) is paid from an allowance of ``_GROWTH`` times its bytes. Keys of dictionaries
and members of sets are flat and short: nested tuples can take exponential time to hash, and whole numbers beyond 64
bits can be chosen to collide.
"""

import codecs
import io
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import scipy.sparse

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError

_GROWTH = 4  # a py2 pickle stores arrays as text or bytes at least as long as they are
_SLACK = 1 << 20  # bytes
_LIMIT = 2 << 30  # bytes; the largest FLAME file is under 0.2e9
_ADMITTED = "numpy, scipy.sparse, plain containers and chumpy arrays"


def read_pickle(location: files.Location, max_bytes: int = _LIMIT) -> Any:
    """The value in a pickle file. ``np.asarray`` of a ``ChumpyArray`` in it gives its array.

    Raises SpatialAvatarError: no such file, larger than ``max_bytes``, damaged or truncated, or it asks for something
    that is not admitted (named in the message; nothing of it has run).
    """
    return unpickle(files.read_bytes(location, max_bytes), location)


def unpickle(data: bytes, location: files.Location) -> Any:
    """As ``read_pickle``, of bytes that came from ``location``."""
    try:
        return _Machine(data).load()
    except _Refused as e:
        raise SpatialAvatarError(
            f"{location}: the pickle asks for {e}, which is not read ({_ADMITTED} are); nothing of it was run; "
            "get the file from its publisher, or store its arrays as npz yourself"
        ) from None
    except Exception as e:  # hostile or damaged bytes can fail in any way
        raise SpatialAvatarError(
            f"{location}: not a readable pickle ({_shorten(e)}); it is damaged or truncated, get the file again"
        ) from None


class ChumpyArray:
    """An array of the chumpy library as its pickled state: numbers, and how they were rearranged."""

    def __init__(self, name: str) -> None:
        self.name = name  # "chumpy.ch.Ch"
        self.state: dict[Any, Any] = {}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Raises SpatialAvatarError for anything that would have to be computed."""
        array = self._array()
        return array if dtype is None else array.astype(dtype)

    def _array(self) -> np.ndarray:
        chain: list[ChumpyArray] = []
        value: Any = self
        while isinstance(value, ChumpyArray):
            chain.append(value)
            if len(chain) > 16:
                raise self._unreadable("it is nested too deeply")
            value = value.state.get(_OPERAND.get(value.name, ""))
        if not isinstance(value, np.ndarray | np.generic | int | float):
            raise self._unreadable("its state holds no array")
        try:
            array = np.asarray(value)
            if array.dtype.kind not in "biufc":  # an index would repeat texts of any length
                raise TypeError("it holds no numbers")
            for step in reversed(chain):
                array = _rearranged(array, step)
        except Exception as e:  # what the state holds is the file's, and can fail in any way
            raise self._unreadable(_shorten(e)) from None
        return array

    def _unreadable(self, why: str) -> SpatialAvatarError:
        return SpatialAvatarError(
            f"pickle: the array of a {self.name} cannot be read without chumpy: {why}; store it as a plain array"
        )


def _rearranged(array: np.ndarray, step: ChumpyArray) -> np.ndarray:
    state = step.state
    if step.name == "chumpy.reordering.Select":
        if type(state.get("idxs")) is not np.ndarray:
            raise TypeError("its indices are no array")
        array = array.ravel()[state["idxs"]]
        return array.reshape(state["preferred_shape"]) if "preferred_shape" in state else array
    if step.name == "chumpy.reordering.Reshape":
        if "newshape" not in state:
            raise TypeError("it does not say its shape")
        return array.reshape(state["newshape"])
    if step.name == "chumpy.reordering.transpose":
        return np.transpose(array, state.get("axes"))
    return array


# chumpy class -> the entry of its state that holds its array; others are admitted, but have no array to read
_OPERAND = {
    "chumpy.ch.Ch": "x",
    "chumpy.reordering.Select": "a",
    "chumpy.reordering.Reshape": "a",
    "chumpy.reordering.transpose": "a",
}
_COMPUTED = (
    "chumpy.ch.MatVecMult",
    "chumpy.ch.ChHandle",
    "chumpy.reordering.Concatenate",
    "chumpy.ch_ops.add",
    "chumpy.ch_ops.subtract",
    "chumpy.ch_ops.multiply",
    "chumpy.ch_ops.divide",
    "chumpy.ch_ops.negative",
    "chumpy.ch_ops.sum",
    "chumpy.ch_ops.dot",
    "chumpy.linalg.dot",
)


class _Refused(Exception):
    """Names what a pickle asked for."""


@dataclass(frozen=True)
class _Global:
    """A name that a pickle mentioned: a token, never the thing itself."""

    name: str


@dataclass
class _PlainDtype:
    """A dtype as its code ("f8"), and the byte order that its state adds."""

    code: str
    order: str = "="
    state_seen: bool = field(default=False)

    def numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


_DTYPE_CODE = re.compile(r"[<>=|]?(b1|\?|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU][1-9]\d{0,8}|O8?|O4)")
_SPARSE: dict[str, Any] = {
    f"scipy.sparse.{name}": getattr(scipy.sparse, name)
    for name in ("csc_matrix", "csr_matrix", "coo_matrix", "csc_array", "csr_array", "coo_array")
}
_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
    **{f"scipy.sparse.{dash}{kind}": "scipy.sparse" for kind in ("csc", "csr", "coo") for dash in ("", "_")},
}


class _Machine(pickle._Unpickler):  # type: ignore[name-defined,misc,unused-ignore]
    """Python's own pickle machine in pure Python, with every opcode that creates or changes an object replaced."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]]
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        super().__init__(self._file, encoding="latin-1", fix_imports=False)
        self._size = len(data)
        self._allowance = _GROWTH * len(data) + _SLACK
        self.unbuilt: dict[int, Any] = {}  # by id: made, but still without its state

    def load(self) -> Any:
        value = super().load()
        if self.unbuilt:
            raise pickle.UnpicklingError("an object in it was never completed")
        return value

    def find_class(self, module: str, name: str) -> _Global:
        known = f"{_MODULES.get(module, module)}.{name}"
        if "." in name or known not in _NAMES:
            raise _Refused(_shorten(f"{module}.{name}"))
        return _Global(known)

    def persistent_load(self, pid: object) -> Any:
        raise _Refused("an object outside the pickle (a persistent id)")

    def spend(self, size: int) -> None:
        self._allowance -= size
        if self._allowance < 0:
            raise pickle.UnpicklingError(f"its content takes more than {_GROWTH} times the bytes of the file")

    # opcodes ---------------------------------------------------------------------------------------------------------

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if type(function) is not _Global or function.name not in _CALLS:
            raise _Refused(f"a call of {_describe(function)}")
        if type(arguments) is not tuple:
            raise pickle.UnpicklingError("a call without a tuple of arguments")
        self.stack[-1] = _CALLS[function.name](self, *arguments)

    def _load_newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.new(self.stack[-1], arguments)

    def new(self, kind: Any, arguments: Any = ()) -> Any:
        """An object without its state yet, of a class that has state."""
        made: Any
        if type(kind) is _Global and kind.name in _SPARSE and arguments == ():
            cls = _SPARSE[kind.name]
            made = cls.__new__(cls)
        elif type(kind) is _Global and (kind.name in _OPERAND or kind.name in _COMPUTED) and arguments == ():
            made = ChumpyArray(kind.name)
        else:
            raise _Refused(f"an object of {_describe(kind)}")
        self.unbuilt[id(made)] = made
        return made

    def new_array(self) -> np.ndarray:
        made = np.ndarray((0,), np.int8)
        self.unbuilt[id(made)] = made
        return made

    def _load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is _PlainDtype:
            _build_dtype(target, state)
        elif self.unbuilt.pop(id(target), None) is None:
            raise _Refused(f"to change the state of {_describe(target)}")
        elif type(target) is np.ndarray:
            _build_array(self, target, state)
        elif type(target) is ChumpyArray:
            if type(state) is not dict:
                raise pickle.UnpicklingError(f"the state of a {target.name} is not a dictionary")
            target.state = state
        else:
            _build_sparse(self, target, state)

    def _load_append(self) -> None:
        value = self.stack.pop()
        _expect(self.stack[-1], list).append(value)

    def _load_appends(self) -> None:
        values = self.pop_mark()
        _expect(self.stack[-1], list).extend(values)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _expect(self.stack[-1], dict)[_flat(key)] = value

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        target = _expect(self.stack[-1], dict)
        for i in range(0, len(items), 2):
            target[_flat(items[i])] = items[i + 1]

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({_flat(items[i]): items[i + 1] for i in range(0, len(items), 2)})

    def _load_additems(self) -> None:
        values = self.pop_mark()
        _expect(self.stack[-1], set).update(_flat(v) for v in values)

    def _load_frozenset(self) -> None:
        values = self.pop_mark()
        self.append(frozenset(_flat(v) for v in values))

    def _load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise pickle.UnpicklingError("truncated")
        data = bytearray(self.read(size))
        if len(data) != size:
            raise pickle.UnpicklingError("truncated")
        self.append(data)


def _describe(value: Any) -> str:
    """What a pickle holds, for a message: never its content, which may be anything."""
    return _shorten(value.name) if isinstance(value, _Global | ChumpyArray) else f"a {type(value).__name__}"


def _shorten(text: object) -> str:
    line = ascii(str(text))[1:-1]
    return line if len(line) <= 120 else line[:120] + "..."


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise pickle.UnpicklingError(f"adds to a {type(value).__name__} as if it were a {kind.__name__}")
    return value


_FLAT = str | bytes | int | float | complex | np.generic | None
_LONGEST_KEY = 32  # members of a tuple


def _flat(key: Any) -> Any:
    members = key if type(key) is tuple else (key,)
    if len(members) > _LONGEST_KEY or not all(isinstance(m, _FLAT) for m in members):
        raise _Refused(f"a {type(key).__name__} as a key or a set's member")
    if any(type(m) is int and m.bit_length() > 64 for m in members):
        raise _Refused("a number beyond 64 bits as a key or a set's member")
    return key


# what names may be called with -------------------------------------------------------------------------------------


def _call_reconstruct(machine: _Machine, kind: Any, shape: Any = (), code: Any = b"") -> Any:
    if kind != _Global("numpy.ndarray"):
        raise _Refused(f"an array of the type {_describe(kind)}")
    return machine.new_array()


def _call_dtype(machine: _Machine, code: Any, align: Any = False, copy: Any = False) -> _PlainDtype:
    if type(code) is not str or not _DTYPE_CODE.fullmatch(code):
        raise _Refused("an array of structured or foreign elements")
    return _PlainDtype(code)


def _call_scalar(machine: _Machine, dtype: Any, raw: Any = b"") -> Any:
    kind = _dtype(dtype)
    content = _raw_bytes(raw)
    if kind.hasobject or len(content) != kind.itemsize:
        raise pickle.UnpicklingError("a number of the wrong size")
    machine.spend(kind.itemsize)
    return np.frombuffer(content, kind)[0]


def _call_frombuffer(machine: _Machine, buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    kind, content = _dtype(dtype), _raw_bytes(buffer)
    if kind.hasobject or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array in a form that numpy does not write")
    if len(content) != math.prod(_shape(shape)) * kind.itemsize:
        raise pickle.UnpicklingError("an array whose size is not that of its data")
    machine.spend(len(content))
    return np.frombuffer(content, kind).reshape(_shape(shape), order=order).copy(order="K")


def _call_reconstructor(machine: _Machine, kind: Any, base: Any, state: Any = None) -> Any:
    if base != _Global("builtins.object") or state is not None:
        raise _Refused(f"an object of {_describe(kind)} on a foreign base")
    return machine.new(kind)


def _call_encode(machine: _Machine, text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise _Refused("text in an encoding other than latin-1")
    machine.spend(len(text))
    return codecs.encode(text, "latin-1")


def _call_ordered_dict(machine: _Machine, items: Any = ()) -> dict[Any, Any]:
    machine.spend(100 * len(items))
    if type(items) is dict:
        return dict(items)
    return {_flat(key): value for key, value in items}


def _call_set(machine: _Machine, items: Any = ()) -> set[Any]:
    members = items if type(items) is tuple else _expect(items, list)
    machine.spend(50 * len(members))
    return {_flat(v) for v in members}


def _call_bytes(machine: _Machine, content: Any = b"", encoding: Any = "latin-1") -> bytes:
    data = _raw_bytes(content)
    machine.spend(len(data))
    return data


def _call_complex(machine: _Machine, real: float, imaginary: float) -> complex:
    return complex(real, imaginary)


_CALLS: dict[str, Callable[..., Any]] = {
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
_NAMES = {
    *_CALLS,
    *_SPARSE,
    *_OPERAND,
    *_COMPUTED,
    "numpy.ndarray",
    # as the base in copyreg._reconstructor and as the factory of a defaultdict
    *(f"builtins.{name}" for name in ("object", "list", "dict", "int", "float", "str", "tuple")),
}


# state of the admitted objects ---------------------------------------------------------------------------------------


def _build_dtype(dtype: _PlainDtype, state: Any) -> None:
    # (version, byte order, subdtype, names, fields, ...): only the byte order matters for plain elements
    if type(state) is not tuple or len(state) < 5 or dtype.state_seen or any(s is not None for s in state[2:5]):
        raise _Refused("an array of structured elements")
    if state[1] not in ("<", ">", "|", "="):
        raise pickle.UnpicklingError("an unknown byte order")
    dtype.order, dtype.state_seen = state[1], True


def _build_array(machine: _Machine, array: np.ndarray, state: Any) -> None:
    if type(state) is not tuple or len(state) not in (4, 5):
        raise pickle.UnpicklingError("an array without its state")
    shape, dtype, fortran, raw = state[-4:]
    shape, kind = _shape(shape), _dtype(dtype)
    count = math.prod(shape)
    if kind.hasobject:
        content: Any = list(_expect(raw, list))
        size = len(content)
    else:
        content = _raw_bytes(raw)
        size = len(content) // kind.itemsize if len(content) % kind.itemsize == 0 else -1
    if size != count:
        raise pickle.UnpicklingError("an array whose size is not that of its data")
    machine.spend(count * kind.itemsize)
    np.ndarray.__setstate__(array, (1, shape, kind, bool(fortran), content))  # type: ignore[arg-type]


def _build_sparse(machine: _Machine, matrix: Any, state: Any) -> None:
    state = _expect(state, dict)
    shape = _shape(state.get("_shape", state.get("shape")))
    names = ["indices", "indptr"] if matrix.format in ("csc", "csr") else ["row", "col"]
    indices = [state.get(name) for name in names]
    if matrix.format == "coo" and "coords" in state:  # since scipy 1.13
        indices = list(_expect(state["coords"], tuple)[:2])
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


def _dtype(value: Any) -> np.dtype:
    if type(value) is not _PlainDtype:
        raise pickle.UnpicklingError("an array without its element type")
    return value.numpy()


def _shape(value: Any) -> tuple[int, ...]:
    if type(value) is int:
        value = (value,)
    if type(value) is not tuple or len(value) > 32 or not all(type(n) is int and 0 <= n < 2**40 for n in value):
        raise pickle.UnpicklingError("an array of impossible shape")
    return value


def _raw_bytes(value: Any) -> bytes:
    if type(value) is str:  # a Python 2 string
        return value.encode("latin-1")
    if type(value) not in (bytes, bytearray):
        raise pickle.UnpicklingError("an array without its data")
    return bytes(value)


def _opcodes() -> dict[int, Callable[[Any], None]]:
    """Opcodes that only move plain values are Python's own; the rest is ours; what is not listed here is refused."""
    plain = (
        "PROTO STOP MARK FRAME POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 "
        "FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE "
        "SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT EMPTY_SET "
        "GLOBAL STACK_GLOBAL PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE"
    )
    original = pickle._Unpickler.dispatch  # type: ignore[attr-defined]
    table: dict[int, Callable[[Any], None]] = {code: _refuse_opcode for code in range(256)}
    table |= {getattr(pickle, name)[0]: original[getattr(pickle, name)[0]] for name in plain.split()}
    ours = "REDUCE NEWOBJ BUILD APPEND APPENDS SETITEM SETITEMS DICT ADDITEMS FROZENSET BYTEARRAY8"
    table |= {getattr(pickle, name)[0]: getattr(_Machine, f"_load_{name.lower()}") for name in ours.split()}
    return table


def _refuse_opcode(machine: _Machine) -> None:
    raise pickle.UnpicklingError("an instruction that no admitted file needs")


_Machine.dispatch = _opcodes()
