"""Where compiled CPU kernels are kept: by the content of their sources, so that every copy of them shares one.

Numba keeps what it compiled beside a function's file, and knows that file by its path. A job that ``ray job submit``
started runs in a copy of the repository at a new path, and would compile everything again: minutes, on a few cores.
"""

import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
from numba.core import caching


def keep_by_content(dispatcher: Any, digest: str) -> None:
    """Keep what ``dispatcher`` compiles in the user's cache folder, under the digest of all that it was made from.

    The folder is NUMBA_CACHE_DIR, else XDG_CACHE_HOME or ``~/.cache``; where it cannot be written, numba's own place,
    and where that cannot be either, every process compiles anew. A version of all kernels takes about 2 MB for each
    kind of CPU; old ones are never removed.
    """
    if not hasattr(dispatcher, "py_func"):  # with NUMBA_DISABLE_JIT it is the function itself
        return
    try:
        folder = cache_folder() / f"{digest[:32]}-{_machine()}"
        dispatcher._cache = _cache_in(folder)(dispatcher.py_func)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home, or no place at all
        try:
            dispatcher.enable_caching()
        except RuntimeError:
            return
    dispatcher._cache._cache_file._source_stamp = digest


def cache_folder() -> Path:
    """Raises RuntimeError where none is given and the user has no home."""
    given: str = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    return Path(given or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spatialavatar" / "kernels"


@functools.cache
def _machine() -> str:
    """What code is compiled for: homes are shared by machines that differ, and numba's files would be, too."""
    config: Any = numba.config
    features = llvmlite.binding.get_host_cpu_features().flatten()
    told = [config.CPU_NAME or llvmlite.binding.get_host_cpu_name(), config.CPU_FEATURES or features]
    told += [platform.machine(), platform.python_version(), numba.__version__, llvmlite.__version__]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def _cache_in(folder: Path) -> Any:
    """A class of numba's, whose files lie in ``folder``."""

    class Locator(caching._SourceFileBackedLocatorMixin, caching._CacheLocator):  # type: ignore[misc]
        def __init__(self, function: Any, file: str) -> None:
            self._py_file, self._lineno = file, function.__code__.co_firstlineno
            self.ensure_cache_path()  # raises OSError where nothing can be written

        @classmethod
        def from_function(cls, function: Any, file: str) -> "Locator":
            return cls(function, file)

        def get_cache_path(self) -> str:
            return str(folder)

    class Files(caching.CompileResultCacheImpl):
        _locator_classes = [Locator]  # noqa: RUF012

    class Cache(caching.FunctionCache):
        _impl_class = Files

    return Cache
