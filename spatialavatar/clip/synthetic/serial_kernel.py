"""The decorators of the synthetic world's compiled loops.

Each loop runs on one thread and touches its arguments alone, so it needs none of the guard of the splatter's kernels:
it lets go of the interpreter lock, and captures can be made in a thread beside a training step.
"""

from collections.abc import Callable
from typing import Any

import numba


def serial_kernel(function: Callable[..., Any]) -> Any:
    """Compiled at first use and kept on disk; it may call ``inlined`` functions of its own file only."""
    return numba.njit(function, nogil=True, cache=True)


def inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(function, fastmath={"contract"}, forceinline=True)
