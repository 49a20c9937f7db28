"""npz files, ours and others': arrays by name, without pickle."""

import io
import math
import threading
import zipfile
from collections.abc import Collection

import numpy as np

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, in_short

_LARGEST = 2 << 30  # bytes of the file, and of the arrays in it; the largest known (an ICT head) is under 0.1e9
_one_header = threading.Lock()  # Python 3.11's ast, with which numpy reads one, fails now and then in threads


def read_npz(
    location: files.Location, names: Collection[str] | None = None, max_bytes: int = _LARGEST
) -> dict[str, np.ndarray]:
    """Arrays of an npz, all or those of ``names`` that are there; pickled objects are never loaded.

    Raises SpatialAvatarError: no such file, no npz, damaged, an array of objects, more than ``max_bytes``.
    """
    data = files.read_bytes(location, max_bytes)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
            wanted = {name: m for name, m in members.items() if names is None or name in names}
            if sum(m.file_size for m in wanted.values()) > max_bytes:
                raise ValueError(f"its arrays take more than {max_bytes} bytes")
            return {name: _array(archive, member) for name, member in wanted.items()}
    except Exception as e:  # damaged bytes can fail in any way, down to the tokenizer of numpy's header
        raise SpatialAvatarError(
            f"{location}: not a readable npz archive of plain arrays ({in_short(e, 120, plain=True)}); it may be "
            "truncated, get it again"
        ) from None


def write_npz(location: files.Location, arrays: dict[str, np.ndarray], compressed: bool = False) -> None:
    """Write all of the arrays or leave what was there."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    files.write_bytes(location, buffer.getvalue())


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
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
