"""A training run in one process: batches, steps, log, sample sheets, checkpoints (method.md section 3).

The run's folder holds ``config.yaml`` (resolved), ``train.jsonl``, ``tensorboard/``, ``sheets/`` and ``checkpoints/``,
and in Phase 2 ``anchor.safetensors``. A killed run goes on from its newest complete checkpoint, on the CPU bit for bit
as if it had never stopped.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from spatialavatar import files
from spatialavatar.clip.pictures import encode
from spatialavatar.config import load_config
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.contact_sheet import stacked
from spatialavatar.generator.checkpoint import CHECKPOINTS, complete_checkpoints
from spatialavatar.generator.generator import Generator
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.training.batch import Batch, PackedBatch, collate, make_example
from spatialavatar.training.checkpoint import (
    ANCHOR,
    Checkpoint,
    TrainingState,
    newest_checkpoint,
    optimizer_arrays,
    restore_optimizer,
    save_checkpoint,
)
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.pool import ClipPool, open_pool
from spatialavatar.training.setup import (
    anchor_at,
    anchor_hash,
    build_module,
    find_parent,
    licence_of,
    read_anchor,
    start_generator,
    training_head,
    write_anchor,
)
from spatialavatar.training.sheet import mean_psnr, sample_sheet
from spatialavatar.training.step import Objective, render
from spatialavatar.training.stream import batches, worker_batches
from spatialavatar.training.trainer import NotFinite, Trainer

CONFIG = "config.yaml"
LOG = "train.jsonl"
SHEETS = "sheets"
TENSORBOARD = "tensorboard"
FAILED_BATCH = "failed-batch.safetensors"
PARTS = (CHECKPOINTS, LOG, SHEETS, TENSORBOARD, FAILED_BATCH, ANCHOR)  # of a run, beside its configuration
SHEET_ROWS = 6
SECONDS_BETWEEN_LOG_WRITES = 1.0  # at least: a file on a store is written whole


class StopTraining(Exception):
    """Raise this from an observer to stop after the current step, with a checkpoint to resume from."""


@dataclass
class Progress:
    """Where a run stands; handed to the observer after every step."""

    step: int
    steps: int
    seconds: float
    latest: dict[str, float] = field(default_factory=dict)  # the last line of the log
    saved: str | None = None  # the newest checkpoint


def train(
    config: TrainConfig,
    out: files.Location,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    force: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> str:
    """Train a generator as ``config`` says; returns the folder of the last checkpoint.

    ``resume`` goes on from the newest checkpoint that is whole, and returns at once when that is the last one. It needs
    nothing of the Phase-1 run. Raises SpatialAvatarError for input that does not fit, a folder that is taken, a
    checkpoint of another configuration, or a loss that is not finite: the batch is then in
    ``failed-batch.safetensors`` and the last good checkpoint stays. StopTraining raised by ``observe`` writes a
    checkpoint before it goes on its way.
    """
    claim_run(out, resume, force, config.phase1_checkpoint)
    found = newest_checkpoint(out, config) if resume else None
    if found is None:
        find_parent(config)  # what is wrong shows before anything is made
    elif found.state.step >= config.steps:
        observe(Progress(found.state.step, config.steps, found.state.seconds, saved=found.folder))
        return found.folder
    lpips = Lpips.require(device=device) if config.loss.lambda_lp > 0 else None
    head = training_head(config)
    pool = open_pool(config.data, head, config.phase)
    held_out = pool if config.held_out is None else open_pool(config.held_out, head, config.phase)
    anchored, anchor = config.loss.lambda_sp > 0, None
    if found is None:
        generator, parent = start_generator(config, head)
        anchor = anchor_at(generator) if anchored else None
        for stale in PARTS:
            files.remove(files.join(out, stale))
    else:
        generator, parent = found.generator(config, head), found.state.parent
        anchor = read_anchor(files.join(out, ANCHOR), found.state.anchor) if anchored else None
    files.write_bytes(files.join(out, CONFIG), yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    if found is None and anchor is not None:
        write_anchor(files.join(out, ANCHOR), anchor)
    trainer = Trainer(build_module(config, generator, anchor, device, lpips), config)
    origin = Origin(parent, licence_of(generator, pool, parent), anchor_hash(anchor))
    run = _Run(trainer, generator, held_out, config, out, origin, observe)
    if found is not None:
        run.resume(found)
    first = trainer.step_number
    with closing(
        worker_batches(head, config, first) if config.data.workers else batches(pool, config, first)
    ) as stream:
        try:
            run.go(stream, torch.device(device))
        except StopTraining:
            run.save()
            raise
        finally:
            run.close()
    files.remove(files.join(out, FAILED_BATCH))  # of a step that went well in the end
    return complete_checkpoints(out)[-1]


def claim_run(out: files.Location, resume: bool, force: bool, parent: str | None = None) -> None:
    """Raises SpatialAvatarError when ``out`` holds what this run must not replace, ``force`` or not.

    That is whatever is no training run of ours but bears one of its names, and the run that this one goes on from.
    """
    if parent is not None and _inside(parent, out):
        raise SpatialAvatarError(f"{out}: holds phase1_checkpoint {parent}; name another folder for this run")
    names = files.list_folder(out)
    if CONFIG in names:
        try:
            load_config(TrainConfig, files.join(out, CONFIG))
        except SpatialAvatarError as e:
            raise SpatialAvatarError(
                f"{out}: its {CONFIG} is no training run's of this program ({e}); name another folder"
            ) from None
        if not (resume or force):
            raise SpatialAvatarError(f"{out}: holds a training run; go on with --resume, or start over with --force")
    elif taken := [name for name in PARTS if name in names]:
        raise SpatialAvatarError(f"{out}: holds {taken[0]}, but no {CONFIG} of a training run; name another folder")
    files.claim_output_folder(out, CONFIG, force)


def _inside(location: str, folder: files.Location) -> bool:
    if files.is_local(location) and files.is_local(folder):
        return files.local_path(location).resolve().is_relative_to(files.local_path(folder).resolve())
    return files.join(location, "").startswith(files.join(folder, ""))


@dataclass(frozen=True)
class Origin:
    """Where a training comes from, as its checkpoints say."""

    parent: dict[str, Any] | None  # hash of the Phase-1 generator, and how that was trained
    licence: str
    anchor: str | None  # hash of the weights that L2-SP holds on to


class _Run:
    """The bookkeeping around a Trainer."""

    def __init__(
        self,
        trainer: Trainer,
        generator: Generator,
        held_out: ClipPool,
        config: TrainConfig,
        out: files.Location,
        origin: Origin,
        observe: Callable[[Progress], None],
    ) -> None:
        self.trainer, self.generator, self._held_out_pool = trainer, generator, held_out
        self.config, self.out, self.origin, self.observe = config, out, origin, observe
        self.progress = Progress(0, config.steps, 0.0)
        self._window: list[dict[str, float]] = []
        self._log_lines: list[str] = []
        self._log_written = 0.0
        self._since = time.perf_counter()
        self._board: Any = None
        self._held_out: list[Batch] | None = None

    def resume(self, found: Checkpoint) -> None:
        """Stand where the checkpoint was written; the generator has its weights already."""
        restore_optimizer(self.generator, self.trainer.optimizer, found.moments)
        state = found.state
        self.trainer.seek(state.step)
        self._window = state.window
        self.progress = Progress(state.step, self.config.steps, state.seconds, saved=found.folder)
        where = files.join(self.out, LOG)
        lines = files.read_bytes(where).decode().splitlines() if files.exists(where) else []
        # lines of steps that the killed run did after its checkpoint are done again
        self._log_lines = [line for line in lines if json.loads(line)["step"] <= state.step]

    def go(self, stream: Iterator[PackedBatch], device: torch.device) -> None:
        self._since = time.perf_counter()
        self.observe(self.progress)
        while self.trainer.step_number < self.config.steps:
            batch = next(stream).unpacked(device)
            try:
                objective, norm = self.trainer.step(batch)
                self._after_step(objective, norm)
            except NotFinite as e:
                raise self._stopped(batch, e) from None
            except torch.OutOfMemoryError:
                raise SpatialAvatarError(
                    f"{self.out}: out of memory on {device} at step {self.trainer.step_number + 1} with batch_size "
                    f"{self.config.batch_size}; lower it, or set gradient_checkpointing: true (--resume takes that); "
                    "'spatialavatar model summary --config FILE' says what a training needs"
                ) from None

    def save(self) -> None:
        """Write a checkpoint unless the newest one is of this very step."""
        step = self.trainer.step_number
        self._tick()
        self._write_log()
        name = f"step-{step:08d}"
        if self.progress.saved is not None and self.progress.saved.endswith(name):
            return
        config = self.config.model_dump(mode="json")
        origin = self.origin
        state = TrainingState(step, self.progress.seconds, config, origin.parent, self._window, origin.anchor)
        training = {
            "phase": self.config.phase,
            "step": step,
            "samples": step * self.config.batch_size,
            "resolution": self.config.resolution,  # pixels that it learned to fill
            "licence": origin.licence,
            "parent": origin.parent,
        }
        moments = optimizer_arrays(self.generator, self.trainer.optimizer)
        keep = self.config.keep_checkpoints
        self.progress.saved = save_checkpoint(self.out, self.generator, moments, state, training, keep)

    def close(self) -> None:
        self._write_log()
        if self._board is not None:
            self._board.close()

    def _after_step(self, objective: Objective, norm: float) -> None:
        step, config = self.trainer.step_number, self.config
        tensors = {"loss": objective.loss.detach(), **objective.terms}
        values = torch.stack(list(tensors.values())).tolist()  # waits for the device once
        self._window.append({**dict(zip(tensors, values, strict=True)), "gradient_norm": norm})
        last = step == config.steps
        self.progress.step = step
        if step % config.log_every == 0 or last:
            self._log()
        if step % config.sheet_every == 0 or last:
            self._sheet()
        if step % config.checkpoint_every == 0 or last:
            self.save()
        self._tick()
        self.observe(self.progress)

    def _log(self) -> None:
        self._tick()
        step, count = self.trainer.step_number, len(self._window)
        means = {name: sum(line[name] for line in self._window) / count for name in self._window[0]}
        self._window = []
        line = {
            "step": step,
            **means,
            "learning_rate": self.trainer.learning_rate,
            "seconds": round(self.progress.seconds, 3),
        }
        self.progress.latest = line
        self._log_lines.append(json.dumps(line, allow_nan=False))
        board = self._tensorboard()
        for name, value in line.items():
            if board is not None and name != "step":
                board.add_scalar(f"train/{name}", value, step)
        if time.perf_counter() - self._log_written > SECONDS_BETWEEN_LOG_WRITES:
            self._write_log()

    @torch.no_grad()
    def _sheet(self) -> None:
        """Held-out samples as they are now: a picture, and their PSNR in the log."""
        self._tick()
        if self._held_out is None:
            self._held_out = held_out_batches(self.config, self._held_out_pool)
        device = next(self.generator.parameters()).device
        self.trainer.module.eval()
        shown = []
        for batch in self._held_out:
            there = batch.to(device)
            decoded = self.generator(there.sources, there.target.params, there.target.camera)
            shown.append((batch, render(self.generator, decoded, there)))
        value = mean_psnr([pictures for _, pictures in shown])
        rows = math.ceil(SHEET_ROWS / len(shown))
        picture = stacked([sample_sheet(batch, pictures, rows) for batch, pictures in shown])
        step = self.trainer.step_number
        files.write_bytes(files.join(self.out, SHEETS, f"step-{step:08d}.png"), encode(picture, "png"))
        self._log_lines.append(json.dumps({"step": step, "held_out_psnr": round(value, 4)}))
        self.progress.latest = {**self.progress.latest, "held_out_psnr": value}
        board = self._tensorboard()
        if board is not None:
            board.add_scalar("held_out/psnr", value, step)
            board.add_image("held_out/samples", picture, step, dataformats="HWC")
        self._since = time.perf_counter()  # sheets are no training time

    def _tensorboard(self) -> Any:
        """The event writer; none where the run's folder is on a store."""
        if self._board is None and files.is_local(self.out):
            from torch.utils.tensorboard import SummaryWriter

            folder = files.local_path(files.join(self.out, TENSORBOARD))
            self._board = SummaryWriter(str(folder), purge_step=self.trainer.step_number)
        return self._board

    def _stopped(self, batch: Batch, error: NotFinite) -> SpatialAvatarError:
        where = files.join(self.out, FAILED_BATCH)
        files.write_tensors(where, batch.arrays(), {"step": str(self.trainer.step_number + 1)})
        saved = self.progress.saved
        rate = f"optimizer.learning_rate={self.config.optimizer.learning_rate / 2:g}"
        advice = f"go on from {saved} with --resume --set {rate}" if saved else f"start again with --force --set {rate}"
        return SpatialAvatarError(
            f"{self.out}: {error}; its batch (samples {batch.numbers.tolist()}) is kept in {where}: look at the "
            f"samples, or {advice}"
        )

    def _write_log(self) -> None:
        files.write_bytes(files.join(self.out, LOG), "".join(line + "\n" for line in self._log_lines).encode())
        self._log_written = time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._since
        self._since = now


def held_out_batches(config: TrainConfig, pool: ClipPool) -> list[Batch]:
    """The same samples of a pool every time."""
    numbers = range(config.held_out_samples)
    size = config.batch_size
    examples = [make_example(pool, number, config) for number in numbers]
    return [collate(examples[start : start + size]) for start in range(0, len(examples), size)]
