"""A shard gives back what went into it, bit for bit, in few requests; and other Parquet readers can read it."""

import dataclasses
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from spatialavatar.clip import FrameIndex, TrackedClip, open_clip
from spatialavatar.clip.header import ClipSource
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.writer import save_clip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.shards import ShardWriter, file, read_clip
from spatialavatar.shards.file import SCHEMA, shard_file
from tests.builders.clips import tiny_clip
from tests.builders.shards import tiny_shards, tiny_take, write_shard

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"matte_kind": "none"},
    "matte": {"matte_kind": "alpha", "test_from": 3},
    "region": {"matte_kind": "burnt_black", "has_region": True},
    "everything": {"has_region": True, "cameras": 3, "instants": 5, "test_cameras": [1], "image_format": "png"},
}


def takes() -> dict[str, TrackedClip]:
    return {f"people/{name}": tiny_take(seed, **kind) for seed, (name, kind) in enumerate(KINDS.items())}


def require_equal(found: TrackedClip, expected: TrackedClip) -> None:
    assert found.header == expected.header
    arrays, wanted = found.arrays(), expected.arrays()
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in wanted.items()
    }
    for index in expected.header.frames():
        assert found.encoded(index) == expected.encoded(index)


def test_round_trip(tmp_path: Path) -> None:
    clips = takes()
    record = write_shard(tmp_path, "0000", clips)
    assert [entry.key for entry in record.entries] == list(clips)
    for entry, clip in zip(record.entries, clips.values()):
        require_equal(read_clip(tmp_path, entry), clip)
        require_equal(read_clip(tmp_path, entry, whole=True), clip)


def test_round_trip_of_a_folder(tmp_path: Path) -> None:
    """A clip in a folder, in a shard, and in a folder again: the same files."""
    tiny_clip(tmp_path / "before", cameras=2, test_from=2)
    record = write_shard(tmp_path, "0000", {"one": open_clip(tmp_path / "before")})
    save_clip(read_clip(tmp_path, record.entries[0]), tmp_path / "after")
    names = sorted(p.relative_to(tmp_path / "before") for p in (tmp_path / "before").rglob("*") if p.is_file())
    assert len(names) == 2 + 3 * 8
    for name in names:
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes(), name


def test_parquets_own_reader_agrees(tmp_path: Path) -> None:
    """Our page reader against Arrow's: an independent one, for the same bytes."""
    clips = takes()
    record = write_shard(tmp_path, "0000", clips)
    read = pq.ParquetFile(shard_file(tmp_path, "0000"))
    assert read.schema_arrow.equals(SCHEMA) and read.num_row_groups == len(clips)
    for i, (entry, (key, clip)) in enumerate(zip(record.entries, clips.items())):
        row = read.read_row_group(i).to_pylist()[0]
        frames = [clip.encoded(index) for index in clip.header.frames()]
        assert row["key"] == key
        pieces = [piece for f in frames for piece in (f.image, f.matte, f.region) if piece is not None]
        assert row["pictures"] == pieces
        pairs = np.frombuffer(row["index"], "<u4").reshape(-1, 2).tolist()
        assert pairs == [[len(piece), zlib.crc32(piece)] for piece in pieces]
        again = read_clip(tmp_path, entry)
        assert frames == [again.encoded(index) for index in again.header.frames()]


def test_what_is_asked_for_is_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request for all but the pictures and one for each frame, or one for everything."""
    shards = tiny_shards("memory://shards/requests", clips=4)
    asked: list[tuple[Any, ...]] = []
    for name in ("cat_file", "open", "info", "ls", "exists", "size"):
        original = getattr(MemoryFileSystem, name)

        def noting(self: Any, path: str, *args: Any, name: str = name, original: Any = original, **kw: Any) -> Any:
            asked.append((name, path.rsplit("/", 1)[-1], kw.get("start"), kw.get("end")))
            return original(self, path, *args, **kw)

        monkeypatch.setattr(MemoryFileSystem, name, noting)
    entry = shards.entry(3)
    clip = shards.clip(3)
    frames = clip.header.frames()
    for index in frames:
        clip.frame(index)
    first, *others = [(start, end) for name, _, start, end in asked if name == "cat_file"]
    assert first == (entry.start, entry.pictures) and len(others) == len(frames)
    assert entry.pictures < others[0][0] and others[-1][1] == entry.end
    assert all(end == start for (_, end), (start, _) in pairwise(others)), "frames lie side by side"
    assert {a[0] for a in asked} <= {"cat_file", "open"} and all(a[1] == "00001.parquet" for a in asked)
    asked.clear()
    whole = shards.clip(3, whole=True)
    assert [whole.encoded(index) for index in frames] == [clip.encoded(index) for index in frames]
    assert next(a for a in asked if a[0] == "cat_file") == ("cat_file", "00001.parquet", entry.start, entry.end)
    assert len([a for a in asked if a[0] == "cat_file"]) == 1 + len(frames)


def test_equal_clips_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (write_shard(tmp_path / name, "0000", takes()) for name in ("a", "b"))
    assert first == second
    a, b = (Path(shard_file(tmp_path / name, "0000")).read_bytes() for name in ("a", "b"))
    assert a == b


def test_entries_name_the_bytes(tmp_path: Path) -> None:
    record = write_shard(tmp_path, "0000", takes())
    data = Path(shard_file(tmp_path, "0000")).read_bytes()
    assert len(data) == record.bytes
    assert record.entries[0].start == 4 and record.entries[-1].end == record.footer_start
    for entry, following in zip(record.entries, record.entries[1:]):
        assert entry.end == following.start
    for entry in record.entries:
        assert zlib.crc32(data[entry.start : entry.pictures]) == entry.crc32
        assert zlib.crc32(data[entry.pictures : entry.end]) == entry.pictures_crc32
    assert zlib.crc32(data[record.footer_start :]) == record.footer_crc32
    assert record.footer_start + int.from_bytes(data[-8:-4], "little") + 8 == len(data)  # Parquet's own count


def test_frames_are_asked_for_once_in_order(tmp_path: Path) -> None:
    clip, asked = tiny_take(instants=3, cameras=2), []

    def noting(index: FrameIndex) -> EncodedFrame:
        asked.append(index)
        return clip.read_frame(index)

    write_shard(tmp_path, "0000", {"one": dataclasses.replace(clip, read_frame=noting)})
    assert asked == [FrameIndex(t, c) for t in range(3) for c in range(2)]


def test_a_clip_that_fails_leaves_the_shard_as_it_was(tmp_path: Path) -> None:
    def broken(index: FrameIndex) -> EncodedFrame:
        if index.instant == 2:
            raise SpatialAvatarError("take 7: the PNG is truncated")
        return tiny_take(7).read_frame(index)

    sources = {"a": tiny_take(0), "b": tiny_take(1)}
    writer = ShardWriter(tmp_path / "whole.parquet", "0000")
    writer.add("a", sources["a"])
    with pytest.raises(SpatialAvatarError, match="the PNG is truncated"):
        writer.add("broken", dataclasses.replace(tiny_take(7), read_frame=broken))
    writer.add("b", sources["b"])
    entries, facts = writer.close()
    write_shard(tmp_path, "0000", sources)
    assert [entry.key for entry in entries] == ["a", "b"] and facts.bytes == writer.local.stat().st_size
    assert writer.local.read_bytes() == Path(shard_file(tmp_path, "0000")).read_bytes()


@pytest.mark.parametrize("key", ["", "two\nlines", "k" * 1001, "\ud800"], ids=["empty", "lines", "long", "surrogate"])
def test_keys_that_no_manifest_can_hold(tmp_path: Path, key: str) -> None:
    writer = ShardWriter(tmp_path / "x.parquet")
    with pytest.raises(SpatialAvatarError, match=r"^take 0: key is"):
        writer.add(key, tiny_take())
    assert len(writer) == 0
    writer.abandon()
    assert not list(tmp_path.iterdir())


def test_texts_that_no_manifest_can_hold(tmp_path: Path) -> None:
    clip = tiny_take(source=ClipSource("tests", "", "free \udcff"))
    with pytest.raises(SpatialAvatarError, match=r"^take 0: licence is"):
        ShardWriter(tmp_path / "x.parquet").add("one", clip)


def test_too_many_bytes_for_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LARGEST_PICTURES", 2500)
    with pytest.raises(SpatialAvatarError, match=r"^take 0: its pictures take more than .* make them smaller"):
        ShardWriter(tmp_path / "x.parquet").add("one", tiny_take())


def test_a_damaged_picture_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    """The bytes are as written, so the row is sound; what is in the picture shows when it is decoded."""
    clip = tiny_take()

    def cut(index: FrameIndex) -> EncodedFrame:
        frame = clip.read_frame(index)
        return dataclasses.replace(frame, image=frame.image[:-9])

    record = write_shard(tmp_path, "0000", {"people/one": dataclasses.replace(clip, read_frame=cut)})
    with pytest.raises(SpatialAvatarError, match=r"0000\.parquet#people/one/images/000002\.jpg: the JPEG is truncated"):
        read_clip(tmp_path, record.entries[0]).frame(FrameIndex(2, 0))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("key", "other", "key is 'one' in the shard, 'other' in the manifest"),
        ("identity", "other", "identity is 'tiny0'"),
        ("instants", 3, "instants is 4"),
        ("instants", 5, "instants is 4"),
        ("train_instants", 3, "train_instants is 4"),
        ("matte", "none", "matte is 'alpha'"),
        ("head_hash", "b" * 64, "head_hash is"),
        ("crc32", 1, "not those that were written"),
        ("start", 5, "not those that were written"),
        ("pictures", 10**5, "cannot be a clip"),
        ("end", 1 << 40, "cannot be a clip"),
        ("shard", "0001", "no such file"),
    ],
)
def test_an_entry_that_does_not_fit_its_row(tmp_path: Path, field: str, value: Any, said: str) -> None:
    entry = write_shard(tmp_path, "0000", {"one": tiny_take()}).entries[0]
    with pytest.raises(SpatialAvatarError, match=said) as raised:
        read_clip(tmp_path, dataclasses.replace(entry, **{field: value}))
    assert str(raised.value).startswith(shard_file(tmp_path, "0001" if field == "shard" else "0000"))


def test_an_end_that_is_not_the_rows_is_found_at_the_first_frame(tmp_path: Path) -> None:
    """The end alone places the pictures; their own sums tell."""
    entries = write_shard(tmp_path, "0000", {"one": tiny_take(0), "two": tiny_take(1)}).entries
    moved = dataclasses.replace(entries[0], end=entries[0].end + 8)
    with pytest.raises(SpatialAvatarError, match=r"0000\.parquet#one: images/000001\.jpg: the bytes are not those"):
        read_clip(tmp_path, moved).encoded(FrameIndex(1, 0))
    with pytest.raises(SpatialAvatarError, match="not those that were written"):
        read_clip(tmp_path, moved, whole=True)
    with pytest.raises(SpatialAvatarError, match="ends after"):
        read_clip(tmp_path, dataclasses.replace(entries[1], end=10**6)).encoded(FrameIndex(3, 0))


def test_clips_of_a_thousand_frames(tmp_path: Path) -> None:
    """Lists longer than a page of Parquet's usual size, and the picture that was asked for."""
    small = tiny_take().encoded(FrameIndex(0, 0))
    world_to_camera = tiny_take().world_to_camera[:1].expand(1000, 1, 4, 4)

    def frames(instant: int, camera: int) -> EncodedFrame:
        return EncodedFrame(small.image[:2] + b"\xff\xfe\x10\x00" + instant.to_bytes(2, "big") * 2047 + small.image[2:])

    take = tiny_take(instants=1000, matte_kind="none", frames=frames, world_to_camera=world_to_camera)
    clip = read_clip(tmp_path, write_shard(tmp_path, "0000", {"one": take}).entries[0])
    for instant in (0, 1, 511, 999):
        assert clip.encoded(FrameIndex(instant, 0)) == frames(instant, 0)


def test_columns() -> None:
    """What other readers rely on: names and types."""
    assert {field.name: str(field.type) for field in SCHEMA} == {
        "key": "string",
        "header": "string",
        "arrays": "large_binary",
        "index": "large_binary",
        "pictures": "list<item: large_binary>",
    }
