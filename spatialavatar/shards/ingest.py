"""Ingest: thousands of trackers' folders, or of our clips, become a data set of shards.

The work is planned from what is found and from the records of what is done, so it can be killed at any time and
run again, here or on many machines (ray_jobs/ingest.py): find, plan, ``convert`` each group, ``finish``. Nothing but
whole shards with their records counts.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.file import read_head
from spatialavatar.head.model import HeadModel
from spatialavatar.head.reference import builtin_head
from spatialavatar.shards.convert import Converted, convert, remove_leftovers
from spatialavatar.shards.entry import Rejected
from spatialavatar.shards.find import CLIP_FORMAT, SourceFolder, find_sources
from spatialavatar.shards.ingest_config import IngestConfig, check_config, claim_output, settings_hash
from spatialavatar.shards.manifest import open_shards, write_manifest
from spatialavatar.shards.plan import Group, plan_groups, recorded_keys
from spatialavatar.shards.records import read_records, recorded_shards

_FINISHES = 20  # of ingests that end at the same time


@dataclass(frozen=True)
class Work:
    """What is left to do."""

    config: IngestConfig
    head: HeadModel
    groups: list[Group]
    unreadable: list[Rejected]  # folders that could not be listed
    found: int  # sources in all
    done: int  # clips in records, sound or rejected

    @property
    def settings(self) -> str:
        """Hash of the settings that the clips are made with."""
        return settings_hash(self.config.settings(self.head))


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest came to."""

    clips: int
    rejected: int  # clips and folders, listed in rejected.jsonl
    converted: int  # clips by this run
    frames: int  # of those
    left: int  # clips that this run could not convert for reasons that are not theirs


def prepare(config: IngestConfig, retry_rejected: bool = False, progress: Callable[[int], None] | None = None) -> Work:
    """Find the sources and plan what no record holds; the output becomes this ingest's.

    Raises SpatialAvatarError for what the user can put right: no sources, other settings than before, no such head.
    """
    check_config(config)
    head = builtin_head() if config.head is None else read_head(config.head)
    found = find_sources(config.source, config.format, progress)
    if not found.sources:
        unread = f"; {len(found.unreadable)} folders could not be read" if found.unreadable else ""
        raise SpatialAvatarError(
            f"{config.source}: holds no folder of format '{config.format}'{unread}; name the folder above them "
            "as --source, or another --format"
        )
    _check_pattern(config, found.sources)
    foreign = sorted({source.format for source in found.sources} - {CLIP_FORMAT})
    if config.head is None and foreign:
        raise SpatialAvatarError(
            f"{config.source}: holds folders of {', '.join(foreign)}, which do not say which head they were tracked "
            "with; name it with --head ('spatialavatar head generate' writes the built-in one)"
        )
    settings = config.settings(head)
    claim_output(config, settings)
    remove_leftovers(config.output)
    records = read_records(config.output)
    groups = plan_groups(config, found.sources, records, settings_hash(settings), retry_rejected)
    done = len({key for record in records for key in recorded_keys(record)})
    return Work(config, head, groups, found.unreadable, len(found.sources), done)


def ingest(
    config: IngestConfig,
    run: Callable[[Work], Iterable[Converted]] | None = None,
    *,
    retry_rejected: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> IngestSummary:
    """Bring a data set up to date with its source; ``run`` converts the groups, by default one after the other.

    ``progress`` gets clips done and clips in all, as far as they are known. Raises SpatialAvatarError as ``prepare``
    and ``convert``.
    """
    work = prepare(config, retry_rejected)
    count = Count(work)
    for converted in (run or in_turn)(work):
        count.add(converted)
        if progress is not None:
            progress(count.done, count.total)
    return finish(work, count)


def in_turn(work: Work) -> Iterator[Converted]:
    """Every group, and what comes back of it, in this process."""
    waiting = list(reversed(work.groups))
    while waiting:
        converted = convert(waiting.pop(), work.config, work.head)
        waiting += reversed(converted.further)
        yield converted


class Count:
    """How far an ingest is. A folder counts as one clip until it is known how many it holds."""

    def __init__(self, work: Work) -> None:
        self.done = work.done
        self.total = work.done + sum(group.count for group in work.groups)
        self.clips = self.frames = self.rejected = 0
        self.problems: list[str] = []
        self.left = 0

    def add(self, converted: Converted) -> None:
        """Note what became of a group."""
        added = 0
        if converted.record is not None:
            entries, rejected = converted.record.entries, converted.record.rejected
            added = len(entries) + len(rejected)
            self.clips += len(entries)
            self.rejected += len(rejected)
            self.frames += sum(entry.instants * entry.cameras for entry in entries)
        if converted.problem is not None:
            self.problems.append(converted.problem)
            self.left += converted.group.count
            added = converted.group.count
        self.done += added
        self.total += added + sum(further.count for further in converted.further) - converted.group.count


def finish(work: Work, count: Count) -> IngestSummary:
    """Write manifest and ``rejected.jsonl`` from all records, whoever made them.

    Several ingests may end at once, and their files mix: each looks whether what stands there is whole and lists
    every record, so the last one leaves it so. Raises SpatialAvatarError when that does not come about.
    """
    output = work.config.output
    for _ in range(_FINISHES):
        records = read_records(output)
        if not records:  # the store failed for every group, so there is nothing to list yet
            return IngestSummary(0, 0, 0, 0, count.left)
        write_manifest(output, records, work.config.settings(work.head), work.unreadable)
        with contextlib.suppress(SpatialAvatarError):
            shards = open_shards(output)
            if set(recorded_shards(output)) <= {record.shard for record in records}:
                return IngestSummary(len(shards), shards.rejected_count, count.clips, count.frames, count.left)
    raise SpatialAvatarError(f"{output}: other ingests change it all the time; run this one again when they are done")


def _check_pattern(config: IngestConfig, sources: Sequence[SourceFolder]) -> None:
    """A pattern that fits no folder would reject them all."""
    if config.identity_pattern is None:
        return
    # behind a folder's key may come the name that the tool gave to one of its clips
    if not any(re.search(config.identity_pattern, text) for s in sources for text in (s.key, s.key + "/name_0")):
        raise SpatialAvatarError(
            f"--identity-pattern {config.identity_pattern!r}: is found in none of the {len(sources)} keys, such as "
            f"{sources[0].key!r}"
        )
