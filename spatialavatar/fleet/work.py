"""The work of a fleet on one subject: read it, refine it, measure it, write it (the stages of pipeline.py)."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from spatialavatar import __version__, files, tensor_files
from spatialavatar.avatar import Avatar, AvatarRenderer, StaticAppearance, write_avatar
from spatialavatar.avatar.folder import LOG, METRICS
from spatialavatar.avatar.reconstruct import LoadedGenerator
from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.pictures import EncodedFrame, encode
from spatialavatar.errors import without_traceback
from spatialavatar.evaluation.contact_sheet import thumbnail
from spatialavatar.evaluation.self_reenactment import background_for, compare, evaluate, measured_frames
from spatialavatar.fleet.config import FleetConfig
from spatialavatar.fleet.device import forget_peak, is_broken, memory_in_use, on_device, with_index, worker_name
from spatialavatar.fleet.gate import review, tracking_residual
from spatialavatar.fleet.pipeline import Job, Stopped, Timing
from spatialavatar.fleet.records import (
    AVATARS,
    RECORD_FORMAT,
    THUMBNAIL,
    UNFINISHED,
    VERSION,
    Recipe,
    Record,
    write_record,
)
from spatialavatar.fleet.status import now
from spatialavatar.fleet.subjects import open_subject
from spatialavatar.generator.checkpoint import PackedGenerator
from spatialavatar.head import HeadModel
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.refine import (
    Prepared,
    Progress,
    Refined,
    Start,
    StopRefinement,
    finished_avatar,
    generator_start,
    prepare,
    refine_batch,
    template_start,
)

T = TypeVar("T")
READERS = 16  # frames of a clip that are asked for at once
THUMBNAIL_SIZE = 192  # pixels of the longer side of each of its pictures
_TIMED = 20  # iterations, at least, before their time says something
MEASURED = ("psnr", "ssim", "lpips", "mse", "max_aspect_ratio", "frames", "split")


@dataclass(frozen=True, eq=False)
class Instruments:
    """What every worker gets; picklable, and the same for all."""

    config: FleetConfig
    recipe: Recipe
    head: HeadModel
    head_file: str | None
    generator: PackedGenerator | None
    lpips: dict[str, Tensor] | None


@dataclass(frozen=True, eq=False)
class Ready:
    """A subject that can be optimised, with all that was read of it in memory."""

    prepared: Prepared
    residual: float | None  # of its tracking


@dataclass(frozen=True, eq=False)
class Measured:
    """All that is written of a refined subject. It may wait for the store, so frames and meshes are not among it."""

    log: bytes  # JSON lines
    iterations: int
    seconds: float  # spent optimising
    avatar: Avatar  # on the CPU
    report: dict[str, Any]
    residual: float | None
    thumbnail: bytes  # JPEG


class RefineWork:
    def __init__(self, instruments: Instruments, device: torch.device | str, uploads: Executor) -> None:
        """``uploads`` has one thread, in which checkpoints are written.

        Raises SpatialAvatarError: a generator of another head, encoder weights that are missing."""
        self._instruments, self._config, self._uploads = instruments, instruments.config, uploads
        self._device = with_index(torch.device(device))
        self._worker = worker_name(self._device)
        self._head = instruments.head.on(self._device)
        self._lpips = None if instruments.lpips is None else Lpips(instruments.lpips, self._device)
        self._generator: LoadedGenerator | None = None
        self._template: Start | None = None
        if (packed := instruments.generator) is not None:
            made = packed.build(instruments.head, self._device)
            self._generator = LoadedGenerator(made, packed.facts, packed.where)
        else:
            # on the CPU, so that its last bits, and with them the checkpoints' inputs, are the same on all workers
            self._template = template_start(instruments.head, self._config.refine.uv_resolution)
        self._progress = 0.0

    def prepare(self, job: Job) -> Ready:
        return on_device(lambda: self._ready(job), "takes more memory than the GPU has; lower refine.resolution")

    def optimise(self, batch: list[Ready], stop: Callable[[], bool]) -> tuple[list[Measured | Exception], Timing]:
        """Subjects of one image size at a time; then each that is finished is measured, even after a stop."""
        forget_peak(self._device)
        try:
            measured, together, steps, optimising = on_device(
                lambda: self._optimised(batch, stop),
                f"a batch of {len(batch)} does not fit into the GPU; lower refine.resolution",
            )
        finally:
            self._progress = 0.0
        seconds = statistics.median(steps) if len(steps) >= _TIMED else None
        return measured, Timing(together, seconds, memory_in_use(self._device, self._config.workers.cpus), optimising)

    def deliver(self, job: Job, result: Measured) -> Record:
        """Write what the subject became, the record last, and remove its checkpoints. Nothing of it needs the device,
        whose errors would be taken for the subject's."""
        out = self._config.output
        look = result.avatar.appearance
        assert isinstance(look, StaticAppearance)
        # by its content: whoever makes the same avatar again writes the same files, and another one others
        content = tensor_files.content_hash({n: t.numpy() for n, t in look.gaussians.tensors().items()})
        place = f"{AVATARS}/{job.subject.id}.{content[:12]}"
        folder = files.join(out, place)
        files.write_bytes(files.join(folder, LOG), result.log)
        files.write_json(files.join(folder, METRICS), result.report)
        files.write_bytes(files.join(folder, THUMBNAIL), result.thumbnail)
        write_avatar(folder, result.avatar)
        metrics = {name: result.report[name] for name in MEASURED}
        metrics |= {"worst_psnr": result.report["worst_frame"]["psnr"], "tracking_residual": result.residual}
        record = {
            "format": RECORD_FORMAT,
            "version": VERSION,
            "id": job.subject.id,
            "digest": self._instruments.recipe.digest(job.subject),
            "clip": job.subject.clip,
            "identity": result.avatar.identity,
            "avatar": place,
            "metrics": metrics,
            "review": review(self._config.gate, metrics),
            "iterations": result.iterations,
            "seconds": round(result.seconds, 3),
            "attempts": job.attempts,
            "worker": self._worker,
            "finished": now(),
            "config_hash": self._instruments.recipe.config_hash,
            "layout_fingerprint": self._instruments.recipe.layout_fingerprint,
            "spatialavatar": __version__,
        }
        write_record(out, job.name, record)
        self._uploads.submit(lambda: None).result()  # what is still written would come back after it was removed
        files.remove(files.join(out, UNFINISHED, job.name))
        return record

    def progress(self) -> float:
        return self._progress

    def _ready(self, job: Job) -> Ready:
        clip = in_memory(open_subject(job.subject))
        clip.require_head(self._instruments.head)
        start = self._template
        if start is None:
            assert self._generator is not None
            start = generator_start(
                clip, self._instruments.head, self._generator, self._config.sources, self._config.refine.seed
            )
        folder = files.join(self._config.output, UNFINISHED, job.name)
        prepared = prepare(clip, self._head, start, self._config.refine, folder, self._device)
        prepared.subject.preload()
        return Ready(prepared, tracking_residual(clip, self._instruments.head))

    def _optimised(
        self, batch: list[Ready], stop: Callable[[], bool]
    ) -> tuple[list[Measured | Exception], int, list[float], float]:
        """With the size of the largest group, the seconds that each of its iterations took, for one subject, and the
        seconds of all groups."""
        sizes = [(ready.prepared.subject.width, ready.prepared.subject.height) for ready in batch]
        groups = [[row for row, other in enumerate(sizes) if other == size] for size in sorted(set(sizes))]
        outcomes: list[Refined | Exception] = [Stopped()] * len(batch)
        done: dict[int, float] = {}  # by row, the share that this process has done of what it had to do
        largest = max(groups, key=len)
        steps: list[float] = []
        optimising = 0.0
        for rows in groups:
            if stop():
                break
            taken: list[float] = []
            began = time.monotonic()
            of_size = self._refined(rows, [batch[row].prepared for row in rows], stop, taken, done)
            optimising += time.monotonic() - began
            steps = taken if rows is largest else steps
            for row, outcome in zip(rows, of_size):
                outcomes[row] = outcome
        measured = [
            outcome if isinstance(outcome, Exception) else self._measured(outcome, ready.residual)
            for ready, outcome in zip(batch, outcomes)
        ]
        return measured, len(largest), steps, optimising

    def _refined(
        self,
        rows: list[int],
        batch: list[Prepared],
        stop: Callable[[], bool],
        steps: list[float],
        done: dict[int, float],
    ) -> list[Refined | Exception]:
        """Adds to ``steps`` the seconds that each iteration took, for one subject; keeps ``done`` of each row."""
        last = None

        def observe(progress: list[Progress]) -> None:
            nonlocal last
            now = time.perf_counter()
            if last is not None and len(progress) == len(batch):
                steps.append((now - last) / len(batch))
            last = now
            for p in progress:
                done[rows[p.place]] = (p.iteration - p.first) / max(p.iterations, 1)
            self._progress = sum(done.values())
            if stop():
                raise StopRefinement

        try:
            return refine_batch(
                batch, self._head, self._config.refine, start_over=True, observe=observe, uploads=self._uploads
            )
        except StopRefinement:
            return [Stopped() for _ in batch]

    def _measured(self, refined: Refined, residual: float | None) -> Measured | Exception:
        config, clip = self._config, refined.prepared.subject.clip
        try:
            out = files.join(config.output, AVATARS, "ID")  # as deep as its place will be
            avatar = finished_avatar(refined, self._head, config.refine, out, self._instruments.head_file)
            renderer = AvatarRenderer(avatar, self._head, self._device)
            split, limit = measured_frames(clip, config.evaluation.frames)
            behind = background_for(clip)
            report = evaluate(
                renderer,
                clip,
                split,
                resolution=config.refine.resolution,
                background=behind,
                lpips=self._lpips,
                limit=limit,
            )
            worst = FrameIndex(report["worst_frame"]["instant"], report["worst_frame"]["camera"])
            [shown] = compare(renderer, clip, [worst], THUMBNAIL_SIZE, behind)
            picture = encode(thumbnail(shown, renderer), "jpg")
            return Measured(refined.log, refined.iterations, refined.seconds, avatar, report, residual, picture)
        except Exception as e:
            if isinstance(e, torch.OutOfMemoryError) or is_broken(e):
                raise
            return without_traceback(e)  # of this subject; the others may be sound


def in_memory(clip: TrackedClip) -> TrackedClip:
    """The same clip with the bytes of all its pictures read. Raises SpatialAvatarError as reading does."""
    frames = clip.split("all")
    with ThreadPoolExecutor(READERS) as pool:
        held: dict[FrameIndex, EncodedFrame] = dict(zip(frames, pool.map(clip.read_frame, frames)))
    return replace(clip, read_frame=held.__getitem__)
