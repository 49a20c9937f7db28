"""Records say which bytes of which file are asked for: they come back as written, or are refused by name."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.reference import HeadReference
from spatialavatar.shards import ClipEntry, Rejected, ShardRecord
from spatialavatar.shards.entry import ENTRY_RULES, Place
from tests.builders.shards import tiny_take

HEAD = HeadReference("tiny", "a" * 64, "Apache-2.0", "made for tests")


def record() -> ShardRecord:
    entries = []
    for i in range(2):
        header = dataclasses.replace(tiny_take(i, cameras=3, test_cameras=[1], test_from=3).header, head=HEAD)
        entries.append(
            ClipEntry.of(f"people/{i}", header, "ab12", i, Place(4 + 100 * i, 50 + 100 * i, 104 + 100 * i, 7, 8))
        )
    rejected = (Rejected("people/9", "s3://raw/people/9", "the PNG is truncated", 2),)
    return ShardRecord("ab12", 400, 204, 99, HEAD, tuple(entries), rejected, "settings")


def test_round_trip_through_json() -> None:
    before = record()
    assert ShardRecord.from_json(json.loads(json.dumps(before.to_json())), "ab12.json") == before


def test_an_entry_counts_what_trains() -> None:
    entry = record().entries[0]
    assert (entry.instants, entry.train_instants, entry.cameras, entry.train_cameras) == (4, 3, 3, 2)
    whole = ClipEntry.of("key", tiny_take().header, "ab12", 0, Place(4, 5, 6, 0, 0))
    assert (whole.train_instants, whole.train_cameras) == (4, 1)


def test_a_record_without_clips() -> None:
    nothing = ShardRecord("ab12", 0, 0, 0, HEAD, (), record().rejected, "settings")
    assert ShardRecord.from_json(nothing.to_json(), "ab12.json") == nothing


def test_every_field_of_an_entry_has_a_rule() -> None:
    assert list(ENTRY_RULES) == [field.name for field in dataclasses.fields(ClipEntry)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start", 3),  # in the file's first mark
        ("end", 205),  # in the footer
        ("end", 4),  # nothing
        ("pictures", 4),  # nothing before them
        ("pictures", 104),  # none
        ("end", 10**40),
        ("row_group", 1),
        ("shard", "../../etc/passwd"),
        ("shard", "other"),
        ("key", ""),
        ("key", "two\nlines"),
        ("key", "\ud800"),
        ("identity", "../anna"),
        ("fps", float("nan")),
        ("fps", "25"),
        ("instants", True),
        ("instants", 4.0),
        ("instants", 1_000_000),
        ("cameras", 0),
        ("train_instants", 5),
        ("train_cameras", 4),
        ("bad_frames", 1000),
        ("matte", "soft"),
        ("region", 1),
        ("head_hash", "b" * 64),
        ("licence", "x" * 10_001),
    ],
)
def test_absurd_entries_are_refused(field: str, value: Any) -> None:
    changed = record().to_json()
    changed["entries"] = [dict(entry) for entry in changed["entries"]]
    changed["entries"][0][field] = value
    with pytest.raises(SpatialAvatarError, match=r"ab12\.json: entries\[0\]: ") as raised:
        ShardRecord.from_json(changed, "ab12.json")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_equal_keys_are_refused() -> None:
    before = record()
    twice = dataclasses.replace(before.entries[1], key=before.entries[0].key)
    with pytest.raises(SpatialAvatarError, match=r"^ab12\.json: entries: a key is there twice"):
        ShardRecord.from_json(dataclasses.replace(before, entries=(before.entries[0], twice)).to_json(), "ab12.json")


@pytest.mark.parametrize("where", ["record", "entries", "rejected", "head"])
def test_unknown_and_missing_fields_are_refused(where: str) -> None:
    for change in ("add", "remove"):
        value = json.loads(json.dumps(record().to_json()))
        holder = value if where == "record" else value[where] if where == "head" else value[where][0]
        if change == "add":
            holder["surplus"] = 1
        else:
            del holder[{"record": "settings", "head": "hash", "entries": "crc32", "rejected": "reason"}[where]]
        with pytest.raises(SpatialAvatarError, match=r"^ab12\.json.*(lacks '|unknown fields: 'surplus')"):
            ShardRecord.from_json(value, "ab12.json")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_json_is_a_record_or_an_error(data: st.DataObject) -> None:
    value: Any = json.loads(json.dumps(record().to_json()))
    for _ in range(data.draw(st.integers(1, 3))):
        holder = value
        while isinstance(holder, dict | list) and holder and data.draw(st.booleans()):
            inner = list(holder.values()) if isinstance(holder, dict) else holder
            holder = data.draw(st.sampled_from(inner))
        if isinstance(holder, dict) and holder:
            holder[data.draw(st.sampled_from(sorted(holder)))] = data.draw(values)
        elif isinstance(holder, list):
            holder.append(data.draw(values))
    try:
        read = ShardRecord.from_json(value, "ab12.json")
        assert json.loads(json.dumps(read.to_json(), allow_nan=False)) == value
    except SpatialAvatarError as e:
        assert str(e).startswith("ab12.json") and "\n" not in str(e)
