"""Refining one clip into an avatar folder: start, log, checkpoints, resume, the finished avatar."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from spatialavatar import files
from spatialavatar.avatar import Avatar, licence_note, read_avatar, write_avatar
from spatialavatar.avatar.avatar import MANIFEST
from spatialavatar.clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, HeadReference, UVLayout, build_layout, texel_spacing
from spatialavatar.refine import checkpoint as checkpoints
from spatialavatar.refine.checkpoint import Checkpoint
from spatialavatar.refine.config import RefineConfig
from spatialavatar.refine.loop import TERM_NAMES, Refinement, StepTerms
from spatialavatar.refine.reference_frame import reference_frame
from spatialavatar.refine.subject import Subject
from spatialavatar.splat.gaussians import LocalGaussians
from spatialavatar.splat.template_skin import template_skin

LOG = "refine.jsonl"


@dataclass(frozen=True)
class Start:
    """The avatar that a refinement starts from, and what to call it."""

    gaussians: LocalGaussians
    layout: UVLayout
    origin: str


def template_start(head: HeadModel, uv_resolution: int, channels: int = 3) -> Start:
    layout = build_layout(head, uv_resolution)
    skin = template_skin(
        head.template, head.faces, layout.face_index, layout.barycentric, texel_spacing(head, layout), channels
    )
    return Start(skin, layout, "template")


def avatar_start(folder: files.Location, head: HeadModel) -> Start:
    """Another avatar's Gaussians and layout. Raises SpatialAvatarError when it belongs to another head."""
    avatar = read_avatar(folder)
    return Start(avatar.gaussians, avatar.layout(head, str(folder)), f"avatar {avatar.identity}")


class StopRefinement(Exception):
    """Raise this from an observer to stop a run after the current iteration, with a checkpoint to resume from."""


@dataclass
class Progress:
    """Where a run stands; handed to the observer after every iteration."""

    iteration: int
    iterations: int
    seconds: float
    latest: dict[str, float] = field(default_factory=dict)  # the last line of the log


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
    head = head.to(device)
    clip.require_head(head)
    inputs = {
        "config": config.model_dump(mode="json"),
        "clip": {"identity": clip.identity, "frames": clip.instants, "test_from": clip.test_from},
        "head": HeadReference.of(head).hash,
        "layout": start.layout.fingerprint,
        "start": start.origin,
    }
    _claim(out, resume, force)
    subject = Subject(clip, head, config.resolution, config.frame_memory_gb * 1e9, device)
    layout = start.layout.to(device)
    refinement = Refinement([subject], head, layout, start.gaussians.to(device), config)
    run = _Run(refinement, out, inputs, observe)
    if resume and files.exists(files.join(out, checkpoints.FILE)):
        run.resume()
    elif files.is_local(out):
        files.remove(files.join(out, LOG))
    try:
        run.go()
    except StopRefinement:
        run.save()
        raise

    reference = reference_frame(head, clip.params, config.seed)
    avatar = Avatar(
        kind="static",
        identity=clip.identity,
        head=HeadReference.of(head),
        uv_resolution=layout.resolution,
        layout_fingerprint=layout.fingerprint,
        gaussians=refinement.gaussians().to("cpu"),
        shape=clip.params.shape[:1],
        static_offset=None if clip.params.static_offset is None else clip.params.static_offset[:1],
        reference_params=clip.params[reference],
        provenance={
            "head_file": None if head_file is None else files.relative(head_file, out),
            "start": start.origin,
            "config": inputs["config"],
            "clip": {
                "identity": clip.identity,
                "source": asdict(clip.source),
                "training_frames": len(subject.frames),
                "reference_frame": reference,
                "fps": clip.fps,
                "background": "random" if subject.supervises_alpha else "black",
            },
            "metrics": {
                "iterations": refinement.iteration,
                "seconds": round(run.seconds, 3),
                "max_aspect_ratio": refinement.max_aspect_ratio(),
                **run.latest,
            },
        },
        licence_note=licence_note(HeadReference.of(head), clip.source.licence),
    )
    write_avatar(out, avatar)
    files.remove(files.join(out, checkpoints.FILE))
    return avatar


class _Run:
    """The bookkeeping around a Refinement: time, log, checkpoints."""

    def __init__(
        self, refinement: Refinement, out: files.Location, inputs: dict[str, Any], observe: Callable[[Progress], None]
    ) -> None:
        self.refinement, self.out, self.inputs, self.observe = refinement, out, inputs, observe
        self.seconds = 0.0
        self.latest: dict[str, float] = {}
        self._window: list[torch.Tensor] = []
        self._log_lines: list[str] = []

    def resume(self) -> None:
        saved = checkpoints.load_checkpoint(self.out, self.inputs)
        self.refinement.load_state(saved.tensors, saved.iteration)
        self.seconds = saved.seconds
        self._window = [torch.tensor(terms) for terms in saved.window]
        where = files.join(self.out, LOG)
        lines = files.read_bytes(where).decode().splitlines() if files.exists(where) else []
        # lines of iterations that the killed run did after its checkpoint are done again
        self._log_lines = [line for line in lines if json.loads(line)["iteration"] <= saved.iteration]
        self._write_log()

    def go(self) -> None:
        self._since = time.perf_counter()
        for subject in self.refinement.subjects:
            subject.preload()
        self.observe(self._progress())
        self.refinement.run(self._after_step)

    def save(self) -> None:
        """Raises SpatialAvatarError instead of writing numbers that are not finite."""
        self._require_finite()
        self._tick()
        window = [[float(x) for x in terms] for terms in self._window]
        state = self.refinement.state()
        checkpoint = Checkpoint(state, self.refinement.iteration, self.inputs, self.seconds, window)
        checkpoints.save_checkpoint(self.out, checkpoint)

    def _after_step(self, terms: StepTerms) -> None:
        config, t = self.refinement.config, self.refinement.iteration
        self._window.append(terms.stacked().mean(-1).cpu())
        last = t == config.iterations
        if t % config.log_every == 0 or last:
            self._log()
        if t % config.checkpoint_every == 0 and not last:
            self.save()
        self._tick()
        self.observe(self._progress())

    def _log(self) -> None:
        self._require_finite()
        means = torch.stack(self._window).double().mean(0)
        self._window = []
        self._tick()
        self.latest = {name: float(value) for name, value in zip(TERM_NAMES, means)}
        line = {"iteration": self.refinement.iteration, **self.latest}
        line["max_aspect_ratio"] = self.refinement.max_aspect_ratio()
        line["seconds"] = round(self.seconds, 3)
        self._log_lines.append(json.dumps(line, allow_nan=False))
        self._write_log()

    def _require_finite(self) -> None:
        sound = self.refinement.is_finite() and all(bool(torch.isfinite(terms).all()) for terms in self._window)
        if not sound:
            kept = files.exists(files.join(self.out, checkpoints.FILE))
            raise SpatialAvatarError(
                f"{self.out}: loss or Gaussians not finite by iteration {self.refinement.iteration}; "
                + ("the last good checkpoint is kept; " if kept else "")
                + "lower learning_rates, or run 'spatialavatar clip validate' on the input"
            )

    def _write_log(self) -> None:
        files.write_bytes(files.join(self.out, LOG), "".join(line + "\n" for line in self._log_lines).encode())

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def _progress(self) -> Progress:
        config = self.refinement.config
        return Progress(self.refinement.iteration, config.iterations, self.seconds, self.latest)


def _claim(out: files.Location, resume: bool, force: bool) -> None:
    names = files.list_folder(out)
    if checkpoints.FILE in names and not (resume or force):
        raise SpatialAvatarError(
            f"{out}: holds an unfinished refinement; go on with --resume, or start over with --force"
        )
    if MANIFEST in names and not force and not (resume and checkpoints.FILE in names):
        raise SpatialAvatarError(f"{out}: holds a finished avatar; name another folder, or replace it with --force")
    files.claim_output_folder(out, checkpoints.FILE if resume else MANIFEST, force)
    if force and not resume:
        files.remove(files.join(out, checkpoints.FILE))
