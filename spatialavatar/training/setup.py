"""What a training run is made of, from its configuration; the same for one process and for many."""

from typing import Any

import torch

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import find_generator, load_weights, read_facts
from spatialavatar.generator.config import GeneratorConfig
from spatialavatar.generator.generator import Generator
from spatialavatar.head import HeadModel, builtin_head, read_head
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.pool import ClipPool
from spatialavatar.training.step import Anchor, TrainingModule


def training_head(config: TrainConfig) -> HeadModel:
    return builtin_head() if config.head is None else read_head(config.head)


def start_generator(config: TrainConfig, head: HeadModel) -> tuple[Generator, dict[str, Any] | None]:
    """The generator before the first step, and in Phase 2 where it comes from.

    New weights are a function of the seed. Raises SpatialAvatarError: a Phase-1 checkpoint that is missing, or of
    another head, layout or architecture.
    """
    if config.phase1_checkpoint is None:
        if config.loss.lambda_sp > 0:
            raise SpatialAvatarError(
                "loss.lambda_sp anchors the weights at a Phase-1 checkpoint: name one (phase1_checkpoint), or make it 0"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return Generator(config.generator, head), None
    where = find_generator(config.phase1_checkpoint)
    facts = read_facts(where)
    facts.head.require(head, where)
    then, now = (_architecture(c) for c in (facts.config, config.generator))
    changed = [f"{key}: {then[key]} there, {now[key]} here" for key in then if then[key] != now[key]]
    if changed:
        raise SpatialAvatarError(f"{where}: is of another architecture ({'; '.join(changed)}); Phase 2 keeps Phase 1's")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = Generator(config.generator, head)
    generator.layout.require(facts.layout_fingerprint, where)
    load_weights(generator, where, facts)
    return generator, {"generator": facts.hash, "training": facts.training}


def licence_of(generator: Generator, pool: ClipPool) -> str:
    """The terms that the trained generator's holder must know: of the footage, and of the encoder's weights."""
    encoder = generator.encoder.licence
    if encoder is None:
        return pool.licence
    return f"{pool.licence}; image encoder {generator.config.encoder.backbone} ({encoder})"


def anchor_at(generator: Generator) -> Anchor:
    """A copy of the trainable weights as they are now."""
    return {name: p.detach().clone() for name, p in generator.named_parameters() if p.requires_grad}


def write_anchor(location: files.Location, anchor: Anchor) -> None:
    files.write_tensors(location, {name: tensor.cpu().numpy() for name, tensor in anchor.items()})


def read_anchor(location: files.Location) -> Anchor:
    arrays, _ = files.read_tensors(location)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def build_module(
    config: TrainConfig, generator: Generator, anchor: Anchor | None, device: torch.device | str
) -> TrainingModule:
    """The training module on a device. Raises SpatialAvatarError when LPIPS is wanted and its weights are missing."""
    lpips = Lpips.require(device=device) if config.loss.lambda_lp > 0 else None
    generator = generator.to(device)
    generator.recompute_activations(config.gradient_checkpointing)
    if config.compile:
        for part in (generator.encoder, generator.dpt, generator.unet):
            part.compile(dynamic=True)
    on_device = None if anchor is None else {name: tensor.to(device) for name, tensor in anchor.items()}
    return TrainingModule(generator, config, lpips, on_device)


def _architecture(config: GeneratorConfig) -> dict[str, Any]:
    """The settings that decide which weights there are."""
    flat: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json").items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    for free in ("encoder.weights", "encoder.frozen"):
        flat.pop(free)
    return flat
