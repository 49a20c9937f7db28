"""A shard: a Parquet file in which a clip is a row and every row a row group.

Columns: ``key``, ``header`` (JSON as clip.json), ``arrays`` (the bytes of params.safetensors), ``index`` (of each
picture the number of bytes and their CRC-32, both uint32, little-endian), and last ``pictures`` (encoded, by instant,
then camera: the image, then the matte and the region where the header says that there are). Nothing is compressed, for
pictures are already. So one request brings all of a row but its pictures, and one more each frame that is asked for; or
one brings everything (pages.py). Sums are compared before anything looks at the bytes.
"""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt32

from spatialavatar import files
from spatialavatar.clip.arrays import check_arrays, decoded_arrays, encoded_arrays
from spatialavatar.clip.header import ClipHeader, FrameIndex, Picture, header_from_json, in_a_line
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.tracked_clip import TrackedClip, clip_from_arrays
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.shards.entry import ENTRY_RULES, ClipEntry, Place, ShardFacts, checked
from spatialavatar.shards.pages import read_values

FOLDER = "shards"
SUFFIX = ".parquet"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("header", pa.string()),
        ("arrays", pa.large_binary()),
        ("index", pa.large_binary()),
        ("pictures", pa.list_(pa.large_binary())),
    ]
)
LARGEST_PICTURES = 2**31 - 2**24  # bytes of a clip's pictures: Parquet counts a page's bytes in 31 bits
_LARGEST_ROW = 4 << 31
_LARGEST_TEXT = 1 << 20  # of a key, of a header
MADE_ANEW = "restore the file, or remove it with its record and run the ingest again"


def shard_file(folder: files.Location, shard: str) -> str:
    """Where a shard's file lies."""
    return files.join(folder, FOLDER, shard + SUFFIX)


class NewRow(NamedTuple):
    """A clip on its way into a shard."""

    key: str
    header: ClipHeader
    bad_frames: int
    table: pa.Table


class ShardWriter:
    """Writes a shard clip by clip, with one clip in memory at a time. Equal clips give equal bytes."""

    def __init__(self, local: Path, shard: str | None = None) -> None:
        """``shard`` is the name that the file will have in the data set; by default the one it has here."""
        self.local = local
        self.shard = local.name.removesuffix(SUFFIX) if shard is None else shard
        self._clips: dict[str, tuple[ClipHeader, int]] = {}  # with the number of bad frames
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
        return len(self._clips)

    def add(self, key: str, clip: TrackedClip, bad_frames: int = 0) -> None:
        """Append a clip. Raises SpatialAvatarError as ``row``, with the shard as it was."""
        self.append(self.row(key, clip, bad_frames))

    def row(self, key: str, clip: TrackedClip, bad_frames: int = 0) -> NewRow:
        """What a clip becomes; every frame is asked for once, in order. Nothing is written yet.

        Raises SpatialAvatarError: a frame that cannot be read, texts that no manifest can hold, more than 2 GB of
        pictures.
        """
        entry = ClipEntry.of(key, clip.header, self.shard, len(self), Place(4, 5, 6, 0, 0), bad_frames)
        checked(dataclasses.asdict(entry), ENTRY_RULES, clip.location)
        columns = {
            "key": pa.array([key], pa.string()),
            "header": pa.array([json.dumps(clip.header.to_json(), allow_nan=False)], pa.string()),
            "arrays": pa.array([encoded_arrays(clip.arrays())], pa.large_binary()),
            **dict(zip(("index", "pictures"), _picture_columns(clip))),
        }
        return NewRow(key, clip.header, bad_frames, pa.table(columns, schema=SCHEMA))

    def append(self, row: NewRow) -> None:
        """Write a row. Raises ValueError for a key that is there already."""
        if row.key in self._clips:
            raise ValueError(f"the key {row.key!r} is in the shard already")
        self._writer.write_table(row.table, row_group_size=1)
        self._clips[row.key] = row.header, row.bad_frames

    def close(self) -> tuple[tuple[ClipEntry, ...], ShardFacts]:
        """Finish the file; what its record and the manifest say of it."""
        self._writer.close()
        metadata = pq.read_metadata(self.local)
        size = self.local.stat().st_size
        entries = []
        for i, (key, (header, bad_frames)) in enumerate(self._clips.items()):
            columns = [metadata.row_group(i).column(c) for c in range(len(SCHEMA))]
            start, pictures = columns[0].data_page_offset, columns[-1].data_page_offset
            end = pictures + columns[-1].total_compressed_size
            before = files.read_range(self.local, start, pictures)
            page = files.read_range(self.local, pictures, end)
            # fails here, not later, where another release of Parquet's writer lays rows out in another way
            _require_layout(before, page, header)
            place = Place(start, pictures, end, zlib.crc32(before), zlib.crc32(page))
            entries.append(ClipEntry.of(key, header, self.shard, i, place, bad_frames))
        footer_start = size - 8 - int.from_bytes(files.read_range(self.local, size - 8, size - 4), "little")
        footer = files.read_range(self.local, footer_start, size)
        return tuple(entries), ShardFacts(size, footer_start, zlib.crc32(footer))

    def abandon(self) -> None:
        """Close and remove the unfinished file."""
        self._writer.close()
        self.local.unlink(missing_ok=True)


def read_clip(folder: files.Location, entry: ClipEntry, whole: bool = False) -> TrackedClip:
    """The clip of a row. Each frame is a request of its own, when it is asked for; or with ``whole``, one request here
    brings everything, and all pictures stay in memory.

    Raises SpatialAvatarError naming the file, here or when a frame is read: gone, other bytes than were written, not a
    row of ours, another clip than the entry says.
    """
    location = shard_file(folder, entry.shard)
    where = f"{location}#{entry.key}"
    if not (entry.start < entry.pictures < entry.end and entry.end - entry.start <= _LARGEST_ROW):
        raise SpatialAvatarError(
            f"{where}: bytes {entry.start}..{entry.pictures}..{entry.end} cannot be a clip; {MADE_ANEW}"
        )
    data = memoryview(files.read_range(location, entry.start, entry.end if whole else entry.pictures))
    before, page = data[: entry.pictures - entry.start], data[entry.pictures - entry.start :]
    if zlib.crc32(before) != entry.crc32 or (whole and zlib.crc32(page) != entry.pictures_crc32):
        raise SpatialAvatarError(f"{where}: the clip's bytes are not those that were written; {MADE_ANEW}")
    try:
        row = _read_row(before)
        value = json.loads(row.header)
    except (ValueError, RecursionError) as e:
        raise SpatialAvatarError(f"{where}: not a clip's row ({in_short(e, 160, plain=True)}); {MADE_ANEW}") from None
    header = header_from_json(value, where)
    place = Place(*(getattr(entry, name) for name in Place._fields))
    _require_entry(where, entry, ClipEntry.of(row.key, header, entry.shard, entry.row_group, place, entry.bad_frames))
    index = _read_index(where, row.listing, header, entry.end - entry.pictures)
    arrays = decoded_arrays(row.arrays, where)
    faults = check_arrays(header, arrays)
    if faults:
        raise SpatialAvatarError(f"{where}: {in_a_line(faults)}; {MADE_ANEW}")

    def read(frame: FrameIndex) -> EncodedFrame:
        number = frame.instant * header.cameras + frame.camera
        begin, end = (entry.end - int(index.before_end[number + i]) for i in (0, 1))
        if whole:
            content = page[begin - entry.pictures : end - entry.pictures]
        else:
            content = memoryview(files.read_range(location, begin, end))
        pictures: dict[Picture, bytes] = {}
        for picture, size, crc32 in zip(header.pictures, index.sizes[number].tolist(), index.sums[number].tolist()):
            piece, content = content[4 : 4 + size], content[4 + size :]
            if zlib.crc32(piece) != crc32:
                name = header.frame_file(picture, frame)
                raise SpatialAvatarError(f"{where}: {name}: the bytes are not those that were written; {MADE_ANEW}")
            pictures[picture] = bytes(piece)
        return EncodedFrame(pictures["images"], pictures.get("masks"), pictures.get("roi"))

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
    """A row's content but for the pictures."""

    key: str
    header: str
    arrays: bytes
    listing: memoryview  # column ``index``


def _read_row(data: memoryview) -> _Row:
    """Raises ValueError for bytes that are not those of a row before its pictures."""
    names = SCHEMA.names[:-1]
    values = dict(zip(names, read_values(data, [False] * len(names), most=1)))
    for name in names:
        if len(values[name]) != 1:
            raise ValueError(f"{len(values[name])} values of {name}")
    if max(len(values["key"][0]), len(values["header"][0])) > _LARGEST_TEXT:
        raise ValueError(f"a key or header of more than {_LARGEST_TEXT} bytes")
    key, header = str(values["key"][0], "utf-8"), str(values["header"][0], "utf-8")
    return _Row(key, header, bytes(values["arrays"][0]), values["index"][0])


class _Index(NamedTuple):
    """Where a row's pictures lie and what their bytes sum up to."""

    before_end: Int64[np.ndarray, " frames+1"]  # from the beginning of a frame to the row's end
    sizes: UInt32[np.ndarray, "frames kinds"]
    sums: UInt32[np.ndarray, "frames kinds"]


def _read_index(where: str, data: memoryview, header: ClipHeader, room: int) -> _Index:
    """``room`` is the size of the pictures' page. Raises SpatialAvatarError."""
    frames, kinds = header.instants * header.cameras, len(header.pictures)
    if len(data) != frames * kinds * 8:
        raise SpatialAvatarError(
            f"{where}: its index has {len(data)} bytes, {frames} frames of {kinds} pictures ask for "
            f"{frames * kinds * 8}; {MADE_ANEW}"
        )
    pairs = np.frombuffer(data, "<u4").reshape(frames, kinds, 2)
    of_frame = pairs[..., 0].astype(np.int64).sum(1) + 4 * kinds  # each picture stands behind its length
    before_end = np.append(of_frame[::-1].cumsum()[::-1], 0)
    if before_end[0] > room:
        raise SpatialAvatarError(f"{where}: its index tells of {before_end[0]} bytes, there are {room}; {MADE_ANEW}")
    return _Index(before_end, pairs[..., 0], pairs[..., 1])


def _require_layout(before: bytes, pictures: bytes, header: ClipHeader) -> None:
    """Raises ValueError unless the index says where the pictures are."""
    index = _read_index("a new row", _read_row(memoryview(before)).listing, header, len(pictures))
    [values] = read_values(memoryview(pictures), [True], most=index.sizes.size)
    if [len(value) for value in values] != index.sizes.flatten().tolist() or values[-1] != pictures[-len(values[-1]) :]:
        raise ValueError("this release of pyarrow writes pages that are laid out in another way")


def _require_entry(where: str, said: ClipEntry, found: ClipEntry) -> None:
    for field in dataclasses.fields(ClipEntry):
        a, b = getattr(found, field.name), getattr(said, field.name)
        if a != b:
            raise SpatialAvatarError(
                f"{where}: {field.name} is {ascii(a)[:60]} in the shard, {ascii(b)[:60]} in the manifest; {MADE_ANEW}"
            )


def _picture_columns(clip: TrackedClip) -> tuple[pa.Array, pa.Array]:
    """Index and pictures."""
    content = bytearray()
    index: list[tuple[int, int]] = []
    everything = clip.header.frames()
    for frame in everything:
        encoded = clip.encoded(frame)
        pieces: dict[Picture, bytes | None] = {"images": encoded.image, "masks": encoded.matte, "roi": encoded.region}
        for picture in clip.header.pictures:
            data = pieces[picture]
            assert data is not None
            content += data
            index.append((len(data), zlib.crc32(data)))
        if len(content) + 4 * len(index) > LARGEST_PICTURES:
            raise SpatialAvatarError(
                f"{clip.location}: its pictures take more than {LARGEST_PICTURES / 1e9:.1f} GB, which a row cannot "
                "hold; make them smaller (--image-format jpg, --max-size) or cut the clip in parts"
            )
    pairs = np.array(index, "<u4")
    offsets = pa.array(np.append(0, pairs[:, 0].astype(np.int64).cumsum()), pa.int64())
    values = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(index), [None, offsets.buffers()[1], pa.py_buffer(content)]
    )
    lists = pa.ListArray.from_arrays(pa.array([0, len(index)], pa.int32()), values)
    return pa.array([pairs.tobytes()], pa.large_binary()), lists
