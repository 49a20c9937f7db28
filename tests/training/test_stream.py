"""The batches of a training are the same whoever prepares them, how far ahead, and from which step on."""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.example import make_example
from spatialavatar.training.folder_pool import FolderPool
from spatialavatar.training.packed_batch import PackedBatch, make_batch
from spatialavatar.training.pool import View
from spatialavatar.training.samplers import clip_of, visit_of
from spatialavatar.training.stream import AHEAD, PART_SAMPLES, Plan, Share, batches, prepare, worker_batches
from tests.builders.clips import tiny_clip, tiny_head, tiny_params
from tests.builders.training import RecordedPool, equal_batches, tiny_batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(5):
        tiny_clip(folder / f"clip{seed}", instants=6, cameras=1 + seed % 3, width=24, height=24, seed=seed)
    return folder


@pytest.fixture()
def pool(folder: Path) -> FolderPool:
    return FolderPool([f"{folder}/*"], tiny_head(), 1.0)


def settings(folder: Path, **changes: Any) -> TrainConfig:
    return tiny_batches(f"{folder}/*", **changes)


def test_draws_of_a_visit_share_a_clip_in_as_many_steps_and_no_batch_holds_two() -> None:
    size, draws, clips = 6, 4, 31
    visits = np.array([[visit_of(step * size + row, size, draws) for row in range(size)] for step in range(20)])
    for window in range(5):
        inside = visits[window * draws : (window + 1) * draws]
        assert (inside == inside[0]).all()
        assert sorted(inside[0]) == list(range(window * size, (window + 1) * size))
    epoch = [clip_of(visit, clips, 3) for visit in range(clips)]
    assert sorted(epoch) == list(range(clips)) and epoch != [clip_of(clips + visit, clips, 3) for visit in range(clips)]
    numbers = range(50)
    assert [visit_of(number, size, 1) for number in numbers] == list(numbers)


@pytest.mark.parametrize("first_step", [0, 1, 5, 9])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("draws", [1, 3])
def test_a_plan_covers_every_row_of_every_step_once(folder: Path, first_step: int, world: int, draws: int) -> None:
    size, steps = 2 * PART_SAMPLES + 6, 10
    config = settings(folder, batch_size=size, steps=steps, sampler={"draws_per_clip": draws})
    covered: Counter[tuple[int, int]] = Counter()
    for rank in range(world):
        for part in Plan(config, first_step, Share(rank, world)):
            assert 1 <= part.rows * part.steps <= PART_SAMPLES
            assert part.first_step // draws == (part.first_step + part.steps - 1) // draws, "two windows in one part"
            covered.update(
                (part.first_step + step, part.first_row + row) for step in range(part.steps) for row in range(part.rows)
            )
    assert covered == Counter((step, row) for step in range(first_step, steps) for row in range(size))
    with pytest.raises(IndexError):
        Plan(config)[len(Plan(config))]
    assert [len(Plan(config, beyond)) for beyond in (steps, steps + 1, steps + draws)] == [0, 0, 0]


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize("draws", [1, 3])
def test_batches_made_ahead_are_the_batches(pool: FolderPool, folder: Path, phase: int, draws: int) -> None:
    config = settings(folder, phase=phase, sampler={"draws_per_clip": draws}, batch_size=PART_SAMPLES + 2)
    direct = [make_batch(pool, step, config) for step in range(config.steps)]
    fresh = FolderPool([f"{folder}/*"], tiny_head(), 0.0)
    ahead = unpacked(batches(fresh, config))
    assert len(ahead) == config.steps
    assert all(equal_batches(a, b) for a, b in zip(direct, ahead, strict=True))
    assert not equal_batches(ahead[0], ahead[1])
    resumed = unpacked(batches(fresh, config, first_step=5))
    assert len(resumed) == 3 and equal_batches(resumed[0], direct[5]) and equal_batches(resumed[2], direct[7])


def test_shares_are_the_rows_of_the_whole(pool: FolderPool, folder: Path) -> None:
    config = settings(folder, batch_size=6, sampler={"draws_per_clip": 2})
    whole = list(batches(pool, config))
    ranks = [list(batches(pool, config, share=Share(rank, 3))) for rank in range(3)]
    for step, batch in enumerate(whole):
        together = PackedBatch.cat([rank[step] for rank in ranks])
        assert together.arrays.keys() == batch.arrays.keys()
        assert all(np.array_equal(together.arrays[n], batch.arrays[n], equal_nan=True) for n in batch.arrays)
    with pytest.raises(SpatialAvatarError, match="batch_size 6 cannot be shared evenly by 4 workers"):
        next(batches(pool, config, share=Share(0, 4)))


def test_a_packed_batch_travels_as_bytes(pool: FolderPool, folder: Path) -> None:
    packed = next(batches(pool, settings(folder)))
    data = packed.to_bytes()
    theirs = safetensors.numpy.load(bytes(data))
    assert theirs.keys() == packed.arrays.keys()
    assert all(np.array_equal(theirs[n], packed.arrays[n], equal_nan=True) for n in theirs), "another reader agrees"
    back = PackedBatch.from_bytes(data)
    assert back.arrays.keys() == packed.arrays.keys() and len(back) == len(packed)
    assert equal_batches(PackedBatch.cat([back]).unpacked(), packed.unpacked())
    assert all(array.dtype == np.uint8 for name, array in back.arrays.items() if name.endswith((".image", ".matte")))


def with_workers(folder: Path, workers: int, **changes: Any) -> TrainConfig:
    return settings(folder, data={"clips": (f"{folder}/*",), "workers": workers}, **changes)


def test_processes_prepare_the_same_batches_in_the_same_order(folder: Path) -> None:
    """Even when Ctrl-C or a batch system's SIGTERM reaches them: this process decides when to stop."""
    config = with_workers(folder, 2, steps=12, sampler={"draws_per_clip": 2})
    expected = unpacked(batches(FolderPool([f"{folder}/*"], tiny_head(), 1.0), config, first_step=1))
    ahead = worker_batches(tiny_head(), config, first_step=1)
    found = unpacked(islice(ahead, 1))
    assert len(_processes()) == 2
    for process, number in product(_processes(), (signal.SIGINT, signal.SIGTERM)):
        os.kill(process, number)
    found += unpacked(ahead)
    assert len(found) == 11 and all(equal_batches(a, b) for a, b in zip(found, expected, strict=True))
    assert _processes() == []


def test_an_error_in_a_process_is_one_line_and_ends_it(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "a", instants=2, width=24, height=24)
    damaged = tmp_path / "a/images/000001.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(SpatialAvatarError, match=r"^\S*images/000001\.jpg: the JPEG is truncated .*") as e:
        list(worker_batches(tiny_head(), with_workers(tmp_path, 1)))
    assert "\n" not in str(e.value)
    assert _processes() == []


@pytest.mark.slow
def test_a_process_that_was_killed_is_said(folder: Path) -> None:
    ahead = worker_batches(tiny_head(), with_workers(folder, 1, steps=1000))
    next(ahead)
    [process] = _processes()
    os.kill(process, signal.SIGKILL)
    with pytest.raises(SpatialAvatarError, match=r"was killed \(data\.workers: 1\), most likely for want of memory"):
        list(ahead)
    assert _processes() == []


@pytest.mark.slow
def test_closing_ends_the_processes(folder: Path) -> None:
    ahead = worker_batches(tiny_head(), with_workers(folder, 1, steps=1000))
    next(ahead)
    assert len(_processes()) == 1
    ahead.close()
    assert _processes() == []


def test_a_clip_is_read_once_for_all_its_draws(pool: FolderPool, folder: Path) -> None:
    config = settings(folder, sampler={"draws_per_clip": 4}, batch_size=3)
    recorded = RecordedPool(pool)
    plan = Plan(config)
    for part in plan[: plan.parts_of_window]:
        prepare(recorded, config, part)
    order = [clip for clip, _, _ in recorded.asked]
    changes = sum(a != b for a, b in pairwise(order))
    assert changes == len(set(order)) - 1 == 2


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "a", width=24, height=24)
    damaged = tmp_path / "a" / "images" / "000001.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    fresh = batches(FolderPool([clip.location], tiny_head(), 1.0), settings(tmp_path))
    with pytest.raises(SpatialAvatarError, match=r"images/000001\.jpg: the JPEG is truncated .*; restore the file"):
        next(fresh)


class Failing(RecordedPool):
    """Cannot read what sample ``fails_at`` and later ones ask for."""

    def __init__(self, pool: FolderPool, config: TrainConfig, fails_at: int) -> None:
        super().__init__(pool)
        counted = RecordedPool(pool)
        for number in range(fails_at):
            make_example(counted, number, config)
        self.left = len(counted.asked)

    def view(self, clip: int, frame: Any, size: int) -> View:
        self.left -= 1
        if self.left < 0:
            raise SpatialAvatarError("unreadable")
        return super().view(clip, frame, size)


def test_an_error_comes_at_its_batch_and_ends_the_thread(pool: FolderPool, folder: Path) -> None:
    config = settings(folder)
    iterator = batches(Failing(pool, config, fails_at=3 * 5 + 2), config)
    good = unpacked(islice(iterator, 3))
    assert all(equal_batches(batch, make_batch(pool, step, config)) for step, batch in enumerate(good))
    with pytest.raises(SpatialAvatarError, match="unreadable"):
        next(iterator)
    assert _threads() == []


def test_closing_ends_the_thread_without_making_the_rest(pool: FolderPool, folder: Path) -> None:
    recorded = RecordedPool(pool)
    iterator = batches(recorded, settings(folder, steps=1000))
    next(iterator)
    assert len(_threads()) == 1
    iterator.close()
    assert _threads() == []
    most_of_a_sample = 5
    assert len(recorded.asked) <= (1 + AHEAD) * 5 * most_of_a_sample


def test_an_iterator_that_nobody_holds_ends_its_thread(pool: FolderPool, folder: Path) -> None:
    iterator = batches(pool, settings(folder, steps=1000))
    next(iterator)
    del iterator
    assert _threads() == []


@pytest.mark.parametrize("draws", [1, 3, 7, 40])  # 7 does not divide the steps, 40 are more
def test_whatever_is_mixed_any_shares_give_the_batches(tmp_path: Path, draws: int) -> None:
    """Clips of every shape and kind of matte, some with offsets, augmented, several cameras, from several steps on."""
    kinds: list[dict[str, Any]] = [
        {"width": 24, "height": 24},
        {"width": 40, "height": 24, "cameras": 4, "has_region": True},
        {"width": 20, "height": 32, "matte_kind": "none", "has_region": False, "face_box": None},
        {"width": 24, "height": 24, "matte_kind": "burnt_black", "cameras": 3},
        {"width": 24, "height": 24, "params": replace(tiny_params(6), static_offset=offsets())},
    ]
    for number, kind in enumerate(kinds):
        tiny_clip(tmp_path / f"clip{number}", instants=6, seed=number, **kind)
    config = settings(
        tmp_path,
        phase=2,
        steps=16,
        batch_size=6,
        sampler={"draws_per_clip": draws},
        augment={"color": 0.2, "framing": 0.1},
    )
    pool = FolderPool([f"{tmp_path}/*"], tiny_head(), 0.0)
    direct = [make_batch(pool, step, config) for step in range(config.steps)]
    assert {int(k) for batch in direct for k in batch.sources.mask.sum(1)} == {1, 2, 3, 4}
    for first, world in ((0, 1), (5, 2), (15, 6), (16, 3)):
        ranks = [batches(pool, config, first, Share(rank, world)) for rank in range(world)]
        found = [PackedBatch.cat(rows).unpacked() for rows in zip(*ranks, strict=True)]
        assert len(found) == config.steps - first
        assert all(equal_batches(a, b) for a, b in zip(found, direct[first:], strict=True))


def offsets() -> torch.Tensor:
    return torch.full((1, tiny_head().vertex_count, 3), 0.01)


def unpacked(packed: Any) -> list[Batch]:
    return [batch.unpacked() for batch in packed]


def _processes() -> list[int]:
    return [p.pid for p in multiprocessing.active_children() if p.pid is not None]


def _threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("batches")]
