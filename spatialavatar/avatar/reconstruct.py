"""One to four frames of tracked clips to an avatar of kind ``generated``, in one pass of the generator."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar import files
from spatialavatar.avatar.avatar import Avatar, GeneratedAppearance, licence_note
from spatialavatar.avatar.frame_name import frame_name
from spatialavatar.avatar.reference_frame import mouth_openness
from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import GeneratorFacts, read_generator
from spatialavatar.generator.generator import Generator
from spatialavatar.generator.portrait import portrait
from spatialavatar.generator.sources import Sources
from spatialavatar.generator.view_encoding import view_direction
from spatialavatar.head import HeadModel, HeadParams, HeadReference
from spatialavatar.head.canonical import canonical
from spatialavatar.splat.camera import Camera

MOST_SOURCES = 4  # as many as the generator meets in training
LEAST_FACE = 0.1  # share of the face that a source must show
FRONTAL = 0.5  # cosine: the face is what looks within 60 degrees of +z on the mesh at rest
_FRAMES_AT_ONCE = 32  # posed together


@dataclass(frozen=True)
class Generation:
    """A generator read from a checkpoint."""

    generator: Generator
    facts: GeneratorFacts
    checkpoint: str

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device


@dataclass(frozen=True)
class SourceFrame:
    clip: TrackedClip
    index: FrameIndex

    @property
    def name(self) -> str:
        return frame_name(self.clip, self.index)


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
) -> Generation:
    """Raises SpatialAvatarError as ``read_generator``: no checkpoint, one for another head, layout or encoder."""
    generator, facts = read_generator(checkpoint, head, device, encoder_weights)
    return Generation(generator, facts, str(checkpoint))


def face_in_view(clip: TrackedClip, head: HeadModel, frames: Sequence[FrameIndex]) -> Float[Tensor, " T"]:
    """Share of the face's surface that each frame's camera has before it, turned towards it and inside the image.

    Whether something lies in front of it is not asked.
    """
    head = head.on("cpu")
    corners = head.template[head.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    weight = normal.norm(dim=-1) * (normal[:, 2] > FRONTAL * normal.norm(dim=-1))
    shares = []
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        chunk = frames[start : start + _FRAMES_AT_ONCE]
        camera = clip.camera(chunk)
        with torch.no_grad():
            triangles = head(clip.params_at(chunk))[:, head.faces]
        centre = triangles.mean(2)
        outwards = torch.linalg.cross(triangles[:, :, 1] - triangles[:, :, 0], triangles[:, :, 2] - triangles[:, :, 0])
        pixels, depth = camera.project(centre)
        rotation, translation = camera.world_to_camera[:, :3, :3], camera.world_to_camera[:, :3, 3]
        eye = -(rotation.mT @ translation[..., None]).mT  # [T, 1, 3]
        size = pixels.new_tensor([camera.width, camera.height])
        seen = (depth > 0) & ((pixels >= 0) & (pixels <= size)).all(-1) & (((eye - centre) * outwards).sum(-1) > 0)
        shares.append((seen * weight).sum(-1) / weight.sum())
    return torch.cat(shares)


def with_a_face(clip: TrackedClip, head: HeadModel) -> dict[FrameIndex, float]:
    """The training frames that show the face, and which share of it. Raises SpatialAvatarError when none does."""
    frames = clip.split("train")
    shares = face_in_view(clip, head, frames).tolist() if frames else []
    shown = {frame: share for frame, share in zip(frames, shares) if share >= LEAST_FACE}
    if not shown:
        raise SpatialAvatarError(
            f"{clip.folder}: no training frame has the face in view; 'spatialavatar clip inspect' shows the tracking"
        )
    return shown


def choose_frames(
    clip: TrackedClip, head: HeadModel, shown: dict[FrameIndex, float], count: int, first: FrameIndex | None = None
) -> list[SourceFrame]:
    """``count`` of the frames of ``with_a_face`` with views far apart, or as many as there are.

    ``first`` (unless given, the frame that shows most of the face), then again and again the frame whose viewing axis
    is farthest from all chosen ones; the earliest on ties.
    """
    frames = list(shown)
    _, world_to_camera = canonical(head, clip.params_at(frames), clip.camera(frames).world_to_camera)
    axis = view_direction(world_to_camera.double())
    if first is None:
        first = max(frames, key=lambda frame: shown[frame])
    chosen = [frames.index(first)]
    nearest = torch.full((len(frames),), torch.inf, dtype=torch.float64)
    while len(chosen) < min(count, len(frames)):
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(axis - axis[chosen[-1]], dim=-1))
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return [SourceFrame(clip, frames[row]) for row in chosen]


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
            raise SpatialAvatarError(f"{frame.name}: no face in view (its matte is empty); name another frame")
        portraits.append(seen)
    sources = Sources(
        images=torch.stack([p.image for p in portraits])[None],
        params=_joined([p.params for p in portraits]),
        camera=Camera.cat([p.camera for p in portraits]),
        mask=torch.ones(1, len(portraits), dtype=torch.bool),
    )
    return Portraits(tuple(frames), sources)


def reconstruct(
    generation: Generation,
    portraits: Portraits,
    *,
    identity: str | None = None,
    reference: int | None = None,
    head_file: files.Location | None = None,
    out: files.Location | None = None,
) -> Avatar:
    """The generated avatar of the person in the portraits, with the shape of the first.

    ``reference`` is the portrait at which it is baked unless told otherwise: the one with the mouth most closed, the
    earliest on ties. ``head_file`` is where an avatar written to ``out`` will look for its head.
    """
    generator, facts = generation.generator, generation.facts
    head = generator.head.on("cpu")
    first = portraits.frames[0].clip
    if reference is None:
        tracked = [frame.clip.params_at(frame.index) for frame in portraits.frames]
        reference = int(torch.stack([mouth_openness(head, p)[0] for p in tracked]).double().numpy().argmin())
    began = time.perf_counter()
    with torch.no_grad():
        features = generator.encode(portraits.sources.to(generation.device)).cpu()
    seconds = time.perf_counter() - began
    if not bool(torch.isfinite(features).all()):
        raise SpatialAvatarError(f"{generation.checkpoint}: gives features that are not finite; use another checkpoint")
    own = first.params[0]
    source = portraits.frames[reference]
    camera = source.clip.camera(source.index)
    params, world_to_camera = canonical(
        head,
        source.clip.params_at(source.index).with_identity(own.shape, own.static_offset),
        camera.world_to_camera,
    )
    clips = {frame.clip.folder: frame.clip for frame in portraits.frames}
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
            generator_file=generation.checkpoint,
        ),
        shape=own.shape,
        static_offset=own.static_offset,
        reference_params=params,
        provenance={
            "head_file": None if head_file is None else files.relative(head_file, out or "."),
            "generator": {"hash": facts.hash, "training": facts.training},
            "config": {"resolution": generator.config.encoder.image_size},
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


def _joined(rows: Sequence[HeadParams]) -> HeadParams:
    """Along the batch axis; where some have a static offset, the others' is zero."""
    offsets = [row.static_offset for row in rows if row.static_offset is not None]
    joined: dict[str, Any] = {}
    for field in fields(HeadParams):
        values = [getattr(row, field.name) for row in rows]
        if field.name == "static_offset":
            values = [torch.zeros_like(offsets[0]) if v is None else v for v in values] if offsets else []
        joined[field.name] = torch.cat(values) if values else None
    return HeadParams(**joined)


def _listed(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
