"""Samples and batches: functions of (config, pool, step) alone, whatever prepares them and when."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from spatialavatar.training.example import Example, make_example
from spatialavatar.training.folder_pool import FolderPool
from spatialavatar.training.packed_batch import collate, make_batch
from spatialavatar.training.samplers import clip_of
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.training import RecordedPool, tiny_batches


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


def test_a_sample_is_the_same_in_every_batch_size(pool: FolderPool) -> None:
    whole = make_batch(pool, 1, tiny_batches("anything", batch_size=6, steps=8))
    halves = [make_batch(pool, step, tiny_batches("anything", batch_size=3, steps=16)) for step in (2, 3)]
    assert torch.equal(whole.numbers, torch.arange(6, 12))
    for name in ("numbers", "background"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
    assert torch.equal(whole.target.image, torch.cat([half.target.image for half in halves]))


@pytest.mark.parametrize("phase", [1, 2])
def test_what_a_batch_holds(pool: FolderPool, phase: int) -> None:
    settings = tiny_batches("anything", phase=phase, batch_size=24)
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
            recorded = RecordedPool(pool)
            make_example(recorded, number, tiny_batches("anything", phase=phase))
            assert len({clip for clip, _, _ in recorded.asked}) == 1
            assert len({frame for _, frame, _ in recorded.asked}) == len(recorded.asked)
            assert [size for _, _, size in recorded.asked] == [32] * (len(recorded.asked) - 1) + [40]


def test_temperature_falls_with_the_sample_number(pool: FolderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(
        "spatialavatar.training.example.temperature_at", lambda progress, _: seen.append(progress) or 1.0
    )
    for number in (0, 10, 39):
        make_example(pool, number, tiny_batches("anything"))
    assert seen == [0.0, 10 / 40, 39 / 40]


def test_offsets_of_some_clips_are_zeros_in_others(pool: FolderPool) -> None:
    example = make_example(pool, 0, tiny_batches("anything"))
    offset = torch.full((1, tiny_head().vertex_count, 3), 0.01)
    target = dataclasses.replace(
        example.target, params=dataclasses.replace(example.target.params, static_offset=offset)
    )
    batch = collate([dataclasses.replace(example, target=target), example])
    assert batch.target.params.static_offset is not None
    assert (batch.target.params.static_offset[0] == 0.01).all() and not batch.target.params.static_offset[1].any()
    assert batch.sources.params.static_offset is None


def test_examples_of_one_source_need_no_padding(pool: FolderPool) -> None:
    examples: Sequence[Example] = [
        e for e in (make_example(pool, number, tiny_batches("anything")) for number in range(20)) if len(e.sources) == 1
    ]
    batch = collate(examples)
    assert batch.sources.mask.shape == (len(examples), 1) and batch.sources.mask.all() and len(batch) == len(examples)
