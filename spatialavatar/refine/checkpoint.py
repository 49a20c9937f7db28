"""Checkpoints of a refinement: one safetensors file, replaced atomically, from which a killed run goes on exactly."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spatialavatar import files, tensor_files
from spatialavatar.avatar.folder import CHECKPOINT as FILE
from spatialavatar.avatar.folder import CHECKPOINT_FORMAT as FORMAT
from spatialavatar.errors import SpatialAvatarError

VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a killed refinement of one subject goes on from."""

    tensors: dict[str, Tensor]  # Refinement.state()
    iteration: int
    inputs: dict[str, Any]  # what a resumed run must find unchanged: config, clip, head, layout, start
    seconds: float  # spent optimising so far
    window: list[list[float]]  # loss terms since the last line of the log


def save_checkpoint(folder: files.Location, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in a folder."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in checkpoint.tensors.items()}
    facts = {
        "iteration": checkpoint.iteration,
        "inputs": checkpoint.inputs,
        "seconds": checkpoint.seconds,
        "window": checkpoint.window,
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "facts": json.dumps(facts)}
    tensor_files.write_tensors(files.join(folder, FILE), arrays, metadata)


def load_checkpoint(folder: files.Location, inputs: dict[str, Any]) -> Checkpoint:
    """Raises SpatialAvatarError when the checkpoint is damaged or was made from other inputs."""
    where = files.join(folder, FILE)
    arrays, metadata = tensor_files.read_tensors(where)
    if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
        raise SpatialAvatarError(f"{where}: not a checkpoint that this program can read; start over with --force")
    try:
        facts = json.loads(metadata["facts"])
        found = Checkpoint(
            {name: torch.from_numpy(array) for name, array in arrays.items()},
            int(facts["iteration"]),
            dict(facts["inputs"]),
            float(facts["seconds"]),
            [[float(value) for value in terms] for terms in facts["window"]],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise SpatialAvatarError(
            f"{where}: damaged, it does not say what it is of ({type(e).__name__}: {e}); start over with --force"
        ) from None
    for key, value in inputs.items():
        if found.inputs.get(key) != value:
            raise SpatialAvatarError(
                f"{where}: was made with another {key} ({_difference(found.inputs.get(key), value)}); "
                "resume with what it was started with, or start over with --force"
            )
    return found


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
        return "; ".join(f"{k}: {old.get(k)} then, {new.get(k)} now" for k in changed)
    return f"{old} then, {new} now"
