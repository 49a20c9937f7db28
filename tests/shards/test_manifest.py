"""The manifest of a data set: written from its records, whole or not there, opened by two reads."""

import dataclasses
import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.reference import HeadReference
from spatialavatar.shards import Rejected, ShardRecord, open_shards
from spatialavatar.shards.entry import MOST_CLIPS
from spatialavatar.shards.manifest import write_manifest
from spatialavatar.shards.records import read_records
from tests.builders.clips import tiny_head
from tests.builders.shards import tiny_shards, tiny_take, write_shard

FAILED = Rejected("people/9", "s3://raw/people/9", "the PNG is truncated\nin its IDAT chunk", 2)


def test_what_is_listed(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path, clips=5, cameras=2, clips_per_shard=2, people=2, rejected=[FAILED])
    assert len(shards) == 5 and shards.location == str(tmp_path)
    assert shards.head == HeadReference.of(tiny_head())
    assert shards.ingest == {"made": "for tests"}
    assert shards.column("key").tolist() == [f"clip{i}" for i in range(5)]
    assert shards.column("identity").tolist() == ["tiny0", "tiny1", "tiny0", "tiny1", "tiny0"]
    assert shards.column("shard").tolist() == ["00000", "00000", "00001", "00001", "00002"]
    assert shards.column("instants").dtype == np.int64 and shards.column("fps").dtype == np.float64
    assert shards.column("region").dtype == bool
    entries = [entry for record in read_records(tmp_path) for entry in record.entries]
    assert [shards.entry(i) for i in range(5)] == entries
    assert [shards.facts(i) for i in (1, 4)] == [read_records(tmp_path)[i].facts for i in (0, 2)]
    assert shards.find("clip3") == 3
    assert shards.clip(3).identity == "tiny1" and len(shards.clip(3).header.frames()) == 8
    assert shards.rejected_count == 1 and shards.rejected == (FAILED,)


def test_what_is_not_there(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path, clips=2)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            shards.entry(index)
    with pytest.raises(SpatialAvatarError, match="no clip with the key 'nobody'"):
        shards.find("nobody")


def test_it_goes_to_another_process(tmp_path: Path) -> None:
    shards = pickle.loads(pickle.dumps(tiny_shards(tmp_path, clips=2)))
    assert shards.clip(1).header == tiny_take(1).header


def test_a_table_that_goes_on_is_not_the_one_written(tmp_path: Path) -> None:
    tiny_shards(tmp_path, clips=2)
    with open(tmp_path / "manifest.parquet", "ab") as f:
        f.write(b"more")
    with pytest.raises(SpatialAvatarError, match=r"manifest\.parquet: is not the table"):
        open_shards(tmp_path)


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    tiny_shards(tmp_path, clips=4, rejected=[FAILED])
    names = ("manifest.json", "manifest.parquet", "rejected.jsonl")
    before = [(tmp_path / name).read_bytes() for name in names]
    write_manifest(tmp_path, read_records(tmp_path)[::-1], {"made": "for tests"})
    assert [(tmp_path / name).read_bytes() for name in names] == before


def test_a_clip_that_two_shards_hold_counts_once(tmp_path: Path) -> None:
    records = [
        write_shard(tmp_path, "b", {"one": tiny_take(1), "two": tiny_take(2)}),
        write_shard(tmp_path, "a", {"one": tiny_take(1)}),
    ]
    write_manifest(tmp_path, records)
    shards = open_shards(tmp_path)
    assert [(shards.entry(i).key, shards.entry(i).shard) for i in range(len(shards))] == [("one", "a"), ("two", "b")]


def test_rejected_and_then_made(tmp_path: Path) -> None:
    """A retry's clip takes the place of the rejection; of two rejections the later one is told."""
    first = dataclasses.replace(FAILED, key="one")
    other = dataclasses.replace(FAILED, attempts=1, reason="earlier")
    records = [
        write_shard(tmp_path, "a", {}, [first, FAILED]),
        write_shard(tmp_path, "b", {"one": tiny_take(1)}, [other]),
    ]
    write_manifest(tmp_path, records)
    assert open_shards(tmp_path).rejected == (FAILED,)
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 1


def test_a_data_set_without_clips(tmp_path: Path) -> None:
    write_manifest(tmp_path, [write_shard(tmp_path, "a", {}, [FAILED])])
    shards = open_shards(tmp_path)
    assert len(shards) == 0 and shards.rejected == (FAILED,) and shards.column("identity").tolist() == []


def test_records_that_do_not_belong_together(tmp_path: Path) -> None:
    record = write_shard(tmp_path, "a", {"one": tiny_take()})
    other_head = dataclasses.replace(record.head, hash="b" * 64)
    for other in (dataclasses.replace(record, settings="others"), dataclasses.replace(record, head=other_head)):
        with pytest.raises(SpatialAvatarError, match="shards 'a' and 'b' were made with different heads or settings"):
            write_manifest(tmp_path, [record, dataclasses.replace(other, shard="b")])
    with pytest.raises(SpatialAvatarError, match="no shard is complete"):
        write_manifest(tmp_path, [])


def test_records_are_read_by_name(tmp_path: Path) -> None:
    records = [write_shard(tmp_path, name, {name: tiny_take()}) for name in ("c", "a", "b")]
    (tmp_path / "shards" / "unfinished.parquet").write_bytes(b"PAR1")  # no record: counts for nothing
    (tmp_path / "shards" / ".a.json.x.tmp").write_bytes(b"{")
    assert read_records(tmp_path) == [records[1], records[2], records[0]]
    assert read_records(tmp_path / "nowhere") == []
    (tmp_path / "shards" / "d.json").write_bytes((tmp_path / "shards" / "a.json").read_bytes())
    with pytest.raises(SpatialAvatarError, match=r"d\.json: is the record of shard 'a'"):
        read_records(tmp_path)


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match="no data set of shards"):
        open_shards(tmp_path)
    write_shard(tmp_path, "a", {"one": tiny_take()})
    with pytest.raises(SpatialAvatarError, match="its ingest is not finished"):
        open_shards(tmp_path)


@pytest.mark.parametrize("change", ["other bytes", "shorter", "gone"])
def test_another_table_than_was_written(tmp_path: Path, change: str) -> None:
    tiny_shards(tmp_path)
    table = tmp_path / "manifest.parquet"
    data = table.read_bytes()
    table.unlink()
    if change != "gone":
        table.write_bytes(data[:50] + b"x" + data[51:] if change == "other bytes" else data[:-1])
    with pytest.raises(SpatialAvatarError, match=r"manifest\.parquet: (is not the table|no such file)"):
        open_shards(tmp_path)


def rows(count: int = 3) -> dict[str, Any]:
    """Columns of a sound manifest."""
    return tiny_shards("memory://shards/rows", clips=count).table.to_pydict()


def put(folder: Path, table: pa.Table, clips: int, **options: Any) -> None:
    """A manifest that agrees with itself, of any table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    data = buffer.getvalue()
    value = {
        "format": "spatialavatar-shards",
        "version": 1,
        "clips": clips,
        "rejected": 0,
        "head": dataclasses.asdict(HeadReference.of(tiny_head())),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "ingest": {},
    }
    files.write_bytes(folder / "manifest.parquet", data)
    files.write_json(folder / "manifest.json", value)


def types() -> pa.Schema:
    return tiny_shards("memory://shards/rows", clips=3).table.schema


@pytest.mark.parametrize("dictionary", [True, False])
def test_however_parquet_stores_it(tmp_path: Path, dictionary: bool) -> None:
    put(tmp_path, pa.table(rows(), schema=types()), 3, use_dictionary=dictionary, row_group_size=2)
    assert open_shards(tmp_path).table.to_pydict() == rows()


@pytest.mark.parametrize(
    ("column", "values", "kind", "said"),
    [
        ("start", [4, 4, -1], pa.int64(), "start lies in -1..4"),
        ("start", [4, 4, None], pa.int64(), "start is not int64"),
        ("start", [4.0, 4.0, 4.0], pa.float64(), "start is not int64"),
        ("start", ["4"] * 3, pa.string(), "start is not int64"),
        ("end", [4] * 3, pa.int64(), "end lies in 4..4"),
        ("end", [10**9] * 3, pa.int64(), "bytes that do not lie in their file"),
        ("footer_start", [10**9] * 3, pa.int64(), "bytes that do not lie in their file"),
        ("instants", [10**7] * 3, pa.int64(), "instants lies in"),
        ("train_instants", [5] * 3, pa.int64(), "more frames to train on"),
        ("train_cameras", [2] * 3, pa.int64(), "more frames to train on"),
        ("fps", [float("nan")] * 3, pa.float64(), "fps lies in"),
        ("shard", ["../../x"] * 3, pa.string(), "shard: expected the name of a shard"),
        ("key", ["a", "b", "a"], pa.string(), "key: a key is there twice"),
        ("key", ["a", "b", "two\nlines"], pa.string(), "key: expected a key"),
        ("key", [None] * 3, pa.null(), "key is not string"),
        ("matte", ["soft"] * 3, pa.string(), "matte: expected"),
        ("head_hash", ["b" * 64] * 3, pa.string(), "head_hash is not the head's"),
        ("bad_frames", [0, 0, 10**6], pa.int64(), "or bad ones, than frames"),
        ("region", [0] * 3, pa.int64(), "region is not bool"),
        ("identity", [["a"]] * 3, pa.list_(pa.string()), "not a usable manifest"),
    ],
)
def test_hostile_tables(tmp_path: Path, column: str, values: Any, kind: Any, said: str) -> None:
    schema = types()
    table = pa.table(rows(), schema=schema)
    table = table.set_column(schema.get_field_index(column), column, pa.array(values, kind))
    put(tmp_path, table, 3)
    with pytest.raises(SpatialAvatarError, match=r"manifest\.parquet: not a usable manifest") as raised:
        open_shards(tmp_path)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_other_columns_and_counts(tmp_path: Path) -> None:
    table = pa.table(rows(), schema=types())
    for hostile, clips in (
        (table, 2),
        (table.drop_columns(["crc32"]), 3),
        (table.append_column("surplus", pa.array([1, 2, 3])), 3),
        (table.select(table.column_names[::-1]), 3),
        (pa.table({}), 0),
    ):
        put(tmp_path, hostile, clips)
        with pytest.raises(SpatialAvatarError, match=r"manifest\.parquet: not a usable manifest"):
            open_shards(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "other"),
        ("version", 2),
        ("clips", -1),
        ("clips", MOST_CLIPS + 1),
        ("clips", "4"),
        ("rejected", None),
        ("bytes", 10**30),
        ("sha256", None),
        ("head", None),
        ("head", {"id": "x"}),
        ("ingest", []),
        ("surplus", 1),
    ],
)
def test_hostile_manifest_json(tmp_path: Path, field: str, value: Any) -> None:
    tiny_shards(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(SpatialAvatarError, match=r"manifest\.") as raised:
        open_shards(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"key": "a"}', b"\xff", b"9" * 5000], ids=str)
def test_hostile_rejections(tmp_path: Path, line: bytes) -> None:
    shards = tiny_shards(tmp_path, rejected=[FAILED])
    with open(tmp_path / "rejected.jsonl", "ab") as f:
        f.write(line + b"\n")
    with pytest.raises(SpatialAvatarError, match=r"rejected\.jsonl: line 2: "):
        _ = shards.rejected


def test_many_records_make_one_manifest(tmp_path: Path) -> None:
    """Rows as many as a large data set's, from one that was written."""
    made: ShardRecord = write_shard(tmp_path, "first", {"one": tiny_take()})
    entry = made.entries[0]
    records = []
    for number in range(100):
        named = [
            dataclasses.replace(entry, key=f"{number}/{i}", identity=f"s{number}", shard=f"s{number:03d}", row_group=i)
            for i in range(100)
        ]
        records.append(dataclasses.replace(made, shard=f"s{number:03d}", entries=tuple(named)))
    write_manifest(tmp_path, records)
    shards = open_shards(tmp_path)
    assert len(shards) == 10_000 and shards.entry(9_999).key == "99/99" and shards.find("42/7") == 4207
    assert len(set(shards.column("identity").tolist())) == 100
