"""A training run: batches, steps, log, sample sheets, checkpoints (method.md section 3), in one process or in many.

The run's folder holds ``config.yaml`` (resolved), ``writer.json`` (who trains), ``train.jsonl``, ``tensorboard/``,
``sheets/`` and ``checkpoints/``, and in Phase 2 ``anchor.safetensors``. A killed run goes on from its newest complete
checkpoint, on the CPU bit for bit as if it had never stopped; with another number of processes it sees the same samples
and takes the same steps, up to rounding.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import yaml

from spatialavatar import files
from spatialavatar.generator.checkpoint import complete_checkpoints
from spatialavatar.head import HeadModel
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.training.checkpoint import (
    ANCHOR,
    Checkpoint,
    newest_checkpoint,
    read_checkpoint,
)
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.engine import MakeEngine, PlainEngine
from spatialavatar.training.folder import CONFIG, FAILED_BATCH, FAILED_BATCHES, PARTS, claim_run
from spatialavatar.training.group import Alone, Group, unanimous
from spatialavatar.training.loop import Loop, Origin
from spatialavatar.training.packed_batch import PackedBatch
from spatialavatar.training.pool import ClipPool, open_pool
from spatialavatar.training.progress import Progress, StopTraining
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
from spatialavatar.training.step import TrainingModule
from spatialavatar.training.stream import batches, worker_batches
from spatialavatar.training.trainer import Trainer
from spatialavatar.writer import Writer

Stream = Callable[[HeadModel, int], Generator[PackedBatch, None, None]]  # own rows from a step on


def train(
    config: TrainConfig,
    out: files.Location,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    force: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
    group: Group | None = None,
    make_engine: MakeEngine = PlainEngine,
    stream: Stream | None = None,
    again: str = "--resume ",
) -> str:
    """Train a generator as ``config`` says; returns the folder of the last checkpoint.

    ``resume`` goes on from the newest checkpoint that is whole, and returns at once when that is the last one. It needs
    nothing of the Phase-1 run. Of a ``group`` of processes, each calls this alike, with its own device and ``stream``
    of its share of the batches. ``again`` is the option of the caller's command that goes on, for messages.

    Raises SpatialAvatarError for input that does not fit, a folder that is taken, a checkpoint of another
    configuration, or a loss that is not finite: the batch is then in ``failed-batch.safetensors`` and the last good
    checkpoint stays. StopTraining raised by ``observe`` (of any process) writes a checkpoint before it goes on its way.
    """
    group = group or Alone()
    start = group.of_first(lambda: _begin(config, out, resume, force))
    if start is not None and start.step >= config.steps:
        observe(Progress(start.step, config.steps, start.seconds, saved=start.folder))
        return start.folder
    ready = unanimous(group, lambda: _Ready.of(config, out, device, start, group, stream))
    trainer = Trainer(ready.module, config, make_engine(ready.module, config), group)
    run = Loop(trainer, out, ready.origin, ready.held_out, ready.writer, observe, again)
    if ready.found is not None:
        unanimous(group, partial(run.resume, ready.found))
    with closing(ready.batches(trainer.step_number)) as ours:
        try:
            unanimous(group, lambda: run.go(ours))
        except StopTraining:
            run.save(last=True)
            raise
        finally:
            run.close()
    return group.of_first(lambda: _finish(out))


@dataclass(frozen=True)
class _Start:
    """The checkpoint that a run goes on from; what was read of it stays in the process that read it."""

    folder: str
    step: int
    seconds: float
    found: Checkpoint | None

    def __reduce__(self) -> Any:
        return _Start, (self.folder, self.step, self.seconds, None)


def _begin(config: TrainConfig, out: files.Location, resume: bool, force: bool) -> _Start | None:
    claim_run(out, resume, force, config.phase1_checkpoint)
    found = newest_checkpoint(out, config) if resume else None
    if found is None:
        find_parent(config)  # what is wrong shows before anything is made
        return None
    return _Start(found.folder, found.state.step, found.state.seconds, found)


def _finish(out: files.Location) -> str:
    for failed in (FAILED_BATCH, FAILED_BATCHES):
        files.remove(files.join(out, failed))  # of a step that went well in the end
    return complete_checkpoints(out)[-1]


@dataclass(frozen=True)
class _Ready:
    """All that a process needs before its first step."""

    module: TrainingModule
    found: Checkpoint | None
    origin: Origin
    held_out: ClipPool | None  # the first process'
    writer: Writer | None  # the first process'
    batches: Callable[[int], Generator[PackedBatch, None, None]]  # from a step on

    @staticmethod
    def of(
        config: TrainConfig,
        out: files.Location,
        device: torch.device | str,
        start: "_Start | None",
        group: Group,
        stream: Stream | None,
    ) -> "_Ready":
        first = group.share.rank == 0
        found = None if start is None else start.found or read_checkpoint(start.folder)
        lpips = Lpips.require(device=device) if config.loss.lambda_lp > 0 else None
        head = training_head(config)
        pool = open_pool(config.data, head, config.phase) if first or stream is None else None
        held_out = None
        if first:
            held_out = pool if config.held_out is None else open_pool(config.held_out, head, config.phase)
        anchored, anchor = config.loss.lambda_sp > 0, None
        if found is None:
            generator, parent = start_generator(config, head)
            anchor = anchor_at(generator) if anchored else None
        else:
            generator, parent = found.generator(config, head), found.state.parent
            anchor = read_anchor(files.join(out, ANCHOR), found.state.anchor) if anchored else None
        origin = Origin(parent, licence_of(generator, pool, parent) if pool else "", anchor_hash(anchor))
        writer = Writer(out) if first else None
        if writer is not None:
            content = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            files.write_bytes(files.join(out, CONFIG), content.encode())
            writer.take_over()
            if found is None:
                for stale in PARTS:
                    files.remove(files.join(out, stale))
                if anchor is not None:
                    write_anchor(files.join(out, ANCHOR), anchor)

        def ours(step: int) -> Generator[PackedBatch, None, None]:
            if stream is not None:
                return stream(head, step)
            if config.data.workers:
                return worker_batches(head, config, step)
            assert pool is not None
            return batches(pool, config, step)

        return _Ready(build_module(config, generator, anchor, device, lpips), found, origin, held_out, writer, ours)
