"""Refining one clip into an avatar folder: start, log, checkpoints, resume, the finished avatar."""

import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from spatialavatar import files
from spatialavatar.avatar import Avatar, StaticAppearance, licence_note, write_avatar
from spatialavatar.avatar.folder import LOG, claim_folder, clear_folder, clear_partial
from spatialavatar.avatar.reference_frame import reference_frame
from spatialavatar.clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, HeadReference
from spatialavatar.refine import checkpoint as checkpoints
from spatialavatar.refine.checkpoint import Checkpoint
from spatialavatar.refine.config import RefineConfig
from spatialavatar.refine.loop import TERM_NAMES, Refinement, StepTerms
from spatialavatar.refine.start import Start
from spatialavatar.refine.subject import Subject

SECONDS_BETWEEN_LOG_WRITES = 1.0  # at least: a file on a store is written whole


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
    head = head.on(device)
    subject = Subject(clip, head, config.resolution, config.frame_memory_gb * 1e9, device)
    inputs = {
        "config": config.model_dump(mode="json"),
        "clip": _clip_facts(clip),
        "head": HeadReference.of(head).hash,
        "layout": start.layout.fingerprint,
        "start": {"origin": start.origin, "gaussians": start.fingerprint[:16]},
    }
    claim_folder(out, force, resume=resume)  # deletes nothing: what is replaced goes when all input has proved sound
    layout = start.layout.to(device)
    refinement = Refinement([subject], head, layout, start.gaussians.to(device), config)
    run = _Run(refinement, out, inputs, observe)
    clear_partial(out)
    if resume and files.exists(files.join(out, checkpoints.FILE)):
        run.resume()
    else:
        clear_folder(out)
    try:
        run.go()
    except StopRefinement:
        run.save()
        raise

    seen = sorted({frame.instant for frame in subject.frames})
    reference = seen[reference_frame(head, clip.params[seen].to(device), config.seed)]
    avatar = Avatar(
        identity=clip.identity,
        head=HeadReference.of(head),
        uv_resolution=layout.resolution,
        layout_fingerprint=layout.fingerprint,
        appearance=StaticAppearance(refinement.gaussians().to("cpu")),
        shape=clip.params.shape[:1],
        static_offset=None if clip.params.static_offset is None else clip.params.static_offset[:1],
        reference_params=clip.params[reference],
        provenance={
            "head_file": None if head_file is None else files.relative(head_file, out),
            "start": start.origin,
            "started_from": {"gaussians": start.fingerprint, **start.provenance},
            "config": inputs["config"],
            "clip": {
                "identity": clip.identity,
                "source": asdict(clip.source),
                "training_frames": len(subject.frames),
                "reference_frame": reference,
                "fps": clip.fps,
                "background": subject.background_kind(config.background),
            },
            "metrics": {
                "iterations": refinement.iteration,
                "seconds": round(run.seconds, 3),
                "max_aspect_ratio": refinement.max_aspect_ratio(),
                "peak_memory_gib": _peak_memory_gib(device),
                **run.latest,
            },
        },
        licence_note=licence_note(HeadReference.of(head), clip.source.licence, start.licence_note),
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
        self._window: list[torch.Tensor] = []  # on the device: reading a number would wait for it
        self._log_lines: list[str] = []
        self._log_written = -math.inf

    def resume(self) -> None:
        saved = checkpoints.load_checkpoint(self.out, self.inputs)
        self.refinement.load_state(saved.tensors, saved.iteration)
        self.seconds = saved.seconds
        self._window = [torch.tensor(terms, device=self.refinement.device) for terms in saved.window]
        where = files.join(self.out, LOG)
        lines = files.read_bytes(where).decode().splitlines() if files.exists(where) else []
        # lines of iterations that the killed run did after its checkpoint are done again
        self._log_lines = [line for line in lines if json.loads(line)["iteration"] <= saved.iteration]
        self._write_log()
        if self._log_lines:
            last = json.loads(self._log_lines[-1])
            self.latest = {name: last[name] for name in TERM_NAMES}

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
        self._write_log()
        window = [terms.tolist() for terms in self._window]
        state = self.refinement.state()
        checkpoint = Checkpoint(state, self.refinement.iteration, self.inputs, self.seconds, window)
        checkpoints.save_checkpoint(self.out, checkpoint)

    def _after_step(self, terms: StepTerms) -> None:
        config, t = self.refinement.config, self.refinement.iteration
        self._window.append(terms.stacked().mean(-1))
        last = t == config.iterations
        if t % config.log_every == 0 or last:
            self._log()
        if t % config.checkpoint_every == 0 and not last:
            self.save()
        self._tick()
        self.observe(self._progress())

    def _log(self) -> None:
        self._require_finite()
        means = torch.stack(self._window).cpu().double().mean(0)
        self._window = []
        self._tick()
        self.latest = {name: float(value) for name, value in zip(TERM_NAMES, means)}
        line = {"iteration": self.refinement.iteration, **self.latest}
        line["max_aspect_ratio"] = self.refinement.max_aspect_ratio()
        line["seconds"] = round(self.seconds, 3)
        self._log_lines.append(json.dumps(line, allow_nan=False))
        if (
            self._since - self._log_written > SECONDS_BETWEEN_LOG_WRITES
            or self.refinement.iteration == self.refinement.config.iterations
        ):
            self._write_log()

    def _require_finite(self) -> None:
        terms = torch.stack(self._window) if self._window else torch.zeros(1)
        if not (self.refinement.is_finite() and bool(torch.isfinite(terms).all())):
            kept = files.exists(files.join(self.out, checkpoints.FILE))
            raise SpatialAvatarError(
                f"{self.out}: loss or Gaussians not finite by iteration {self.refinement.iteration}; "
                + ("the last good checkpoint is kept; " if kept else "")
                + "lower learning_rates, or run 'spatialavatar clip validate' on the input"
            )

    def _write_log(self) -> None:
        files.write_bytes(files.join(self.out, LOG), "".join(line + "\n" for line in self._log_lines).encode())
        self._log_written = time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def _progress(self) -> Progress:
        config = self.refinement.config
        return Progress(self.refinement.iteration, config.iterations, self.seconds, self.latest)


def _clip_facts(clip: TrackedClip) -> dict[str, Any]:
    """What names a clip's content without decoding its pictures."""
    arrays = {f.name: getattr(clip.params, f.name) for f in fields(clip.params)}
    arrays |= {"world_to_camera": clip.world_to_camera, "intrinsics": clip.intrinsics}
    return {
        "identity": clip.identity,
        "tracking": files.content_hash({name: a.numpy() for name, a in arrays.items() if a is not None}),
        "size": [clip.width, clip.height],
        "test_from": clip.test_from,
        "test_cameras": list(clip.test_cameras),
    }


def _peak_memory_gib(device: torch.device) -> float:
    """Of the device, or of the process since its start."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
