"""One group of sources becomes one shard and its record.

Each clip is checked whole, converted where that is asked for, and appended; its pictures are read once. What is wrong
with a clip is its own: it is noted as rejected and the others go on. What is wrong with a store, or with the disk that
is written to, ends the group, which then has no record and is tried again by whoever plans next.
"""

import contextlib
import errno
import fcntl
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from spatialavatar import files
from spatialavatar.clip.conversion import resized, with_image_format
from spatialavatar.clip.header import Fault, FrameIndex, header_from_json, in_a_line, safe_identity
from spatialavatar.clip.importers import ImportOptions, open_source
from spatialavatar.clip.importers.options import with_test_last
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.tracked_clip import TrackedClip, open_clip
from spatialavatar.clip.validate import check_frame, check_geometry, check_values
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.reference import HeadReference
from spatialavatar.shards.entry import ClipEntry, Rejected, ShardFacts, ShardRecord, clip_key
from spatialavatar.shards.file import FOLDER, NewRow, ShardWriter, shard_file
from spatialavatar.shards.find import CLIP_FORMAT, SourceFolder
from spatialavatar.shards.ingest_config import IngestConfig, settings_hash
from spatialavatar.shards.plan import Clips, Group, Item, grouped
from spatialavatar.shards.records import read_record, record_file, write_record

LARGEST_SHARD = 8 << 30  # bytes after which a shard takes no further folder
READERS = 8  # frames asked for at a time, of a store that takes its time for each
IN_ORDER = ("nersemble",)  # formats whose frames come out of videos, one after the other
_LONGEST_REASON = 2000  # characters
_GROWING = ".ingest-"  # folders in which shards grow
_LOCKED_WITHIN = 60.0  # seconds in which such a folder's maker has locked it
_SURROUNDINGS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}  # of the machine, not of a clip


@dataclass(frozen=True)
class Converted:
    """What became of a group."""

    group: Group
    record: ShardRecord | None = None  # None when nothing of the group went into this shard
    further: tuple[Group, ...] = ()  # what was too much for it
    problem: str | None = None  # why the group has to wait for another run


@dataclass
class _Rejections:
    attempt: int
    items: list[Rejected] = field(default_factory=list)

    def add(self, source: SourceFolder, keys: Sequence[str], reason: str) -> None:
        line = " ".join(reason.split()).encode("utf-8", "backslashreplace").decode()[:_LONGEST_REASON]
        self.items += [Rejected(key, source.location, line, self.attempt) for key in keys]

    @contextlib.contextmanager
    def noting(self, source: SourceFolder, keys: Sequence[str]) -> Iterator[None]:
        """What goes wrong with a source inside the block is noted; what is not its fault goes through."""
        try:
            yield
        except StoreError:
            raise
        except SpatialAvatarError as e:
            self.add(source, keys, str(e))
        except OSError as e:
            if e.errno in _SURROUNDINGS:
                raise
            self.add(source, keys, f"{e.filename or source.location}: {e.strerror or e}")
        except Exception as e:  # whatever an importer stumbles over, the other clips go on
            self.add(source, keys, f"{source.location}: internal error: {type(e).__name__}: {e}; please report it")


def convert(
    group: Group, config: IngestConfig, head: HeadModel, begin: Callable[[str], None] | None = None
) -> Converted:
    """Write the group's shard and then its record, unless there is a record already; ``begin`` hears of each key first.

    Folders that hold several clips fill the shard as long as they fit; the others come back as ``further`` groups.
    Raises StoreError, OSError of the machine, and SpatialAvatarError when the output cannot be written.
    """
    if files.exists(record_file(config.output, group.name)):
        return Converted(group, read_record(config.output, group.name))
    rejections = _Rejections(group.attempt)
    later: list[Item] = []
    written = 0
    with _growing_file(config.output, group.name) as local:
        writer = ShardWriter(local, group.name)
        try:
            for item in group.items:
                if written > LARGEST_SHARD:
                    later.append(item)
                    continue
                if begin is not None:
                    begin(item.source.key)
                clips: list[TrackedClip] = []
                with rejections.noting(item.source, item.keys):
                    clips = _opened(item, config, head)
                of = item.clips.of if item.clips else len(clips)
                if item.clips is None and of > max(1, config.clips_per_shard - len(writer)):
                    later.append(Item(item.source, Clips(tuple(range(1, of + 1)), of)))
                    continue
                for number, clip in enumerate(clips, 1):
                    if item.clips is not None and number not in item.clips.numbers:
                        continue
                    key = clip_key(item.source.key, number, of)
                    if begin is not None:
                        begin(key)
                    row: NewRow | None = None
                    with rejections.noting(item.source, [key]):
                        wanted = with_test_last(_renamed(clip, item.source, of, config), config.test_last)
                        row = _row(writer, key, wanted, item.source, config, head)
                    if row is not None:
                        writer.append(row)
                        written += row.table.nbytes
            record = _finished(writer, group, config, head, rejections.items)
        except BaseException:
            writer.abandon()
            raise
    settings = settings_hash(config.settings(head))
    return Converted(group, record, tuple(grouped(later, config.clips_per_shard, settings, group.attempt)))


def quarantine(group: Group, config: IngestConfig, head: HeadModel, reason: str) -> ShardRecord:
    """Record that every source of a group is rejected, for one that ends the process that reads it."""
    rejections = _Rejections(group.attempt)
    for item in group.items:
        rejections.add(item.source, item.keys, f"{item.source.location}: {reason}")
    record = _record(group, config, head, (), ShardFacts(0, 0, 0), rejections.items)
    write_record(config.output, record)
    return record


def remove_leftovers(output: files.Location) -> None:
    """Remove half-written shards whose process is gone. In stores nothing half-written is left."""
    if not files.is_local(output):
        return
    for folder in files.local_path(files.join(output, FOLDER)).glob(f"{_GROWING}*"):
        with contextlib.suppress(OSError):  # its maker may be finishing at this moment
            if time.time() - folder.stat().st_mtime > _LOCKED_WITHIN:
                with _locked(folder):
                    shutil.rmtree(folder)


def _opened(item: Item, config: IngestConfig, head: HeadModel) -> list[TrackedClip]:
    source = item.source
    if source.format == CLIP_FORMAT:
        return [open_clip(source.location)]
    options = ImportOptions(
        licence=config.licence,
        fps=config.fps,
        keep_split=config.keep_split,
        tracking=config.tracking,
        drop_dynamic_offsets=config.drop_dynamic_offsets,
    )
    clips = open_source(source.location, head, source.format, options)
    if item.clips is not None and len(clips) != item.clips.of:
        raise SpatialAvatarError(
            f"{source.location}: holds {len(clips)} clips, it held {item.clips.of} when the ingest began; "
            "ingest it into another folder"
        )
    return clips


def _row(
    writer: ShardWriter, key: str, clip: TrackedClip, source: SourceFolder, config: IngestConfig, head: HeadModel
) -> NewRow:
    """The clip as it goes into the shard. Raises SpatialAvatarError with the first fault."""
    bad_frames = _bad_frames(clip, head, config.max_bad_frames)
    ahead = 0 if files.is_local(source.location) or source.format in IN_ORDER else READERS
    with _read_ahead(clip, ahead) as early:

        def read(index: FrameIndex) -> EncodedFrame:
            frame = early.encoded(index)
            _require_none(clip, check_frame(clip.header, index, frame))
            return frame

        wanted = replace(clip, read_frame=read)
        image_format = None if config.image_format == "keep" else config.image_format
        if config.max_size:
            wanted = resized(wanted, config.max_size, image_format)
        if image_format:
            wanted = with_image_format(wanted, image_format)
        return writer.row(key, wanted, bad_frames)


def _bad_frames(clip: TrackedClip, head: HeadModel, share: float) -> int:
    """Frames whose tracking misses the face. Raises SpatialAvatarError: more than ``share``, or values that are wrong
    in themselves."""
    _require_none(clip, check_values(clip, head))
    faults = check_geometry(clip.header, clip.arrays(), head)
    bad, frames = len({fault.frame for fault in faults}), clip.instants * clip.cameras
    allowed = math.floor(share * frames + 1e-9)
    if bad > allowed:
        raise SpatialAvatarError(
            f"{clip.location}: {faults[0]} ({bad} of {frames} frames are such, --max-bad-frames {share:g} allows "
            f"{allowed})"
        )
    return bad


def _require_none(clip: TrackedClip, faults: Sequence[Fault]) -> None:
    if faults:
        raise SpatialAvatarError(f"{clip.location}: {in_a_line(faults)}")


def _renamed(clip: TrackedClip, source: SourceFolder, of: int, config: IngestConfig) -> TrackedClip:
    """With identity, licence and rate as they were asked for."""
    header = clip.header
    if config.identity_pattern is not None:
        text = source.key if of == 1 else f"{source.key}/{clip.identity}"
        match = re.search(config.identity_pattern, text)
        if match is None or not match[1]:
            raise SpatialAvatarError(
                f"{clip.location}: --identity-pattern {config.identity_pattern!r} finds no identity in {text!r}"
            )
        header = replace(header, identity=safe_identity(match[1]))
    if config.licence is not None:
        header = replace(header, source=replace(header.source, licence=config.licence))
    if config.fps is not None:
        header = replace(header, fps=config.fps)
    return replace(clip, header=header_from_json(header.to_json(), clip.location))


@contextlib.contextmanager
def _read_ahead(clip: TrackedClip, count: int) -> Iterator[TrackedClip]:
    """The clip for a reader who asks for each frame once and in order: the next ``count`` are already on their way."""
    with ThreadPoolExecutor(max(1, count)) as pool:
        coming = iter(clip.header.frames() if count else ())
        asked: dict[FrameIndex, Future[EncodedFrame]] = {}

        def read(index: FrameIndex) -> EncodedFrame:
            while len(asked) <= count and (following := next(coming, None)) is not None:
                asked[following] = pool.submit(clip.read_frame, following)
            future = asked.pop(index, None)
            return clip.read_frame(index) if future is None else future.result()

        try:
            yield replace(clip, read_frame=read)
        finally:
            for future in asked.values():
                future.cancel()


def _finished(
    writer: ShardWriter, group: Group, config: IngestConfig, head: HeadModel, rejected: Sequence[Rejected]
) -> ShardRecord | None:
    if len(writer):
        entries, facts = writer.close()
        files.move_into_place(writer.local, shard_file(config.output, group.name))
    else:
        writer.abandon()
        if not rejected:
            return None
        entries, facts = (), ShardFacts(0, 0, 0)
    record = _record(group, config, head, entries, facts, rejected)
    write_record(config.output, record)
    return record


def _record(
    group: Group,
    config: IngestConfig,
    head: HeadModel,
    entries: tuple[ClipEntry, ...],
    facts: ShardFacts,
    rejected: Sequence[Rejected],
) -> ShardRecord:
    return ShardRecord(
        shard=group.name,
        bytes=facts.bytes,
        footer_start=facts.footer_start,
        footer_crc32=facts.footer_crc32,
        head=HeadReference.of(head),
        entries=entries,
        rejected=tuple(rejected),
        settings=settings_hash(config.settings(head)),
    )


@contextlib.contextmanager
def _growing_file(output: files.Location, name: str) -> Iterator[Path]:
    """Where a shard grows: on the disk that it goes to, or on this machine's when it goes to a store."""
    parent = None
    if files.is_local(output):
        parent = files.local_path(files.join(output, FOLDER))
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_GROWING, dir=parent))
    try:
        with _locked(folder):
            yield folder / f"{name}.parquet"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError when another process has the folder; the lock goes with its process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
