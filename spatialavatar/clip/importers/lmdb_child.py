"""Reads an LMDB file for another process, which must not map it itself (lmdb_reader.py starts this and says why).

Run by path as ``python -I -S lmdb_child.py FOLDER_OF_LMDB DATA_FILE LARGEST_VALUE SECONDS``; imports only lmdb and the
standard library, so that it is up in a few hundredths of a second. A request is one letter, four bytes with a length,
and a key; an answer one letter, eight bytes with a length, and what was asked for:

    k  all keys, in order           ->  k  two bytes with its length before each key
    v  the value of a key           ->  v  the value, or n when there is no such key
    anything that goes wrong        ->  e  the reason as text
"""

import os
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any

MOST_KEYS = 10_000_000
MEMORY = 1 << 30  # bytes that damaged content may make this process take, beside the file's mapping


class Damaged(Exception):
    """Its text is the reason."""


def all_keys(environment: Any) -> bytes:
    return b"".join(struct.pack("<H", len(key)) + key for key in _ordered_keys(environment))


def _ordered_keys(environment: Any) -> Iterator[bytes]:
    with environment.begin() as transaction:
        expected, count, last = transaction.stat()["entries"], 0, None
        for key in transaction.cursor().iternext(keys=True, values=False):
            # a tree whose pages point in a circle would go on for ever
            if (last is not None and key <= last) or count >= min(expected, MOST_KEYS):
                raise Damaged("its keys are not in order, or more than it says")
            count, last = count + 1, key
            yield key
        if count != expected:
            raise Damaged(f"{count} keys were found where it says {expected}")


def value(environment: Any, key: bytes, largest: int) -> bytes | None:
    with environment.begin(buffers=True) as transaction:
        found = transaction.get(key)
        if found is None:
            return None
        if len(found) > largest:
            raise Damaged(f"a value of {len(found)} bytes, up to {largest} are read")
        return bytes(found)


def receive(count: int) -> bytes:
    """Exactly so many bytes; ends this process when the other one is gone."""
    parts = bytearray()
    while len(parts) < count:
        piece = os.read(0, count - len(parts))
        if not piece:
            os._exit(0)
        parts += piece
    return bytes(parts)


def send(letter: bytes, content: bytes) -> None:
    for part in (letter + struct.pack("<Q", len(content)), content):
        left = memoryview(part)
        while left:
            left = left[os.write(1, left) :]


def main(folder: str, path: str, largest: int, seconds: int) -> None:
    _limit()
    sys.path.insert(0, folder)
    environment = None
    while True:
        letter, length = struct.unpack("<cI", receive(5))
        key = receive(length)
        signal.alarm(seconds)  # the end of this process too when the other one died while this one is stuck
        try:
            if environment is None:
                import lmdb

                environment = lmdb.open(path, subdir=False, readonly=True, lock=False, readahead=False)
            content = all_keys(environment) if letter == b"k" else value(environment, key, largest)
            answer = (b"n", b"") if content is None else (letter, content)
        except Exception as e:  # lmdb's own errors, those of memory, and Damaged: the other process says it
            answer = (b"e", f"{type(e).__name__}: {e}".removeprefix("Damaged: ").encode(errors="replace")[:500])
        send(*answer)
        signal.alarm(0)


def _limit() -> None:
    """No dump of the memory when damaged content kills this process, and no endless memory."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process, which closes the pipe
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, MEMORY)):
        try:
            resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))
        except (OSError, ValueError):  # not on every system
            continue


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
