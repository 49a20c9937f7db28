"""Arrays of the chumpy library, in which FLAME's files keep theirs, read without it."""

from typing import Any

import numpy as np

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.unpickle.values import shorten

# chumpy class -> the entry of its state that holds its array; others are admitted, but have no array to read
OPERAND = {
    "chumpy.ch.Ch": "x",
    "chumpy.reordering.Select": "a",
    "chumpy.reordering.Reshape": "a",
    "chumpy.reordering.transpose": "a",
}
COMPUTED = (
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
            value = value.state.get(OPERAND.get(value.name, ""))
        if not isinstance(value, np.ndarray | np.generic | int | float):
            raise self._unreadable("its state holds no array")
        try:
            array = np.asarray(value)
            if array.dtype.kind not in "biufc":  # an index would repeat texts of any length
                raise TypeError("it holds no numbers")
            for step in reversed(chain):
                array = _rearranged(array, step)
        except Exception as e:  # what the state holds is the file's, and can fail in any way
            raise self._unreadable(shorten(e)) from None
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
