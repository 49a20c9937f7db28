"""Which clips an evaluation finds: in one data set, in several side by side, in folders."""

import dataclasses
from pathlib import Path

import pytest
import torch

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.footage import find_footage
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.shards import tiny_shards


def test_several_data_sets(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "mono", clips=3)
    tiny_shards(tmp_path / "multi", clips=2, cameras=2)
    (tmp_path / "notes").mkdir()
    footage = find_footage(tmp_path)
    assert [clip.key for clip in footage.clips] == [
        "mono/clip0", "mono/clip1", "mono/clip2", "multi/clip0", "multi/clip1",
    ]  # fmt: skip
    opened = {clip.key: footage.open(clip) for clip in footage.clips}
    assert opened["mono/clip1"].cameras == 1 and opened["multi/clip1"].cameras == 2
    assert footage.place(footage.clips[-1]) == f"{tmp_path}/multi#clip1"
    footage.require(tiny_head())
    reference = footage.clips[0].head
    broken = dataclasses.replace(footage.sets[f"{tmp_path}/multi"], head=dataclasses.replace(reference, hash="0" * 64))
    with pytest.raises(SpatialAvatarError, match="multi: made with head tiny"):
        dataclasses.replace(footage, sets={f"{tmp_path}/multi": broken}).require(tiny_head())


def test_one_data_set_keeps_its_keys(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "mono", clips=2)
    footage = find_footage(tmp_path / "mono")
    assert [clip.key for clip in footage.clips] == ["clip0", "clip1"]
    assert torch.equal(footage.open(footage.clips[1]).intrinsics, tiny_shards(tmp_path / "again", 2).clip(1).intrinsics)


def test_folders(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "a/b", identity="ann")
    footage = find_footage(tmp_path)
    assert [(clip.key, footage.place(clip)) for clip in footage.clips] == [("a/b", f"{tmp_path}/a/b")]
    assert not footage.sets


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match="no such folder; name the folder of a data set of shards, one above"):
        find_footage(tmp_path / "none")


def test_an_ingest_that_is_not_finished_is_told_of(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "mono", clips=2)
    tiny_shards(tmp_path / "multi", clips=2)
    (tmp_path / "multi" / "manifest.json").unlink()
    with pytest.raises(SpatialAvatarError, match="multi: its ingest is not finished"):
        find_footage(tmp_path)


def test_clips_come_before_data_sets_and_whatever_else_is_there(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "clips/a")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "manifest.json").write_text("{}")
    assert [clip.key for clip in find_footage(tmp_path).clips] == ["clips/a"]
