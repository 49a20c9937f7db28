"""The batches of a training in order, prepared ahead: in a thread, in processes, or on a cluster.

Work is cut into parts. A part is some rows of the batches of one window, and a window is the ``draws_per_clip`` steps
in which every row keeps its clip: so a part reads each of its clips once and takes all its samples from it. Parts are
functions of (config, pool, part) alone, and the batches are put together from them in order. Nothing depends on who
prepares them, and a training that goes on at a step, or with another number of ranks, sees what it would have seen.
"""

import contextlib
import ctypes
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from typing import TypeVar, overload

from spatialavatar.clip import FrameIndex
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel
from spatialavatar.training.config import DataConfig, TrainConfig
from spatialavatar.training.example import clip_of_sample, draw_of_sample, make_example
from spatialavatar.training.packed_batch import PackedBatch, pack
from spatialavatar.training.pool import ClipPool, open_pool
from spatialavatar.training.samplers import ClipFacts

AHEAD = 2  # batches, in whole windows, that are prepared while a step runs
PART_SAMPLES = 8  # few enough that the first batch comes soon and that many prepare one batch; a row more, if need be
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The rows of every batch that one of several training processes takes."""

    rank: int = 0
    world: int = 1

    def rows(self, batch_size: int) -> range:
        """Raises SpatialAvatarError when the rows cannot be shared out evenly."""
        if batch_size % self.world:
            raise SpatialAvatarError(
                f"batch_size {batch_size} cannot be shared evenly by {self.world} workers; make it a multiple of that"
            )
        each = batch_size // self.world
        return range(self.rank * each, (self.rank + 1) * each)


@dataclass(frozen=True)
class Part:
    """Some rows of the batches of some steps that belong to one window."""

    first_step: int
    steps: int
    first_row: int
    rows: int


class Plan(Sequence[Part]):
    """The parts from ``first_step`` to the training's end, window by window."""

    def __init__(self, config: TrainConfig, first_step: int = 0, share: Share | None = None) -> None:
        self.rows = (share or Share()).rows(config.batch_size)
        self._first_step, self._steps, self._draws = first_step, config.steps, config.sampler.draws_per_clip
        self._rows_of_part = max(1, PART_SAMPLES // self._draws)
        self.parts_of_window = len(range(0, len(self.rows), self._rows_of_part))
        self.parts_ahead = -(-AHEAD // self._draws) * self.parts_of_window

    def __len__(self) -> int:
        if self._first_step >= self._steps:
            return 0
        windows = -(-self._steps // self._draws) - self._first_step // self._draws
        return windows * self.parts_of_window

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> list[Part]: ...
    def __getitem__(self, index: int | slice) -> Part | list[Part]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"part {index} of {len(self)}")
        window, part = divmod(index, self.parts_of_window)
        start = (self._first_step // self._draws + window) * self._draws
        first, end = max(start, self._first_step), min(start + self._draws, self._steps)
        row = self.rows.start + part * self._rows_of_part
        return Part(first, end - first, row, min(self._rows_of_part, self.rows.stop - row))


def prepare(pool: ClipPool, config: TrainConfig, part: Part) -> list[PackedBatch]:
    """Of each step of a part, its rows. Raises SpatialAvatarError for a frame that cannot be read."""

    def numbers(row: int) -> list[int]:
        return [(part.first_step + step) * config.batch_size + part.first_row + row for step in range(part.steps)]

    def announce(row: int) -> None:
        def frames(facts: ClipFacts) -> list[FrameIndex]:
            draws = [draw_of_sample(facts, number, config) for number in numbers(row)]
            return [frame for draw in draws for frame in (*draw.sources, draw.target)]

        pool.prefetch(clip_of_sample(numbers(row)[0], len(pool), config), frames)

    examples = []
    announce(0)
    for row in range(part.rows):
        if row + 1 < part.rows:
            announce(row + 1)
        examples.append([make_example(pool, number, config) for number in numbers(row)])
    return [pack([of_row[step] for of_row in examples]) for step in range(part.steps)]


def assembled(prepared: Iterable[list[PackedBatch]], parts_of_window: int) -> Iterator[PackedBatch]:
    """The batches of step after step, from the parts of a plan in order."""
    window: list[list[PackedBatch]] = []
    for part in prepared:
        window.append(part)
        if len(window) == parts_of_window:
            yield from (PackedBatch.cat(of_step) for of_step in zip(*window, strict=True))
            window = []


def batches(
    pool: ClipPool, config: TrainConfig, first_step: int = 0, share: Share | None = None
) -> Generator[PackedBatch, None, None]:
    """The batches of steps ``first_step`` .. ``config.steps - 1``, prepared in one thread in advance.

    An error in the thread is raised here, at its window. Closing the iterator (or dropping it) ends the thread.
    """
    plan = Plan(config, first_step, share)
    with contextlib.closing(_in_thread(plan, lambda part: prepare(pool, config, part))) as prepared:
        yield from assembled(prepared, plan.parts_of_window)


def worker_batches(
    head: HeadModel, config: TrainConfig, first_step: int = 0, share: Share | None = None
) -> Generator[PackedBatch, None, None]:
    """The same batches, prepared by ``config.data.workers`` processes (a torch DataLoader).

    The processes are new ones, not forks: thread pools and connections do not survive a fork. They leave it to this
    process to stop on Ctrl-C and SIGTERM, which reach them too; closing the iterator (or dropping it) ends them.
    """
    plan = Plan(config, first_step, share)
    with contextlib.closing(_in_processes(plan, head, config)) as prepared:
        yield from assembled(prepared, plan.parts_of_window)


def _in_processes(plan: Plan, head: HeadModel, config: TrainConfig) -> Generator[list[PackedBatch], None, None]:
    from torch.utils.data import DataLoader

    workers = config.data.workers
    loader: DataLoader[list[PackedBatch] | SpatialAvatarError] = DataLoader(
        _Prepared(plan, head, config),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=multiprocessing.get_context("spawn"),
        prefetch_factor=-(-plan.parts_ahead // workers),
    )
    results = _started(loader)
    gone = False
    while not gone:
        try:
            part = next(results)
        except StopIteration:
            return
        except RuntimeError as e:
            if not str(e).startswith("DataLoader worker ("):
                raise
            gone = True
        else:
            if isinstance(part, SpatialAvatarError):
                del results  # ends the processes; what is raised would keep it
                raise part
            yield part
    del results
    raise SpatialAvatarError(
        f"a process that prepares batches was killed (data.workers: {workers}), most likely for want of memory; lower "
        "data.workers, data.memory_gb or sampler.draws_per_clip"
    )


def _started(loader: Iterable[T]) -> Iterator[T]:
    """The iterator of a DataLoader, whose processes do not stop on Ctrl-C and SIGTERM.

    A thread starts them: they inherit which signals it holds back, and off the main thread torch installs no handler
    that raises in the middle of a step when a process is gone.
    """

    def start() -> Iterator[T]:
        resource_tracker.ensure_running()  # lets signals through when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        return iter(loader)

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(start).result()


class _Prepared:
    """A map-style data set of prepared parts; each process opens the pool for itself.

    Errors of the library are values: the DataLoader would put a traceback into their message.
    """

    def __init__(self, plan: Plan, head: HeadModel, config: TrainConfig) -> None:
        self._plan, self._head, self._config = plan, head, config
        self._pool: ClipPool | None = None

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> list[PackedBatch] | SpatialAvatarError:
        try:
            if self._pool is None:
                keep_freed_memory()
                data = share_of_memory(self._config.data, self._config.data.workers)
                self._pool = open_pool(data, self._head, self._config.phase)
            return prepare(self._pool, self._config, self._plan[index])
        except SpatialAvatarError as e:
            return SpatialAvatarError(str(e))


def keep_freed_memory() -> None:
    """Let a process that does nothing but prepare batches keep the memory of pictures that it has freed.

    Asking the system for it again, picture by picture, costs a third of the time. Only glibc can be told.
    """
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(option, 1 << 30)


def share_of_memory(data: DataConfig, processes: int) -> DataConfig:
    """The data of one of several processes that open them."""
    return data.model_copy(update={"memory_gb": data.memory_gb / processes})


def _in_thread(plan: Plan, do: Callable[[Part], list[PackedBatch]]) -> Generator[list[PackedBatch], None, None]:
    thread, work = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches"), iter(plan)
    try:
        ahead: deque[Future[list[PackedBatch]]] = deque(
            thread.submit(do, part) for part in islice(work, plan.parts_ahead)
        )
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(thread.submit(do, part) for part in islice(work, 1))
            yield result
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
