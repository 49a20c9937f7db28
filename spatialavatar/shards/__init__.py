"""Shards: thousands of tracked clips in a few large Parquet files, on a disk or in an object store.

A data set is a folder, on a disk or in a store:

    ingest.json           source and settings, which a second run must share (ingest_config.py)
    shards/NAME.parquet   clips: a clip is a row, and a row is a row group (file.py; pages.py reads one from its bytes)
    shards/NAME.json      the record of a complete shard: its clips, and what was rejected (entry.py, records.py)
    manifest.parquet      every clip and where it lies (manifest.py)
    manifest.json         written last; names the bytes of manifest.parquet
    rejected.jsonl        what did not become a clip, and why

How it is made: find.py finds the sources, plan.py cuts what is still missing into groups, convert.py turns a group into
a shard and its record, ingest.py puts these together in one process (``ray_jobs/ingest.py`` on many). What it holds:
``open_shards`` (manifest.py) for training, report.py and sheet.py for people.
"""

from spatialavatar.shards.entry import ClipEntry, Rejected, ShardFacts, ShardRecord
from spatialavatar.shards.file import ShardWriter, read_clip
from spatialavatar.shards.manifest import ShardSet, open_shards

__all__ = ["ClipEntry", "Rejected", "ShardFacts", "ShardRecord", "ShardSet", "ShardWriter", "open_shards", "read_clip"]
