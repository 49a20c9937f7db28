"""Small data sets of shards for tests: made-up clips of the tiny head, in memory until the shard is written."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialavatar import files
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.header import ClipSource
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.head.reference import HeadReference
from spatialavatar.shards import Rejected, ShardRecord, ShardSet, ShardWriter, open_shards
from spatialavatar.shards.file import shard_file
from spatialavatar.shards.manifest import write_manifest
from spatialavatar.shards.records import write_record
from tests.builders.clips import tiny_head, tiny_parts, tiny_pictures

SETTINGS = "made for tests"


def tiny_take(seed: int = 0, *, has_region: bool = False, **changes: Any) -> TrackedClip:
    """A clip of ``tiny_parts``, not written anywhere. Its pictures differ by seed, instant and camera."""

    def picture(instant: int, camera: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, matte, region = tiny_pictures(instant, camera, width, height)
        image[: height // 4, : width // 4] = (37 * seed + 11 * instant + camera) % 256
        return image, matte, region

    source = ClipSource("tests", "made for tests", "Apache-2.0")
    changes = {"source": source, "picture": picture, **changes}
    return assemble_clip(f"take {seed}", **tiny_parts(seed=seed, has_region=has_region, **changes))


def write_shard(
    folder: files.Location,
    name: str,
    clips: dict[str, TrackedClip],
    rejected: Sequence[Rejected] = (),
) -> ShardRecord:
    """Write a shard of these clips, by key, and its record."""
    with tempfile.TemporaryDirectory() as scratch:
        writer = ShardWriter(Path(scratch, "unfinished"), name)
        for key, clip in clips.items():
            writer.add(key, clip)
        entries, facts = writer.close()
        files.move_into_place(writer.local, shard_file(folder, name))
    head = HeadReference.of(tiny_head())
    record = ShardRecord(name, *facts, head, entries, tuple(rejected), SETTINGS)
    write_record(folder, record)
    return record


def tiny_shards(
    folder: files.Location,
    clips: int = 4,
    cameras: int = 1,
    *,
    clips_per_shard: int = 2,
    people: int | None = None,  # identities that the clips are of, in turn; each its own when not given
    rejected: Sequence[Rejected] = (),
    **changes: Any,  # of tiny_take's arguments
) -> ShardSet:
    """A data set with the keys ``clip0``, ``clip1`` .. of the identities ``tiny0``, ``tiny1`` .."""
    records = []
    for number, first in enumerate(range(0, clips, clips_per_shard)):
        made = {}
        for seed in range(first, min(first + clips_per_shard, clips)):
            clip = tiny_take(seed, cameras=cameras, **changes)
            if people is not None:
                header = dataclasses.replace(clip.header, identity=f"tiny{seed % people}")
                clip = dataclasses.replace(clip, header=header)
            made[f"clip{seed}"] = clip
        records.append(write_shard(folder, f"{number:05d}", made, rejected if number == 0 else ()))
    write_manifest(folder, records, {"made": "for tests"})
    return open_shards(folder)
