"""Reading and writing files: any path may be a URL (fsspec), every write is all or nothing.

On a local disk a write goes to a temporary name beside the target, is flushed, and renamed over it; on object stores
a put is atomic by itself. A reader therefore sees the old file or the new one, never half of one. A store that fails is
asked again for a while.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import fsspec

from spatialavatar import store
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.locations import Location as Location
from spatialavatar.locations import absolute as absolute
from spatialavatar.locations import is_local as is_local
from spatialavatar.locations import join as join
from spatialavatar.locations import local_path as local_path
from spatialavatar.locations import relative as relative

TEMPORARY = ".tmp"  # ending of a file that is being written
_PART = 32 << 20  # bytes of a large file that are fetched, and on failure fetched again, in one request
_THREADS = 8  # files of a folder that are fetched at once


def exists(location: Location) -> bool:
    """Whether there is a file or a folder."""
    fs, path = store.filesystem(location)
    return bool(store.asked(location, lambda: fs.exists(path)))


def is_folder(location: Location) -> bool:
    """Whether there is a folder; in a store, something whose name goes on below it."""
    fs, path = store.filesystem(location)

    def has_type() -> bool:
        try:  # not isdir, which on a store lists all that the folder holds
            return bool(fs.info(path)["type"] == "directory")
        except FileNotFoundError:
            return False

    return bool(store.asked(location, (lambda: fs.isdir(path)) if is_local(location) else has_type))


def list_folder(location: Location) -> list[str]:
    """Names (not paths) in a folder, sorted; an absent folder is empty, an absent bucket an error."""
    fs, path = store.filesystem(location)

    def names() -> list[str]:
        listed = _listed(fs, path, location, detail=False)
        return sorted({name.rsplit("/", 1)[-1] for name, _ in listed})

    return store.asked(location, names)


def list_folders_and_files(location: Location) -> tuple[list[str], list[str]]:
    """The same in one listing, names of folders and of files apart; links count as what they lead to."""
    fs, path = store.filesystem(location)

    def names() -> tuple[list[str], list[str]]:
        found: tuple[set[str], set[str]] = (set(), set())
        for name, type_of in _listed(fs, path, location, detail=True):
            folder = type_of == "directory" or (type_of != "file" and fs.isdir(name))
            found[0 if folder else 1].add(name.rsplit("/", 1)[-1])
        return sorted(found[0]), sorted(found[1])

    return store.asked(location, names)


def matching(pattern: Location) -> list[str]:
    """Locations of what a pattern such as ``data/*/clip.json`` matches, sorted; of a URL's as URLs."""
    fs, path = store.filesystem(pattern)
    found = store.asked(pattern, lambda: fs.glob(path))
    return sorted(name if is_local(pattern) else fs.unstrip_protocol(name) for name in found)


def _listed(fs: fsspec.AbstractFileSystem, path: str, location: Location, detail: bool) -> list[tuple[str, str]]:
    """Paths in a folder and, with ``detail``, their types."""
    try:
        listed = fs.ls(path, detail=detail)
    except (FileNotFoundError, NotADirectoryError) as e:
        if store.answer(e)[1] == "NoSuchBucket":
            raise SpatialAvatarError(f"{location}: no such bucket; check its name") from None
        return []
    items = [(item["name"], item["type"]) if detail else (item, "") for item in listed]
    return [(name.rstrip("/"), type_of) for name, type_of in items if name.rstrip("/") != path.rstrip("/")]


def size(location: Location) -> int:
    """Bytes of a file. Raises SpatialAvatarError when there is none."""
    fs, path = store.filesystem(location)
    return int(store.asked(location, lambda: fs.size(path)))


def version(location: Location) -> str:
    """Another text when a file was written again. Raises SpatialAvatarError when there is none."""
    fs, path = store.filesystem(location)
    facts = store.asked(location, lambda: fs.info(path))
    return " ".join(str(facts.get(key, "")) for key in ("size", "mtime", "ETag", "LastModified", "created"))


def read_bytes(location: Location, max_bytes: int | None = None) -> bytes:
    """Raises SpatialAvatarError: no such file, or one larger than ``max_bytes``, of which nothing is read then."""
    fs, path = store.filesystem(location)

    def read() -> bytes:
        if max_bytes is not None and (size := fs.size(path)) is not None and size > max_bytes:
            raise SpatialAvatarError(
                f"{location}: {size} bytes, such files are read up to {max_bytes}; is this the right file?"
            )
        return bytes(fs.cat_file(path))

    return store.asked(location, read)


def read_start(location: Location, count: int) -> bytes:
    """The first ``count`` bytes, or all when there are fewer. Raises SpatialAvatarError when there is no such file."""
    fs, path = store.filesystem(location)

    def read() -> bytes:
        try:
            return bytes(fs.cat_file(path, start=0, end=count))[:count]  # fs.open would read 50 MB ahead on a store
        except Exception as e:
            if store.answer(e)[0] == 416:  # of an empty file a store refuses every range
                return b""
            raise

    return store.asked(location, read)


def read_range(location: Location, start: int, end: int) -> bytes:
    """Bytes ``start`` .. ``end`` - 1 of a file in one request; all of them or an error.

    Raises SpatialAvatarError: no such file, or one that ends before.
    """
    fs, path = store.filesystem(location)

    def read() -> bytes:
        try:
            data = bytes(fs.cat_file(path, start=start, end=end))
        except Exception as e:
            if store.answer(e)[0] != 416:  # the file ends before the range begins
                raise
            data = b""
        if len(data) != end - start:
            if (length := fs.size(path)) < end:
                raise SpatialAvatarError(f"{location}: ends after {length} bytes, {end} were expected; it is truncated")
            raise OSError(f"{len(data)} bytes came instead of {end - start}")
        return data

    return store.asked(location, read)


@contextlib.contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """A file or folder as a local path, for what can only read those: itself, or a copy for as long as this lasts."""
    if is_local(location):
        if not exists(location):
            raise SpatialAvatarError(f"{location}: no such file")
        yield local_path(location)
        return
    fs, path = store.filesystem(location)
    path = path.rstrip("/")

    def found() -> dict[str, int | None]:
        info = fs.info(path)
        if info["type"] != "directory":
            return {path: info["size"]}
        # a name that ends so only marks a folder
        return {name: i["size"] for name, i in fs.find(path, detail=True).items() if not name.endswith("/")}

    with tempfile.TemporaryDirectory(prefix="spatialavatar-") as folder:
        target = Path(folder, path.rsplit("/", 1)[-1])

        def fetch(item: tuple[str, int | None]) -> None:
            inside = item[0].removeprefix(path)
            if ".." in inside.split("/"):
                raise SpatialAvatarError(f"{location}: holds a name that leads out of it, {inside}; rename that file")
            _fetch(os.fspath(location).rstrip("/") + inside, item[1], Path(f"{target}{inside}"))

        with ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(fetch, store.asked(location, found).items()):
                pass
        yield target


def _fetch(location: str, size: int | None, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as f:
        if size is None:  # some web servers do not say
            f.write(read_bytes(location))
        else:
            for start in range(0, size, _PART):
                f.write(read_range(location, start, min(start + _PART, size)))


def write_bytes(location: Location, data: bytes) -> None:
    """Write all of ``data`` or leave what was there. Makes parent folders."""
    if is_local(location):
        with _replacing_file(location) as f:
            f.write(data)
        return
    fs, path = store.filesystem(location)

    def write() -> None:
        _make_parents(fs, path)
        fs.pipe_file(path, data)

    store.asked(location, write, "no such bucket or folder")


def move_into_place(local: Path, location: Location) -> None:
    """Put a finished local file at ``location``, whole or not at all; ``local`` is gone afterwards."""
    if is_local(location):
        target = local_path(location)
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.stat(local).st_dev == os.stat(target.parent).st_dev:
            with open(local, "rb") as source:
                os.fsync(source.fileno())
            os.chmod(local, 0o666 & ~_umask())
            os.replace(local, target)
            return
        with open(local, "rb") as source, _replacing_file(location) as f:
            shutil.copyfileobj(source, f, 1 << 24)
    else:
        fs, path = store.filesystem(location)

        def upload() -> None:
            _make_parents(fs, path)
            fs.put_file(str(local), path)

        store.asked(location, upload, "no such bucket or folder")
    local.unlink()


def _make_parents(fs: fsspec.AbstractFileSystem, path: str) -> None:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not protocols & {"s3", "gs", "gcs", "abfs", "az"}:  # these have no folders, and would make a misspelt bucket
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)


@contextlib.contextmanager
def _replacing_file(location: Location) -> Iterator[IO[bytes]]:
    """A local file that takes its place only when the block ends well."""
    path = local_path(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def remove(location: Location) -> None:
    """Remove a file, or a folder with all that it holds; nothing there is fine."""
    fs, path = store.filesystem(location)

    def delete() -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)
        if not is_local(location) and fs.exists(path):  # S3's client says nothing of files that were not removed
            raise OSError("it is still there after its removal")

    store.asked(location, delete)


def read_json(location: Location) -> Any:
    """Raises SpatialAvatarError: no such file, not valid JSON."""
    try:
        return json.loads(read_bytes(location))
    except (ValueError, RecursionError) as e:  # also numbers of thousands of digits and nested brackets
        raise SpatialAvatarError(f"{location}: not valid JSON ({e}); restore the file or make it anew") from None


def write_json(location: Location, value: Any) -> None:
    """NaN and infinity are refused: no JSON reader is obliged to take them."""
    write_bytes(location, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def claim_output_folder(folder: Location, marker: str | None = None, force: bool = False) -> None:
    """Make ``folder`` ready to write into: it must be absent, empty, or hold ``marker`` (our own earlier result).

    Raises SpatialAvatarError when it holds something else and ``force`` is not set; nothing is ever deleted here.
    """
    names = list_folder(folder)
    if names and marker not in names and not force:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise SpatialAvatarError(
            f"{folder}: holds something else ({shown}); name an empty folder or add --force to write into it"
        )
    if is_local(folder):
        path = local_path(folder)
        if path.exists() and not path.is_dir():
            raise SpatialAvatarError(f"{folder}: is a file, a folder was expected")
        path.mkdir(parents=True, exist_ok=True)


def refuse_existing(location: Location, force: bool = False) -> None:
    """Raises SpatialAvatarError when there is something at an output's place and ``force`` is not set."""
    if not force and exists(location):
        raise SpatialAvatarError(f"{location}: exists; name another file or replace it with --force")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
