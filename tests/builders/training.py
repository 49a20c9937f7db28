"""Tiny training configurations for tests, on tracked clips that the tests write."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from spatialavatar.clip import FrameIndex
from spatialavatar.head import write_head
from spatialavatar.head.model import ARRAYS, HeadModel
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.pool import ClipPool, View
from spatialavatar.training.samplers import ClipFacts
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.generators import tiny_generator_config


def tiny_clips(folder: Path, count: int = 3, cameras: int = 1) -> str:
    """Some clips of different people in a folder; the pattern that finds them."""
    for number in range(count):
        tiny_clip(folder / f"clip{number}", instants=6, cameras=cameras, width=32, height=32, seed=number)
    return f"{folder}/*"


def tiny_head_file(folder: Path) -> tuple[HeadModel, Path]:
    head = tiny_head()
    file = folder / "tiny.head.safetensors"
    write_head(file, head.info, {name: getattr(head, name).numpy() for name in ARRAYS})
    return head, file


def training_folder(folder: Path) -> Path:
    """Monocular clips, takes of four cameras and their head: what ``training_in`` trains on."""
    tiny_clips(folder / "mono")
    tiny_clips(folder / "takes", cameras=4)
    tiny_head_file(folder)
    return folder


def training_in(folder: Path, clips: str = "mono", **changes: Any) -> TrainConfig:
    """``tiny_training`` on one kind of clips of a ``training_folder``."""
    return tiny_training(f"{folder / clips}/*", folder / "tiny.head.safetensors", **changes)


def tiny_training(clips: str, head: Path, **changes: Any) -> TrainConfig:
    """Four quick steps; ``changes`` by field, nested ones as dictionaries that change their part."""
    parts: dict[str, dict[str, Any]] = {
        "data": {"clips": (clips,)},
        "loss": {"lambda_lp": 0.0},
        "optimizer": {"learning_rate": 1e-3},
    }
    for name in parts:
        parts[name] |= changes.pop(name, {})
    encoder = {"frozen": False}
    values: dict[str, Any] = {
        "head": str(head),
        "generator": tiny_generator_config(encoder=encoder).model_dump(),
        "steps": 4,
        "batch_size": 3,
        "resolution": 32,
        "held_out_samples": 2,
        "log_every": 2,
        "sheet_every": 100,
        "checkpoint_every": 2,
        **parts,
    }
    return TrainConfig.model_validate({**values, **changes})


def tiny_batches(clips: str, **changes: Any) -> TrainConfig:
    """A configuration for batches alone, of any pool of the tiny head."""
    values = {
        "data": {"clips": (clips,)},
        "generator": {"encoder": {"image_size": 32}},
        "resolution": 40,
        "batch_size": 5,
        "steps": 8,
        "seed": 11,
    }
    return TrainConfig.model_validate({**values, **changes})


class RecordedPool:
    """A pool that notes which frames it is asked for."""

    def __init__(self, pool: ClipPool) -> None:
        self.pool, self.asked = pool, []  # type: tuple[ClipPool, list[tuple[int, FrameIndex, int]]]

    def __len__(self) -> int:
        return len(self.pool)

    @property
    def licence(self) -> str:
        return self.pool.licence

    def name(self, clip: int) -> str:
        return self.pool.name(clip)

    def facts(self, clip: int) -> ClipFacts:
        return self.pool.facts(clip)

    def view(self, clip: int, frame: FrameIndex, size: int) -> View:
        self.asked.append((clip, frame, size))
        return self.pool.view(clip, frame, size)

    def prefetch(self, clip: int, frames: Callable[[ClipFacts], Sequence[FrameIndex]]) -> None:
        self.pool.prefetch(clip, frames)


def equal_batches(a: Batch, b: Batch) -> bool:
    pairs = list(zip(_tensors(a), _tensors(b), strict=True))
    assert len(pairs) > 20
    return all(x.shape == y.shape and torch.equal(x.nan_to_num(-7), y.nan_to_num(-7)) for x, y in pairs)


def _tensors(batch: Batch) -> list[torch.Tensor]:
    values: list[Any] = [batch]
    out = []
    while values:
        value = values.pop()
        if isinstance(value, torch.Tensor):
            out.append(value)
        elif dataclasses.is_dataclass(value):
            values += [getattr(value, f.name) for f in dataclasses.fields(value)]
    return out
