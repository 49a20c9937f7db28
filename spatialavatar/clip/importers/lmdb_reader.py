"""Reading LMDB files of unknown origin: in a child process, with a time limit for every answer.

LMDB maps its file and follows the page numbers in it unchecked. A truncated or damaged file therefore kills the process
that reads it, by a bus error or one of LMDB's own assertions, or keeps it busy for ever. So it is a small process of
its own that reads (lmdb_child.py), and its death or silence becomes an error that names the file.
"""

import contextlib
import importlib.util
import math
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError

DATA_FILE = "data.mdb"
TIME_LIMIT = 20.0  # seconds for one answer; the child's own start is in the first
LARGEST_VALUE = 64 << 20  # bytes; a JPEG of 8192 x 8192 pixels takes less
_LARGEST_KEYS = 1 << 30  # bytes of all keys together
_LONGEST_KEY = 511  # bytes, LMDB's own limit
_CHILD = Path(__file__).with_name("lmdb_child.py")


class LmdbReader:
    """The keys and values of one LMDB folder; usable from several threads, and in processes forked from this one.

    The child starts with the first question, and anew after one that it did not survive. It ends with ``close``, with
    the reader, or with this process.
    """

    def __init__(
        self, folder: files.Location, *, time_limit: float = TIME_LIMIT, largest_value: int = LARGEST_VALUE
    ) -> None:
        """Raises SpatialAvatarError when there is no data.mdb in ``folder``, or no lmdb to read it with."""
        self.location = files.join(folder, DATA_FILE)
        self.time_limit = time_limit
        self.largest_value = largest_value
        spec = importlib.util.find_spec("lmdb")
        if spec is None or spec.origin is None:
            raise SpatialAvatarError(f"{self.location}: reading this needs the package lmdb; 'pip install lmdb'")
        self._lmdb_folder = str(Path(spec.origin).parents[1])
        self._child = _Child()
        self._copy = contextlib.ExitStack()
        self._path = self._copy.enter_context(files.local_copy(self.location))
        self._close = weakref.finalize(self, _release, self._child, self._copy)

    def keys(self) -> list[str]:
        """All keys, in the order of their bytes. Raises SpatialAvatarError: damaged, or keys that are no text."""
        content = self._ask(b"k", b"", _LARGEST_KEYS)
        assert content is not None
        found, at = [], 0
        while at < len(content):
            (length,) = struct.unpack_from("<H", content, at)
            found.append(content[at + 2 : at + 2 + length])
            at += 2 + length
        try:
            return [key.decode() for key in found]
        except UnicodeDecodeError:
            raise SpatialAvatarError(
                f"{self.location}: holds a key that is no UTF-8 text; is this an LMDB that the tool wrote?"
            ) from None

    def get(self, key: str) -> bytes:
        """Raises SpatialAvatarError: no such key, a value beyond ``largest_value``, damaged."""
        wanted = key.encode(errors="replace")
        content = self._ask(b"v", wanted, self.largest_value) if len(wanted) <= _LONGEST_KEY else None
        if content is None:
            raise SpatialAvatarError(
                f"{self.location}: holds nothing under '{ascii(key)[1:-1][:100]}'; copy it again, or track again"
            )
        return content

    def close(self) -> None:
        """Ends the child; nothing can be asked any more."""
        self._close()

    def __enter__(self) -> "LmdbReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, letter: bytes, key: bytes, largest: int) -> bytes | None:
        if not self._close.alive:
            raise ValueError("this reader was closed")
        if self._child.owner != os.getpid():  # forked: the pipes are those of the process that started the child
            self._child = _Child()
            self._close.detach()
            self._close = weakref.finalize(self, _release, self._child, contextlib.ExitStack())
        with self._child.lock:
            try:
                return self._answer(self._child.started(self._command()), letter, key, largest)
            except _NoAnswer as e:
                code = self._child.stop()
                died = f", {signal.Signals(-code).name}" if code < 0 and code != -signal.SIGKILL else ""
                raise self._unreadable(f"{e}{died}") from None
            except BaseException:  # an answer read by half, after Ctrl-C say, would be taken for the next one's
                self._child.stop()
                raise

    def _command(self) -> list[str]:
        seconds = str(math.ceil(self.time_limit) + 1)
        path = str(self._path.absolute())
        return [sys.executable, "-I", "-S", str(_CHILD), self._lmdb_folder, path, str(self.largest_value), seconds]

    def _answer(self, process: subprocess.Popen[bytes], letter: bytes, key: bytes, largest: int) -> bytes | None:
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + self.time_limit
        try:
            process.stdin.write(letter + struct.pack("<I", len(key)) + key)
        except BrokenPipeError:
            raise _NoAnswer("the process that read it died") from None
        pipe = process.stdout.fileno()
        kind, length = struct.unpack("<cQ", self._receive(pipe, 9, deadline))
        if kind not in (letter, b"n", b"e") or length > largest:
            raise _NoAnswer("the process that read it answered nonsense")
        content = self._receive(pipe, length, deadline)
        if kind == b"e":
            raise self._unreadable(content.decode(errors="replace"))
        return None if kind == b"n" else content

    def _receive(self, pipe: int, count: int, deadline: float) -> bytes:
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        content = bytearray()
        while len(content) < count:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _NoAnswer(f"no answer within {self.time_limit:g} seconds")
            piece = os.read(pipe, min(count - len(content), 1 << 20))
            if not piece:
                raise _NoAnswer("the process that read it died")
            content += piece
        return bytes(content)

    def _unreadable(self, reason: str) -> SpatialAvatarError:
        shown = ascii(reason)[1:-1][:200]
        return SpatialAvatarError(
            f"{self.location}: not a readable LMDB ({shown}); it is damaged or truncated, copy it again or track again"
        )


class _NoAnswer(Exception):
    """The child died, was silent, or said what it never says."""


class _Child:
    """The process, its pipes, and who may use them."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def started(self, command: list[str]) -> subprocess.Popen[bytes]:
        if self.process is None:
            self.process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self.process

    def stop(self) -> int:
        """How it ended (as Popen's returncode); leaves neither a process nor an open pipe."""
        process, self.process = self.process, None
        if process is None:
            return 0
        if process.stdout is not None and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                # a pipe that ended says that the process is about to; the signal it dies of is worth the wait
                process.wait(1.0 if _ended(process.stdout.fileno()) else 0)
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return code


def _ended(pipe: int) -> bool:
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    return any(event & select.POLLHUP and not event & select.POLLIN for _, event in ready.poll(0))


def _release(child: _Child, copy: contextlib.ExitStack) -> None:
    if child.owner == os.getpid():
        child.stop()
        copy.close()
