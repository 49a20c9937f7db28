"""safetensors files, ours and others': arrays, our metadata beside them, and a hash over the content."""

import hashlib
import io
import json
from typing import IO

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError

_METADATA_KEY = "spatialavatar"
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


def read_tensors(location: files.Location) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file."""
    return tensors_of(files.read_bytes(location), location)


def tensors_of(data: bytes, location: files.Location) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The same of a file's bytes; ``location`` is for messages."""
    metadata = _tensor_metadata(location, io.BytesIO(data))
    try:
        return safetensors.numpy.load(data), metadata
    except (SafetensorError, ValueError, KeyError) as e:
        raise _unreadable(location, e) from None


def read_tensor_metadata(location: files.Location) -> dict[str, str]:
    """Our metadata of a safetensors file (none in others' files); reads its header alone."""
    start = files.read_start(location, 1 << 16)
    length = 8 + int.from_bytes(start[:8], "little")
    if len(start) < length <= _LARGEST_HEADER:
        start = files.read_start(location, length)
    return _tensor_metadata(location, io.BytesIO(start))


def _tensor_metadata(location: files.Location, stream: IO[bytes]) -> dict[str, str]:
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


def _unreadable(location: files.Location, reason: Exception) -> SpatialAvatarError:
    return SpatialAvatarError(
        f"{location}: not a readable safetensors file ({reason}); it may be truncated, make it anew"
    )


def write_tensors(
    location: files.Location, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write all or leave what was there; the reading functions give ``metadata`` back."""
    files.write_bytes(location, tensor_bytes(arrays, metadata))


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
