"""Tiny training configurations for tests, on tracked clips that the tests write."""

from pathlib import Path
from typing import Any

from spatialavatar.head import write_head
from spatialavatar.head.model import ARRAYS, HeadModel
from spatialavatar.training.config import TrainConfig
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
