"""What all CPU kernels share: the decorator that compiles them, the guard around their calls, their buffers.

Import this module (or anything of ``spatialavatar.splat``) before torch: it asks OpenMP to let idle threads sleep
(``OMP_WAIT_POLICY=passive``). Numba and torch each keep a pool of threads in the same OpenMP library; when both spin
while they wait, an iteration that takes 50 ms takes a second on a busy machine. libgomp reads the variable once, when
torch is imported, so programs that import torch first should set it in their environment.

Kernels must only be called inside ``kernel_guard()``.
"""

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.kernel_cache import keep_by_content
from spatialavatar.splat.process import forked

# OpenMP is what the kernels were measured with; every layer is safe here, because calls are serialised.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]

# Everything of fastmath but the promise that there is no NaN: a broken input must show in the result.
NAN_SAFE_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

_one_at_a_time = threading.RLock()
_scratch_buffers: dict[str, np.ndarray] = {}  # only touched inside the guard


@contextmanager
def kernel_guard() -> Iterator[None]:
    """Hold this while calling kernels: one caller at a time in a process (nested use is fine), none in a forked child.

    Raises SpatialAvatarError in a process made by ``fork``: the parent's OpenMP threads do not exist there, and a
    parallel kernel would hang or be killed.

    torch's number of threads is afterwards what it was: numba, when it starts its pool, sets that of the OpenMP library
    which both use, and sums over another number of threads round otherwise.
    """
    import torch  # here, for the variable above must be set before it is imported

    if forked.is_set():
        raise SpatialAvatarError(
            "the CPU splatter cannot run in a forked process: start workers with the 'spawn' method "
            "(multiprocessing.get_context('spawn'), DataLoader(multiprocessing_context='spawn')) or with exec"
        )
    with _one_at_a_time:
        threads = torch.get_num_threads()
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def kernel(*, parallel: bool = False, fastmath: bool | set[str] = False, inline: bool = False) -> Callable[..., Any]:
    """``numba.njit`` with an on-disk cache that notices changes in any kernel source.

    Numba's own cache looks only at the file of the function itself, and silently reuses code that has inlined
    something old from another file. ``fastmath=True`` assumes that no value is NaN or infinite; kernels that test for
    those take ``fastmath={"contract"}``, kernels that must pass them on NAN_SAFE_FASTMATH. ``inline=True`` is for small
    functions called by kernels.
    """

    def compile_lazily(function: Callable[..., Any]) -> Any:
        if inline:
            return numba.njit(function, fastmath=fastmath or {"contract"}, forceinline=True)
        dispatcher = numba.njit(function, parallel=parallel, fastmath=fastmath)
        keep_by_content(dispatcher, _source_digest(Path(function.__code__.co_filename)))
        return dispatcher

    return compile_lazily


def aligned_empty(shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An uninitialised array that starts on a cache line (64 bytes), so that rows of 16 floats never straddle two."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count].view(dtype).reshape(shape)


def scratch(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An uninitialised aligned array that is valid until the guard is released: one buffer per name, which grows.

    Fresh memory of tens of megabytes costs more in page faults than the kernels that fill it.
    """
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = _scratch_buffers.get(name)
    if buffer is None or buffer.size < count:
        buffer = _scratch_buffers[name] = aligned_empty(count + count // 4, np.uint8)
    return buffer[:count].view(dtype).reshape(shape)


@functools.cache
def _source_digest(own_file: Path) -> str:
    digest = hashlib.sha256()
    for path in [*sorted(Path(__file__).parents[1].rglob("*.py")), own_file]:
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
