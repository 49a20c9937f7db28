"""Small data sets of shards for tests: made-up clips of the tiny head, in memory until the shard is written."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spatialavatar import files
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.header import ClipSource
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.head.reference import HeadReference
from spatialavatar.shards import Rejected, ShardRecord, ShardSet, ShardWriter, open_shards
from spatialavatar.shards.file import shard_file
from spatialavatar.shards.manifest import write_manifest, write_record
from tests.builders.clips import tiny_cameras, tiny_head, tiny_params, tiny_pictures

SETTINGS = "made for tests"


def tiny_take(
    seed: int = 0,
    *,
    instants: int = 4,
    cameras: int = 1,
    width: int = 32,
    height: int = 24,
    matte_kind: Any = "alpha",
    has_region: bool = False,
    **changes: Any,  # of assemble_clip's arguments
) -> TrackedClip:
    """A sound clip of the tiny head, not written anywhere. Its pictures differ by seed, instant and camera."""
    world_to_camera, intrinsics = tiny_cameras(instants, cameras, width, height)

    def frames(instant: int, camera: int) -> tuple[Any, ...]:
        image, matte, region = tiny_pictures(instant, camera, width, height)
        image[: height // 4, : width // 4] = (37 * seed + 11 * instant + camera) % 256
        return image, matte if matte_kind == "alpha" else None, region if has_region else None

    box = torch.tensor([0.3 * width, 0.3 * height, 0.7 * width, 0.7 * height])
    arguments: dict[str, Any] = {
        "identity": f"tiny{seed}",
        "head": tiny_head(),
        "params": tiny_params(instants, seed),
        "world_to_camera": world_to_camera,
        "intrinsics": intrinsics,
        "width": width,
        "height": height,
        "fps": 25.0,
        "frames": frames,
        "matte_kind": matte_kind,
        "has_region": has_region,
        "face_box": box.expand(instants, cameras, 4),
        "source": ClipSource("tests", "made for tests", "Apache-2.0"),
    }
    return assemble_clip(f"take {seed}", **{**arguments, **changes})


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
