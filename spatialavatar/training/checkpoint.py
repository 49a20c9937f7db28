"""Checkpoints of a training run, from which a killed run goes on exactly.

``RUN/checkpoints/step-00001000/`` holds the generator as anyone can use it (``generator.safetensors``), the optimizer's
moments (``optimizer.safetensors``) and, written last, ``checkpoint.json``: a folder without it is no checkpoint.
Everything else that a run needs is a function of its configuration and of the step: samples, temperature, rates.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator import checkpoint as generators
from spatialavatar.generator.generator import Generator

OPTIMIZER = "optimizer.safetensors"
ANCHOR = "anchor.safetensors"  # of a run: the weights that L2-SP holds on to
FORMAT = "spatialavatar-training-checkpoint"
VERSION = 1
# may differ between a run and its resumption: they do not change what is computed
_FREE = ("log_every", "sheet_every", "checkpoint_every", "keep_checkpoints", "held_out", "held_out_samples", "head")


@dataclass(frozen=True)
class TrainingState:
    step: int  # optimizer steps done
    seconds: float  # spent training so far
    config: dict[str, Any]  # TrainConfig
    parent: dict[str, Any] | None  # Phase 2: hash of the Phase-1 checkpoint, and how that was trained
    window: list[dict[str, float]]  # terms of the steps since the last line of the log


def save_checkpoint(
    run: files.Location,
    generator: Generator,
    optimizer: Optimizer,
    state: TrainingState,
    training: dict[str, Any],
    keep: int,
) -> str:
    """Write a checkpoint and remove all but the newest ``keep``; returns its folder.

    ``training`` is what the generator's file says of its training.
    """
    folder = files.join(run, generators.CHECKPOINTS, f"step-{state.step:08d}")
    digest = generators.write_generator(files.join(folder, generators.FILE), generator, training)
    arrays = {}
    for name, parameter in generator.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            arrays[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().numpy()
    files.write_tensors(files.join(folder, OPTIMIZER), arrays)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "step": state.step,
        "seconds": round(state.seconds, 3),
        "config": state.config,
        "parent": state.parent,
        "window": state.window,
        "generator": digest,
        "optimizer": files.content_hash(arrays),
    }
    files.write_json(files.join(folder, generators.COMPLETE), record)
    for old in generators.complete_checkpoints(run)[:-keep]:
        files.remove(files.join(old, generators.COMPLETE))  # first, so that half a folder is never a checkpoint
        files.remove(old)
    return folder


def load_checkpoint(
    folder: files.Location, generator: Generator, optimizer: Optimizer, config: dict[str, Any]
) -> TrainingState:
    """Bring generator and optimizer to where the checkpoint left them.

    Raises SpatialAvatarError when it is damaged, or was written under a configuration that computes something else.
    """
    record = files.read_json(files.join(folder, generators.COMPLETE))
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise SpatialAvatarError(f"{folder}: not a checkpoint that this program can read; start over with --force")
    difference = _difference(record["config"], config)
    if difference:
        raise SpatialAvatarError(
            f"{folder}: was made with another configuration ({difference}); resume with the one it was started with, "
            "or start over with --force"
        )
    where = files.join(folder, generators.FILE)
    facts = generators.read_facts(where)
    arrays, _ = files.read_tensors(files.join(folder, OPTIMIZER))
    if facts.hash != record["generator"] or files.content_hash(arrays) != record["optimizer"]:
        raise SpatialAvatarError(f"{folder}: its files do not belong together (a broken copy); resume from another one")
    generators.load_weights(generator, where, facts)
    parameters = dict(generator.named_parameters())
    for key, array in arrays.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        value = torch.from_numpy(array)
        # Adam keeps its step counter on the CPU
        optimizer.state[parameter][slot] = value if value.ndim == 0 else value.to(parameter.device)
    return TrainingState(record["step"], record["seconds"], record["config"], record["parent"], record["window"])


def _difference(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str:
    """The settings that changed, as 'key: was, is'."""
    found = []
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key), now.get(key)
        if old == new or (not prefix and key in _FREE):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(_difference(old, new, f"{prefix}{key}."))
        else:
            found.append(f"{prefix}{key}: {old} then, {new} now")
    return "; ".join(found)
