"""What a training run is made of, from its configuration; the same for one process and for many."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from spatialavatar import files, tensor_files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import (
    GeneratorFacts,
    build_generator,
    find_generator,
    read_facts,
    read_weights,
)
from spatialavatar.generator.config import GeneratorConfig
from spatialavatar.generator.generator import Generator
from spatialavatar.head import HeadModel, builtin_head, read_head
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.pool import ClipPool
from spatialavatar.training.step import Anchor, TrainingModule


def training_head(config: TrainConfig) -> HeadModel:
    """The head that a configuration names."""
    return builtin_head() if config.head is None else read_head(config.head)


def find_parent(config: TrainConfig) -> tuple[str, GeneratorFacts] | None:
    """Phase 2: the file of the Phase-1 generator, and what it says of itself; reads no weights.

    Raises SpatialAvatarError: no checkpoint where one is needed, one where there must be none, or one that is missing
    or of another architecture.
    """
    if config.phase == 1:
        if config.phase1_checkpoint is not None:
            raise SpatialAvatarError(
                f"phase1_checkpoint {config.phase1_checkpoint}: Phase 1 starts from new weights; leave it out, or set "
                "phase: 2"
            )
        if config.loss.lambda_sp > 0:
            raise SpatialAvatarError(
                "loss.lambda_sp anchors the weights at a Phase-1 checkpoint (phase1_checkpoint), which Phase 1 has "
                "not; make it 0"
            )
        return None
    if config.phase1_checkpoint is None:
        raise SpatialAvatarError(
            "phase 2 goes on from a Phase-1 run: name it, as with --set phase1_checkpoint=runs/phase1"
        )
    try:
        where = find_generator(config.phase1_checkpoint)
    except SpatialAvatarError as e:
        raise SpatialAvatarError(f"phase1_checkpoint: {e}") from None
    facts = read_facts(where)
    then, now = (_architecture(c) for c in (facts.config, config.generator))
    changed = [f"{key}: {then[key]} there, {now[key]} here" for key in then if then[key] != now[key]]
    if changed:
        raise SpatialAvatarError(f"{where}: is of another architecture ({'; '.join(changed)}); Phase 2 keeps Phase 1's")
    return where, facts


def start_generator(config: TrainConfig, head: HeadModel) -> tuple[Generator, dict[str, Any] | None]:
    """The generator before the first step, and in Phase 2 where it comes from.

    New weights are a function of the seed. Raises SpatialAvatarError as ``find_parent``, and for a Phase-1 checkpoint
    of another head, layout or backbone.
    """
    parent = find_parent(config)
    if parent is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return Generator(config.generator, head), None
    where, facts = parent
    generator = build_generator(config.generator, head, where, facts, read_weights(where, facts))
    return generator, {"generator": facts.hash, "training": facts.training}


def licence_of(generator: Generator, pool: ClipPool, parent: dict[str, Any] | None) -> str:
    """The terms that the trained generator's holder must know: of all footage, and of the encoder's weights.

    ``parent`` is what the run goes on from: its terms come first.
    """
    terms = [] if parent is None else parent["training"].get("licence", "").split("; ")
    terms += pool.licence.split("; ")
    if (encoder := generator.encoder.licence) is not None:
        terms.append(f"image encoder {generator.config.encoder.backbone} ({encoder})")
    return "; ".join(_once(terms))


def anchor_at(generator: Generator) -> Anchor:
    """A copy of the trainable weights as they are now."""
    return {name: p.detach().clone() for name, p in generator.named_parameters() if p.requires_grad}


def anchor_hash(anchor: Anchor | None) -> str | None:
    """By which checkpoints name the anchor; None without one."""
    return None if anchor is None else tensor_files.content_hash(_arrays(anchor))


def write_anchor(location: files.Location, anchor: Anchor) -> None:
    """Write the weights that L2-SP holds on to."""
    tensor_files.write_tensors(location, _arrays(anchor))


def read_anchor(location: files.Location, expected: str | None) -> Anchor:
    """Raises SpatialAvatarError when it is missing, damaged, or not the one whose hash is ``expected``."""
    arrays, _ = tensor_files.read_tensors(location)
    anchor = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if anchor_hash(anchor) != expected:
        raise SpatialAvatarError(
            f"{location}: not the weights that this run is anchored at (a broken copy); restore the file, or start "
            "over with --force"
        )
    return anchor


def build_module(
    config: TrainConfig,
    generator: Generator,
    anchor: Anchor | None,
    device: torch.device | str,
    lpips: Lpips | None = None,
) -> TrainingModule:
    """The training module on a device, with ``lpips`` or, where it is wanted, a network of its own.

    Raises SpatialAvatarError when LPIPS is wanted and its weights are missing.
    """
    if lpips is None and config.loss.lambda_lp > 0:
        lpips = Lpips.require(device=device)
    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    generator = generator.to(device)
    generator.recompute_activations(config.gradient_checkpointing)
    if config.compile:
        for part in (generator.encoder, generator.dpt, generator.unet):
            part.compile(dynamic=True)
    on_device = None if anchor is None else {name: tensor.to(device) for name, tensor in anchor.items()}
    return TrainingModule(generator, config, lpips, on_device)


def _arrays(anchor: Anchor) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in anchor.items()}


def _architecture(config: GeneratorConfig) -> dict[str, Any]:
    """The settings that decide which weights there are."""
    flat: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json").items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    for free in ("encoder.weights", "encoder.frozen"):
        flat.pop(free)
    return flat


def _once(terms: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(term for term in terms if term))
