"""A generator on disk: one safetensors file with all that is needed to use it, and the names of what it belongs to.

A frozen backbone whose weights came from a file or a hub is not copied: the file holds its checksum. One that was
trained at any time is in the file, whatever is frozen by now.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from spatialavatar import __version__, files, tensor_files
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.generator.config import GeneratorConfig
from spatialavatar.generator.encoder import as_array
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
    backbone_in_file: bool = True  # or config.encoder.weights give it, with the checksum above

    def with_encoder(self, weights: str, where: str) -> "GeneratorFacts":
        """The same with the frozen backbone's weights at another place.

        Raises SpatialAvatarError when the file ``where`` holds the backbone itself.
        """
        if self.backbone_in_file:
            raise SpatialAvatarError(
                f"{where}: holds the weights of its encoder, so --encoder-weights {weights} would change nothing; "
                "leave it out"
            )
        encoder = self.config.encoder.model_copy(update={"weights": weights})
        return dataclasses.replace(self, config=self.config.model_copy(update={"encoder": encoder}))


def write_generator(location: files.Location, generator: Generator, training: dict[str, Any]) -> str:
    """Write the generator; returns its hash. ``training`` is plain JSON."""
    parameters = _held(generator, backbone_in_file := not generator.encoder.kept_elsewhere)
    arrays = {name: as_array(parameter) for name, parameter in parameters.items()}
    facts = {
        "config": generator.config.model_dump(mode="json"),
        "head": dataclasses.asdict(HeadReference.of(generator.head)),
        "layout_fingerprint": generator.layout.fingerprint,
        "encoder_checksum": generator.encoder.checksum(),
        "backbone_in_file": backbone_in_file,
        "training": {"spatialavatar": __version__, **training},
    }
    description = json.dumps(facts, sort_keys=True)
    digest = tensor_files.content_hash(arrays, description)
    metadata = {"format": FORMAT, "version": str(VERSION), "description": description, "hash": digest}
    tensor_files.write_tensors(location, arrays, metadata)
    return digest


def find_generator(location: files.Location) -> str:
    """The generator's file, given that, a checkpoint's folder, or a training run (its newest complete checkpoint)."""
    if not files.is_folder(location):
        if not files.exists(location):
            raise SpatialAvatarError(
                f"{location}: no training run, checkpoint or {FILE} there; name one that 'spatialavatar train' made"
            )
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
    return [step for step in step_folders(run) if COMPLETE in files.list_folder(step)]


def step_folders(run: files.Location) -> list[str]:
    """The same with those that were never finished."""
    folder = files.join(run, CHECKPOINTS)
    return [files.join(folder, name) for name in files.list_folder(folder) if _STEP_FOLDER.fullmatch(name)]


def read_facts(location: files.Location) -> GeneratorFacts:
    """What a generator's file says of itself. Raises SpatialAvatarError when it is not one that this program reads."""
    where = find_generator(location)
    metadata = tensor_files.read_tensor_metadata(where)
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
            f"{where}: its description is not readable ({in_short(e)}); get the file again"
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
    where = find_generator(location)
    facts = read_facts(where)
    config = facts.config
    if encoder_weights is not None and not facts.backbone_in_file:
        config = facts.with_encoder(encoder_weights, where).config
    generator = build_generator(config, head, where, facts, read_weights(where, facts))
    return generator.to(device).eval(), facts


def build_generator(
    config: GeneratorConfig,
    head: HeadModel,
    where: files.Location,
    facts: GeneratorFacts,
    weights: dict[str, np.ndarray],
) -> Generator:
    """A generator of ``config`` with the ``weights`` of the file ``where``, which ``facts`` describe.

    The backbone is the file's where the file holds it, else that of ``config.encoder.weights``; whether it is frozen
    from now on is for ``config`` to say. Raises SpatialAvatarError: another head, layout, architecture or backbone.
    """
    facts.head.require(head, str(where))
    with torch.random.fork_rng(devices=[]):  # what it starts with is overwritten
        generator = Generator(config, head, pretrained=not facts.backbone_in_file)
    generator.layout.require(facts.layout_fingerprint, str(where))
    load_weights(generator, where, facts, weights)
    return generator


@dataclass(frozen=True, eq=False)
class PackedGenerator:
    """A generator's file in memory, as it is sent to the processes that build it; picklable."""

    where: str  # the file, for messages
    facts: GeneratorFacts
    weights: dict[str, np.ndarray]

    def build(self, head: HeadModel, device: torch.device | str) -> Generator:
        """In evaluation mode on a device. Raises SpatialAvatarError as ``build_generator``."""
        return build_generator(self.facts.config, head, self.where, self.facts, self.weights).to(device).eval()


def read_weights(where: files.Location, facts: GeneratorFacts) -> dict[str, np.ndarray]:
    """The tensors in a generator's file. Raises SpatialAvatarError when they are not those it was written with."""
    arrays, _ = tensor_files.read_tensors(where)
    if tensor_files.content_hash(arrays, facts.description) != facts.hash:
        raise SpatialAvatarError(f"{where}: does not hold what it was written with (a bad copy); get it again")
    return arrays


def load_weights(
    generator: Generator, where: files.Location, facts: GeneratorFacts, weights: dict[str, np.ndarray]
) -> None:
    """Put a file's tensors into a generator of the same architecture.

    Raises SpatialAvatarError when they do not fit, or when the backbone, which the file does not hold, is another one.
    """
    parameters = _held(generator, facts.backbone_in_file)
    for name in sorted(parameters.keys() | weights.keys()):
        found = weights[name].shape if name in weights else "nothing"
        wanted = tuple(parameters[name].shape) if name in parameters else "nothing"
        if found != wanted:
            raise SpatialAvatarError(
                f"{where}: holds {found} for {name}, this generator has {wanted}; it was trained with another "
                "configuration (encoder, color_channels or sizes)"
            )
    encoder = generator.encoder
    if not facts.backbone_in_file and (checksum := encoder.checksum()) != facts.encoder_checksum:
        raise SpatialAvatarError(
            f"{where}: was trained on encoder weights {facts.encoder_checksum[:12]}, {encoder.config.weights} of "
            f"{encoder.config.backbone} has {checksum[:12]}; give the file that it was trained on"
        )
    with torch.no_grad():
        for name, array in weights.items():
            parameters[name].copy_(torch.from_numpy(array))
    if facts.backbone_in_file:
        encoder.as_published = False


def _held(generator: Generator, backbone_in_file: bool) -> dict[str, nn.Parameter]:
    """The parameters that a file holds."""
    return {n: p for n, p in generator.named_parameters() if backbone_in_file or not n.startswith(_BACKBONE)}
