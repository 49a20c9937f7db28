"""The decorators of the synthetic world's compiled loops.

Each loop runs on one thread and touches its arguments alone, so it needs none of the guard of the splatter's kernels:
it lets go of the interpreter lock, and captures can be made in a thread beside a training step.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from spatialavatar.kernel_cache import keep_by_content


def serial_kernel(function: Callable[..., Any]) -> Any:
    """Compiled at first use and kept on disk; it may call ``inlined`` functions of its own file only."""
    dispatcher = numba.njit(function, nogil=True)
    keep_by_content(dispatcher, hashlib.sha256(Path(function.__code__.co_filename).read_bytes()).hexdigest())
    return dispatcher


def inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(function, fastmath={"contract"}, forceinline=True)
