"""What a data set is said to hold, the faults found in it, and its contact sheet."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from spatialavatar.cli.main import app
from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.pictures import EncodedFrame, decode, encode
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.reference import HeadReference
from spatialavatar.shards import Rejected, open_shards
from spatialavatar.shards.manifest import write_manifest
from spatialavatar.shards.records import write_record
from spatialavatar.shards.report import summary, verify
from spatialavatar.shards.sheet import CELL, sample_sheet
from tests.builders.clips import tiny_head
from tests.builders.shards import tiny_shards, tiny_take, write_shard

FAILED = [
    Rejected("a", "s3://raw/a", "s3://raw/a/images/00012.jpg: the JPEG is truncated", 1),
    Rejected("b", "s3://raw/b", "s3://raw/b/images/00007.jpg: the JPEG is truncated", 3),
    Rejected("c", "s3://raw/c", "expected 5 codes", 1),
]


def mixed(folder: Path) -> None:
    """Two shards: three clips of two people, one of them by three cameras."""
    takes = [
        tiny_take(0, instants=50, matte_kind="none"),
        tiny_take(0, instants=25, cameras=3, test_cameras=[2], test_from=20, fps=50.0),
        tiny_take(1, width=48, has_region=True),
    ]
    records = [
        write_shard(folder, "0", {"x/0": takes[0], "x/1": takes[1]}, FAILED),
        write_shard(folder, "1", {"x/2": takes[2]}),
    ]
    write_manifest(folder, records, {"format": "npz"})


def test_summary(tmp_path: Path) -> None:
    mixed(tmp_path)
    found = summary(open_shards(tmp_path))
    assert found["bytes"] == sum(p.stat().st_size for p in (tmp_path / "shards").glob("*.parquet"))
    assert (found["identities"], found["clips"], found["shards"]) == (2, 3, 2)
    assert found["frames"] == 50 + 75 + 4 and found["train_frames"] == 50 + 20 * 2 + 4
    assert found["hours"] == pytest.approx((2 + 0.5 + 4 / 25) / 3600)
    assert found["camera_hours"] == pytest.approx((2 + 1.5 + 4 / 25) / 3600)
    assert found["resolutions"] == {"32 x 24": 2, "48 x 24": 1}
    assert found["mattes"] == {"none": 1, "alpha": 2} and found["with_region"] == 1
    assert found["cameras"] == {"1": 2, "3": 1} and found["fps"] == {"25": 2, "50": 1}
    assert found["head"] == dataclasses.asdict(HeadReference.of(tiny_head()))
    assert found["tools"] == {"tests": 3} and found["licences"] == {"Apache-2.0": 3}
    assert found["rejected"] == 3 and found["reasons"] == {"the JPEG is truncated": 2, "expected N codes": 1}
    assert found["ingest"] == {"format": "npz"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_summary_of_nothing(tmp_path: Path) -> None:
    write_manifest(tmp_path, [write_shard(tmp_path, "0", {}, FAILED)])
    found = summary(open_shards(tmp_path))
    assert (found["clips"], found["frames"], found["hours"], found["bytes"]) == (0, 0, 0.0, 0)


def test_a_sound_data_set_has_no_faults(tmp_path: Path) -> None:
    mixed(tmp_path)
    shards, steps = open_shards(tmp_path), []
    assert verify(shards, tiny_head(), lambda done, of: steps.append((done, of))) == []
    assert verify(shards) == []
    assert steps == [(1, 3), (2, 3), (3, 3)]


def faulty(take: TrackedClip, instant: int, **changes: Any) -> TrackedClip:
    """The clip with other bytes in one frame."""

    def read(index: FrameIndex) -> EncodedFrame:
        frame = take.read_frame(index)
        return dataclasses.replace(frame, **changes) if index.instant == instant else frame

    return dataclasses.replace(take, read_frame=read)


def data_set(folder: Path, clip: TrackedClip) -> list[str]:
    """The faults of a data set of a sound clip and another."""
    write_manifest(folder, [write_shard(folder, "0", {"sound": tiny_take(0), "other": clip})])
    return [str(fault) for fault in verify(open_shards(folder), tiny_head())]


def test_faults_of_pictures(tmp_path: Path) -> None:
    take = tiny_take(1)
    frame = take.read_frame(FrameIndex(2, 0))
    assert frame.matte is not None
    large = encode(np.zeros((25, 32), np.uint8), "png")
    png = encode(decode(frame.image, 32, 24, color=True), "png")
    for name, changes, said in (
        ("cut", {"image": frame.image[:-2]}, "images/000002.jpg, {}: content: the JPEG is truncated or damaged"),
        ("kind", {"image": png}, "images/000002.jpg, {}: format: is a png picture, expected jpg"),
        ("matte", {"matte": large}, "masks/000002.png, {}: size: is 32 x 25 pixels, clip.json says 32 x 24"),
        ("empty", {"matte": b""}, "masks/000002.png, {}: content: the file is empty"),
    ):
        expected = f"other: {said.format('instant 2 camera 0')}"
        assert data_set(tmp_path / name, faulty(take, 2, **changes)) == [expected]


def test_faults_of_cameras(tmp_path: Path) -> None:
    away = tiny_take(1)
    turned = away.world_to_camera.clone()
    turned[1, 0, 2, 3] *= -1
    (fault,) = data_set(tmp_path, dataclasses.replace(away, world_to_camera=turned))
    assert fault.startswith("other: params.safetensors, instant 1 camera 0: world_to_camera: looks away")


def test_many_faults_of_a_clip_are_counted(tmp_path: Path) -> None:
    broken = dataclasses.replace(tiny_take(1, instants=30), read_frame=lambda index: EncodedFrame(b"x", b"x"))
    faults = data_set(tmp_path, broken)
    assert len(faults) == 21 and faults[-1] == "other: and 40 more faults"


def test_faults_of_files(tmp_path: Path) -> None:
    tiny_shards(tmp_path, clips=4, rejected=FAILED)
    shards = open_shards(tmp_path)
    data = bytearray((tmp_path / "shards/00000.parquet").read_bytes())
    data[shards.entry(1).start + 100] ^= 1  # a row
    data[shards.facts(1).footer_start + 10] ^= 1
    (tmp_path / "shards/00000.parquet").write_bytes(data)
    (tmp_path / "shards/00001.json").unlink()
    with open(tmp_path / "shards/00001.parquet", "ab") as f:
        f.write(b"more")
    write_shard(tmp_path, "later", {"new": tiny_take(9)})
    (tmp_path / "rejected.jsonl").write_text("")
    faults = {fault.where: fault.message for fault in verify(shards)}
    assert faults.keys() == {
        "shards/00000.parquet",
        "shards/00001.parquet",
        "shards/00001.json",
        "shards/later.json",
        "rejected.jsonl",
        "clip1",
    }
    assert faults["shards/00000.parquet"].startswith("the footer is not the one that was written")
    assert faults["clip1"].startswith("shards/00000.parquet#clip1: the clip's bytes are not those")
    assert " bytes, " in faults["shards/00001.parquet"] and faults["shards/00001.json"].startswith("is missing")
    assert faults["shards/later.json"].startswith("holds 1 clips that the manifest does not list")
    assert faults["rejected.jsonl"] == "lists 0 sources, the manifest says 3"


def test_records_against_the_manifest(tmp_path: Path) -> None:
    tiny_shards(tmp_path, clips=2)
    record = write_shard(tmp_path / "other", "00000", {"clip0": tiny_take(0), "clip1": tiny_take(5)})
    write_record(tmp_path, record)
    said = [str(fault) for fault in verify(open_shards(tmp_path))]
    assert "clip1: shards/00000.json says other things of it than the manifest, or nothing" in said
    assert not [line for line in said if line.startswith("clip0")]


def test_sheet(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path, clips=3, cameras=2)
    sheet = sample_sheet(shards)
    width, height = CELL + 4, round(CELL * 24 / 32) + 4
    assert sheet.shape == (3 * (height + 26), 4 * width + 8, 3) and sheet.dtype == np.uint8
    # on grey where the matte is 0: the corner of a cell away from its label
    assert sheet[26 + 2, CELL - 3].tolist() == [128, 128, 128]
    # what lies before it is the frame, at the sheet's size
    frame = shards.clip(1).frame(FrameIndex(2, 1), *shards.clip(1).size_at(CELL))
    composite = frame.image * frame.matte[..., None] + 0.5 * (1 - frame.matte[..., None])
    cell = sheet[height + 26 + 26 :, 2 * width :][: height - 30, : width - 4]
    difference = np.abs(cell / 255 - composite.numpy()[: height - 30])
    assert difference.max() < 0.01
    assert not np.array_equal(sample_sheet(shards, tiny_head()), sheet)


def test_sheet_of_some(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path, clips=6, instants=2)
    assert sample_sheet(shards, count=1).shape[0] < sample_sheet(shards, count=6).shape[0]
    assert np.array_equal(sample_sheet(shards, count=2, seed=4), sample_sheet(shards, count=2, seed=4))
    different = {sample_sheet(shards, count=2, seed=seed).tobytes() for seed in range(6)}
    assert len(different) > 1


def test_sheet_with_another_head(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path, clips=1)
    other = copy.copy(tiny_head())
    other.content_hash = "b" * 64
    with pytest.raises(SpatialAvatarError, match="name that head's file"):
        sample_sheet(shards, other)
    write_manifest(tmp_path / "empty", [write_shard(tmp_path / "empty", "0", {})])
    with pytest.raises(SpatialAvatarError, match="holds no clips"):
        sample_sheet(open_shards(tmp_path / "empty"))


def test_commands(tmp_path: Path) -> None:
    mixed(tmp_path / "set")
    url, run = str(tmp_path / "set"), CliRunner().invoke
    told = run(app, ["shards", "info", url])
    assert told.exit_code == 0, told.output
    for line in (
        "identities  2",
        "clips       3 in 2 shards",
        "rejected    3, listed in rejected.jsonl",
        "48 x 24 (1)",
    ):
        assert line in told.output
    assert "tiny" in told.output and "2 x the JPEG is truncated" in told.output
    assert json.loads(run(app, ["shards", "info", url, "--json"]).stdout) == summary(open_shards(url))
    checked = run(app, ["shards", "verify", url])
    assert checked.exit_code == 0 and "no faults in 3 clips" in checked.output
    assert "not checked: whether the posed head" in checked.output
    sheet = str(tmp_path / "sheet.png")
    drawn = run(app, ["shards", "sample", url, "--out", sheet, "--clips", "2"])
    assert drawn.exit_code == 0 and "2 of 3 clips" in drawn.output
    picture = cv2.imread(sheet)
    assert picture is not None and np.array_equal(picture[..., ::-1], sample_sheet(open_shards(url), count=2))
    again = run(app, ["shards", "sample", url, "--out", sheet])
    assert isinstance(again.exception, SpatialAvatarError) and "--force" in str(again.exception)


def test_verify_command_fails_with_faults(tmp_path: Path) -> None:
    tiny_shards(tmp_path, clips=2)
    data = bytearray((tmp_path / "shards/00000.parquet").read_bytes())
    data[1000] ^= 1
    (tmp_path / "shards/00000.parquet").write_bytes(data)
    told = CliRunner().invoke(app, ["shards", "verify", str(tmp_path)])
    assert told.exit_code == 2
    assert [line for line in told.output.splitlines() if line.startswith("clip0: shards/00000.parquet#clip0: ")]
