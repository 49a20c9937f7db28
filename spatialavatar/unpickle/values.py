"""What stands for the things that a pickle names, and the checks that everything in it goes through."""

import pickle
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DTYPE_CODE = re.compile(r"[<>=|]?(b1|\?|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU][1-9]\d{0,8}|O8?|O4)")
_FLAT = str | bytes | int | float | complex | np.generic | None
_LONGEST_KEY = 32  # members of a tuple


class Refused(Exception):
    """Names what a pickle asked for."""


@dataclass(frozen=True)
class Global:
    """A name that a pickle mentioned: a token, never the thing itself."""

    name: str


@dataclass
class PlainDtype:
    """A dtype as its code ("f8"), and the byte order that its state adds."""

    code: str
    order: str = "="
    state_seen: bool = field(default=False)

    def numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


def shorten(text: object) -> str:
    line = ascii(str(text))[1:-1]
    return line if len(line) <= 120 else line[:120] + "..."


def expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise pickle.UnpicklingError(f"adds to a {type(value).__name__} as if it were a {kind.__name__}")
    return value


def flat(key: Any) -> Any:
    members = key if type(key) is tuple else (key,)
    if len(members) > _LONGEST_KEY or not all(isinstance(m, _FLAT) for m in members):
        raise Refused(f"a {type(key).__name__} as a key or a set's member")
    if any(type(m) is int and m.bit_length() > 64 for m in members):
        raise Refused("a number beyond 64 bits as a key or a set's member")
    return key


def dtype_of(value: Any) -> np.dtype:
    if type(value) is not PlainDtype:
        raise pickle.UnpicklingError("an array without its element type")
    return value.numpy()


def shape_of(value: Any) -> tuple[int, ...]:
    if type(value) is int:
        value = (value,)
    if type(value) is not tuple or len(value) > 32 or not all(type(n) is int and 0 <= n < 2**40 for n in value):
        raise pickle.UnpicklingError("an array of impossible shape")
    return value


def raw_bytes(value: Any) -> bytes:
    if type(value) is str:  # a Python 2 string
        return value.encode("latin-1")
    if type(value) not in (bytes, bytearray):
        raise pickle.UnpicklingError("an array without its data")
    return bytes(value)
