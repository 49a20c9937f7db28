"""Reading and writing files: any path may be a URL (fsspec), every write is all or nothing.

On a local disk a write goes to a temporary name beside the target, is flushed, and renamed over it; on object stores
a put is atomic by itself. A reader therefore sees the old file or the new one, never half of one. A store that fails is
asked again for a while.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import random
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from spatialavatar.errors import SpatialAvatarError, StoreError

T = TypeVar("T")
Location = str | os.PathLike[str]

TEMPORARY = ".tmp"  # ending of a file that is being written
RETRY_AFTER = (0.2, 1.0, 4.0, 15.0, 30.0)  # seconds before a store is asked again
# One repeat by the client, for parts of an upload; its own loops, one in another, would take an hour to give up.
S3_CLIENT: dict[str, Any] = {"retries": {"mode": "standard", "total_max_attempts": 2}, "read_timeout": 15}
_PART = 32 << 20  # bytes of a large file that are fetched, and on failure fetched again, in one request
_THREADS = 8  # files of a folder that are fetched at once
_METADATA_KEY = "spatialavatar"
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
_LARGEST_NPZ = 2 << 30  # bytes of the file, and of the arrays in it; the largest known (an ICT head) is under 0.1e9


def is_local(location: Location) -> bool:
    text = os.fspath(location)
    return "://" not in text or text.startswith("file://")


def local_path(location: Location) -> Path:
    """The local path behind a plain path or a file:// URL.

    Raises SpatialAvatarError for any other URL: the caller needs a real file.
    """
    text = os.fspath(location)
    if not is_local(text):
        raise SpatialAvatarError(f"{text}: a local path is needed here; copy the file to this machine first")
    return Path(text.removeprefix("file://"))


def absolute(location: Location) -> str:
    """A location that means the same from any working folder, without a slash at its end."""
    if not is_local(location):
        return os.fspath(location).rstrip("/")
    return str(local_path(location).absolute()).rstrip("/") or "/"


def join(folder: Location, *parts: str) -> str:
    return "/".join([os.fspath(folder).rstrip("/") or "/", *parts])


def relative(location: Location, folder: Location) -> str:
    """``location`` as seen from ``folder`` when both are local, else as it is."""
    if is_local(location) and is_local(folder):
        return os.path.relpath(local_path(location), local_path(folder))
    return os.fspath(location)


def exists(location: Location) -> bool:
    fs, path = _filesystem(location)
    return bool(_asked(location, lambda: fs.exists(path)))


def is_folder(location: Location) -> bool:
    fs, path = _filesystem(location)

    def has_type() -> bool:
        try:  # not isdir, which on a store lists all that the folder holds
            return bool(fs.info(path)["type"] == "directory")
        except FileNotFoundError:
            return False

    return bool(_asked(location, (lambda: fs.isdir(path)) if is_local(location) else has_type))


def list_folder(location: Location) -> list[str]:
    """Names (not paths) in a folder, sorted; an absent folder is empty, an absent bucket an error."""
    fs, path = _filesystem(location)

    def names() -> list[str]:
        listed = _listed(fs, path, location, detail=False)
        return sorted({name.rsplit("/", 1)[-1] for name, _ in listed})

    return _asked(location, names)


def list_folders_and_files(location: Location) -> tuple[list[str], list[str]]:
    """The same in one listing, names of folders and of files apart; links count as what they lead to."""
    fs, path = _filesystem(location)

    def names() -> tuple[list[str], list[str]]:
        found: tuple[set[str], set[str]] = (set(), set())
        for name, type_of in _listed(fs, path, location, detail=True):
            folder = type_of == "directory" or (type_of != "file" and fs.isdir(name))
            found[0 if folder else 1].add(name.rsplit("/", 1)[-1])
        return sorted(found[0]), sorted(found[1])

    return _asked(location, names)


def _listed(fs: fsspec.AbstractFileSystem, path: str, location: Location, detail: bool) -> list[tuple[str, str]]:
    """Paths in a folder and, with ``detail``, their types."""
    try:
        listed = fs.ls(path, detail=detail)
    except (FileNotFoundError, NotADirectoryError) as e:
        if _answer(e)[1] == "NoSuchBucket":
            raise SpatialAvatarError(f"{location}: no such bucket; check its name") from None
        return []
    items = [(item["name"], item["type"]) if detail else (item, "") for item in listed]
    return [(name.rstrip("/"), type_of) for name, type_of in items if name.rstrip("/") != path.rstrip("/")]


def size(location: Location) -> int:
    """Bytes of a file. Raises SpatialAvatarError when there is none."""
    fs, path = _filesystem(location)
    return int(_asked(location, lambda: fs.size(path)))


def version(location: Location) -> str:
    """Another text when a file was written again. Raises SpatialAvatarError when there is none."""
    fs, path = _filesystem(location)
    facts = _asked(location, lambda: fs.info(path))
    return " ".join(str(facts.get(key, "")) for key in ("size", "mtime", "ETag", "LastModified", "created"))


def read_bytes(location: Location, max_bytes: int | None = None) -> bytes:
    """Raises SpatialAvatarError: no such file, or one larger than ``max_bytes``, of which nothing is read then."""
    fs, path = _filesystem(location)

    def read() -> bytes:
        if max_bytes is not None and (size := fs.size(path)) is not None and size > max_bytes:
            raise SpatialAvatarError(
                f"{location}: {size} bytes, such files are read up to {max_bytes}; is this the right file?"
            )
        return bytes(fs.cat_file(path))

    return _asked(location, read)


def read_start(location: Location, count: int) -> bytes:
    """The first ``count`` bytes, or all when there are fewer. Raises SpatialAvatarError when there is no such file."""
    fs, path = _filesystem(location)

    def read() -> bytes:
        try:
            return bytes(fs.cat_file(path, start=0, end=count))[:count]  # fs.open would read 50 MB ahead on a store
        except Exception as e:
            if _answer(e)[0] == 416:  # of an empty file a store refuses every range
                return b""
            raise

    return _asked(location, read)


def read_range(location: Location, start: int, end: int) -> bytes:
    """Bytes ``start`` .. ``end`` - 1 of a file in one request; all of them or an error.

    Raises SpatialAvatarError: no such file, or one that ends before.
    """
    fs, path = _filesystem(location)

    def read() -> bytes:
        try:
            data = bytes(fs.cat_file(path, start=start, end=end))
        except Exception as e:
            if _answer(e)[0] != 416:  # the file ends before the range begins
                raise
            data = b""
        if len(data) != end - start:
            if (length := fs.size(path)) < end:
                raise SpatialAvatarError(f"{location}: ends after {length} bytes, {end} were expected; it is truncated")
            raise OSError(f"{len(data)} bytes came instead of {end - start}")
        return data

    return _asked(location, read)


@contextlib.contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """A file or folder as a local path, for what can only read those: itself, or a copy for as long as this lasts."""
    if is_local(location):
        if not exists(location):
            raise SpatialAvatarError(f"{location}: no such file")
        yield local_path(location)
        return
    fs, path = _filesystem(location)
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
            for _ in threads.map(fetch, _asked(location, found).items()):
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
    fs, path = _filesystem(location)

    def write() -> None:
        _make_parents(fs, path)
        fs.pipe_file(path, data)

    _asked(location, write, "no such bucket or folder")


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
        fs, path = _filesystem(location)

        def upload() -> None:
            _make_parents(fs, path)
            fs.put_file(str(local), path)

        _asked(location, upload, "no such bucket or folder")
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
    fs, path = _filesystem(location)

    def delete() -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)
        if not is_local(location) and fs.exists(path):  # S3's client says nothing of files that were not removed
            raise OSError("it is still there after its removal")

    _asked(location, delete)


def read_json(location: Location) -> Any:
    try:
        return json.loads(read_bytes(location))
    except (ValueError, RecursionError) as e:  # also numbers of thousands of digits and nested brackets
        raise SpatialAvatarError(f"{location}: not valid JSON ({e}); restore the file or make it anew") from None


def write_json(location: Location, value: Any) -> None:
    """NaN and infinity are refused: no JSON reader is obliged to take them."""
    write_bytes(location, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_npz(
    location: Location, names: Collection[str] | None = None, max_bytes: int = _LARGEST_NPZ
) -> dict[str, np.ndarray]:
    """Arrays of an npz, all or those of ``names`` that are there; pickled objects are never loaded.

    Raises SpatialAvatarError: no such file, no npz, damaged, an array of objects, more than ``max_bytes``.
    """
    data = read_bytes(location, max_bytes)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
            wanted = {name: m for name, m in members.items() if names is None or name in names}
            if sum(m.file_size for m in wanted.values()) > max_bytes:
                raise ValueError(f"its arrays take more than {max_bytes} bytes")
            return {name: _npz_array(archive, member) for name, member in wanted.items()}
    except Exception as e:  # damaged bytes can fail in any way, down to the tokenizer of numpy's header
        reason = ascii(str(e))[1:-1][:120]
        raise SpatialAvatarError(
            f"{location}: not a readable npz archive of plain arrays ({reason}); it may be truncated, get it again"
        ) from None


_one_header = threading.Lock()  # Python 3.11's ast, with which numpy reads one, fails now and then in threads


def _npz_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile bounds only what these unpack
        raise ValueError(f"{member.filename} is compressed in a way that numpy does not write")
    with archive.open(member) as f:
        version = np.lib.format.read_magic(f)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"{member.filename} is of version {version}")
        with _one_header:
            shape, fortran, dtype = read_header[version](f)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        content = bytearray(f.read())  # to the end, where zipfile checks its sum
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{member.filename} has not the bytes of its shape {shape}")
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


def read_tensors(location: Location) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file."""
    return tensors_of(read_bytes(location), location)


def tensors_of(data: bytes, location: Location) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The same of a file's bytes; ``location`` is for messages."""
    metadata = _tensor_metadata(location, io.BytesIO(data))
    try:
        return safetensors.numpy.load(data), metadata
    except (SafetensorError, ValueError, KeyError) as e:
        raise _unreadable(location, e) from None


def read_tensor_metadata(location: Location) -> dict[str, str]:
    """Our metadata of a safetensors file (none in others' files); reads its header alone."""
    start = read_start(location, 1 << 16)
    length = 8 + int.from_bytes(start[:8], "little")
    if len(start) < length <= _LARGEST_HEADER:
        start = read_start(location, length)
    return _tensor_metadata(location, io.BytesIO(start))


def _tensor_metadata(location: Location, stream: IO[bytes]) -> dict[str, str]:
    try:
        size = int.from_bytes(stream.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError("header too large")
        metadata = json.loads(json.loads(stream.read(size)).get("__metadata__", {}).get(_METADATA_KEY, "{}"))
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no texts by name")
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise _unreadable(location, e) from None
    return metadata


def _unreadable(location: Location, reason: Exception) -> SpatialAvatarError:
    return SpatialAvatarError(
        f"{location}: not a readable safetensors file ({reason}); it may be truncated, make it anew"
    )


def write_tensors(location: Location, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    write_bytes(location, tensor_bytes(arrays, metadata))


def tensor_bytes(arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """Equal content gives equal bytes: metadata go in as one sorted JSON text, for safetensors shuffles its keys."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = json.dumps(metadata or {}, sort_keys=True)
    return safetensors.numpy.save(contiguous, metadata={_METADATA_KEY: text})


def content_hash(arrays: dict[str, np.ndarray], *extra: str) -> str:
    """SHA-256 over names, types, shapes and bytes of arrays, in name order, and over further strings."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    for text in extra:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


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


def _filesystem(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    text = os.fspath(location)
    protocol = fsspec.core.split_protocol(text)[0]
    options: dict[str, Any] = {}
    if not (is_local(text) or protocol == "memory"):
        options["use_listings_cache"] = False  # what this process remembers would hide what others write
    if protocol in ("s3", "s3a"):
        given = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        options |= {"config_kwargs": {**given, **S3_CLIENT}, "max_concurrency": 1}
    try:
        fs, path = fsspec.core.url_to_fs(text, **options)
    except (ImportError, ValueError) as e:
        raise SpatialAvatarError(f"{location}: no way to open such a URL here ({e})") from None
    if protocol in ("s3", "s3a"):
        fs.retries = 1
    return fs, path


def _asked(location: Location, request: Callable[[], T], missing: str = "no such file") -> T:
    """What a file system answers; a store that fails as networks and busy servers do is asked again.

    Raises SpatialAvatarError: at once where asking again is of no use, else after about a minute, or, of a store that
    takes requests and never answers, after four.
    """
    tries = 1 if is_local(location) else len(RETRY_AFTER) + 1
    for attempt in range(tries):
        try:
            return request()
        except FileNotFoundError as e:
            # no such upload: it was completed, only the answer was lost; again from the start then
            if _answer(e)[1] != "NoSuchUpload" or attempt == tries - 1:
                raise SpatialAvatarError(f"{location}: {missing}") from None
        except IsADirectoryError:
            raise SpatialAvatarError(f"{location}: is a folder, a file was expected") from None
        except (SpatialAvatarError, MemoryError, TypeError, AttributeError):
            raise
        except Exception as e:  # every store's client has exceptions of its own
            if is_local(location):
                raise
            reason = ascii(str(e) or type(e).__name__)[1:-1][:200]
            if _refused(e):
                raise StoreError(
                    f"{location}: the store refuses access ({reason}); check the address and the keys"
                ) from None
            if attempt == tries - 1:
                raise StoreError(
                    f"{location}: the store did not answer after {tries} tries ({reason}); check the network and the "
                    "store, then run the same command again"
                ) from None
            time.sleep(RETRY_AFTER[attempt] * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


_BOTOCORE_REFUSALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "NoRegionError",
    "ParamValidationError",
)


def _answer(error: BaseException) -> tuple[int, str]:
    """HTTP status and code in a store client's error; 0 and nothing when it has none."""
    for e in (error, error.__cause__):  # s3fs keeps botocore's as the cause
        response = getattr(e, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    status = getattr(error, "status", getattr(error, "code", 0))  # aiohttp's and Google's
    return status if isinstance(status, int) else 0, ""


def _refused(error: Exception) -> bool:
    """Whether the same request would fail again: bad keys, no rights, an impossible name."""
    if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError, ValueError)):
        return True
    if type(error).__name__ in _BOTOCORE_REFUSALS:
        return True
    status, code = _answer(error)
    # sums that do not match and bodies that end early are the network's doing
    passing = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "OperationAborted")
    return 400 <= status < 500 and status not in (408, 409, 425, 429) and code not in passing


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
