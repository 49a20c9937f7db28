"""One to four frames of tracked clips to an avatar of kind ``generated``, in one pass of the generator."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from spatialavatar import files
from spatialavatar.avatar.avatar import Avatar, GeneratedAppearance, licence_note
from spatialavatar.avatar.source_frames import LEAST_FACE, SourceFrame, face_in_view
from spatialavatar.clip.reference_frame import reference_frame
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import GeneratorFacts, read_facts, read_generator
from spatialavatar.generator.generator import Generator
from spatialavatar.generator.portrait import portrait
from spatialavatar.generator.sources import Sources
from spatialavatar.head import HeadModel, HeadParams, HeadReference
from spatialavatar.head.canonical import canonical
from spatialavatar.splat.camera import Camera

MOST_SOURCES = 4  # as many as the generator meets in training


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator read from a checkpoint."""

    generator: Generator
    facts: GeneratorFacts
    checkpoint: str

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device


@dataclass(frozen=True)
class Portraits:
    """The frames, and what the generator sees of them (one subject)."""

    frames: tuple[SourceFrame, ...]
    sources: Sources


def load_generator(
    checkpoint: files.Location,
    head: HeadModel,
    device: torch.device | str = "cpu",
    encoder_weights: str | None = None,
) -> LoadedGenerator:
    """Raises SpatialAvatarError as ``read_generator``: no checkpoint, one for another head, layout or encoder.

    Also for ``encoder_weights`` that a checkpoint has no use for.
    """
    if encoder_weights is not None:
        read_facts(checkpoint).with_encoder(encoder_weights, str(checkpoint))
    generator, facts = read_generator(checkpoint, head, device, encoder_weights)
    return LoadedGenerator(generator, facts, str(checkpoint))


def look_at(frames: Sequence[SourceFrame], head: HeadModel, size: int) -> Portraits:
    """The frames as squares of ``size`` pixels, as the generator takes them.

    Raises SpatialAvatarError: none or too many, another head, a frame without a face in view.
    """
    if not 1 <= len(frames) <= MOST_SOURCES:
        raise SpatialAvatarError(
            f"{len(frames)} source frames; 1 to {MOST_SOURCES} are expected: name fewer, or give a lower --k"
        )
    head = head.on("cpu")
    portraits = []
    for frame in frames:
        frame.clip.require_head(head)
        share = float(face_in_view(frame.clip, head, [frame.index])[0])
        if share < LEAST_FACE:
            raise SpatialAvatarError(
                f"{frame.name}: no face in view (the tracked mesh shows {share:.0%} of the face to the camera, "
                f"{LEAST_FACE:.0%} is the least); name another frame"
            )
        seen = portrait(frame.clip, frame.index, head, size)
        if seen.coverage == 0:
            raise SpatialAvatarError(
                f"{frame.name}: no face in view (its matte is empty within the region); name another frame"
            )
        portraits.append(seen)
    sources = Sources(
        images=torch.stack([p.image for p in portraits])[None],
        params=HeadParams.cat([p.params for p in portraits]),
        camera=Camera.cat([p.camera for p in portraits]),
        mask=torch.ones(1, len(portraits), dtype=torch.bool),
    )
    return Portraits(tuple(frames), sources)


def reconstruct(
    loaded: LoadedGenerator,
    portraits: Portraits,
    *,
    identity: str | None = None,
    reference: int | None = None,
    head_file: files.Location | None = None,
    out: files.Location | None = None,
) -> Avatar:
    """The generated avatar of the person in the portraits, with the shape of the first.

    ``reference`` is the portrait at which it is baked unless told otherwise: the ``reference_frame`` among them unless
    given. ``head_file`` is where an avatar written to ``out`` will look for its head.
    """
    generator, facts = loaded.generator, loaded.facts
    head = generator.head.on("cpu")
    first = portraits.frames[0].clip
    if reference is None:
        reference = reference_frame(head, HeadParams.cat([f.clip.params_at(f.index) for f in portraits.frames]))
    began = time.perf_counter()
    with torch.no_grad():
        features = generator.encode(portraits.sources.to(loaded.device)).cpu()
    seconds = time.perf_counter() - began
    if not bool(torch.isfinite(features).all()):
        raise SpatialAvatarError(f"{loaded.checkpoint}: gives features that are not finite; use another checkpoint")
    own = first.params[0]
    source = portraits.frames[reference]
    camera = source.clip.camera(source.index)
    params, world_to_camera = canonical(
        head,
        source.clip.params_at(source.index).with_identity(own.shape, own.static_offset),
        camera.world_to_camera,
    )
    clips = {frame.clip.location: frame.clip for frame in portraits.frames}
    named = HeadReference.of(head)
    trained_on = facts.training.get("licence", "not stated")
    return Avatar(
        identity=identity or first.identity,
        head=named,
        uv_resolution=generator.layout.resolution,
        layout_fingerprint=generator.layout.fingerprint,
        appearance=GeneratedAppearance(
            features=features,
            decoder=facts.config.decoder,
            weights={name: p.detach().cpu().clone() for name, p in generator.decoder.named_parameters()},
            reference_camera=replace(camera, world_to_camera=world_to_camera),
            generator_hash=facts.hash,
            generator_file=loaded.checkpoint,
        ),
        shape=own.shape,
        static_offset=own.static_offset,
        reference_params=params,
        provenance={
            "head_file": None if head_file is None else files.relative(head_file, out or "."),
            "generator": {"hash": facts.hash, "training": facts.training},
            "config": {"resolution": facts.training.get("resolution", generator.config.encoder.image_size)},
            "clip": {
                "identity": first.identity,
                "source": asdict(first.source),
                "frames": [frame.name for frame in portraits.frames],
                "reference_frame": source.name,
                "fps": first.fps,
            },
            "metrics": {"iterations": 0, "seconds": round(seconds, 3)},
        },
        licence_note=licence_note(
            named, _listed(clip.source.licence for clip in clips.values()), generator_licence=str(trained_on)
        ),
    )


def _listed(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
