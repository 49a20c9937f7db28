"""What a data set of shards holds, and whether it is sound."""

import contextlib
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow.compute as pc

from spatialavatar.clip.header import Fault, FrameIndex
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.clip.validate import check_frame, check_geometry
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.processors import usable_cpus
from spatialavatar.shards.entry import ShardRecord
from spatialavatar.shards.file import check_file, shard_file
from spatialavatar.shards.manifest import REJECTED_FILE, ShardSet, column_values
from spatialavatar.shards.records import read_record, record_file, recorded_shards

FAULTS_LISTED = 20  # of one clip; the others are counted

Progress = Callable[[int, int], None]


class ShardFault(NamedTuple):
    """Something wrong with a data set."""

    where: str  # a clip's key, or a file inside the data set
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def summary(shards: ShardSet) -> dict[str, Any]:
    """What is in a data set, from its manifest alone: values for JSON. Counts by value are of clips."""
    instants, cameras = shards.column("instants"), shards.column("cameras")
    train = shards.column("train_instants") * shards.column("train_cameras")
    files_of = shards.table.select(["shard", "bytes"]).group_by("shard").aggregate([("bytes", "max")])
    sizes = [f"{w} x {h}" for w, h in zip(shards.column("width").tolist(), shards.column("height").tolist())]
    return {
        "location": shards.location,
        "identities": len(column_values(shards.table, "identity")),
        "clips": len(shards),
        "frames": int((instants * cameras).sum()),
        "train_frames": int(train.sum()),
        "bad_frames": int(shards.column("bad_frames").sum()),
        "hours": float((instants / shards.column("fps")).sum() / 3600) if len(shards) else 0.0,
        "camera_hours": float((instants * cameras / shards.column("fps")).sum() / 3600) if len(shards) else 0.0,
        "shards": files_of.num_rows,
        "bytes": int(pc.sum(files_of.column("bytes_max")).as_py() or 0),
        "resolutions": _counted(sizes),
        "cameras": _counted(cameras.tolist()),
        "fps": _counted(f"{fps:g}" for fps in shards.column("fps").tolist()),
        "mattes": _counted(shards.column("matte").tolist()),
        "with_region": int(shards.column("region").sum()),
        "head": {
            "id": shards.head.id,
            "hash": shards.head.hash,
            "licence": shards.head.licence,
            "attribution": shards.head.attribution,
        },
        "tools": _counted(shards.column("tool").tolist()),
        "licences": _counted(shards.column("licence").tolist()),
        "rejected": shards.rejected_count,
        "reasons": _counted(_kind_of(item.reason, item.location) for item in shards.rejected),
        "ingest": dict(shards.ingest),
    }


def verify(shards: ShardSet, head: HeadModel | None = None, progress: Progress | None = None) -> list[ShardFault]:
    """Every fault of a data set: files against records and manifest, then each clip's bytes, header, arrays and
    pictures, and whether its cameras see the head; with ``head``, where the posed head falls. Everything is read.

    Frames whose tracking misses the face are faults where there are more than the ingest has let pass.
    """
    faults = list(_check_files(shards))
    clips = _whole_clips(shards)
    with ThreadPoolExecutor(usable_cpus()) as pool, contextlib.closing(clips):
        for i in range(len(shards)):
            clip = next(clips)
            of_clip = [clip] if isinstance(clip, ShardFault) else list(_check_clip(shards, i, clip, head, pool))
            faults += _limited(of_clip)
            del clip  # two clips may be in memory, not three
            if progress is not None:
                progress(i + 1, len(shards))
    return faults


def _counted(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}


def _kind_of(reason: str, location: str) -> str:
    """What equal failures of different sources have in common: their reason without place and numbers."""
    reason = " ".join(reason.split()).replace(location, "").lstrip("/: ")
    while (at := reason.find(": ")) > 0 and "/" in reason[:at]:
        reason = reason[at + 2 :]
    return re.sub(r"[0-9]+(\.[0-9]+)?", "N", reason)


def _check_files(shards: ShardSet) -> Iterator[ShardFault]:
    clips_of: dict[str, list[int]] = {}
    for i, shard in enumerate(shards.column("shard").tolist()):
        clips_of.setdefault(shard, []).append(i)
    recorded = set(recorded_shards(shards.location))
    for shard, clips in clips_of.items():
        file, record = shard_file(shards.location, shard), record_file(shards.location, shard)
        try:
            check_file(file, shards.facts(clips[0]))
        except SpatialAvatarError as e:
            yield ShardFault(_inside(shards, file), _without_place(e))
        if shard not in recorded:
            yield ShardFault(_inside(shards, record), "is missing; a later ingest would take the shard for unfinished")
            continue
        try:
            yield from _check_record(shards, clips, read_record(shards.location, shard), _inside(shards, record))
        except SpatialAvatarError as e:
            yield ShardFault(_inside(shards, record), _without_place(e))
    keys = set(shards.column("key").tolist())
    for shard in sorted(recorded - set(clips_of)):
        record = _inside(shards, record_file(shards.location, shard))
        try:
            missing = [e.key for e in read_record(shards.location, shard).entries if e.key not in keys]
        except SpatialAvatarError as e:
            yield ShardFault(record, _without_place(e))
            continue
        if missing:
            message = f"holds {len(missing)} clips that the manifest does not list; run the ingest again to finish"
            yield ShardFault(record, message)
    try:
        found = len(shards.rejected)
        if found != shards.rejected_count:
            yield ShardFault(REJECTED_FILE, f"lists {found} sources, the manifest says {shards.rejected_count}")
    except SpatialAvatarError as e:
        yield ShardFault(REJECTED_FILE, _without_place(e))


def _check_record(shards: ShardSet, clips: list[int], record: ShardRecord, name: str) -> Iterator[ShardFault]:
    said = {entry.key: entry for entry in record.entries}
    if record.facts != shards.facts(clips[0]) or record.head != shards.head:
        yield ShardFault(name, "says another file or head than the manifest")
    for i in clips:
        entry = shards.entry(i)
        if said.get(entry.key) != entry:
            yield ShardFault(entry.key, f"{name} says other things of it than the manifest, or nothing")


def _whole_clips(shards: ShardSet) -> Generator[TrackedClip | ShardFault, None, None]:
    """Every clip with its pictures, or why there is none; the next comes while one is looked at."""

    def read(index: int) -> TrackedClip | ShardFault:
        try:
            return shards.clip(index, whole=True)
        except SpatialAvatarError as e:
            return ShardFault(shards.entry(index).key, _inside(shards, str(e)))

    with ThreadPoolExecutor(1) as reader:
        coming: deque[Future[TrackedClip | ShardFault]] = deque()
        for index in range(len(shards)):
            coming.append(reader.submit(read, index))
            if index:
                yield coming.popleft().result()
        if coming:
            yield coming.popleft().result()


def _check_clip(
    shards: ShardSet, index: int, clip: TrackedClip, head: HeadModel | None, pool: Executor
) -> Iterator[ShardFault]:
    entry = shards.entry(index)
    fitting = head
    if head is not None:
        try:
            clip.require_head(head)
        except SpatialAvatarError as e:
            yield ShardFault(entry.key, _without_place(e))
            fitting = None
    of_geometry = check_geometry(clip.header, clip.arrays(), fitting)
    if len({fault.frame for fault in of_geometry}) > entry.bad_frames:
        for fault in of_geometry:
            yield ShardFault(entry.key, str(fault))

    def of_frame(frame: FrameIndex) -> list[Fault]:
        return check_frame(clip.header, frame, clip.encoded(frame))

    for faults in pool.map(of_frame, clip.header.frames()):
        for fault in faults:
            yield ShardFault(entry.key, str(fault))


def _limited(faults: list[ShardFault]) -> list[ShardFault]:
    more = len(faults) - FAULTS_LISTED
    return faults if more <= 0 else [*faults[:FAULTS_LISTED], ShardFault(faults[0].where, f"and {more} more faults")]


def _inside(shards: ShardSet, text: str) -> str:
    """A file's place, or a message that begins with it, as seen from the data set's folder."""
    return text.removeprefix(f"{shards.location}/")


def _without_place(error: SpatialAvatarError) -> str:
    """The message without the file that the fault names anyway."""
    return re.sub(r"^\S*?: ", "", str(error), count=1)
