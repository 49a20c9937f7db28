"""What an ingest still has to do, cut into groups: the sources of one shard.

A clip's key is its folder's, or FOLDER#3-of-12 in a folder of several. A group's name follows from its sources and the
settings, so whoever plans the same work, now or after a kill, writes the same shard under the same name.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.shards.entry import Rejected, ShardRecord, clip_key, folder_key
from spatialavatar.shards.find import SourceFolder
from spatialavatar.shards.ingest_config import IngestConfig
from spatialavatar.shards.records import standing_rejections


@dataclass(frozen=True)
class Clips:
    """Some of the clips of a folder that holds several."""

    numbers: tuple[int, ...]  # from 1
    of: int


@dataclass(frozen=True)
class Item:
    """A folder, or some of its clips, that goes into a shard."""

    source: SourceFolder
    clips: Clips | None = None  # every clip that the folder turns out to hold

    @property
    def count(self) -> int:
        """Clips, as far as they are known."""
        return len(self.clips.numbers) if self.clips else 1

    @property
    def keys(self) -> list[str]:
        """The folder's own when its clips are not known."""
        if self.clips is None:
            return [self.source.key]
        return [clip_key(self.source.key, number, self.clips.of) for number in self.clips.numbers]


@dataclass(frozen=True)
class Group:
    """What becomes one shard."""

    name: str  # of its shard and record
    items: tuple[Item, ...]
    attempt: int  # above 1 when what was rejected is tried again

    @property
    def count(self) -> int:
        return sum(item.count for item in self.items)


def group_of(items: Sequence[Item], settings: str, attempt: int) -> Group:
    """The items under the name that follows from them, the settings and the attempt."""
    text = json.dumps([[key for item in items for key in item.keys], settings, attempt])
    return Group(hashlib.sha256(text.encode()).hexdigest()[:24], tuple(items), attempt)


def grouped(items: Iterable[Item], per_shard: int, settings: str, attempt: int) -> list[Group]:
    """Groups of at most ``per_shard`` clips, in order; an item with more is cut."""
    groups: list[list[Item]] = [[]]
    for item in items:
        for piece in _pieces(item, per_shard):
            if sum(other.count for other in groups[-1]) + piece.count > per_shard:
                groups.append([])
            groups[-1].append(piece)
    return [group_of(group, settings, attempt) for group in groups if group]


def singles(group: Group, settings: str) -> list[Group]:
    """Every clip of a group, as far as known, in a group of its own."""
    return grouped(group.items, 1, settings, group.attempt)


def plan_groups(
    config: IngestConfig,
    found: Sequence[SourceFolder],
    records: Sequence[ShardRecord],
    settings: str,
    retry_rejected: bool = False,
) -> list[Group]:
    """Groups of what no record holds, in the order of keys; with ``retry_rejected`` also of what was rejected.

    Removing whole groups leaves the others as they were, so an interrupted ingest plans the same shards again.
    Raises SpatialAvatarError when a record was made with other settings.
    """
    for record in records:
        if record.settings != settings:
            raise SpatialAvatarError(
                f"{config.output}: shard {record.shard} was made with other settings; name another --output"
            )
    known = _Known(records)
    again: dict[str, list[Rejected]] = defaultdict(list)
    for rejected in standing_rejections(records) if retry_rejected else ():
        again[folder_key(rejected.key)].append(rejected)
    unseen, begun = [], []
    retried: dict[int, list[Item]] = defaultdict(list)
    for source in found if config.limit is None else found[: config.limit]:
        missing = known.missing(source.key)
        if missing is None:
            unseen.append(Item(source))
        elif missing.numbers:
            begun.append(Item(source, missing))
        elif source.key in again:
            attempt = 1 + max(rejected.attempts for rejected in again[source.key])
            retried[attempt].append(Item(source, _rejected_clips(source.key, again[source.key])))
    size = config.clips_per_shard
    groups = grouped(unseen, size, settings, 1) + grouped(begun, size, settings, 1)
    for attempt in sorted(retried):
        groups += grouped(retried[attempt], size, settings, attempt)
    return groups


def recorded_keys(record: ShardRecord) -> list[str]:
    """Of everything that the group's turn has settled."""
    return [entry.key for entry in record.entries] + [rejected.key for rejected in record.rejected]


class _Known:
    """Which clips of which folders the records hold, sound or rejected."""

    def __init__(self, records: Iterable[ShardRecord]) -> None:
        self._whole: set[str] = set()
        self._clips: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for record in records:
            for recorded in recorded_keys(record):
                key, number, of = _parts(recorded)
                if of:
                    self._clips[key][of].add(number)
                else:
                    self._whole.add(key)

    def missing(self, key: str) -> Clips | None:
        """The folder's clips that no record holds; None when nothing of it is known."""
        for of, numbers in self._clips[key].items() if key in self._clips else ():
            return Clips(tuple(n for n in range(1, of + 1) if n not in numbers), of)
        return Clips((), 1) if key in self._whole else None


def _rejected_clips(key: str, rejections: Sequence[Rejected]) -> Clips | None:
    parts = [_parts(rejected.key) for rejected in rejections]
    if any(not of for _, _, of in parts):
        return None
    return Clips(tuple(sorted(number for _, number, _ in parts)), parts[0][2])


def _parts(key: str) -> tuple[str, int, int]:
    """Folder, number and count of a clip's key; 0 of 0 for the only clip of a folder."""
    folder, _, rest = key.partition("#")
    match = re.fullmatch(r"([0-9]{1,9})-of-([0-9]{1,9})", rest)
    return (folder, int(match[1]), int(match[2])) if match else (folder, 0, 0)


def _pieces(item: Item, size: int) -> list[Item]:
    if item.clips is None:
        return [item]
    numbers = item.clips.numbers
    return [
        Item(item.source, Clips(numbers[start : start + size], item.clips.of)) for start in range(0, len(numbers), size)
    ]
