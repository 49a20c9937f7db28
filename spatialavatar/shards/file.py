"""A shard: a Parquet file in which a clip is a row and every row a row group.

Columns: ``key``, ``header`` (JSON as clip.json), ``arrays`` (the bytes of params.safetensors), ``images``, ``masks``
and ``roi`` (encoded pictures by instant, then camera; null when the clip has none). Nothing is compressed, for pictures
are already. A row group's bytes lie together, so that a clip is read with one request (pages.py); their sum is compared
before anything looks at them.
"""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from spatialavatar import files
from spatialavatar.clip.arrays import check_arrays, decoded_arrays, encoded_arrays
from spatialavatar.clip.header import PICTURES, ClipHeader, FrameIndex, Picture, header_from_json
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.tracked_clip import TrackedClip, clip_from_arrays
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.shards.entry import ENTRY_RULES, ClipEntry, ShardFacts, checked
from spatialavatar.shards.pages import read_values

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
MADE_ANEW = "restore the file, or remove it with its record and run the ingest again"


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
            data_page_version="1.0",
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
        entries = []
        for i, (key, header) in enumerate(self._headers.items()):
            columns = [metadata.row_group(i).column(c) for c in range(len(SCHEMA))]
            start = columns[0].data_page_offset
            end = start + sum(column.total_compressed_size for column in columns)
            data = files.read_range(self.local, start, end)
            # fails here, not later, where another release of Parquet's writer lays rows out in another way
            _read_row(data, header.instants * header.cameras)
            entries.append(ClipEntry.of(key, header, self.shard, i, start, end, zlib.crc32(data)))
        footer_start = size - 8 - int.from_bytes(files.read_range(self.local, size - 8, size - 4), "little")
        footer = files.read_range(self.local, footer_start, size)
        return tuple(entries), ShardFacts(size, footer_start, zlib.crc32(footer))

    def abandon(self) -> None:
        """Close and remove the unfinished file."""
        self._writer.close()
        self.local.unlink(missing_ok=True)


def read_clip(folder: files.Location, entry: ClipEntry) -> TrackedClip:
    """The clip of a row, read with one request. Its pictures stay encoded, in memory.

    Raises SpatialAvatarError naming the file: gone, other bytes than were written, not a row of ours, another clip than
    the entry says.
    """
    where = f"{shard_file(folder, entry.shard)}#{entry.key}"
    if not 0 < entry.end - entry.start <= _LARGEST_ROW:
        raise SpatialAvatarError(f"{where}: bytes {entry.start}..{entry.end} cannot be a clip; {MADE_ANEW}")
    data = files.read_range(shard_file(folder, entry.shard), entry.start, entry.end)
    if zlib.crc32(data) != entry.crc32:
        raise SpatialAvatarError(f"{where}: the clip's bytes are not those that were written; {MADE_ANEW}")
    try:
        row = _read_row(data, entry.instants * entry.cameras)
        key, value = row.key, json.loads(row.header)
    except (ValueError, RecursionError) as e:
        raise SpatialAvatarError(f"{where}: not a clip's row ({_short(e)}); {MADE_ANEW}") from None
    header = header_from_json(value, where)
    _require_entry(where, entry, ClipEntry.of(key, header, entry.shard, entry.row_group, *_place(entry)))
    pictures = {picture: _pictures(where, header, picture, row) for picture in PICTURES}
    arrays = decoded_arrays(row.arrays, where)
    faults = check_arrays(header, arrays)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise SpatialAvatarError(f"{where}: {faults[0]}{more}; {MADE_ANEW}")

    def read(index: FrameIndex) -> EncodedFrame:
        number = index.instant * header.cameras + index.camera

        def picture(kind: Picture) -> bytes | None:
            return bytes(pictures[kind][number]) if kind in header.pictures else None

        return EncodedFrame(bytes(pictures["images"][number]), picture("masks"), picture("roi"))

    return clip_from_arrays(where, header, arrays, read)


def check_file(location: str, facts: ShardFacts) -> None:
    """Whether a shard is the file that was written, as far as its size and footer say; rows are checked when read.

    Raises SpatialAvatarError.
    """
    found = files.size(location)
    if found != facts.bytes:
        raise SpatialAvatarError(f"{location}: has {found} bytes, {facts.bytes} were written; {MADE_ANEW}")
    if zlib.crc32(files.read_range(location, facts.footer_start, facts.bytes)) != facts.footer_crc32:
        raise SpatialAvatarError(f"{location}: the footer is not the one that was written; {MADE_ANEW}")


class _Row(NamedTuple):
    """A row's content, of which only the picture counts are unknown to be right."""

    key: str
    header: str
    arrays: bytes
    pictures: dict[Picture, list[memoryview]]


def _read_row(data: bytes, frames: int) -> _Row:
    """Raises ValueError for bytes that are not a row group of a shard."""
    columns = read_values(data, [pa.types.is_list(field.type) for field in SCHEMA], most=frames)
    values = dict(zip(SCHEMA.names, columns))
    for name in ("key", "header", "arrays"):
        if len(values[name]) != 1:
            raise ValueError(f"{len(values[name])} values of {name}")
    if max(len(values["key"][0]), len(values["header"][0])) > _LARGEST_TEXT:
        raise ValueError(f"a key or header of more than {_LARGEST_TEXT} bytes")
    key, header = str(values["key"][0], "utf-8"), str(values["header"][0], "utf-8")
    return _Row(key, header, bytes(values["arrays"][0]), {picture: values[picture] for picture in PICTURES})


def _require_entry(where: str, said: ClipEntry, found: ClipEntry) -> None:
    for field in dataclasses.fields(ClipEntry):
        a, b = getattr(found, field.name), getattr(said, field.name)
        if a != b:
            raise SpatialAvatarError(
                f"{where}: {field.name} is {ascii(a)[:60]} in the shard, {ascii(b)[:60]} in the manifest; {MADE_ANEW}"
            )


def _place(entry: ClipEntry) -> tuple[int, int, int]:
    return entry.start, entry.end, entry.crc32


def _pictures(where: str, header: ClipHeader, picture: Picture, row: _Row) -> list[memoryview]:
    """A clip's pictures of one kind, by frame; none when its header says that there are none."""
    wanted = header.instants * header.cameras if picture in header.pictures else 0
    found = row.pictures[picture]
    if len(found) != wanted:
        raise SpatialAvatarError(f"{where}: holds {len(found)} {picture}, its header asks for {wanted}; {MADE_ANEW}")
    return found


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


def _short(error: Exception) -> str:
    return ascii(" ".join(str(error).split()) or type(error).__name__)[1:-1][:160]
