"""Reading and writing files: any path may be a URL (fsspec), every write is all or nothing.

On a local disk a write goes to a temporary name beside the target, is flushed, and renamed over it; on object
stores a put is atomic by itself. A reader therefore sees the old file or the new one, never half of one.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from spatialavatar.errors import SpatialAvatarError

Location = str | os.PathLike[str]

TEMPORARY = ".tmp"  # ending of a file that is being written
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


def join(folder: Location, *parts: str) -> str:
    return "/".join([os.fspath(folder).rstrip("/") or "/", *parts])


def relative(location: Location, folder: Location) -> str:
    """``location`` as seen from ``folder`` when both are local, else as it is."""
    if is_local(location) and is_local(folder):
        return os.path.relpath(local_path(location), local_path(folder))
    return os.fspath(location)


def exists(location: Location) -> bool:
    fs, path = _filesystem(location)
    return bool(fs.exists(path))


def is_folder(location: Location) -> bool:
    fs, path = _filesystem(location)
    return bool(fs.isdir(path))


def list_folder(location: Location) -> list[str]:
    """Names (not paths) in a folder, sorted; an absent folder is empty."""
    fs, path = _filesystem(location)
    if not fs.isdir(path):
        return []
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False))


def read_bytes(location: Location, max_bytes: int | None = None) -> bytes:
    """Raises SpatialAvatarError: no such file, or one larger than ``max_bytes``, of which nothing is read then."""
    fs, path = _filesystem(location)
    try:
        with fs.open(path, "rb") as f:
            if max_bytes is not None and (size := fs.size(path)) is not None and size > max_bytes:
                raise SpatialAvatarError(
                    f"{location}: {size} bytes, such files are read up to {max_bytes}; is this the right file?"
                )
            return bytes(f.read())
    except FileNotFoundError:
        raise SpatialAvatarError(f"{location}: no such file") from None
    except IsADirectoryError:
        raise SpatialAvatarError(f"{location}: is a folder, a file was expected") from None


def read_start(location: Location, count: int) -> bytes:
    """The first ``count`` bytes, or all when there are fewer. Raises SpatialAvatarError when there is no such file."""
    fs, path = _filesystem(location)
    try:
        with fs.open(path, "rb") as f:
            return bytes(f.read(count))
    except FileNotFoundError:
        raise SpatialAvatarError(f"{location}: no such file") from None
    except IsADirectoryError:
        raise SpatialAvatarError(f"{location}: is a folder, a file was expected") from None


def write_bytes(location: Location, data: bytes) -> None:
    """Write all of ``data`` or leave what was there. Makes parent folders."""
    if is_local(location):
        path = local_path(location)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    else:
        fs, path_on_store = _filesystem(location)
        fs.makedirs(path_on_store.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(path_on_store, data)


def remove(location: Location) -> None:
    """Remove a file, or a folder with all that it holds; nothing there is fine."""
    fs, path = _filesystem(location)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def read_json(location: Location) -> Any:
    try:
        return json.loads(read_bytes(location))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
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


def _npz_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile bounds only what these unpack
        raise ValueError(f"{member.filename} is compressed in a way that numpy does not write")
    with archive.open(member) as f:
        version = np.lib.format.read_magic(f)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"{member.filename} is of version {version}")
        shape, fortran, dtype = read_header[version](f)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        content = bytearray(f.read())  # to the end, where zipfile checks its sum
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{member.filename} has not the bytes of its shape {shape}")
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


def read_tensors(location: Location) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file."""
    data = read_bytes(location)
    metadata = _tensor_metadata(location, io.BytesIO(data))
    try:
        return safetensors.numpy.load(data), metadata
    except (SafetensorError, ValueError, KeyError) as e:
        raise _unreadable(location, e) from None


def read_tensor_metadata(location: Location) -> dict[str, str]:
    """Our metadata of a safetensors file (none in others' files); reads its header alone."""
    fs, path = _filesystem(location)
    try:
        with fs.open(path, "rb") as f:
            return _tensor_metadata(location, f)
    except FileNotFoundError:
        raise SpatialAvatarError(f"{location}: no such file") from None
    except IsADirectoryError:
        raise SpatialAvatarError(f"{location}: is a folder, a file was expected") from None


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
    """Equal content gives equal bytes: metadata go in as one sorted JSON text, for safetensors shuffles its keys."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = json.dumps(metadata or {}, sort_keys=True)
    write_bytes(location, safetensors.numpy.save(contiguous, metadata={_METADATA_KEY: text}))


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
    try:
        fs, path = fsspec.core.url_to_fs(os.fspath(location))
    except (ImportError, ValueError) as e:
        raise SpatialAvatarError(f"{location}: no way to open such a URL here ({e})") from None
    return fs, path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
