"""Refining one clip into an avatar's folder, and what a refined subject becomes there."""

from collections.abc import Callable
from dataclasses import asdict

import torch

from spatialavatar import files
from spatialavatar.avatar import Avatar, StaticAppearance, licence_note, write_avatar
from spatialavatar.avatar.folder import claim_folder, clear_folder, clear_partial
from spatialavatar.clip import TrackedClip
from spatialavatar.clip.reference_frame import reference_frame
from spatialavatar.head import HeadModel, HeadReference
from spatialavatar.peak_memory import peak_memory
from spatialavatar.refine import checkpoint as checkpoints
from spatialavatar.refine.batch import Progress, Refined, prepare, refine_batch
from spatialavatar.refine.config import RefineConfig
from spatialavatar.refine.start import Start


def refine_clip(
    clip: TrackedClip,
    head: HeadModel,
    start: Start,
    config: RefineConfig,
    out: files.Location,
    *,
    head_file: files.Location | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    force: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Avatar:
    """Refine ``start`` on the training frames of ``clip`` and write the avatar to the folder ``out``.

    ``head_file`` is where the avatar will look for its head.

    The folder gets ``refine.jsonl`` (loss terms every ``log_every`` iterations), ``checkpoint.safetensors`` (removed at
    the end) and the avatar. A killed run resumes from its checkpoint and ends bit-identical on CPU to an undisturbed
    one. StopRefinement raised by ``observe`` writes a checkpoint before it goes on its way.

    Raises SpatialAvatarError for input that does not fit, an output folder that is taken, a checkpoint of other inputs,
    or a loss that is not finite (the last good checkpoint stays).
    """
    device = torch.device(device)
    head = head.on(device)
    prepared = prepare(clip, head, start, config, out, device)
    claim_folder(out, force, resume=resume)  # deletes nothing: what is replaced goes when all input has proved sound
    resume = resume and files.exists(files.join(out, checkpoints.FILE))

    def begin() -> None:
        clear_partial(out)
        if not resume:
            clear_folder(out)

    [outcome] = refine_batch(
        [prepared], head, config, resume=resume, begin=begin, observe=lambda progress: observe(progress[0])
    )
    if isinstance(outcome, Exception):
        raise outcome
    avatar = finished_avatar(outcome, head, config, out, head_file)
    write_avatar(out, avatar)
    files.remove(files.join(out, checkpoints.FILE))
    return avatar


def finished_avatar(
    refined: Refined,
    head: HeadModel,
    config: RefineConfig,
    out: files.Location,
    head_file: files.Location | None = None,
) -> Avatar:
    """The avatar that a refined subject becomes in the folder ``out``."""
    subject, start = refined.prepared.subject, refined.prepared.start
    clip = subject.clip
    seen = sorted({frame.instant for frame in subject.frames})
    reference = seen[reference_frame(head, clip.params[seen].to(head.template.device), config.seed)]
    return Avatar(
        identity=clip.identity,
        head=HeadReference.of(head),
        uv_resolution=start.layout.resolution,
        layout_fingerprint=start.layout.fingerprint,
        appearance=StaticAppearance(refined.gaussians),
        shape=clip.params.shape[:1],
        static_offset=None if clip.params.static_offset is None else clip.params.static_offset[:1],
        reference_params=clip.params[reference],
        provenance={
            "head_file": None if head_file is None else files.relative(head_file, out),
            "start": start.origin,
            "started_from": {"gaussians": start.fingerprint, **start.provenance},
            "config": config.model_dump(mode="json"),
            "clip": {
                "identity": clip.identity,
                "source": asdict(clip.source),
                "training_frames": len(subject.frames),
                "reference_frame": reference,
                "fps": clip.fps,
                "background": subject.background_kind(config.background),
            },
            "metrics": {
                "iterations": refined.iterations,
                "seconds": round(refined.seconds, 3),
                "max_aspect_ratio": refined.max_aspect_ratio,
                "peak_memory_gib": round(peak_memory(subject.device) / 2**30, 2),
                **refined.latest,
            },
        },
        licence_note=licence_note(HeadReference.of(head), clip.source.licence, start.licence_note),
    )
