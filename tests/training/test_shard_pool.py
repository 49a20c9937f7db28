"""Shards as training data: the same views as from folders, by phase and by part, each clip read with one request."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatialavatar import files, tensor_files
from spatialavatar.clip import FrameIndex, save_clip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.shards import open_shards
from spatialavatar.training.config import DataConfig, ShardData, TrainConfig
from spatialavatar.training.folder_pool import FolderPool
from spatialavatar.training.pool import open_pool
from spatialavatar.training.progress import Progress
from spatialavatar.training.run import train
from spatialavatar.training.shard_pool import CLIPS_HELD, ShardPool, is_held_out
from spatialavatar.training.stream import batches
from tests.builders.clips import tiny_head
from tests.builders.shards import tiny_shards
from tests.builders.trackers.head import flame_head
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
    pool, alone = pool_of(data), pool_of(data)
    frames = [FrameIndex(3, 0), FrameIndex(1, 0), FrameIndex(3, 0)]
    expected = [alone.view(4, frame, 16).pixels.image for frame in frames]
    asked = recorded_reads(monkeypatch)
    pool.prefetch(4, lambda facts: frames)
    for _ in range(2):
        for frame, picture in zip(frames, expected, strict=True):
            assert np.array_equal(pool.view(4, frame, 16).pixels.image, picture)
    assert len(asked) == len(set(asked)) == 3, "the clip and two frames"
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
        ShardPool(ShardData(url=data), flame_head(), 0.0, 1)
    with pytest.raises(SpatialAvatarError, match="absent"):
        pool_of("memory://shard-pool/absent")


def test_licences_are_gathered(data: str) -> None:
    assert open_pool(DataConfig(shards=data), tiny_head()).licence == "Apache-2.0"  # type: ignore[arg-type]


def config_of(data: Any, held_out: Any) -> TrainConfig:
    return TrainConfig.model_validate({"data": {"shards": data}, "held_out": {"shards": held_out}})


def test_held_out_people_are_of_the_same_shards_unless_said() -> None:
    held_out = config_of({"url": "a", "part": "train", "held_out_share": 0.1}, {"part": "held_out"}).held_out
    assert held_out is not None
    assert held_out.shards == ShardData(url="a", part="held_out", held_out_share=0.1)
    other = config_of("a", "b")
    assert other.held_out is not None and other.held_out.shards == ShardData(url="b")


@pytest.mark.parametrize(
    ("data", "held_out"),
    [
        ("a", {"part": "held_out"}),
        ({"url": "s3://lab/a", "part": "train"}, {"url": "s3://lab/a/"}),
        ({"url": "a", "part": "train"}, {"part": "train"}),
        ({"url": "a", "part": "train"}, {"part": "held_out", "held_out_share": 0.1}),
    ],
)
def test_held_out_people_are_never_trained_on(data: Any, held_out: Any) -> None:
    with pytest.raises(ValueError, match="held_out must be of other people"):
        config_of(data, held_out)


def test_a_training_on_shards(tmp_path: Path) -> None:
    """From a folder, with held-out people; begun with a process and resumed with a thread, it ends the same."""
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

    def killed(progress: Progress) -> None:
        if progress.step == 3:  # in the middle of a window, and a step after a checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(1, 4), tmp_path / "resumed", observe=killed)
    train(settings(0, 4), tmp_path / "resumed", resume=True)
    ends = [
        tensor_files.read_tensors(tmp_path / run / "checkpoints/step-00000004/generator.safetensors")[0]
        for run in ("thread", "resumed")
    ]
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_threads_go_with_the_pool(data: str) -> None:
    before = set(threading.enumerate())
    pool = pool_of(data)
    list(islice(batches(pool, tiny_batches("anything")), 2))
    ours = [thread for thread in threading.enumerate() if thread not in before]
    assert {thread.name.rsplit("_", 1)[0] for thread in ours} >= {"shards-clips", "shards-frames"}
    del pool
    for thread in ours:
        thread.join(30)
    assert not any(thread.is_alive() for thread in ours)


def test_several_threads_may_ask(data: str) -> None:
    """As a training does: it draws held-out samples while its batches are prepared."""
    pool, alone = pool_of(data), pool_of(data)
    frames = [(clip, FrameIndex(instant, 0)) for clip in range(7) for instant in range(5)]
    expected = {frame: alone.view(*frame, 16).pixels.image for frame in frames}

    def look(seed: int) -> bool:
        order = [frames[n] for n in np.random.default_rng(seed).permutation(len(frames))]
        return all(np.array_equal(pool.view(*frame, 16).pixels.image, expected[frame]) for frame in order)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(look, range(12)))
