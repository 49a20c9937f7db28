"""What a data set of shards holds, whether it is sound, and what it looks like."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow.compute as pc
import torch
from jaxtyping import UInt8

from spatialavatar import files
from spatialavatar.clip.header import FrameIndex, Picture
from spatialavatar.clip.inspect import tracking_over
from spatialavatar.clip.pictures import decode, encoded_size
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.clip.validate import check_geometry
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.contact_sheet import stacked, titled, to_bytes
from spatialavatar.head.model import HeadModel
from spatialavatar.shards.entry import ShardRecord
from spatialavatar.shards.file import FOLDER, check_file, shard_file
from spatialavatar.shards.manifest import RECORD_SUFFIX, ShardSet, column_values, read_record

FAULTS_LISTED = 20  # of one clip; the others are counted
CELL = 224  # pixels of the longer side of a frame in a sheet
FRAMES = 4  # of a clip in a sheet
GREY = 0.5  # behind mattes

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
    pictures, and whether its cameras see the head; with ``head``, where the posed head falls. Everything is read."""
    faults = list(_check_files(shards))
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        for i in range(len(shards)):
            faults += _limited(list(_check_clip(shards, i, head, pool)))
            if progress is not None:
                progress(i + 1, len(shards))
    return faults


def sample_sheet(
    shards: ShardSet, head: HeadModel | None = None, count: int = 12, seed: int = 0
) -> UInt8[np.ndarray, "H W 3"]:
    """Some clips, drawn by ``seed``: a few frames of each side by side, on grey where there is a matte.

    With ``head``, the posed mesh and landmarks lie over every frame. Raises SpatialAvatarError: no clips, damaged ones,
    another head.
    """
    if not len(shards):
        raise SpatialAvatarError(f"{shards.location}: holds no clips, so there is nothing to show")
    chosen = np.random.default_rng(seed).permutation(len(shards))[:count]
    blocks = [_block(shards, int(i), head) for i in sorted(chosen)]
    across = 1 if len(blocks) < 4 else 2
    rows = []
    for first in range(0, len(blocks), across):
        row = blocks[first : first + across]
        height = max(block.shape[0] for block in row)
        padded = [np.pad(b, ((0, height - b.shape[0]), (0, 8), (0, 0)), constant_values=255) for b in row]
        rows.append(np.concatenate(padded, 1))
    return stacked(rows)


def _counted(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}


def _kind_of(reason: str, location: str) -> str:
    """What equal failures of different sources have in common: their reason without place and numbers."""
    reason = " ".join(reason.split()).replace(location, "").lstrip("/: ")
    while (at := reason.find(": ")) > 0 and "/" in reason[:at]:
        reason = reason[at + 2 :]
    return re.sub(r"[0-9]+(\.[0-9]+)?", "N", reason)


def _check_files(shards: ShardSet) -> Iterator[ShardFault]:
    names = set(files.list_folder(files.join(shards.location, FOLDER)))
    listed = dict(zip(shards.column("shard").tolist(), range(len(shards))))  # any clip of each
    by_shard: dict[str, list[int]] = {}
    for i, shard in enumerate(shards.column("shard").tolist()):
        by_shard.setdefault(shard, []).append(i)
    for shard in listed:
        file, record = f"{FOLDER}/{shard}.parquet", f"{FOLDER}/{shard}{RECORD_SUFFIX}"
        try:
            check_file(shard_file(shards.location, shard), shards.facts(listed[shard]))
        except SpatialAvatarError as e:
            yield ShardFault(file, _without_place(e))
        if f"{shard}{RECORD_SUFFIX}" not in names:
            yield ShardFault(record, "is missing; a later ingest would take the shard for unfinished")
            continue
        try:
            yield from _check_record(shards, by_shard[shard], read_record(shards.location, shard), record)
        except SpatialAvatarError as e:
            yield ShardFault(record, _without_place(e))
    keys = set(shards.column("key").tolist())
    unlisted = sorted(name for name in names if name.endswith(RECORD_SUFFIX) and not name.startswith("."))
    for name in unlisted:
        if name.removesuffix(RECORD_SUFFIX) not in listed:
            try:
                entries = read_record(shards.location, name.removesuffix(RECORD_SUFFIX)).entries
            except SpatialAvatarError as e:
                yield ShardFault(f"{FOLDER}/{name}", _without_place(e))
                continue
            missing = [entry.key for entry in entries if entry.key not in keys]
            if missing:
                message = f"holds {len(missing)} clips that the manifest does not list; run the ingest again to finish"
                yield ShardFault(f"{FOLDER}/{name}", message)
    try:
        found = len(shards.rejected)
        if found != shards.rejected_count:
            yield ShardFault("rejected.jsonl", f"lists {found} sources, the manifest says {shards.rejected_count}")
    except SpatialAvatarError as e:
        yield ShardFault("rejected.jsonl", _without_place(e))


def _check_record(shards: ShardSet, clips: list[int], record: ShardRecord, name: str) -> Iterator[ShardFault]:
    said = {entry.key: entry for entry in record.entries}
    if record.facts != shards.facts(clips[0]) or record.head != shards.head:
        yield ShardFault(name, "says another file or head than the manifest")
    for i in clips:
        entry = shards.entry(i)
        if said.get(entry.key) != entry:
            yield ShardFault(entry.key, f"{name} says other things of it than the manifest, or nothing")


def _check_clip(shards: ShardSet, index: int, head: HeadModel | None, pool: Executor) -> Iterator[ShardFault]:
    key = shards.entry(index).key
    try:
        clip = shards.clip(index, whole=True)
    except SpatialAvatarError as e:
        yield ShardFault(key, str(e).removeprefix(f"{shards.location}/"))
        return
    fitting = head
    if head is not None:
        try:
            clip.require_head(head)
        except SpatialAvatarError as e:
            yield ShardFault(key, _without_place(e))
            fitting = None
    for fault in check_geometry(clip.header, clip.arrays(), fitting):
        yield ShardFault(key, str(fault))
    for problems in pool.map(lambda frame: _picture_problems(clip, frame), clip.header.frames()):
        for problem in problems:
            yield ShardFault(key, problem)


def _picture_problems(clip: TrackedClip, index: FrameIndex) -> list[str]:
    encoded = clip.encoded(index)
    pieces: dict[Picture, bytes | None] = {"images": encoded.image, "masks": encoded.matte, "roi": encoded.region}
    problems = []
    for picture, data in pieces.items():
        if data is None:
            continue
        wanted = clip.header.image_format if picture == "images" else "png"
        try:
            size = encoded_size(data)
            if size.kind != wanted:
                raise ValueError(f"is a {size.kind} picture, expected {wanted}")
            decode(data, clip.width, clip.height, color=picture == "images")
        except ValueError as e:
            problems.append(f"{clip.header.frame_file(picture, index)}: {e}")
    return problems


def _limited(faults: list[ShardFault]) -> list[ShardFault]:
    more = len(faults) - FAULTS_LISTED
    return faults if more <= 0 else [*faults[:FAULTS_LISTED], ShardFault(faults[0].where, f"and {more} more faults")]


def _without_place(error: SpatialAvatarError) -> str:
    """The message without the file that the fault names anyway."""
    return re.sub(r"^\S*?: ", "", str(error), count=1)


def _block(shards: ShardSet, index: int, head: HeadModel | None) -> UInt8[np.ndarray, "H W 3"]:
    """Frames of a clip side by side under its name, each from the next camera."""
    clip = shards.clip(index)
    if head is not None:
        clip.require_head(head)
    width, height = clip.size_at(CELL)
    instants = sorted({round(i) for i in np.linspace(0, clip.instants - 1, FRAMES)})
    cells = []
    for number, instant in enumerate(instants):
        frame = FrameIndex(instant, number * clip.cameras // len(instants))
        picture = _cell(clip, frame, head, width, height)
        label = f"{instant}" + (f" camera {frame.camera}" if clip.cameras > 1 else "")
        cv2.putText(picture, label, (5, height - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(picture, label, (5, height - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        cells.append(np.pad(picture, ((0, 4), (0, 4), (0, 0)), constant_values=255))
    blank = np.full_like(cells[0], 255)
    row = np.concatenate(cells + [blank] * (FRAMES - len(cells)), 1)
    name = shards.entry(index).key
    about = f"{clip.identity}   {name if len(name) <= 50 else '...' + name[-47:]}   {clip.instants}"
    about += f" x {clip.cameras} cameras" if clip.cameras > 1 else " frames"
    return titled(row, f"{about}, {clip.width} x {clip.height}")


def _cell(
    clip: TrackedClip, index: FrameIndex, head: HeadModel | None, width: int, height: int
) -> UInt8[np.ndarray, "H W 3"]:
    if head is not None:
        return tracking_over(clip, head, index, width, height)
    frame = clip.frame(index, width, height)
    if clip.matte_kind != "alpha":
        return to_bytes(frame.image)
    matte = frame.matte[..., None]
    return to_bytes(torch.lerp(torch.full_like(frame.image, GREY), frame.image, matte))
