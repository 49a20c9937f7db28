"""Samples and batches: functions of (config, pool, step) alone, whatever prepares them and when."""

import dataclasses
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatialavatar.clip import FrameIndex
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.batch import AHEAD, Batch, Example, batches, collate, make_batch, make_example
from spatialavatar.training.config import DataConfig, TrainConfig
from spatialavatar.training.folder_pool import FolderPool
from spatialavatar.training.pool import View
from spatialavatar.training.samplers import ClipFacts, clip_of
from tests.builders.clips import tiny_clip, tiny_head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square clip, a wide one with three cameras, one without mattes and face boxes."""
    folder = tmp_path_factory.mktemp("clips")
    tiny_clip(folder / "a", instants=7, width=24, height=24, seed=1)
    tiny_clip(folder / "b", instants=4, cameras=3, seed=2)
    tiny_clip(folder / "c", instants=5, matte_kind="none", face_box=None, has_region=False, seed=3)
    return folder


@pytest.fixture()
def pool(folder: Path) -> FolderPool:
    return FolderPool([f"{folder}/*"], tiny_head(), 1.0)


def config(**changes: Any) -> TrainConfig:
    values = {
        "data": DataConfig(clips=("anything",)),
        "generator": {"encoder": {"image_size": 32}},
        "resolution": 40,
        "batch_size": 5,
        "steps": 8,
        "seed": 11,
    }
    return TrainConfig.model_validate({**values, **changes})


def tensors(batch: Batch) -> list[torch.Tensor]:
    values: list[Any] = [batch]
    out = []
    while values:
        value = values.pop()
        if isinstance(value, torch.Tensor):
            out.append(value)
        elif dataclasses.is_dataclass(value):
            values += [getattr(value, f.name) for f in dataclasses.fields(value)]
    return out


def equal(a: Batch, b: Batch) -> bool:
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    assert len(pairs) > 20
    return all(x.shape == y.shape and torch.equal(x.nan_to_num(-7), y.nan_to_num(-7)) for x, y in pairs)


class Recorded:
    """A pool that notes which frames it is asked for."""

    def __init__(self, pool: FolderPool) -> None:
        self.pool, self.asked = pool, []  # type: tuple[FolderPool, list[tuple[int, FrameIndex, int]]]

    def __len__(self) -> int:
        return len(self.pool)

    def name(self, clip: int) -> str:
        return self.pool.name(clip)

    def facts(self, clip: int) -> ClipFacts:
        return self.pool.facts(clip)

    def view(self, clip: int, frame: FrameIndex, size: int) -> View:
        self.asked.append((clip, frame, size))
        return self.pool.view(clip, frame, size)


@pytest.mark.parametrize("phase", [1, 2])
def test_batches_made_ahead_are_the_batches(pool: FolderPool, folder: Path, phase: int) -> None:
    settings = config(phase=phase)
    direct = [make_batch(pool, step, settings) for step in range(settings.steps)]
    fresh = FolderPool([f"{folder}/*"], tiny_head(), 0.0)
    ahead = list(batches(fresh, settings))
    assert len(ahead) == settings.steps
    assert all(equal(a, b) for a, b in zip(direct, ahead, strict=True))
    assert not equal(ahead[0], ahead[1])
    resumed = list(batches(fresh, settings, first_step=5))
    assert len(resumed) == 3 and equal(resumed[0], direct[5]) and equal(resumed[2], direct[7])


def test_a_sample_is_the_same_in_every_batch_size(pool: FolderPool) -> None:
    whole = make_batch(pool, 1, config(batch_size=6, steps=8))
    halves = [make_batch(pool, step, config(batch_size=3, steps=16)) for step in (2, 3)]
    assert torch.equal(whole.numbers, torch.arange(6, 12))
    for name in ("numbers", "background"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
    assert torch.equal(whole.target.image, torch.cat([half.target.image for half in halves]))


@pytest.mark.parametrize("phase", [1, 2])
def test_what_a_batch_holds(pool: FolderPool, phase: int) -> None:
    settings = config(phase=phase, batch_size=24)
    batch = make_batch(pool, 0, settings)
    examples = [make_example(pool, number, settings) for number in range(24)]
    counts = batch.sources.mask.sum(1)
    assert counts.tolist() == [len(e.sources) for e in examples] and len(set(counts.tolist())) > 2
    most = int(counts.max())
    assert batch.sources.images.shape == (24, most, 3, 32, 32) and batch.target.image.shape == (24, 40, 40, 3)
    assert batch.sources.params.batch == batch.sources.camera.batch == 24 * most
    assert (batch.sources.camera.width, batch.target.camera.height) == (32, 40)
    for b, example in enumerate(examples):
        for k in range(most):
            row = b * most + k
            source = example.sources[k] if k < counts[b] else example.sources[0]
            assert torch.equal(batch.sources.params.expression[row], source.params.expression[0])
            assert torch.equal(batch.sources.camera.intrinsics[row], source.camera.intrinsics[0])
            pixels = source.pixels
            expected = pixels.image / np.float32(255) * (pixels.matte * pixels.region / np.float32(255))[..., None]
            expected *= float(k < counts[b])
            assert np.allclose(batch.sources.images[b, k].permute(1, 2, 0).numpy(), expected, atol=1e-6)
        assert torch.equal(batch.target.params.jaw[b], example.target.params.jaw[0])
        assert torch.equal(batch.target.camera.world_to_camera[b], example.target.camera.world_to_camera[0])
        clip = clip_of(b, len(pool), settings.seed)
        without_matte = pool.name(clip).endswith("/c")
        assert torch.isnan(batch.target.face_box[b]).all() == without_matte
        assert (not batch.background[b].any()) == without_matte, "without a matte the background is black"
    over = batch.target.over(batch.background)
    outside = (batch.target.matte * batch.target.region) == 0
    assert outside.any() and torch.equal(over[outside], batch.background[:, None, None].expand(over.shape)[outside])
    assert batch.background.std(0).min() > 0.1
    moved = batch.to("meta")
    assert moved.target.image.is_meta and moved.sources.camera.intrinsics.is_meta and not moved.numbers.is_meta


def test_sources_and_target_are_distinct_frames_at_their_sizes(pool: FolderPool) -> None:
    for phase in (1, 2):
        for number in range(30):
            recorded = Recorded(pool)
            make_example(recorded, number, config(phase=phase))
            assert len({clip for clip, _, _ in recorded.asked}) == 1
            assert len({frame for _, frame, _ in recorded.asked}) == len(recorded.asked)
            assert [size for _, _, size in recorded.asked] == [40] + [32] * (len(recorded.asked) - 1)


def test_temperature_falls_with_the_sample_number(pool: FolderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr("spatialavatar.training.batch.temperature_at", lambda progress, _: seen.append(progress) or 1.0)
    for number in (0, 10, 39):
        make_example(pool, number, config())
    assert seen == [0.0, 10 / 40, 39 / 40]


def test_offsets_of_some_clips_are_zeros_in_others(pool: FolderPool) -> None:
    example = make_example(pool, 0, config())
    offset = torch.full((1, tiny_head().vertex_count, 3), 0.01)
    target = dataclasses.replace(
        example.target, params=dataclasses.replace(example.target.params, static_offset=offset)
    )
    batch = collate([dataclasses.replace(example, target=target), example])
    assert batch.target.params.static_offset is not None
    assert (batch.target.params.static_offset[0] == 0.01).all() and not batch.target.params.static_offset[1].any()
    assert batch.sources.params.static_offset is None


def test_a_damaged_frame_is_named_through_the_thread(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "a", instants=2)
    pool = FolderPool([clip.location], tiny_head(), 1.0)
    settings = config(steps=4)
    iterator = batches(pool, settings)
    next(iterator)
    iterator.close()
    damaged = tmp_path / "a" / "images" / "000001.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    fresh = batches(FolderPool([clip.location], tiny_head(), 1.0), settings)
    with pytest.raises(SpatialAvatarError, match=r"images/000001\.jpg: the JPEG is truncated .*; restore the file"):
        next(fresh)


class Failing(Recorded):
    """Cannot read what sample ``fails_at`` and later ones ask for."""

    def __init__(self, pool: FolderPool, settings: TrainConfig, fails_at: int) -> None:
        super().__init__(pool)
        counted = Recorded(pool)
        for number in range(fails_at):
            make_example(counted, number, settings)
        self.left = len(counted.asked)

    def view(self, clip: int, frame: FrameIndex, size: int) -> View:
        self.left -= 1
        if self.left < 0:
            raise SpatialAvatarError("unreadable")
        return super().view(clip, frame, size)


def test_an_error_comes_at_its_batch_and_ends_the_thread(pool: FolderPool) -> None:
    settings = config()
    iterator = batches(Failing(pool, settings, fails_at=3 * 5 + 2), settings)
    good = list(islice(iterator, 3))
    assert all(equal(batch, make_batch(pool, step, settings)) for step, batch in enumerate(good))
    with pytest.raises(SpatialAvatarError, match="unreadable"):
        next(iterator)
    assert _threads() == []


def test_closing_ends_the_thread_without_making_the_rest(pool: FolderPool) -> None:
    recorded = Recorded(pool)
    iterator = batches(recorded, config(steps=1000))
    next(iterator)
    assert len(_threads()) == 1
    iterator.close()  # type: ignore[attr-defined]
    assert _threads() == []
    most_of_a_sample = 5
    assert len(recorded.asked) <= (1 + AHEAD) * 5 * most_of_a_sample


def test_examples_of_one_source_need_no_padding(pool: FolderPool) -> None:
    examples: Sequence[Example] = [
        e for e in (make_example(pool, number, config()) for number in range(20)) if len(e.sources) == 1
    ]
    batch = collate(examples)
    assert batch.sources.mask.shape == (len(examples), 1) and batch.sources.mask.all() and len(batch) == len(examples)


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]
