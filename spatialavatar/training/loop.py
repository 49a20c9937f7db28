"""The loop of a training run: steps, log, sample sheets and checkpoints, in each process of its group.

Of many processes the first one writes. What it alone does, and may fail at, is told to the others after every step, so
that none waits for one that is gone.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spatialavatar import files, tensor_files
from spatialavatar.clip.pictures import encode
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.sheets import stacked
from spatialavatar.training.batch import Batch
from spatialavatar.training.checkpoint import Checkpoint, TrainingState, save_checkpoint
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.example import make_example
from spatialavatar.training.folder import FAILED_BATCH, FAILED_BATCHES, LOG, SHEETS, TENSORBOARD
from spatialavatar.training.group import Elsewhere
from spatialavatar.training.packed_batch import PackedBatch, collate
from spatialavatar.training.performance import Meter
from spatialavatar.training.pool import ClipPool
from spatialavatar.training.progress import Progress, StopTraining
from spatialavatar.training.sheet import mean_psnr, sample_sheet
from spatialavatar.training.step import Objective, render
from spatialavatar.training.trainer import NotFinite, Trainer
from spatialavatar.writer import Writer

SHEET_ROWS = 6
SECONDS_BETWEEN_WRITES = 1.0  # of the log, at least
SECONDS_BETWEEN_UPLOADS = 30.0  # the same on a store, where a file is written whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a training comes from, as its checkpoints say."""

    parent: dict[str, Any] | None  # hash of the Phase-1 generator, and how that was trained
    licence: str
    anchor: str | None  # hash of the weights that L2-SP holds on to


class Loop:
    """Drives a Trainer, in step with the loops of the other processes."""

    def __init__(
        self,
        trainer: Trainer,
        out: files.Location,
        origin: Origin,
        held_out: ClipPool | None,  # the first process'
        writer: Writer | None,  # the first process'
        observe: Callable[[Progress], None],
        again: str,
    ) -> None:
        module = trainer.module
        self.trainer, self.group, self.config, self.generator = trainer, trainer.group, module.config, module.generator
        self.out, self.origin, self.held_out_pool, self.observe = out, origin, held_out, observe
        self.progress = Progress(0, self.config.steps, 0.0)
        self._writer, self._device, self._again = writer, module.device, again
        self._window: list[dict[str, float]] = []
        self._log_lines: list[str] = []
        self._log_written = 0.0
        self._between_writes = SECONDS_BETWEEN_WRITES if files.is_local(out) else SECONDS_BETWEEN_UPLOADS
        self._since = time.perf_counter()
        self._meter = Meter(self._device)
        self._board: Any = None
        self._held_out: list[Batch] | None = None
        self._saved_step = 0  # of the newest checkpoint

    def resume(self, found: Checkpoint) -> None:
        """Stand where the checkpoint was written; the generator has its weights already."""
        self.trainer.engine.restore(found.moments)
        state = found.state
        self.trainer.seek(state.step)
        self._window, self._saved_step = state.window, state.step
        self.progress = Progress(state.step, self.config.steps, state.seconds, saved=found.folder)
        if self._writer is None:
            return
        where = files.join(self.out, LOG)
        lines = files.read_bytes(where).decode().splitlines() if files.exists(where) else []
        # lines of steps that the killed run did after its checkpoint are done again
        self._log_lines = [line for line in lines if json.loads(line)["step"] <= state.step]

    def go(self, stream: Iterator[PackedBatch]) -> None:
        """Take the steps that are left, on the batches of ``stream``."""
        self._since = time.perf_counter()
        self._together(lambda: self.observe(self.progress))
        while self.trainer.step_number < self.config.steps:
            self._meter.begin()
            try:
                batch = next(stream).unpacked(self._device)
            except (SpatialAvatarError, OSError):
                self.trainer.abstain()
                raise
            except torch.OutOfMemoryError:
                self.trainer.abstain()
                raise self._out_of_memory() from None
            self._meter.got_batch()
            try:
                objective, norm = self.trainer.step(batch)
            except NotFinite as e:
                raise self._stopped(batch, e) from None
            except torch.OutOfMemoryError:
                raise self._out_of_memory() from None
            self._meter.end()
            self._after_step(objective, norm)

    def save(self, last: bool = False) -> None:
        """Write a checkpoint unless there is one of this very step.

        A store that does not take it costs this checkpoint alone, unless it is the ``last`` one of this process.
        """
        step = self.trainer.step_number
        self._tick()
        if self._saved_step == step:
            return
        moments = self.trainer.engine.moments()
        missed: list[StoreError] = []
        self._together(lambda: missed.extend(self._write_checkpoint(moments, last)))
        if not self.group.largest(len(missed)):
            self._saved_step = step

    def _write_checkpoint(self, moments: dict[str, np.ndarray], last: bool) -> list[StoreError]:
        """By the first process; the error of a store that did not take it."""
        if self._writer is None:
            return []
        step, origin = self.trainer.step_number, self.origin
        config = self.config.model_dump(mode="json")
        state = TrainingState(step, self.progress.seconds, config, origin.parent, self._window, origin.anchor)
        training = {
            "phase": self.config.phase,
            "step": step,
            "samples": step * self.config.batch_size,
            "resolution": self.config.resolution,  # pixels that it learned to fill
            "licence": origin.licence,
            "parent": origin.parent,
        }
        keep = self.config.keep_checkpoints
        try:
            self._write_log()
            self.progress.saved = save_checkpoint(
                self.out, self.generator, moments, state, training, keep, self._writer.require
            )
        except StoreError as e:
            if last:
                raise
            newest = self.progress.saved or "none yet"
            logger.warning("no checkpoint at step %d: %s; going on, the newest one is %s", step, e, newest)
            return [e]
        return []

    def close(self) -> None:
        """End the log; last lines that cannot be written are no reason to fail, while others wait."""
        try:
            self._write_log()
            if self._board is not None:
                self._board.close()
        except (SpatialAvatarError, OSError) as e:
            logger.warning("the last lines of the log are not in %s: %s", self.out, e)

    def _together(self, work: Callable[[], None]) -> None:
        """Do what may fail, or stop the training, in one process, so that all of them fail or stop.

        ``work`` is not collective: a process that fails would leave the others waiting in it.
        """
        outcome: Exception | None = None
        try:
            work()
        except (StopTraining, SpatialAvatarError, OSError) as e:
            outcome = e
        verdict = 0 if outcome is None else 1 if isinstance(outcome, StopTraining) else 2
        worst = self.group.largest(verdict)
        if outcome is not None and worst == verdict:
            raise outcome
        if worst == 1:
            raise StopTraining
        if worst == 2:
            raise Elsewhere("another worker failed")

    def _after_step(self, objective: Objective, norm: float) -> None:
        step, config = self.trainer.step_number, self.config
        terms = {"loss": objective.loss, **objective.terms}
        self._window.append({**{name: float(value) for name, value in terms.items()}, "gradient_norm": norm})
        last = step == config.steps
        self.progress.step = step
        line = self._line() if step % config.log_every == 0 or last else None
        shown = step % config.sheet_every == 0 or last
        if line is not None or shown:
            self._together(lambda: self._show(line, shown))
        if step % config.checkpoint_every == 0 or last:
            self.save(last)
        self._tick()
        self._together(lambda: self.observe(self.progress))

    def _line(self) -> dict[str, Any]:
        """The next line of the log, of all processes together."""
        self._tick()
        count = len(self._window)
        means = {name: sum(line[name] for line in self._window) / count for name in self._window[0]}
        self._window = []
        own = self._meter.read()
        performance = dict(zip(own, self.group.mean(list(own.values())), strict=True))
        performance["samples_per_second"] = self.config.batch_size / max(performance["step_seconds"], 1e-9)
        return {
            "step": self.trainer.step_number,
            **means,
            "learning_rate": self.trainer.learning_rate,
            "seconds": round(self.progress.seconds, 3),
            "performance": {n: round(value, 4) for n, value in performance.items() if math.isfinite(value)},
        }

    def _show(self, line: dict[str, Any] | None, sheet: bool) -> None:
        """The line to log and board, then a sample sheet; written by the first process."""
        if line is not None:
            self.progress.latest = line
        if self._writer is None:
            return
        if line is not None:
            self._log_lines.append(json.dumps(line, allow_nan=False))
            curves = {f"train/{name}": v for name, v in line.items() if name not in ("step", "performance")}
            curves |= {f"performance/{name}": value for name, value in line["performance"].items()}
            self._tensorboard().scalars(curves, line["step"])
            if time.perf_counter() - self._log_written > self._between_writes:
                try:
                    self._write_log()
                except StoreError as e:
                    logger.warning("%s; going on, the log is written again later", e)
        if sheet:
            try:
                self._sheet()
            except torch.OutOfMemoryError:
                logger.warning(
                    "no sample sheet at step %d: out of memory on %s", self.trainer.step_number, self._device
                )

    @torch.no_grad()
    def _sheet(self) -> None:
        """Held-out samples as they are now: a picture, and their PSNR in the log."""
        self._tick()
        if self._held_out is None:
            assert self.held_out_pool is not None
            self._held_out = held_out_batches(self.config, self.held_out_pool, self.group.share.world)
        self.trainer.module.eval()
        shown = []
        for batch in self._held_out:
            there = batch.to(self._device)
            decoded = self.generator(there.sources, there.target.params, there.target.camera)
            shown.append((batch, render(self.generator, decoded, there)))
        value = mean_psnr([pictures for _, pictures in shown])
        rows = math.ceil(SHEET_ROWS / len(shown))
        picture = stacked([sample_sheet(batch, pictures, rows) for batch, pictures in shown])
        step = self.trainer.step_number
        try:
            files.write_bytes(files.join(self.out, SHEETS, f"step-{step:08d}.png"), encode(picture, "png"))
        except StoreError as e:
            logger.warning("no sample sheet at step %d: %s", step, e)
        self._log_lines.append(json.dumps({"step": step, "held_out_psnr": round(value, 4)}))
        self.progress.latest = {**self.progress.latest, "held_out_psnr": value}
        board = self._tensorboard()
        board.scalars({"held_out/psnr": value}, step)
        board.picture("held_out/samples", picture, step)
        self._since = time.perf_counter()  # sheets are no training time

    def _tensorboard(self) -> Any:
        if self._board is None:
            from spatialavatar.training.board import Board  # here, because tensorboard takes seconds to import

            self._board = Board(files.join(self.out, TENSORBOARD), self.trainer.step_number)
        return self._board

    def _stopped(self, batch: Batch, error: NotFinite) -> SpatialAvatarError:
        """The error that all processes end with; those whose loss was no number keep their batch."""
        if not self.trainer.failed_here:
            return Elsewhere(str(error))
        rank, world = self.group.share.rank, self.group.share.world
        name = FAILED_BATCH if world == 1 else files.join(FAILED_BATCHES, f"rank-{rank}.safetensors")
        where = files.join(self.out, name)
        tensor_files.write_tensors(where, batch.arrays(), {"step": str(self.trainer.step_number + 1)})
        saved = self.progress.saved
        rate = f"optimizer.learning_rate={self.config.optimizer.learning_rate / 2:g}"
        newest = saved or f"step {self._saved_step}"
        start = f"go on from {newest} with {self._again}" if self._saved_step else "start again with --force "
        advice = f"{start}--set {rate}"
        return SpatialAvatarError(
            f"{self.out}: {error}; its batch (samples {batch.numbers.tolist()}) is kept in {where}: look at the "
            f"samples, or {advice}"
        )

    def _out_of_memory(self) -> SpatialAvatarError:
        world, size = self.group.share.world, self.config.batch_size
        of_each = f" ({size // world} in each of {world} workers; take more of them)" if world > 1 else ""
        return SpatialAvatarError(
            f"{self.out}: out of memory on {self._device} at step {self.trainer.step_number + 1} with batch_size {size}"
            f"{of_each}; lower it, or set gradient_checkpointing: true (a run that goes on takes that); "
            "'spatialavatar model summary --config FILE' says what a training needs"
        )

    def _write_log(self) -> None:
        if self._writer is None:
            return
        self._writer.require()
        files.write_bytes(files.join(self.out, LOG), "".join(line + "\n" for line in self._log_lines).encode())
        if self._board is not None:
            self._board.publish()
        self._log_written = time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._since
        self._since = now


def held_out_batches(config: TrainConfig, pool: ClipPool, world: int = 1) -> list[Batch]:
    """The same samples of a pool every time, as many at a time as one of ``world`` processes trains on."""
    numbers = range(config.held_out_samples)
    size = config.batch_size // world
    examples = [make_example(pool, number, config) for number in numbers]
    return [collate(examples[start : start + size]) for start in range(0, len(examples), size)]
