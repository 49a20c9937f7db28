"""The records of a data set's shards: which are complete, and what became of their sources (entry.py)."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.shards.entry import Rejected, ShardRecord, folder_key
from spatialavatar.shards.file import FOLDER

RECORD_SUFFIX = ".json"
READERS = 32  # requests at once, of a store that takes its time for each
LARGEST_RECORD = 1 << 28


def record_file(folder: files.Location, shard: str) -> str:
    """Where a shard's record lies."""
    return files.join(folder, FOLDER, shard + RECORD_SUFFIX)


def recorded_shards(folder: files.Location) -> list[str]:
    """Names of every complete shard."""
    names = [name for name in files.list_folder(files.join(folder, FOLDER)) if name.endswith(RECORD_SUFFIX)]
    return [name.removesuffix(RECORD_SUFFIX) for name in names if not name.startswith(".")]


def write_record(folder: files.Location, record: ShardRecord) -> None:
    """Say that a shard is complete; its file must be in its place."""
    files.write_json(record_file(folder, record.shard), record.to_json())


def read_record(folder: files.Location, shard: str) -> ShardRecord:
    """Raises SpatialAvatarError: no such record, or a faulty one."""
    location = record_file(folder, shard)
    record = ShardRecord.from_json(parsed(files.read_bytes(location, LARGEST_RECORD), location), location)
    if record.shard != shard:
        raise SpatialAvatarError(f"{location}: is the record of shard '{record.shard}'; restore the file")
    return record


def read_records(folder: files.Location) -> list[ShardRecord]:
    """The records of every complete shard, by name; many at once. Raises SpatialAvatarError as ``read_record``."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda shard: read_record(folder, shard), recorded_shards(folder)))


def standing_rejections(records: Iterable[ShardRecord], unreadable: Iterable[Rejected] = ()) -> list[Rejected]:
    """What was rejected and did not become a clip in another attempt, by key; the latest reason for each."""
    made: set[str] = set()
    latest: dict[str, Rejected] = {}

    def note(rejected: Rejected) -> None:
        before = latest.get(rejected.key)
        if before is None or (rejected.attempts, rejected.reason) > (before.attempts, before.reason):
            latest[rejected.key] = rejected

    for record in records:
        for entry in record.entries:
            made |= {entry.key, folder_key(entry.key)}  # a folder that once could not be opened, and then could
        for rejected in record.rejected:
            note(rejected)
    for rejected in unreadable:
        note(rejected)
    return [latest[key] for key in sorted(latest) if key not in made]


def parsed(data: bytes, name: str) -> Any:
    """JSON of a data set's files. Raises SpatialAvatarError; ``name`` of the file is for messages."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:  # also numbers of thousands of digits and nested brackets
        raise SpatialAvatarError(
            f"{name}: not usable JSON ({in_short(e, 120, plain=True)}); restore the file or run the ingest again"
        ) from None
