"""Refining clips: one into an avatar folder, or several at once, each with its log and checkpoints.

``prepare`` makes a subject ready, ``refine_batch`` optimises prepared ones together, ``finished_avatar`` is what a
refined one becomes; ``refine_clip`` is the three for one clip.
"""

import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from spatialavatar import files, tensor_files
from spatialavatar.avatar import Avatar, StaticAppearance, licence_note, write_avatar
from spatialavatar.avatar.folder import claim_folder, clear_folder, clear_partial
from spatialavatar.clip import TrackedClip
from spatialavatar.clip.reference_frame import reference_frame
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.head import HeadModel, HeadReference
from spatialavatar.refine import checkpoint as checkpoints
from spatialavatar.refine.config import HARMLESS, RefineConfig
from spatialavatar.refine.journal import Journal
from spatialavatar.refine.loop import Refinement, SubjectError
from spatialavatar.refine.start import Start
from spatialavatar.refine.subject import Subject
from spatialavatar.splat.gaussians import LocalGaussians


class StopRefinement(Exception):
    """Raise this from an observer to stop a run after the current iteration, with a checkpoint to resume from."""


@dataclass
class Progress:
    """Where a run stands; handed to the observer after every iteration."""

    iteration: int
    iterations: int
    seconds: float
    latest: dict[str, float] = field(default_factory=dict)  # the last line of the log
    first: int = 0  # iteration at which this run began: that of the checkpoint, or 0
    place: int = 0  # of the subject in the batch, however many have left


@dataclass(frozen=True, eq=False)
class Prepared:
    """A subject that can be optimised: its frames and meshes, its start, and where its checkpoints lie."""

    subject: Subject
    start: Start
    folder: files.Location
    inputs: dict[str, Any]  # what a resumed run must find unchanged


@dataclass(frozen=True, eq=False)
class Refined:
    """What an optimisation made of a subject."""

    prepared: Prepared
    gaussians: LocalGaussians  # B = 1, on the CPU
    iterations: int
    seconds: float  # spent optimising: of a batch the subject's share
    max_aspect_ratio: float
    latest: dict[str, float]  # loss terms, means over the last lines of the log
    log: bytes  # JSON lines


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


def prepare(
    clip: TrackedClip,
    head: HeadModel,
    start: Start,
    config: RefineConfig,
    folder: files.Location,
    device: torch.device | str = "cpu",
) -> Prepared:
    """Raises SpatialAvatarError for a clip of another head, or without training frames."""
    subject = Subject(clip, head, config.resolution, config.frame_memory_gb * 1e9, torch.device(device))
    inputs = {
        "config": config.model_dump(mode="json", exclude=set(HARMLESS)),
        "clip": _clip_facts(clip),
        "head": HeadReference.of(head).hash,
        "layout": start.layout.fingerprint,
        "start": {"origin": start.origin, "gaussians": start.fingerprint[:16]},
    }
    return Prepared(subject, start, folder, inputs)


def refine_batch(
    batch: Sequence[Prepared],
    head: HeadModel,
    config: RefineConfig,
    *,
    resume: bool = True,
    start_over: bool = False,
    begin: Callable[[], None] = lambda: None,
    observe: Callable[[list[Progress]], None] = lambda progress: None,
    uploads: Executor | None = None,
) -> list[Refined | Exception]:
    """Optimise subjects of one layout and image size together; of each what came of it, or its error.

    A subject that fails or is finished leaves the others, whose results are what they would be without it. With
    ``resume`` a subject goes on from its checkpoint where there is one; with ``start_over`` one that is damaged or was
    made from other inputs is passed over, else it is the subject's error. Errors have no tracebacks, which would hold
    the batch. ``begin`` is called when all input has proved sound, ``observe`` after every iteration with the progress
    of each subject that is still there; StopRefinement raised there writes their checkpoints first. ``uploads`` as in
    Journal.
    """
    device = batch[0].subject.device
    layout = batch[0].start.layout.to(device)
    for prepared in batch[1:]:
        layout.require(prepared.start.layout.fingerprint, prepared.start.origin)
    starts = LocalGaussians.cat([prepared.start.gaussians.to(device) for prepared in batch])
    refinement = Refinement([prepared.subject for prepared in batch], head, layout, starts, config)
    journals = [Journal(prepared.folder, prepared.inputs, uploads) for prepared in batch]
    outcomes: list[Refined | Exception | None] = [None] * len(batch)
    rows = list(range(len(batch)))  # the subject in each row of the refinement

    def leave(row: int, outcome: Refined | Exception) -> None:
        outcomes[rows[row]] = without_traceback(outcome) if isinstance(outcome, Exception) else outcome
        refinement.remove(row)
        del rows[row]

    def each(action: Callable[[int, Journal], None]) -> None:
        """For every subject; one that raises leaves."""
        for row in reversed(range(len(rows))):
            try:
                action(row, journals[rows[row]])
            except (SpatialAvatarError, OSError) as e:
                leave(row, e)

    def go_on(row: int, journal: Journal) -> None:
        if resume and files.exists(files.join(journal.folder, checkpoints.FILE)):
            try:
                journal.resume(refinement, row)
            except SpatialAvatarError as e:
                if not start_over or isinstance(e, StoreError):
                    raise

    def preload(row: int, journal: Journal) -> None:
        refinement.subjects[row].preload()

    def finish(row: int, journal: Journal) -> None:
        if refinement.iterations[row] < config.iterations:
            return
        prepared, iterations = batch[rows[row]], refinement.iterations[row]
        gaussians = refinement.gaussians()[row].to("cpu")
        aspect = refinement.max_aspect_ratio(row)
        refined = Refined(prepared, gaussians, iterations, journal.seconds, aspect, journal.latest, journal.log)
        leave(row, refined)

    since = time.perf_counter()

    def share_time() -> None:
        nonlocal since
        now = time.perf_counter()
        for i in rows:
            journals[i].seconds += (now - since) / len(rows)
        since = now

    def tell() -> None:
        if not rows:
            return
        listed = [(refinement.iterations[row], journals[i], i) for row, i in enumerate(rows)]
        observe([Progress(t, config.iterations, j.seconds, j.latest, first[i], i) for t, j, i in listed])

    each(go_on)
    first = {i: refinement.iterations[row] for row, i in enumerate(rows)}
    if rows:
        begin()
    try:
        since = time.perf_counter()
        each(preload)
        tell()
        each(finish)
        while rows:
            try:
                terms = refinement.step().stacked()
            except SubjectError as e:
                assert isinstance(e.__cause__, Exception)
                leave(e.row, e.__cause__)
                continue
            share_time()
            each(lambda row, journal, terms=terms: journal.after_step(refinement, row, terms[:, row]))  # type: ignore[misc]
            share_time()
            tell()
            each(finish)
    except StopRefinement:
        share_time()
        each(lambda row, journal: journal.save(refinement, row))
        for journal in journals:
            journal.settle()
        raise
    return [outcome for outcome in outcomes if outcome is not None]


def without_traceback(error: Exception) -> Exception:
    """The same error, which no longer holds the frames that it passed through, and all that they hold."""
    linked: list[BaseException | None] = [error]
    seen = set()
    while linked:
        if (e := linked.pop()) is not None and id(e) not in seen:
            seen.add(id(e))
            e.__traceback__ = None
            linked += [e.__cause__, e.__context__]
    return error


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
                "peak_memory_gib": _peak_memory_gib(subject.device),
                **refined.latest,
            },
        },
        licence_note=licence_note(HeadReference.of(head), clip.source.licence, start.licence_note),
    )


def _clip_facts(clip: TrackedClip) -> dict[str, Any]:
    """What names a clip's content without decoding its pictures."""
    arrays = {f.name: getattr(clip.params, f.name) for f in fields(clip.params)}
    arrays |= {"world_to_camera": clip.world_to_camera, "intrinsics": clip.intrinsics}
    return {
        "identity": clip.identity,
        "tracking": tensor_files.content_hash({name: a.numpy() for name, a in arrays.items() if a is not None}),
        "size": [clip.width, clip.height],
        "test_from": clip.test_from,
        "test_cameras": list(clip.test_cameras),
    }


def _peak_memory_gib(device: torch.device) -> float:
    """Of the device, or of the process since its start."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
