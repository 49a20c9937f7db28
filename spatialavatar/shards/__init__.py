"""Shards: thousands of tracked clips in a few large Parquet files, on a disk or in an object store.

A data set is a folder: ``shards/NAME.parquet`` (a clip is a row, and a row is a row group: file.py),
``shards/NAME.json`` (the record of a complete shard: entry.py), and ``manifest.parquet`` with ``manifest.json`` (every
clip and where it lies: manifest.py). What did not become a clip is listed in ``rejected.jsonl``.
"""

from spatialavatar.shards.entry import ClipEntry, Rejected, ShardFacts, ShardRecord
from spatialavatar.shards.file import ShardWriter, read_clip
from spatialavatar.shards.manifest import ShardSet, open_shards

__all__ = ["ClipEntry", "Rejected", "ShardFacts", "ShardRecord", "ShardSet", "ShardWriter", "open_shards", "read_clip"]
