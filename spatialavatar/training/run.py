"""A training run in one process: batches, steps, log, sample sheets, checkpoints (method.md section 3).

The run's folder holds ``config.yaml`` (resolved), ``train.jsonl``, ``tensorboard/``, ``sheets/`` and ``checkpoints/``,
and in Phase 2 ``anchor.safetensors``. A killed run goes on from its newest complete checkpoint, on the CPU bit for bit
as if it had never stopped.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from spatialavatar import files
from spatialavatar.clip.pictures import encode
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import CHECKPOINTS, complete_checkpoints
from spatialavatar.generator.generator import Generator
from spatialavatar.head import HeadModel
from spatialavatar.training import checkpoint as checkpoints
from spatialavatar.training.batch import Batch, batches, collate, make_example
from spatialavatar.training.checkpoint import ANCHOR, TrainingState
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.pool import open_pool
from spatialavatar.training.setup import (
    anchor_at,
    build_module,
    licence_of,
    read_anchor,
    start_generator,
    training_head,
    write_anchor,
)
from spatialavatar.training.sheet import mean_psnr, sample_sheet, stacked
from spatialavatar.training.step import Anchor, Objective, render
from spatialavatar.training.trainer import NotFinite, Trainer

CONFIG = "config.yaml"
LOG = "train.jsonl"
SHEETS = "sheets"
TENSORBOARD = "tensorboard"
FAILED_BATCH = "failed-batch.safetensors"
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

    Raises SpatialAvatarError for input that does not fit, a folder that is taken, a checkpoint of another
    configuration, or a loss that is not finite: the batch is then in ``failed-batch.safetensors`` and the last good
    checkpoint stays. StopTraining raised by ``observe`` writes a checkpoint before it goes on its way.
    """
    claim_run(out, resume, force)
    head = training_head(config)
    pool = open_pool(config.data, head)
    newest = complete_checkpoints(out)[-1:] if resume else []
    generator, parent = start_generator(config, head)
    anchor: Anchor | None = None
    if config.loss.lambda_sp > 0:
        anchor = read_anchor(files.join(out, ANCHOR)) if newest else anchor_at(generator)
    module = build_module(config, generator, anchor, device)
    trainer = Trainer(module, config)
    run = _Run(trainer, generator, head, config, out, parent, licence_of(generator, pool), observe)
    if newest:
        run.resume(newest[0])
    else:
        for stale in (CHECKPOINTS, LOG, SHEETS, TENSORBOARD, FAILED_BATCH, ANCHOR):
            files.remove(files.join(out, stale))
        if anchor is not None:
            write_anchor(files.join(out, ANCHOR), anchor)
    files.write_bytes(files.join(out, CONFIG), yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    with closing(batches(pool, config, trainer.step_number)) as stream:
        try:
            run.go(stream, torch.device(device))
        except StopTraining:
            run.save()
            raise
        finally:
            run.close()
    return complete_checkpoints(out)[-1]


def claim_run(out: files.Location, resume: bool, force: bool) -> None:
    """Raises SpatialAvatarError when ``out`` holds what this run must not replace."""
    if CONFIG in files.list_folder(out) and not (resume or force):
        raise SpatialAvatarError(f"{out}: holds a training run; go on with --resume, or start over with --force")
    files.claim_output_folder(out, CONFIG, force)


class _Run:
    """The bookkeeping around a Trainer."""

    def __init__(
        self,
        trainer: Trainer,
        generator: Generator,
        head: HeadModel,
        config: TrainConfig,
        out: files.Location,
        parent: dict[str, Any] | None,
        licence: str,
        observe: Callable[[Progress], None],
    ) -> None:
        self.trainer, self.generator, self.head = trainer, generator, head
        self.config, self.out, self.parent, self.licence, self.observe = config, out, parent, licence, observe
        self.progress = Progress(0, config.steps, 0.0)
        self._window: list[dict[str, float]] = []
        self._log_lines: list[str] = []
        self._log_written = 0.0
        self._since = time.perf_counter()
        self._board: Any = None
        self._held_out: list[Batch] | None = None

    def resume(self, folder: str) -> None:
        config = self.config.model_dump(mode="json")
        state = checkpoints.load_checkpoint(folder, self.generator, self.trainer.optimizer, config)
        self.trainer.seek(state.step)
        self.parent = state.parent
        self._window = state.window
        self.progress = Progress(state.step, self.config.steps, state.seconds, saved=folder)
        where = files.join(self.out, LOG)
        lines = files.read_bytes(where).decode().splitlines() if files.exists(where) else []
        # lines of steps that the killed run did after its checkpoint are done again
        self._log_lines = [line for line in lines if json.loads(line)["step"] <= state.step]

    def go(self, stream: Iterator[Batch], device: torch.device) -> None:
        self._since = time.perf_counter()
        self.observe(self.progress)
        while self.trainer.step_number < self.config.steps:
            batch = next(stream).to(device)
            try:
                objective, norm = self.trainer.step(batch)
            except NotFinite as e:
                raise self._stopped(batch, e) from None
            self._after_step(objective, norm)

    def save(self) -> None:
        """Write a checkpoint unless the newest one is of this very step."""
        step = self.trainer.step_number
        self._tick()
        self._write_log()
        name = f"step-{step:08d}"
        if self.progress.saved is not None and self.progress.saved.endswith(name):
            return
        config = self.config.model_dump(mode="json")
        state = TrainingState(step, self.progress.seconds, config, self.parent, self._window)
        training = {
            "phase": self.config.phase,
            "step": step,
            "samples": step * self.config.batch_size,
            "licence": self.licence,
            "parent": self.parent,
        }
        keep = self.config.keep_checkpoints
        self.progress.saved = checkpoints.save_checkpoint(
            self.out, self.generator, self.trainer.optimizer, state, training, keep
        )

    def close(self) -> None:
        self._write_log()
        if self._board is not None:
            self._board.close()

    def _after_step(self, objective: Objective, norm: float) -> None:
        step, config = self.trainer.step_number, self.config
        terms = {
            "loss": float(objective.loss.detach()),
            **{name: float(value) for name, value in objective.terms.items()},
        }
        self._window.append({**terms, "gradient_norm": norm})
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
            "learning_rate": self.trainer.optimizer.param_groups[0]["lr"],
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
            self._held_out = held_out_batches(self.config, self.head)
        device = next(self.generator.parameters()).device
        self.trainer.module.eval()
        shown = []
        for batch in self._held_out:
            there = batch.to(device)
            decoded = self.generator(there.sources, there.target.params, there.target.camera)
            shown.append((batch, render(self.generator, decoded, there)))
        value = mean_psnr([pictures for _, pictures in shown])
        rows = max(1, SHEET_ROWS // len(shown) + 1)
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
        kept = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
        return SpatialAvatarError(
            f"{self.out}: {error}; its batch (samples {batch.numbers.tolist()}) is kept in {where}, {kept}; lower "
            "optimizer.learning_rate, or look at the samples"
        )

    def _write_log(self) -> None:
        files.write_bytes(files.join(self.out, LOG), "".join(line + "\n" for line in self._log_lines).encode())
        self._log_written = time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._since
        self._since = now


def held_out_batches(config: TrainConfig, head: HeadModel) -> list[Batch]:
    """The same samples every time, from the held-out subjects where there are some."""
    pool = open_pool(config.held_out or config.data, head)
    numbers = range(config.held_out_samples)
    size = config.batch_size
    examples = [make_example(pool, number, config) for number in numbers]
    return [collate(examples[start : start + size]) for start in range(0, len(examples), size)]
