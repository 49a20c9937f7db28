"""The machine that a pickle's program runs on."""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from spatialavatar.unpickle.calls import CALLS, MODULES, NAMES, SPARSE, describe
from spatialavatar.unpickle.chumpy_array import COMPUTED, OPERAND, ChumpyArray
from spatialavatar.unpickle.states import build_array, build_dtype, build_sparse
from spatialavatar.unpickle.values import Global, PlainDtype, Refused, expect, flat, shorten

GROWTH = 4  # a py2 pickle stores arrays as text or bytes at least as long as they are
SLACK = 1 << 20  # bytes


class Machine(pickle._Unpickler):  # type: ignore[name-defined,misc,unused-ignore]
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
        self._allowance = GROWTH * len(data) + SLACK
        self.unbuilt: dict[int, Any] = {}  # by id: made, but still without its state

    def load(self) -> Any:
        value = super().load()
        if self.unbuilt:
            raise pickle.UnpicklingError("an object in it was never completed")
        return value

    def find_class(self, module: str, name: str) -> Global:
        known = f"{MODULES.get(module, module)}.{name}"
        if "." in name or known not in NAMES:
            raise Refused(shorten(f"{module}.{name}"))
        return Global(known)

    def persistent_load(self, pid: object) -> Any:
        raise Refused("an object outside the pickle (a persistent id)")

    def spend(self, size: int) -> None:
        self._allowance -= size
        if self._allowance < 0:
            raise pickle.UnpicklingError(f"its content takes more than {GROWTH} times the bytes of the file")

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if type(function) is not Global or function.name not in CALLS:
            raise Refused(f"a call of {describe(function)}")
        if type(arguments) is not tuple:
            raise pickle.UnpicklingError("a call without a tuple of arguments")
        self.stack[-1] = CALLS[function.name](self, *arguments)

    def _load_newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.new(self.stack[-1], arguments)

    def new(self, kind: Any, arguments: Any = ()) -> Any:
        """An object without its state yet, of a class that has state."""
        made: Any
        if type(kind) is Global and kind.name in SPARSE and arguments == ():
            cls = SPARSE[kind.name]
            made = cls.__new__(cls)
        elif type(kind) is Global and (kind.name in OPERAND or kind.name in COMPUTED) and arguments == ():
            made = ChumpyArray(kind.name)
        else:
            raise Refused(f"an object of {describe(kind)}")
        self.unbuilt[id(made)] = made
        return made

    def new_array(self) -> np.ndarray:
        made = np.ndarray((0,), np.int8)
        self.unbuilt[id(made)] = made
        return made

    def _load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is PlainDtype:
            build_dtype(target, state)
        elif self.unbuilt.pop(id(target), None) is None:
            raise Refused(f"to change the state of {describe(target)}")
        elif type(target) is np.ndarray:
            build_array(self, target, state)
        elif type(target) is ChumpyArray:
            if type(state) is not dict:
                raise pickle.UnpicklingError(f"the state of a {target.name} is not a dictionary")
            target.state = state
        else:
            build_sparse(self, target, state)

    def _load_append(self) -> None:
        value = self.stack.pop()
        expect(self.stack[-1], list).append(value)

    def _load_appends(self) -> None:
        values = self.pop_mark()
        expect(self.stack[-1], list).extend(values)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        expect(self.stack[-1], dict)[flat(key)] = value

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        target = expect(self.stack[-1], dict)
        for i in range(0, len(items), 2):
            target[flat(items[i])] = items[i + 1]

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({flat(items[i]): items[i + 1] for i in range(0, len(items), 2)})

    def _load_additems(self) -> None:
        values = self.pop_mark()
        expect(self.stack[-1], set).update(flat(v) for v in values)

    def _load_frozenset(self) -> None:
        values = self.pop_mark()
        self.append(frozenset(flat(v) for v in values))

    def _load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise pickle.UnpicklingError("truncated")
        data = bytearray(self.read(size))
        if len(data) != size:
            raise pickle.UnpicklingError("truncated")
        self.append(data)


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
    table |= {getattr(pickle, name)[0]: getattr(Machine, f"_load_{name.lower()}") for name in ours.split()}
    return table


def _refuse_opcode(machine: Machine) -> None:
    raise pickle.UnpicklingError("an instruction that no admitted file needs")


Machine.dispatch = _opcodes()
