"""A shard: a Parquet file in which a clip is a row and every row a row group.

Columns: ``key``, ``header`` (JSON as clip.json), ``arrays`` (the bytes of params.safetensors), ``images``, ``masks``
and ``roi`` (encoded pictures by instant, then camera; null when the clip has none). Nothing is compressed, for pictures
are already. A row group's bytes lie together, so that a clip is read with one request; their sum (and the footer's) is
compared before Parquet's reader sees them.
"""

import dataclasses
import io
import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spatialavatar import files
from spatialavatar.clip.arrays import check_arrays, decoded_arrays, encoded_arrays
from spatialavatar.clip.header import PICTURES, ClipHeader, FrameIndex, Picture, header_from_json
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.tracked_clip import TrackedClip, clip_from_arrays
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.shards.entry import ENTRY_RULES, ClipEntry, ShardFacts, checked

FOLDER = "shards"
SUFFIX = ".parquet"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("header", pa.string()),
        ("arrays", pa.large_binary()),
        *((picture, pa.list_(pa.large_binary())) for picture in PICTURES),
    ]
)
LARGEST_PICTURES = 2**31 - 2**24  # bytes of a clip's images, masks or roi: Parquet counts a page's bytes in 31 bits
_LARGEST_ROW = 4 << 31
_LARGEST_TEXT = 1 << 20  # of a key, of a header
_LARGEST_FOOTER = 1 << 28
_FOOTERS_KEPT = 256
_WRITTEN_AGAIN = "restore the file, or remove it with its record and run the ingest again"


def shard_file(folder: files.Location, shard: str) -> str:
    return files.join(folder, FOLDER, shard + SUFFIX)


class ShardWriter:
    """Writes a shard clip by clip, with one clip in memory at a time. Equal clips give equal bytes."""

    def __init__(self, local: Path, shard: str | None = None) -> None:
        """``shard`` is the name that the file will have in the data set; by default the one it has here."""
        self.local = local
        self.shard = local.name.removesuffix(SUFFIX) if shard is None else shard
        self._headers: dict[str, ClipHeader] = {}
        self._writer = pq.ParquetWriter(
            str(local),
            SCHEMA,
            version="2.6",
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_index=False,
            write_batch_size=16,
        )

    def __len__(self) -> int:
        return len(self._headers)

    def add(self, key: str, clip: TrackedClip) -> None:
        """Append a clip; every frame is asked for once, in order.

        Raises SpatialAvatarError, with the shard as it was: a frame that cannot be read, texts that no manifest can
        hold, more than 2 GB of pictures.
        """
        if key in self._headers:
            raise ValueError(f"the key {key!r} is in the shard already")
        entry = ClipEntry.of(key, clip.header, self.shard, len(self), 4, 5, 0)
        checked(dataclasses.asdict(entry), ENTRY_RULES, clip.location)
        columns = {
            "key": pa.array([key], pa.string()),
            "header": pa.array([json.dumps(clip.header.to_json(), allow_nan=False)], pa.string()),
            "arrays": pa.array([encoded_arrays(clip.arrays())], pa.large_binary()),
            **_picture_columns(clip),
        }
        self._writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=1)
        self._headers[key] = clip.header

    def close(self) -> tuple[tuple[ClipEntry, ...], ShardFacts]:
        """Finish the file; what its record and the manifest say of it."""
        self._writer.close()
        metadata = pq.read_metadata(self.local)
        size = self.local.stat().st_size
        with open(self.local, "rb") as f:
            f.seek(size - 8)
            footer_start = size - 8 - int.from_bytes(f.read(4), "little")
            entries = []
            for i, (key, header) in enumerate(self._headers.items()):
                start, end = _row_range(metadata.row_group(i))
                entries.append(ClipEntry.of(key, header, self.shard, i, start, end, _sum_of(f, start, end)))
            return tuple(entries), ShardFacts(size, footer_start, _sum_of(f, footer_start, size))

    def abandon(self) -> None:
        """Close and remove the unfinished file."""
        self._writer.close()
        self.local.unlink(missing_ok=True)


def read_clip(folder: files.Location, facts: ShardFacts, entry: ClipEntry) -> TrackedClip:
    """The clip of a row, read with one request (and one for the shard's footer, when it is not remembered).

    Its pictures stay encoded, in memory. Raises SpatialAvatarError naming the file: gone, other bytes than were
    written, not a row of ours, another clip than the manifest says.
    """
    location = shard_file(folder, entry.shard)
    where = f"{location}#{entry.key}"
    metadata = read_footer(location, facts)
    if not 0 < entry.end - entry.start <= _LARGEST_ROW:
        raise SpatialAvatarError(f"{where}: bytes {entry.start}..{entry.end} cannot be a clip; {_WRITTEN_AGAIN}")
    data = files.read_range(location, entry.start, entry.end)
    if zlib.crc32(data) != entry.crc32:
        raise SpatialAvatarError(f"{where}: the clip's bytes are not those that were written; {_WRITTEN_AGAIN}")
    row = _read_row(where, metadata, entry, data)
    try:
        value = json.loads(row["header"].as_py())
    except (ValueError, RecursionError) as e:
        raise SpatialAvatarError(f"{where}: its header is not usable JSON ({e}); {_WRITTEN_AGAIN}") from None
    header = header_from_json(value, where)
    found = ClipEntry.of(row["key"].as_py(), header, entry.shard, entry.row_group, entry.start, entry.end, entry.crc32)
    for field, said in dataclasses.asdict(entry).items():
        if getattr(found, field) != said:
            raise SpatialAvatarError(
                f"{where}: {field} is {ascii(getattr(found, field))[:60]} in the shard, {ascii(said)[:60]} in the "
                f"manifest; {_WRITTEN_AGAIN}"
            )
    arrays = decoded_arrays(row["arrays"].as_py(), where)
    faults = check_arrays(header, arrays)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise SpatialAvatarError(f"{where}: {faults[0]}{more}; {_WRITTEN_AGAIN}")
    pictures = {picture: _pictures(where, header, picture, row[picture]) for picture in PICTURES}

    def read(index: FrameIndex) -> EncodedFrame:
        number = index.instant * header.cameras + index.camera

        def picture(kind: Picture) -> bytes | None:
            column = pictures[kind]
            return None if column is None else bytes(column[number].as_py())

        image = picture("images")
        assert image is not None
        return EncodedFrame(image, picture("masks"), picture("roi"))

    return clip_from_arrays(where, header, arrays, read)


@lru_cache(maxsize=_FOOTERS_KEPT)
def read_footer(location: str, facts: ShardFacts) -> pq.FileMetaData:
    """Raises SpatialAvatarError: no such file, other bytes than were written, not a shard of ours."""
    if not 8 < facts.bytes - facts.footer_start <= _LARGEST_FOOTER:
        raise SpatialAvatarError(
            f"{location}: bytes {facts.footer_start}..{facts.bytes} cannot be a footer; {_WRITTEN_AGAIN}"
        )
    data = files.read_range(location, facts.footer_start, facts.bytes)
    if zlib.crc32(data) != facts.footer_crc32:
        raise SpatialAvatarError(f"{location}: the footer is not the one that was written; {_WRITTEN_AGAIN}")
    try:
        metadata = pq.read_metadata(pa.BufferReader(data))
        same = metadata.schema.to_arrow_schema().equals(SCHEMA)
    except Exception as e:  # Arrow's errors are of many kinds
        raise SpatialAvatarError(f"{location}: not a Parquet file ({_short(e)}); {_WRITTEN_AGAIN}") from None
    if not same:
        raise SpatialAvatarError(f"{location}: not a shard, its columns are not {', '.join(SCHEMA.names)}")
    return metadata


def _read_row(where: str, metadata: pq.FileMetaData, entry: ClipEntry, data: bytes) -> dict[str, pa.Scalar]:
    """The columns of the row whose row group's bytes are ``data``."""
    try:
        problem = _row_problem(metadata, entry)
        if not problem:
            window = pa.PythonFile(_Window(data, entry.start, entry.end), mode="r")
            table = pq.ParquetFile(window, metadata=metadata).read_row_group(entry.row_group, use_threads=False)
            if table.num_rows != 1 or table.schema.types != SCHEMA.types or table.schema.names != SCHEMA.names:
                problem = "is not one row of a shard"
            else:
                row = {name: table.column(name)[0] for name in SCHEMA.names}
                nulls = [name for name in ("key", "header", "arrays", "images") if not row[name].is_valid]
                if not nulls:
                    row["key"].as_py()  # strings that are not UTF-8 fail here
                    row["header"].as_py()
                    return row
                problem = f"has no {nulls[0]}"
    except Exception as e:  # Arrow's errors are of many kinds
        problem = f"cannot be read ({_short(e)})"
    raise SpatialAvatarError(f"{where}: {problem}; {_WRITTEN_AGAIN}")


def _row_problem(metadata: pq.FileMetaData, entry: ClipEntry) -> str | None:
    """What would make Parquet's reader read elsewhere, or unpack more than the bytes that there are."""
    if entry.row_group >= metadata.num_row_groups:
        return f"is row group {entry.row_group}, the shard has {metadata.num_row_groups}"
    group = metadata.row_group(entry.row_group)
    if group.num_rows != 1 or group.num_columns != len(SCHEMA):
        return f"is not one row of {len(SCHEMA)} columns"
    if _row_range(group) != (entry.start, entry.end):
        return f"lies at bytes {_row_range(group)}, the manifest says {entry.start}..{entry.end}"
    frames = entry.instants * entry.cameras
    counts = {"key": 1, "header": 1, "arrays": 1, "images": frames}
    counts |= {"masks": frames if entry.matte == "alpha" else 1, "roi": frames if entry.region else 1}
    for i, name in enumerate(SCHEMA.names):
        column = group.column(i)
        if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
            return f"has a compressed column {name}"
        if column.data_page_offset < entry.start or column.total_compressed_size < 0:
            return f"has a column {name} that lies elsewhere"
        if column.num_values != counts[name]:
            return f"holds {column.num_values} {name}, the manifest says {counts[name]}"
        if name in ("key", "header") and column.total_compressed_size > _LARGEST_TEXT:
            return f"has a {name} of {column.total_compressed_size} bytes"
    return None


def _row_range(group: pq.RowGroupMetaData) -> tuple[int, int]:
    columns = [group.column(i) for i in range(group.num_columns)]
    starts = [column.data_page_offset for column in columns]
    return min(starts), max(start + column.total_compressed_size for start, column in zip(starts, columns))


def _pictures(where: str, header: ClipHeader, picture: Picture, listed: pa.ListScalar) -> pa.Array | None:
    """A clip's pictures of one kind, by frame; None when its header says that there are none."""
    wanted = header.instants * header.cameras if picture in header.pictures else None
    found = len(listed.values) if listed.is_valid else None
    if found != wanted:
        raise SpatialAvatarError(
            f"{where}: holds {found or 'no'} {picture}, its header asks for {wanted or 'none'}; {_WRITTEN_AGAIN}"
        )
    if found is not None and listed.values.null_count:
        raise SpatialAvatarError(f"{where}: {listed.values.null_count} of its {picture} are missing; {_WRITTEN_AGAIN}")
    return listed.values if found is not None else None


def _picture_columns(clip: TrackedClip) -> dict[str, pa.Array]:
    kinds = clip.header.pictures
    content: dict[Picture, bytearray] = {picture: bytearray() for picture in kinds}
    offsets: dict[Picture, list[int]] = {picture: [0] for picture in kinds}
    everything = clip.header.frames()
    for index in everything:
        frame = clip.encoded(index)
        pieces: dict[Picture, bytes | None] = {"images": frame.image, "masks": frame.matte, "roi": frame.region}
        for picture in kinds:
            data = pieces[picture]
            assert data is not None
            content[picture] += data
            offsets[picture].append(len(content[picture]))
            if len(content[picture]) + 4 * len(everything) > LARGEST_PICTURES:
                raise SpatialAvatarError(
                    f"{clip.location}: its {picture} take more than {LARGEST_PICTURES / 1e9:.1f} GB, which a row "
                    "cannot hold; make them smaller (JPEG, fewer pixels) or cut the clip in parts"
                )
    columns: dict[str, pa.Array] = {}
    for picture in PICTURES:
        if picture not in kinds:
            columns[picture] = pa.nulls(1, SCHEMA.field(picture).type)
            continue
        buffers = [None, pa.array(offsets[picture], pa.int64()).buffers()[1], pa.py_buffer(content[picture])]
        values = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(everything), buffers)
        columns[picture] = pa.ListArray.from_arrays(pa.array([0, len(everything)], pa.int32()), values)
    return columns


class _Window(io.RawIOBase):
    """A file of which only some bytes are here; what is read of them is not copied."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data, self._start, self._end, self._at = memoryview(data), start, end, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence] + offset
        return self._at

    def read(self, size: int = -1) -> Any:
        begin, end = self._at - self._start, min(self._at + size, self._end) - self._start
        if begin < 0 or end < begin:
            raise OSError("a read outside of the row")
        self._at = self._start + end
        return self._data[begin:end]


def _sum_of(f: io.BufferedReader, start: int, end: int) -> int:
    f.seek(start)
    total = 0
    while start < end:
        piece = f.read(min(end - start, 1 << 24))
        total, start = zlib.crc32(piece, total), start + len(piece)
        if not piece:
            raise OSError(f"{f.name}: ends early")
    return total


def _short(error: Exception) -> str:
    return ascii(" ".join(str(error).split()) or type(error).__name__)[1:-1][:160]
