"""A data set of shards: its manifest, written from the records of its shards, and the clips behind it.

``manifest.json`` is written last and names the bytes of ``manifest.parquet``, so that a manifest is whole or there is
none. Opening a data set reads these two files, whatever its size.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spatialavatar import files
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.head.reference import HeadReference
from spatialavatar.shards.entry import (
    ENTRY_RULES,
    FACT_RULES,
    MOST_CLIPS,
    ClipEntry,
    Flag,
    Number,
    Rejected,
    Rule,
    ShardFacts,
    ShardRecord,
    Text,
    head_from_json,
)
from spatialavatar.shards.file import FOLDER, read_clip
from spatialavatar.shards.records import LARGEST_RECORD, parsed, standing_rejections

FORMAT = "spatialavatar-shards"
VERSION = 1
MANIFEST_FILE = "manifest.json"
TABLE_FILE = "manifest.parquet"
REJECTED_FILE = "rejected.jsonl"
_LARGEST_JSON = 1 << 24
_LARGEST_TABLE = 4 << 30
_RULES: dict[str, Rule] = {**ENTRY_RULES, **FACT_RULES}  # the columns of the table


def _column_type(rule: Rule) -> pa.DataType:
    if isinstance(rule, Text):
        return pa.string()
    if isinstance(rule, Flag):
        return pa.bool_()
    return pa.int64() if rule.whole else pa.float64()


SCHEMA = pa.schema([(name, _column_type(rule)) for name, rule in _RULES.items()])


@dataclass(frozen=True, eq=False)
class ShardSet:
    """The clips of a data set, by number: in the order of their shards, then rows."""

    location: str
    head: HeadReference  # of every clip
    ingest: Mapping[str, Any]  # how the clips were made
    rejected_count: int
    table: pa.Table  # a row a clip: the fields of ClipEntry and ShardFacts

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def entry(self, index: int) -> ClipEntry:
        """What the manifest says of a clip."""
        row = self._row(index)
        return ClipEntry(**{name: row[name].as_py() for name in ENTRY_RULES})

    def facts(self, index: int) -> ShardFacts:
        """What must be known of the clip's shard to check its file."""
        row = self._row(index)
        return ShardFacts(**{name: row[name].as_py() for name in FACT_RULES})

    def clip(self, index: int, whole: bool = False) -> TrackedClip:
        """Read a clip; its frames one by one when they are asked for, or all at once here, still encoded.

        Raises SpatialAvatarError as ``read_clip``.
        """
        return read_clip(self.location, self.entry(index), whole)

    def column(self, name: str) -> np.ndarray:
        """A field of every clip; texts as Python objects."""
        return np.asarray(self.table.column(name).to_numpy(zero_copy_only=False))

    def find(self, key: str) -> int:
        """The number of a clip. Raises SpatialAvatarError when there is none of that key."""
        found = pc.index(self.table.column("key"), key).as_py()
        if found < 0:
            raise SpatialAvatarError(f"{self.location}: holds no clip with the key {key!r}")
        return int(found)

    @cached_property
    def rejected(self) -> tuple[Rejected, ...]:
        """What did not become a clip."""
        location = files.join(self.location, REJECTED_FILE)
        if not self.rejected_count:
            return ()
        listed = []
        for number, line in enumerate(files.read_bytes(location, LARGEST_RECORD).splitlines(), 1):
            where = f"{location}: line {number}"
            listed.append(Rejected.from_json(parsed(line, where), where))
        return tuple(listed)

    def _row(self, index: int) -> dict[str, pa.Scalar]:
        if not 0 <= index < len(self):
            raise IndexError(f"no clip {index}, there are {len(self)}")
        return {name: self.table.column(name)[index] for name in self.table.column_names}


def open_shards(location: files.Location) -> ShardSet:
    """Open a data set by its folder; no clip is read.

    Raises SpatialAvatarError: no data set there, an unfinished one, a manifest that is not the one written.
    """
    folder = os.fspath(location).rstrip("/") or "/"
    name, table_name = files.join(folder, MANIFEST_FILE), files.join(folder, TABLE_FILE)
    try:
        content = files.read_start(name, _LARGEST_JSON)
    except SpatialAvatarError:
        if files.exists(name):
            raise
        if files.list_folder(files.join(folder, FOLDER)):
            raise SpatialAvatarError(
                f"{folder}: its ingest is not finished; run the same ingest command again"
            ) from None
        raise SpatialAvatarError(
            f"{folder}: no data set of shards, it holds no {MANIFEST_FILE}; make one by an ingest"
        ) from None
    value = parsed(content, name)
    again = "run the ingest again, which writes it anew"
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
        raise SpatialAvatarError(f'{name}: expected "format": "{FORMAT}", "version": {VERSION}; {again}')
    if set(value) != {"format", "version", "clips", "rejected", "head", "bytes", "sha256", "ingest"}:
        raise SpatialAvatarError(f"{name}: has not the fields of a manifest; {again}")
    limits = {"clips": MOST_CLIPS, "rejected": MOST_CLIPS, "bytes": _LARGEST_TABLE}
    for field, high in limits.items():
        problem = Number(0, high).refuses(value[field])
        if problem:
            raise SpatialAvatarError(f"{name}: {field}: {problem}; {again}")
    if not isinstance(value["ingest"], dict):
        raise SpatialAvatarError(f"{name}: ingest: expected settings by name; {again}")
    head = head_from_json(value["head"], name)
    data = files.read_start(table_name, value["bytes"] + 1)  # one more tells of a longer file
    if len(data) != value["bytes"] or hashlib.sha256(data).hexdigest() != value["sha256"]:
        raise SpatialAvatarError(f"{table_name}: is not the table that {MANIFEST_FILE} was written for; {again}")
    table = _read_table(table_name, data, value["clips"], head)
    return ShardSet(folder, head, value["ingest"], value["rejected"], table)


def write_manifest(
    folder: files.Location,
    records: Sequence[ShardRecord],
    ingest: Mapping[str, Any] | None = None,
    unreadable: Sequence[Rejected] = (),
) -> None:
    """Write manifest and ``rejected.jsonl`` from the records of all shards, and what no shard tells of.

    A clip that two shards hold (a group that was tried twice) is taken from the first of them. Raises
    SpatialAvatarError: no records, or records of different heads or settings.
    """
    if not records:
        raise SpatialAvatarError(f"{folder}: no shard is complete, so there is nothing to list; run the ingest again")
    ordered = sorted(records, key=lambda record: record.shard)
    first = ordered[0]
    for record in ordered:
        if (record.head, record.settings) != (first.head, first.settings):
            raise SpatialAvatarError(
                f"{folder}: shards '{first.shard}' and '{record.shard}' were made with different heads or settings; "
                "ingest into another folder, or remove the shards that do not belong"
            )
    chosen: dict[str, tuple[ClipEntry, ShardFacts]] = {}
    for record in ordered:
        for entry in record.entries:
            chosen.setdefault(entry.key, (entry, record.facts))
    failures = standing_rejections(ordered, unreadable)

    columns: dict[str, Any] = {name: [getattr(e, name) for e, _ in chosen.values()] for name in ENTRY_RULES}
    columns |= {name: [getattr(facts, name) for _, facts in chosen.values()] for name in FACT_RULES}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), buffer, version="2.6", compression="zstd")
    data = buffer.getvalue()
    lines = [json.dumps(dataclasses.asdict(item), allow_nan=False) + "\n" for item in failures]
    files.write_bytes(files.join(folder, REJECTED_FILE), "".join(lines).encode())
    files.write_bytes(files.join(folder, TABLE_FILE), data)
    value = {
        "format": FORMAT,
        "version": VERSION,
        "clips": len(chosen),
        "rejected": len(failures),
        "head": dataclasses.asdict(first.head),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "ingest": dict(ingest or {}),
    }
    files.write_json(files.join(folder, MANIFEST_FILE), value)


def _read_table(name: str, data: bytes, clips: int, head: HeadReference) -> pa.Table:
    """The manifest's table, checked: whatever is in it is asked of files later."""
    again = "run the ingest again, which writes it anew"
    texts = [field for field, rule in _RULES.items() if isinstance(rule, Text)]
    try:
        # texts stay numbers into a list of their values, which no file of this size can make large
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
        if not file.schema_arrow.names == SCHEMA.names or file.metadata.num_rows != clips:
            raise ValueError(f"it has not the columns of a manifest, or not {clips} rows")
        table = file.read().combine_chunks()
        table.validate(full=True)
        for field in SCHEMA:
            kind = pa.dictionary(pa.int32(), pa.string()) if field.name in texts else field.type
            if table.schema.field(field.name).type != kind or table.column(field.name).null_count:
                raise ValueError(f"{field.name} is not {field.type}, or not there for every clip")
        problem = _table_problem(table, head)
        if problem:
            raise ValueError(problem)
        keys = table.column("key").cast(pa.string())  # each value once: as large as the list of them
        return table.set_column(0, "key", keys)
    except Exception as e:  # Arrow's errors are of many kinds
        raise SpatialAvatarError(f"{name}: not a usable manifest ({in_short(e, plain=True)}); {again}") from None


def _table_problem(table: pa.Table, head: HeadReference) -> str | None:
    if not table.num_rows:
        return None
    for name, rule in _RULES.items():
        column = table.column(name)
        if isinstance(rule, Number):
            low, high = (value.as_py() for value in pc.min_max(column).values())
            finite = rule.whole or bool(pc.all(pc.is_finite(column)).as_py())
            if not finite or low < rule.low or high > rule.high:
                return f"{name} lies in {low}..{high}, expected {rule.low}..{rule.high}"
        elif isinstance(rule, Text):
            values = column.chunk(0).dictionary
            problem = next((problem for value in values.to_pylist() if (problem := rule.refuses(value))), None)
            if problem:
                return f"{name}: {problem}"
            if name == "key" and not table.num_rows == len(pc.unique(column.chunk(0).indices)) == len(
                pc.unique(values)
            ):
                return "key: a key is there twice"
    if column_values(table, "head_hash") != [head.hash]:
        return "head_hash is not the head's"
    ordered = (("start", "pictures"), ("pictures", "end"), ("footer_start", "bytes"))
    orders = [pc.less(table.column(a), table.column(b)) for a, b in ordered]
    orders += [
        pc.less_equal(table.column(a), table.column(b))
        for a, b in (("end", "footer_start"), ("train_instants", "instants"), ("train_cameras", "cameras"))
    ]
    orders.append(
        pc.less_equal(table.column("bad_frames"), pc.multiply(table.column("instants"), table.column("cameras")))
    )
    if not all(pc.all(order).as_py() for order in orders):
        return "bytes that do not lie in their file, or more frames to train on, or bad ones, than frames"
    return None


def column_values(table: pa.Table, name: str) -> list[Any]:
    """The different values of a column, in the order in which they come."""
    return list(pc.unique(table.column(name)).to_pylist())
