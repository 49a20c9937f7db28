"""Shards as training data: the same views as from folders, by phase and by part, each clip read with one request."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatialavatar import files
from spatialavatar.clip import FrameIndex, save_clip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import builtin_head
from spatialavatar.shards import open_shards
from spatialavatar.training.config import DataConfig, ShardData, TrainConfig
from spatialavatar.training.folder_pool import FolderPool
from spatialavatar.training.pool import open_pool
from spatialavatar.training.run import train
from spatialavatar.training.shard_pool import CLIPS_HELD, ShardPool, is_held_out
from spatialavatar.training.stream import batches, worker_batches
from tests.builders.clips import tiny_head
from tests.builders.shards import tiny_shards
from tests.builders.training import equal_batches, tiny_batches, tiny_head_file, tiny_training

URL = "memory://shard-pool/data"


@pytest.fixture(scope="module")
def data() -> str:
    tiny_shards(URL, clips=7, instants=5)
    return URL


def pool_of(url: str, phase: Any = 1, **changes: Any) -> ShardPool:
    return ShardPool(ShardData(url=url, **changes), tiny_head(), 0.0, phase)


def test_views_are_those_of_folders(data: str, tmp_path: Path) -> None:
    shards = open_shards(data)
    for number in range(len(shards)):
        save_clip(shards.clip(number), tmp_path / f"clip{number}")
    folders, pool = FolderPool([f"{tmp_path}/*"], tiny_head(), 0.0), pool_of(data)
    assert len(pool) == len(folders) == 7
    config = tiny_batches("anything", sampler={"draws_per_clip": 2})
    for ours, theirs in zip(batches(pool, config), batches(folders, config), strict=True):
        assert equal_batches(ours.unpacked(), theirs.unpacked())


def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges of shards' bytes that are read from now on."""
    asked: list[tuple[int, int]] = []
    read = files.read_range
    monkeypatch.setattr(
        files, "read_range", lambda where, start, end: asked.append((start, end)) or read(where, start, end)
    )
    return asked


def test_only_what_is_drawn_is_read(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(data)
    asked = recorded_reads(monkeypatch)
    for _ in range(3):
        pool.facts(1)
        pool.view(1, FrameIndex(2, 0), 16)
    entry = pool._shards.entry(1)
    assert asked[0] == (entry.start, entry.pictures)
    assert len(set(asked[1:])) == 1 and entry.pictures < asked[1][0] < asked[1][1] < entry.end


def test_what_was_announced_is_read_once_and_ahead(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(data)
    asked = recorded_reads(monkeypatch)
    frames = [FrameIndex(3, 0), FrameIndex(1, 0), FrameIndex(3, 0)]
    pool.prefetch(4, lambda facts: frames)
    expected = pool_of(data)
    for _ in range(2):
        for frame in frames:
            assert np.array_equal(pool.view(4, frame, 16).pixels.image, expected.view(4, frame, 16).pixels.image)
    entry = pool._shards.entry(4)
    ours = [r for r in set(asked) if entry.start <= r[0] < entry.end]
    assert len(ours) == 3
    pool.view(4, FrameIndex(0, 0), 16)
    assert pool._opened(4).ahead.keys() == set(frames), "what was not announced is read all the same"


def test_few_clips_are_held(data: str) -> None:
    pool = pool_of(data)
    for clip in (0, 1, 0, 2, 3, 4, 5):
        pool.prefetch(clip, lambda facts: [FrameIndex(0, 0)])
        pool.facts(clip)
        assert len(pool._held) <= CLIPS_HELD and clip in pool._held


def test_parts_are_of_people_and_for_ever(tmp_path: Path) -> None:
    tiny_shards(f"{URL}-people", clips=40, people=20, clips_per_shard=20, instants=2)
    parts = {p: pool_of(f"{URL}-people", part=p, held_out_share=0.3) for p in ("all", "train", "held_out")}

    def people(pool: ShardPool) -> set[str]:
        return {pool._shards.entry(clip).identity for clip in pool._clips}

    assert people(parts["train"]) | people(parts["held_out"]) == people(parts["all"])
    assert not people(parts["train"]) & people(parts["held_out"])
    assert len(parts["train"]) + len(parts["held_out"]) == len(parts["all"]) == 40
    names = [f"person {n}" for n in range(4000)]
    assert abs(sum(is_held_out(name, 0.1) for name in names) / 4000 - 0.1) < 0.02
    assert all(is_held_out(name, 0.2) for name in names if is_held_out(name, 0.1)), "a larger share holds the smaller"


def test_clips_that_a_phase_cannot_draw_from_are_left_out() -> None:
    url = f"{URL}-single"
    tiny_shards(url, clips=2, cameras=3, instants=1)
    assert len(pool_of(url, phase=2)) == 2
    with pytest.raises(SpatialAvatarError, match=r"none of its 2 clips can be trained on in phase 1"):
        pool_of(url, phase=1)


def test_another_head_is_refused(data: str) -> None:
    with pytest.raises(SpatialAvatarError, match="tiny"):
        ShardPool(ShardData(url=data), builtin_head(), 0.0, 1)
    with pytest.raises(SpatialAvatarError, match="absent"):
        pool_of("memory://shard-pool/absent")


def test_licences_are_gathered(data: str) -> None:
    assert open_pool(DataConfig(shards=data), tiny_head()).licence == "Apache-2.0"  # type: ignore[arg-type]


def test_a_training_on_shards(tmp_path: Path) -> None:
    """From a folder, with processes, and with held-out people; resumed as it would have gone on."""
    tiny_shards(tmp_path / "data", clips=6, people=6, instants=4)
    head = tiny_head_file(tmp_path)[1]
    share = next(s / 100 for s in range(1, 100) if any(is_held_out(f"tiny{n}", s / 100) for n in range(6)))

    def settings(workers: int, steps: int) -> TrainConfig:
        shards = {"url": str(tmp_path / "data"), "held_out_share": share}
        config = tiny_training("anything", head, steps=steps, sampler={"draws_per_clip": 2})
        data = DataConfig.model_validate({"shards": {**shards, "part": "train"}, "workers": workers})
        held_out = DataConfig.model_validate({"shards": {**shards, "part": "held_out"}})
        return config.model_copy(update={"data": data, "held_out": held_out})

    train(settings(0, 4), tmp_path / "thread")
    train(settings(1, 4), tmp_path / "processes")
    ends = [
        files.read_tensors(tmp_path / run / "checkpoints/step-00000004/generator.safetensors")[0]
        for run in ("thread", "processes")
    ]
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_processes_read_shards(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data", clips=5, instants=4)
    config = tiny_batches("anything", steps=3)
    config = config.model_copy(update={"data": DataConfig(shards=str(tmp_path / "data"), workers=2)})  # type: ignore[arg-type]
    expected = list(batches(pool_of(str(tmp_path / "data")), config))
    found = list(worker_batches(tiny_head(), config))
    assert all(equal_batches(a.unpacked(), b.unpacked()) for a, b in zip(found, expected, strict=True))
    assert torch.equal(found[0].unpacked().numbers, torch.arange(5))
