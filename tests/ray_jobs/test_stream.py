"""The stream on Ray gives the batches of one process: same values, same order, from any step, in any shares."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.folder_pool import FolderPool
from spatialavatar.training.packed_batch import PackedBatch
from spatialavatar.training.pool import open_pool
from spatialavatar.training.stream import PART_SAMPLES, Share, batches
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.shards import tiny_shards
from tests.builders.training import tiny_batches

STEPS = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(5):
        tiny_clip(folder / f"clip{seed}", instants=6, width=24, height=24, seed=seed)
    return folder


def settings(folder: Path, **changes: Any) -> TrainConfig:
    changes = {"steps": STEPS, "batch_size": PART_SAMPLES + 4, "sampler": {"draws_per_clip": 3}, **changes}
    return tiny_batches(f"{folder}/*", **changes)


def equal(a: PackedBatch, b: PackedBatch) -> bool:
    assert a.arrays.keys() == b.arrays.keys()
    return all(np.array_equal(a.arrays[name], b.arrays[name], equal_nan=True) for name in a.arrays)


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_batches_of_one_process(ray_cluster: str, folder: Path, workers: int) -> None:
    from ray_jobs.stream import ray_batches

    config = settings(folder)
    expected = list(batches(FolderPool([f"{folder}/*"], tiny_head(), 1.0), config))
    found = list(ray_batches(tiny_head(), config, workers=workers))
    assert len(found) == STEPS and all(equal(a, b) for a, b in zip(found, expected, strict=True))


def test_takes_in_shards_give_the_batches_of_one_process(ray_cluster: str, tmp_path: Path) -> None:
    """Phase 2, across cameras and across time, mixed K."""
    from ray_jobs.stream import ray_batches

    tiny_shards(tmp_path, clips=5, cameras=4, instants=5)
    config = tiny_batches("", phase=2, steps=STEPS, sampler={"draws_per_clip": 3}, data={"shards": str(tmp_path)})
    pool = open_pool(config.data, tiny_head(), config.phase)
    expected = list(batches(pool, config))
    found = list(ray_batches(tiny_head(), config, workers=2))
    assert len(found) == STEPS and all(equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len({int(count) for batch in found for count in batch.arrays["sources.count"]}) > 2


def test_it_goes_on_at_a_step_with_another_number_of_ranks(ray_cluster: str, folder: Path) -> None:
    """Two steps of one rank, then four ranks from the third step on, in the middle of a window."""
    from ray_jobs.stream import ray_batches

    config = settings(folder)
    expected = list(batches(FolderPool([f"{folder}/*"], tiny_head(), 1.0), config))
    first = ray_batches(tiny_head(), config, workers=2)
    assert all(equal(next(first), batch) for batch in expected[:2])
    first.close()
    ranks = [list(ray_batches(tiny_head(), config, 2, Share(rank, 4), workers=1)) for rank in range(4)]
    rest = [PackedBatch.cat(rows) for rows in zip(*ranks, strict=True)]
    assert len(rest) == STEPS - 2 and all(equal(a, b) for a, b in zip(rest, expected[2:], strict=True))


def test_several_data_sets_in_a_row(ray_cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_jobs import stream

    config = settings(folder)
    expected = list(batches(FolderPool([f"{folder}/*"], tiny_head(), 1.0), config))
    monkeypatch.setattr(stream, "PARTS_AT_ONCE", 5)  # of eighteen
    found = list(stream.ray_batches(tiny_head(), config, workers=2))
    assert len(found) == STEPS and all(equal(a, b) for a, b in zip(found, expected, strict=True))


def test_closing_ends_the_work(ray_cluster: str, folder: Path) -> None:
    from ray_jobs.stream import ray_batches

    before = set(threading.enumerate())
    iterator = ray_batches(tiny_head(), settings(folder, steps=100_000), workers=2)
    next(iterator)
    ours = set(threading.enumerate()) - before
    iterator.close()
    for thread in ours:
        if thread.name != "Prefetcher":  # Ray parks one for ever
            thread.join(30)
            assert not thread.is_alive(), thread.name
    assert len(ours) > 1


def test_the_first_batch_does_not_wait_for_the_last(ray_cluster: str, tmp_path: Path) -> None:
    """A file that goes away while later parts are on their way: what came before is there."""
    from ray_jobs.stream import ray_batches

    clip = tiny_clip(tmp_path / "a", instants=2, width=24, height=24)
    config = settings(tmp_path, batch_size=1, steps=400, sampler={"draws_per_clip": 1})
    ahead = ray_batches(tiny_head(), config, workers=1)
    next(ahead)
    for file in Path(clip.location, "images").iterdir():
        file.unlink()
    with pytest.raises(SpatialAvatarError, match="images/"):
        list(ahead)


def test_processes_open_the_data_once_for_all_ranks(ray_cluster: str, folder: Path) -> None:
    import ray

    from ray_jobs.stream import _Opened, _pool

    asked = settings(folder).model_dump_json(), tiny_head().content_hash
    one, other = (_pool(_Opened(*asked, ray.put(tiny_head()))) for _ in range(2))
    assert one is other


def test_the_librarys_errors_come_through(ray_cluster: str, tmp_path: Path) -> None:
    from ray_jobs.stream import ray_batches

    tiny_clip(tmp_path / "a", instants=2, width=24, height=24)
    damaged = tmp_path / "a/images/000001.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(
        SpatialAvatarError, match=r"images/000001\.jpg: the JPEG is truncated .*; restore the file"
    ) as e:
        list(ray_batches(tiny_head(), settings(tmp_path), workers=1))
    assert "\n" not in str(e.value)


def test_no_cpu_left_is_said(ray_cluster: str, folder: Path) -> None:
    from ray_jobs.stream import ray_batches

    with pytest.raises(SpatialAvatarError, match=r"leave \d CPU\(s\) to prepare batches"):
        next(ray_batches(tiny_head(), settings(folder, batch_size=20), share=Share(0, 20)))
