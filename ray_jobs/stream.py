"""The training stream on Ray Data: parts of batches, prepared by whatever CPUs the cluster has.

What a part is, and in which order, is the library's (``training/stream.py``); Ray Data schedules the parts, keeps their
order, holds what is ready in its object store, and repeats what a lost machine did not finish. Every rank streams its
own share, so nothing is lost or repeated between ranks and a step number says all about where a training stands.
"""

import contextlib
import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionResources

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.packed_batch import PackedBatch
from spatialavatar.training.pool import ClipPool, open_pool
from spatialavatar.training.stream import Plan, Share, assembled, keep_freed_memory, prepare, share_of_memory

PARTS_AT_ONCE = 1024  # in one Ray data set: each costs the driver some kilobytes, and up front a millisecond
BLOCK = 8 << 20  # bytes; large ones fill a small object store and are spilled
ERROR = b"error: "  # stands before a message in place of a batch, whose first bytes are a short length


def ray_batches(
    head: HeadModel,
    config: TrainConfig,
    first_step: int = 0,
    share: Share | None = None,
    *,
    workers: int | None = None,
) -> Generator[PackedBatch, None, None]:
    """The batches of steps ``first_step`` .. ``config.steps - 1`` of a share, as ``training.stream.batches``.

    ``workers`` parts are prepared at a time, one CPU each, that no training worker holds (``free_cpus``, when not
    given; where several ranks stream, ask once before and tell all of them). Errors of the library are raised here, at
    their window. Closing the iterator (or dropping it) ends the work.
    """
    share = share or Share()
    plan = Plan(config, first_step, share)
    if workers is None:
        workers = free_cpus(share.world)
    with contextlib.closing(_prepared(plan, head, config, workers, share.world)) as parts:
        yield from assembled(parts, plan.parts_of_window)


def free_cpus(world: int = 1) -> int:
    """For each of ``world`` ranks, the CPUs that nothing holds now. Raises SpatialAvatarError for less than one."""
    free = int(ray.available_resources().get("CPU", 0))
    if free < world:
        raise SpatialAvatarError(
            f"the training's {world} worker(s) leave {free} CPU(s) to prepare batches, expected one for each; "
            "give the workers fewer CPUs (fractions are fine) or add machines"
        )
    return free // world


def _prepared(
    plan: Plan, head: HeadModel, config: TrainConfig, workers: int, world: int
) -> Generator[list[PackedBatch], None, None]:
    """The parts of a plan in order."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # or each data set tells of its beginning and end
    of_process = config.model_copy(update={"data": share_of_memory(config.data, workers * world)})
    opened = _Opened(of_process.model_dump_json(), head.content_hash, ray.put(head))
    store = ray.cluster_resources().get("object_store_memory", 0) / world

    def make(row: dict[str, Any]) -> Iterator[pa.Table]:
        try:
            pool = _pool(opened)
            for batch in prepare(pool, config, plan[int(row["part"][0])]):
                yield _table(batch.to_bytes())
        except SpatialAvatarError as e:  # as a value: Ray would wrap it in pages of tracebacks
            yield _table(ERROR + str(e).encode())

    for start in range(0, len(plan), PARTS_AT_ONCE):
        leg = range(start, min(start + PARTS_AT_ONCE, len(plan)))
        # not ray.data.range, whose blocks are made by tasks, all of them before the first part
        numbers = ray.data.from_items([{"part": index} for index in leg], override_num_blocks=len(leg))
        parts = numbers.map_batches(make, batch_size=1, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=workers))
        options = parts.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(cpu=workers, object_store_memory=store / 2)
        parts.context.target_max_block_size = BLOCK
        parts.context.enable_progress_bars = False
        parts.context.print_on_execution_start = False
        with contextlib.closing(_rows(parts)) as rows:
            for index in leg:
                yield [PackedBatch.from_bytes(next(rows)) for _ in range(plan[index].steps)]


def _table(content: bytes | memoryview) -> pa.Table:
    """One row, which looks into ``content``."""
    offsets = pa.py_buffer(np.array([0, len(content)]))
    return pa.table(
        {"batch": pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(content)])}
    )


def _rows(parts: ray.data.Dataset) -> Generator[memoryview, None, None]:
    blocks: Iterable[Any] = parts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    for block in blocks:
        for value in block.column("batch"):
            data = memoryview(value.as_buffer())
            if data[: len(ERROR)] == ERROR:
                raise SpatialAvatarError(str(data[len(ERROR) :], "utf-8"))
            yield data


@dataclass(frozen=True)
class _Opened:
    """What a pool is opened with; the same for all ranks of a training, each of which stores the head."""

    settings: str  # TrainConfig as JSON
    head_hash: str
    head: Any = field(compare=False)  # reference to it


@lru_cache(maxsize=1)  # a worker process of Ray does many parts of a training, of any rank, then those of another
def _pool(opened: _Opened) -> ClipPool:
    keep_freed_memory()
    config = TrainConfig.model_validate_json(opened.settings)
    return open_pool(config.data, ray.get(opened.head), config.phase)
