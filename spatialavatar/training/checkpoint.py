"""Checkpoints of a training run, from which a killed run goes on exactly.

``RUN/checkpoints/step-00001000/`` holds the generator as anyone can use it (``generator.safetensors``), the optimizer's
moments (``optimizer.safetensors``) and, written last, ``checkpoint.json``: a folder without it is no checkpoint.
Everything else that a run needs is a function of its configuration and of the step: samples, temperature, rates.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatialavatar import files, tensor_files
from spatialavatar.errors import SpatialAvatarError, StoreError, in_short
from spatialavatar.generator import checkpoint as generators
from spatialavatar.generator.generator import Generator
from spatialavatar.head import HeadModel
from spatialavatar.training.config import TrainConfig

OPTIMIZER = "optimizer.safetensors"
ANCHOR = "anchor.safetensors"  # of a run: the weights that L2-SP holds on to
FORMAT = "spatialavatar-training-checkpoint"
VERSION = 1
HARMLESS = {  # how a training runs, and what it tells: they never change what is computed
    "data.memory_gb",
    "data.workers",
    "gradient_checkpointing",
    "compile",
    "log_every",
    "sheet_every",
    "checkpoint_every",
    "keep_checkpoints",
    "distributed",
}
# may differ between a run and its resumption: they do not change what is computed from there on (the file of encoder
# weights is known by its checksum, the Phase-1 run is needed at the start alone) ...
_FREE = HARMLESS | {
    "phase1_checkpoint",
    "generator.encoder.weights",
    "head",
    "held_out",
    "held_out_samples",
    # ... or lead a training on that has run away; every checkpoint records its own
    "optimizer.learning_rate",
    "optimizer.clip_norm",
}

logger = logging.getLogger(__name__)


class AnotherProgram(SpatialAvatarError):
    """A sound checkpoint that this version of the program cannot go on from."""


@dataclass(frozen=True)
class TrainingState:
    """Where a run stood, and what it was told."""

    step: int  # optimizer steps done
    seconds: float  # spent training so far
    config: dict[str, Any]  # TrainConfig
    parent: dict[str, Any] | None  # Phase 2: hash of the Phase-1 checkpoint, and how that was trained
    window: list[dict[str, float]]  # terms of the steps since the last line of the log
    anchor: str | None = None  # hash of the weights that L2-SP holds on to


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are whole and belong together."""

    folder: str
    state: TrainingState
    facts: generators.GeneratorFacts
    weights: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]  # Engine.moments

    def generator(self, config: TrainConfig, head: HeadModel) -> Generator:
        """The generator as it was. Raises SpatialAvatarError: another head, layout or encoder weights."""
        where = files.join(self.folder, generators.FILE)
        return generators.build_generator(config.generator, head, where, self.facts, self.weights)


def save_checkpoint(
    run: files.Location,
    generator: Generator,
    moments: dict[str, np.ndarray],
    state: TrainingState,
    training: dict[str, Any],
    keep: int,
    require: Callable[[], None] = lambda: None,
) -> str:
    """Write a checkpoint and remove all but the newest ``keep``, and what killed runs left; returns its folder.

    ``moments`` are the engine's, ``training`` is what the generator's file says of its training.
    ``require`` raises when the run is another's by now; this is then no checkpoint.
    """
    folder = files.join(run, generators.CHECKPOINTS, f"step-{state.step:08d}")
    marker = files.join(folder, generators.COMPLETE)
    files.remove(marker)
    digest = generators.write_generator(files.join(folder, generators.FILE), generator, training)
    tensor_files.write_tensors(files.join(folder, OPTIMIZER), moments)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "step": state.step,
        "seconds": round(state.seconds, 3),
        "config": state.config,
        "parent": state.parent,
        "window": state.window,
        "anchor": state.anchor,
        "generator": digest,
        "optimizer": tensor_files.content_hash(moments),
    }
    require()
    files.write_json(marker, record)
    kept = generators.complete_checkpoints(run)[-keep:]
    for old in generators.step_folders(run):
        if old not in kept:
            files.remove(files.join(old, generators.COMPLETE))  # first, so that half a folder is never a checkpoint
            files.remove(old)
    return folder


def newest_checkpoint(run: files.Location, config: TrainConfig) -> Checkpoint | None:
    """The checkpoint to go on from: the newest that is whole; None when there is none at all.

    A damaged one is passed over, with a logged line, and is a checkpoint no more. Raises SpatialAvatarError when none
    is whole, or when the run was made under a configuration that computes something else, or by another version.
    """
    damaged: dict[str, SpatialAvatarError] = {}
    for folder in reversed(generators.complete_checkpoints(run)):
        try:
            found = read_checkpoint(folder)
        except (StoreError, AnotherProgram):
            raise  # nothing is known to be wrong with it
        except SpatialAvatarError as e:
            damaged[folder] = e
            continue
        difference = _difference(found.state.config, config.model_dump(mode="json"))
        if difference:
            raise SpatialAvatarError(
                f"{folder}: was made with another configuration ({difference}); resume with the one it was started "
                "with, or start over with --force"
            )
        for other, error in damaged.items():
            logger.warning("passed over: %s; going on from %s", error, folder)
            files.remove(files.join(other, generators.COMPLETE))
        return found
    if damaged:
        raise SpatialAvatarError(
            f"{run}: no checkpoint can be read, the newest of {len(damaged)}: {next(iter(damaged.values()))}; restore "
            "one, or start over with --force"
        )
    return None


def read_checkpoint(folder: str) -> Checkpoint:
    """Raises SpatialAvatarError when its files are damaged or do not belong together; AnotherProgram."""
    marker = files.join(folder, generators.COMPLETE)
    record = files.read_json(marker)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise SpatialAvatarError(f"{folder}: not a checkpoint of a training")
    another = "go on with the version of this program that wrote it, or start over with --force"
    if record.get("version") != VERSION:
        raise AnotherProgram(
            f"{folder}: its version is {record.get('version')}, this program reads {VERSION}; {another}"
        )
    try:
        # through the model, so that a setting that came later has its default
        config = TrainConfig.model_validate(record["config"]).model_dump(mode="json")
        state = TrainingState(
            record["step"], record["seconds"], config, record["parent"], record["window"], record.get("anchor")
        )
        hashes = record["generator"], record["optimizer"]
    except KeyError as e:
        raise SpatialAvatarError(f"{marker}: lacks {e}") from None
    except ValueError as e:
        raise AnotherProgram(f"{marker}: settings that this program does not know ({in_short(e)}); {another}") from None
    where = files.join(folder, generators.FILE)
    facts = generators.read_facts(where)
    moments, _ = tensor_files.read_tensors(files.join(folder, OPTIMIZER))
    if (facts.hash, tensor_files.content_hash(moments)) != hashes:
        raise SpatialAvatarError(f"{folder}: its files do not belong together (a broken copy)")
    return Checkpoint(folder, state, facts, generators.read_weights(where, facts), moments)


def _difference(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str:
    """The settings that changed, as 'key: was, is'."""
    found = []
    for key in sorted(then.keys() | now.keys()):
        old, new, name = then.get(key), now.get(key), f"{prefix}{key}"
        if old == new or name in _FREE:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(_difference(old, new, f"{name}."))
        else:
            found.append(f"{name}: {old} then, {new} now")
    return "; ".join(part for part in found if part)
