"""Where compiled CPU kernels are kept: by the content of their sources, so that every copy of them shares one.

Numba keeps what it compiled beside a function's file, and knows that file by its path. A job that ``ray job submit``
started runs in a copy of the repository at a new path, and would compile everything again: minutes, on a few cores.
"""

import os
from pathlib import Path
from typing import Any

import numba
from numba.core import caching


def keep_by_content(dispatcher: Any, digest: str) -> None:
    """Keep what ``dispatcher`` compiles in the user's cache folder, under the digest of all that it was made from.

    The folder is NUMBA_CACHE_DIR, else XDG_CACHE_HOME or ``~/.cache``; where it cannot be written, numba's own place.
    Numba itself tells machines apart. A version of all kernels takes about 2 MB.
    """
    folder = cache_folder() / digest[:32]
    try:
        dispatcher._cache = _cache_in(folder, digest)(dispatcher.py_func)
    except OSError:
        dispatcher._cache._cache_file._source_stamp = digest


def cache_folder() -> Path:
    given: str = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given or home) / "spatialavatar" / "kernels"


def _cache_in(folder: Path, digest: str) -> Any:
    """A class of numba's, whose files lie in ``folder`` and count while the digest is the same."""

    class Locator(caching._SourceFileBackedLocatorMixin, caching._CacheLocator):  # type: ignore[misc]
        def __init__(self, function: Any, file: str) -> None:
            self._py_file, self._lineno = file, function.__code__.co_firstlineno
            self.ensure_cache_path()  # raises OSError where nothing can be written

        @classmethod
        def from_function(cls, function: Any, file: str) -> "Locator":
            return cls(function, file)

        def get_cache_path(self) -> str:
            return str(folder)

        def get_source_stamp(self) -> str:
            return digest

    class Files(caching.CompileResultCacheImpl):
        _locator_classes = [Locator]  # noqa: RUF012

    class Cache(caching.FunctionCache):
        _impl_class = Files

    return Cache
