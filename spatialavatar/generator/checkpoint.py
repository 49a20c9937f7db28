"""A generator on disk: one safetensors file with all that is needed to use it, and the names of what it belongs to.

A frozen backbone whose weights came from a file or a hub is not copied: the file holds its checksum.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

import torch

from spatialavatar import __version__, files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.config import RANDOM_WEIGHTS, GeneratorConfig
from spatialavatar.generator.generator import Generator
from spatialavatar.head import HeadModel, HeadReference

FILE = "generator.safetensors"
FORMAT = "spatialavatar-generator"
VERSION = 1
CHECKPOINTS = "checkpoints"  # folder of a training run that holds step-00000000 folders
COMPLETE = "checkpoint.json"  # written last in a training checkpoint's folder
_STEP_FOLDER = re.compile(r"step-\d{8}")
_BACKBONE = "encoder.backbone."


@dataclass(frozen=True)
class GeneratorFacts:
    """What a generator's file says before its weights are read."""

    config: GeneratorConfig
    head: HeadReference
    layout_fingerprint: str
    encoder_checksum: str
    training: dict[str, Any]  # what the training run says of itself: phase, step, data licences, parent checkpoint
    hash: str  # of the file's tensors and description: names this generator in every artefact made with it
    description: str  # the text that all but the hash was read from


def write_generator(location: files.Location, generator: Generator, training: dict[str, Any]) -> str:
    """Write the generator; returns its hash. ``training`` is plain JSON."""
    arrays = {
        name: parameter.detach().cpu().numpy()
        for name, parameter in generator.named_parameters()
        if not (_comes_from_elsewhere(generator.config) and name.startswith(_BACKBONE))
    }
    facts = {
        "config": generator.config.model_dump(mode="json"),
        "head": dataclasses.asdict(HeadReference.of(generator.head)),
        "layout_fingerprint": generator.layout.fingerprint,
        "encoder_checksum": generator.encoder.checksum(),
        "training": {"spatialavatar": __version__, **training},
    }
    description = json.dumps(facts, sort_keys=True)
    digest = files.content_hash(arrays, description)
    metadata = {"format": FORMAT, "version": str(VERSION), "description": description, "hash": digest}
    files.write_tensors(location, arrays, metadata)
    return digest


def find_generator(location: files.Location) -> str:
    """The generator's file, given that, a checkpoint's folder, or a training run (its newest complete checkpoint)."""
    if not files.is_folder(location):
        return str(location)
    names = files.list_folder(location)
    if FILE in names:
        return files.join(location, FILE)
    steps = complete_checkpoints(location)
    if steps:
        return files.join(steps[-1], FILE)
    raise SpatialAvatarError(
        f"{location}: holds neither {FILE} nor a complete checkpoint under {CHECKPOINTS}/; a training run "
        "(spatialavatar train) or one of its checkpoints is needed"
    )


def complete_checkpoints(run: files.Location) -> list[str]:
    """Folders of a training run's complete checkpoints, oldest first."""
    folder = files.join(run, CHECKPOINTS)
    steps = [files.join(folder, name) for name in files.list_folder(folder) if _STEP_FOLDER.fullmatch(name)]
    return [step for step in steps if COMPLETE in files.list_folder(step)]


def read_facts(location: files.Location) -> GeneratorFacts:
    """What a generator's file says of itself. Raises SpatialAvatarError when it is not one that this program reads."""
    where = find_generator(location)
    metadata = files.read_tensor_metadata(where)
    if metadata.get("format") != FORMAT:
        raise SpatialAvatarError(f"{where}: not a generator of ours; give a run or checkpoint of 'spatialavatar train'")
    if metadata.get("version") != str(VERSION):
        raise SpatialAvatarError(
            f"{where}: generator format version {metadata.get('version')}, this program reads {VERSION}; train it again"
        )
    try:
        facts = json.loads(metadata["description"])
        facts["config"] = GeneratorConfig.model_validate(facts["config"])
        facts["head"] = HeadReference(**facts["head"])
        return GeneratorFacts(**facts, hash=metadata["hash"], description=metadata["description"])
    except (ValueError, KeyError, TypeError) as e:
        raise SpatialAvatarError(
            f"{where}: its description is not readable ({' '.join(str(e).split())[:200]}); get the file again"
        ) from None


def read_generator(
    location: files.Location,
    head: HeadModel,
    device: torch.device | str = "cpu",
    encoder_weights: str | None = None,
) -> tuple[Generator, GeneratorFacts]:
    """The generator in evaluation mode on a device.

    ``encoder_weights`` says where a frozen backbone's weights lie, when not where they were at training. Raises
    SpatialAvatarError: not a generator, another head or layout, encoder weights that are missing or others, damage.
    """
    facts = read_facts(location)
    where = find_generator(location)
    facts.head.require(head, where)
    config = facts.config
    if encoder_weights is not None and config.encoder.weights != RANDOM_WEIGHTS:
        encoder = config.encoder.model_copy(update={"weights": encoder_weights})
        config = config.model_copy(update={"encoder": encoder})
    elsewhere = _comes_from_elsewhere(config)
    generator = Generator(config, head, pretrained=elsewhere)
    generator.layout.require(facts.layout_fingerprint, where)
    load_weights(generator, where, facts)
    if elsewhere and generator.encoder.checksum() != facts.encoder_checksum:
        raise SpatialAvatarError(
            f"{where}: was trained on encoder weights {facts.encoder_checksum[:12]}, {config.encoder.weights} of "
            f"{config.encoder.backbone} has {generator.encoder.checksum()[:12]}; give the file that it was trained on"
        )
    return generator.to(device).eval(), facts


def load_weights(generator: Generator, where: files.Location, facts: GeneratorFacts) -> None:
    """Put a file's tensors into a generator of the same configuration. Raises SpatialAvatarError when they differ."""
    arrays, _ = files.read_tensors(where)
    if files.content_hash(arrays, facts.description) != facts.hash:
        raise SpatialAvatarError(f"{where}: does not hold what it was written with (a bad copy); get it again")
    parameters = dict(generator.named_parameters())
    expected = {
        name for name in parameters if not (_comes_from_elsewhere(generator.config) and name.startswith(_BACKBONE))
    }
    for name in sorted(expected | arrays.keys()):
        if name not in expected or name not in arrays or tuple(parameters[name].shape) != arrays[name].shape:
            found = arrays[name].shape if name in arrays else "nothing"
            wanted = tuple(parameters[name].shape) if name in expected else "nothing"
            raise SpatialAvatarError(
                f"{where}: holds {found} for {name}, this generator has {wanted}; it was trained with another "
                "configuration (encoder, color_channels or sizes)"
            )
    with torch.no_grad():
        for name, array in arrays.items():
            parameters[name].copy_(torch.from_numpy(array))


def _comes_from_elsewhere(config: GeneratorConfig) -> bool:
    """Whether the backbone's weights are kept in a file or a hub, not in ours."""
    return config.encoder.frozen and config.encoder.weights != RANDOM_WEIGHTS
