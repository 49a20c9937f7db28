"""Property-based: whatever is in a data set's files, reading gives what was written or one SpatialAvatarError that
names the file; never another exception, a crash or a hang. Damage is found by sums; files that agree with themselves
but were made by somebody else are read without trust."""

import dataclasses
import hashlib
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatialavatar import files, tensor_files
from spatialavatar.clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.shards import ClipEntry, open_shards, read_clip
from spatialavatar.shards.entry import ENTRY_RULES, checked
from spatialavatar.shards.file import shard_file
from spatialavatar.shards.pages import read_values
from spatialavatar.shards.records import read_records
from tests.builders.shards import tiny_shards, tiny_take

FOLDER = "memory://shards/damage"
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BEFORE = [False, False, False, False]  # the columns before the pictures, none of them lists
NAMES = ["manifest.json", "manifest.parquet", "rejected.jsonl", "shards/00000.json", "shards/00000.parquet"]


@pytest.fixture(scope="module")
def sound() -> dict[str, bytes]:
    """The files of a sound data set."""
    files.remove(FOLDER)
    tiny_shards(FOLDER, clips=2, cameras=2, instants=2, has_region=True)
    return {name: files.read_bytes(files.join(FOLDER, name)) for name in NAMES}


@pytest.fixture(scope="module")
def entry(sound: dict[str, bytes]) -> ClipEntry:
    return open_shards(FOLDER).entry(0)


def content(clip: TrackedClip) -> Any:
    arrays = {name: array.tobytes() for name, array in clip.arrays().items()}
    return clip.header, arrays, [clip.encoded(index) for index in clip.header.frames()]


def damaged(data: st.DataObject, content: bytes) -> bytes:
    changed = bytearray(content)
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


@FEW
@given(name=st.sampled_from(NAMES), data=st.data())
def test_bytes_of_any_file(sound: dict[str, bytes], name: str, data: st.DataObject) -> None:
    expected = [content(tiny_take(i, cameras=2, instants=2, has_region=True)) for i in range(2)]
    changed = damaged(data, sound[name])
    files.write_bytes(files.join(FOLDER, name), changed)
    try:
        try:
            shards = open_shards(FOLDER)
            _ = shards.rejected
            assert [content(shards.clip(i)) for i in range(len(shards))] == expected
            read_records(FOLDER)
        except SpatialAvatarError as e:
            assert changed != sound[name]
            assert "\n" not in str(e) and name.rsplit("/")[-1].split(".")[0] in str(e)
    finally:
        files.write_bytes(files.join(FOLDER, name), sound[name])


@FEW
@given(data=st.data(), number=st.integers(0, 1))
def test_a_changed_bit_of_a_row_is_noticed(sound: dict[str, bytes], data: st.DataObject, number: int) -> None:
    """Or changes nothing that is read, where it lies between pictures, unless the row is read whole. The other rows of
    the shard are read all the same."""
    name = "shards/00000.parquet"
    shards = open_shards(FOLDER)
    changed = bytearray(sound[name])
    at = data.draw(st.integers(shards.entry(number).start, shards.entry(number).end - 1))
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    files.write_bytes(files.join(FOLDER, name), bytes(changed))
    try:
        message = rf"00000\.parquet#clip{number}: .* not those that were written"
        with pytest.raises(SpatialAvatarError, match=message):
            shards.clip(number, whole=True)
        try:
            found = content(shards.clip(number))
            assert at >= shards.entry(number).pictures
            assert found == content(tiny_take(number, cameras=2, instants=2, has_region=True))
        except SpatialAvatarError as e:
            assert re.search(message, str(e))
        assert shards.clip(1 - number).identity == f"tiny{1 - number}"
    finally:
        files.write_bytes(files.join(FOLDER, name), sound[name])


Row = tuple[bytes, bytes]  # what is before the pictures, and they


def read_hostile(entry: ClipEntry, row: Row) -> TrackedClip | None:
    """Read bytes as a row whose sums are right."""
    before, pictures = row
    files.write_bytes(shard_file("memory://shards/hostile", entry.shard), b"PAR1" + before + pictures)
    named = dataclasses.replace(
        entry,
        start=4,
        pictures=4 + len(before),
        end=4 + len(before) + len(pictures),
        crc32=zlib.crc32(before),
        pictures_crc32=zlib.crc32(pictures),
    )
    found = []
    for whole in (False, True):
        try:
            clip = read_clip("memory://shards/hostile", named, whole)
            found.append((clip, content(clip)))
        except SpatialAvatarError as e:
            assert "\n" not in str(e) and str(e).startswith("memory://shards/hostile/shards/00000.parquet#clip0: ")
            found.append((None, None))
    assert found[0][1] == found[1][1]
    return found[0][0]


@FEW
@given(data=st.data())
def test_damaged_rows_whose_sum_is_right(sound: dict[str, bytes], entry: ClipEntry, data: st.DataObject) -> None:
    before, pictures = written_row(sound, entry)
    if data.draw(st.booleans()):
        read_hostile(entry, (damaged(data, before), pictures))
    else:
        read_hostile(entry, (before, damaged(data, pictures)))


@FEW
@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_row(entry: ClipEntry, data: bytes) -> None:
    if data:
        assert read_hostile(entry, (data, b"x")) is None
    with pytest.raises(ValueError):
        read_values(memoryview(data), BEFORE, 10)


@FEW
@given(data=st.data())
def test_every_truncation_of_a_row_is_noticed(sound: dict[str, bytes], entry: ClipEntry, data: st.DataObject) -> None:
    before, pictures = written_row(sound, entry)
    assert read_hostile(entry, (before, pictures)) is not None
    assert read_hostile(entry, (before[: data.draw(st.integers(1, len(before) - 1))], pictures)) is None
    assert read_hostile(entry, (before, pictures[: data.draw(st.integers(1, len(pictures) - 1))])) is None
    surplus = data.draw(st.binary(min_size=1, max_size=50))
    assert read_hostile(entry, (before + surplus, pictures)) is None
    assert read_hostile(entry, (before, pictures + surplus)) is None


def written_row(sound: dict[str, bytes], entry: ClipEntry) -> Row:
    data = sound["shards/00000.parquet"]
    return data[entry.start : entry.pictures], data[entry.pictures : entry.end]


def row_of(sound: dict[str, bytes]) -> pa.Table:
    return pq.ParquetFile(io.BytesIO(sound["shards/00000.parquet"])).read_row_group(0)


def hostile_row(table: pa.Table, **options: Any) -> Row:
    """The bytes of a table's only row group, as Parquet's own writer lays them out."""
    chosen = {"compression": "none", "use_dictionary": False, "write_statistics": False, **options}
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **chosen)
    data = buffer.getvalue()
    row = data[4 : len(data) - 8 - int.from_bytes(data[-8:-4], "little")]
    metadata = pq.read_metadata(io.BytesIO(data))
    if not metadata.num_row_groups:
        return b"x", b"x"
    last = metadata.row_group(0).column(metadata.num_columns - 1).data_page_offset - 4
    return row[:last] or b"x", row[last:] or b"x"


def with_column(table: pa.Table, name: str, values: Any, kind: pa.DataType) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array([values], kind))


def test_the_hostile_rows_begin_as_sound_ones(sound: dict[str, bytes], entry: ClipEntry) -> None:
    """Else what follows would be refused for other reasons."""
    clip = read_hostile(entry, hostile_row(row_of(sound)))
    assert clip is not None and content(clip) == content(tiny_take(0, cameras=2, instants=2, has_region=True))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"compression": "snappy"},
        {"use_dictionary": True},
        {"data_page_version": "2.0"},
        {"column_encoding": {"pictures.list.element": "DELTA_BYTE_ARRAY"}},
        {"column_encoding": {"header": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
    ids=str,
)
def test_rows_stored_in_another_way(sound: dict[str, bytes], entry: ClipEntry, options: dict[str, Any]) -> None:
    assert read_hostile(entry, hostile_row(row_of(sound), **options)) is None


PICTURES = pa.list_(pa.large_binary())


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("key", None, pa.string()),
        ("key", 5, pa.int64()),
        ("key", b"\xff\xfe", pa.binary()),
        ("key", ["clip0"], pa.list_(pa.string())),
        ("key", "other", pa.string()),
        ("header", None, pa.string()),
        ("header", "k" * (1 << 21), pa.string()),
        ("arrays", None, pa.large_binary()),
        ("arrays", 1.5, pa.float64()),
        ("arrays", b"", pa.large_binary()),
        ("index", None, pa.large_binary()),
        ("index", b"", pa.large_binary()),
        ("index", b"\xff" * 96, pa.large_binary()),
        ("index", b"\x00" * 95, pa.large_binary()),
        ("index", [7] * 12, pa.list_(pa.int64())),
        ("pictures", None, PICTURES),
        ("pictures", [], PICTURES),
        ("pictures", [b"x"] * 11, PICTURES),
        ("pictures", [b"x"] * 13, PICTURES),
        ("pictures", [1, 2, 3, 4], pa.list_(pa.int64())),
        ("pictures", b"x", pa.large_binary()),
        ("pictures", [b"x"] * 100_000, PICTURES),
    ],
    ids=lambda value: str(value)[:30],
)
def test_hostile_columns(sound: dict[str, bytes], entry: ClipEntry, name: str, values: Any, kind: pa.DataType) -> None:
    assert read_hostile(entry, hostile_row(with_column(row_of(sound), name, values, kind))) is None


def test_hostile_tables(sound: dict[str, bytes], entry: ClipEntry) -> None:
    table = row_of(sound)
    for hostile in (
        pa.concat_tables([table, table]),
        table.slice(0, 0),
        table.drop_columns(["index"]),
        table.drop_columns(["pictures"]),
        table.append_column("surplus", pa.array([1])),
        table.select(table.column_names[::-1]),
        pa.table({"x": [1]}),
    ):
        assert read_hostile(entry, hostile_row(hostile)) is None


def test_pictures_may_be_anything_until_they_are_decoded(sound: dict[str, bytes], entry: ClipEntry) -> None:
    pieces = [b"", b"x", b"\xff\xd8", b""] * 3
    index = np.array([[len(piece), zlib.crc32(piece)] for piece in pieces], "<u4").tobytes()
    table = with_column(row_of(sound), "index", index, pa.large_binary())
    clip = read_hostile(entry, hostile_row(with_column(table, "pictures", pieces, PICTURES)))
    assert clip is not None
    for index in clip.header.frames():
        with pytest.raises(SpatialAvatarError, match=r"00000\.parquet#clip0/images/00000._0.\.jpg: "):
            clip.frame(index)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["alpha", 1, 2])
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


@FEW
@given(data=st.data())
def test_hostile_headers(sound: dict[str, bytes], entry: ClipEntry, data: st.DataObject) -> None:
    table = row_of(sound)
    value: Any = json.loads(table.column("header")[0].as_py())
    if data.draw(st.booleans()):
        value = data.draw(values)
    else:
        value[data.draw(st.sampled_from([*value, "surplus"]))] = data.draw(values)
    text = json.dumps(value)
    clip = read_hostile(entry, hostile_row(with_column(table, "header", text, pa.string())))
    assert clip is None or clip.header.to_json() == value


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, '{"fps": ' + "9" * 5000 + "}", "NaN", "null", "{}"], ids=lambda t: t[:9]
)
def test_awkward_headers(sound: dict[str, bytes], entry: ClipEntry, text: str) -> None:
    assert read_hostile(entry, hostile_row(with_column(row_of(sound), "header", text, pa.string()))) is None


@FEW
@given(data=st.data())
def test_hostile_arrays(sound: dict[str, bytes], entry: ClipEntry, data: st.DataObject) -> None:
    """Bytes that are changed are noticed by their own hash, too; other arrays of a right hash by their shapes."""
    table = row_of(sound)
    original = table.column("arrays")[0].as_py()
    changed = damaged(data, original)
    clip = read_hostile(entry, hostile_row(with_column(table, "arrays", changed, pa.large_binary())))
    before = content(tiny_take(0, cameras=2, instants=2, has_region=True))[1]
    assert clip is None or {name: array.tobytes() for name, array in clip.arrays().items()} == before


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("shape", np.zeros(4, np.float32)),
        ("expression", np.zeros((3, 4), np.float32)),
        ("expression", np.zeros((2, 4), np.float64)),
        ("expression", np.full((2, 4), np.nan, np.float32)),
        ("world_to_camera", np.zeros((2, 2, 4, 4), np.float32)),
        ("intrinsics", np.zeros((2, 1, 3, 3), np.float32)),
        ("face_box", np.full((2, 2, 4), np.nan, np.float32)),
        ("surplus", np.zeros(1, np.float32)),
        ("neck", np.zeros((0, 3), np.float32)),
    ],
)
def test_arrays_that_do_not_fit(sound: dict[str, bytes], entry: ClipEntry, name: str, array: np.ndarray) -> None:
    arrays = {**tiny_take(0, cameras=2, instants=2).arrays(), name: array}
    metadata = {"format": "spatialavatar-clip-params", "version": "1"}
    for data in (tensor_files.tensor_bytes(arrays, metadata), safetensors.numpy.save(arrays)):
        row = hostile_row(with_column(row_of(sound), "arrays", data, pa.large_binary()))
        assert read_hostile(entry, row) is None


def test_a_page_that_claims_more_than_there_is(sound: dict[str, bytes], entry: ClipEntry) -> None:
    """Sizes and counts in the page headers are 31 bits and more; nothing is taken before it is compared."""
    for size in (2**31 - 1, -1, 2**62):
        coded, zigzag = b"", (size << 1 ^ size >> 63) & 2**64 - 1
        while zigzag > 127:
            coded, zigzag = coded + bytes([zigzag & 127 | 128]), zigzag >> 7
        coded += bytes([zigzag])
        header = b"\x15\x00\x15" + coded + b"\x15" + coded + b"\x2c\x15\x02\x15\x00\x15\x06\x15\x06\x00\x00"
        assert read_hostile(entry, (header + b"\x02\x00\x00\x00\x02\x01\x05\x00\x00\x00clip0", b"x")) is None
    nested = b"\x1c" * 10_000
    assert read_hostile(entry, (nested, b"x")) is None


def test_a_file_that_ends_early(sound: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in sound.items():
        files.write_bytes(tmp_path / name, data)
    shards = open_shards(tmp_path)
    (tmp_path / "shards/00000.parquet").write_bytes(sound["shards/00000.parquet"][: shards.entry(1).start + 10])
    assert shards.clip(0).identity == "tiny0"
    with pytest.raises(SpatialAvatarError, match=r"00000\.parquet: ends after .* it is truncated"):
        shards.clip(1)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_manifests_whose_hash_is_right(sound: dict[str, bytes], data: st.DataObject) -> None:
    changed = damaged(data, sound["manifest.parquet"])
    said = {"bytes": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
    folder = "memory://shards/hostile-manifest"
    files.write_bytes(files.join(folder, "manifest.parquet"), changed)
    files.write_json(files.join(folder, "manifest.json"), json.loads(sound["manifest.json"]) | said)
    try:
        shards = open_shards(folder)
    except SpatialAvatarError as e:
        assert "\n" not in str(e) and "manifest.parquet: " in str(e)
    else:
        for i in range(len(shards)):
            ClipEntry(**checked(dataclasses.asdict(shards.entry(i)), ENTRY_RULES, "an entry"))
