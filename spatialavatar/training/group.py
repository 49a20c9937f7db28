"""Processes that train together, each on its rows of every batch.

``Alone`` is the one process of ``spatialavatar train``; ``Distributed`` is torch.distributed's default process group.
Every method but ``share`` is collective: all processes call it, in the same order.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.stream import Share

T = TypeVar("T")


class Elsewhere(SpatialAvatarError):
    """Another process of the group failed; what it says is the reason."""


class Group(Protocol):
    """What the processes of a training tell each other."""

    @property
    def share(self) -> Share:
        """Which of the processes this one is, and of how many."""
        ...

    def mean(self, values: Sequence[float]) -> list[float]:
        """Of each value over the processes; NaN where one of them has NaN."""
        ...

    def largest(self, value: int) -> int: ...

    def of_all(self, value: T) -> list[T]:
        """What each process has, in the order of ranks; picklable."""
        ...

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all; its failure is raised in all."""
        ...


class Alone:
    """One process."""

    share = Share()

    def mean(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def largest(self, value: int) -> int:
        return value

    def of_all(self, value: T) -> list[T]:
        return [value]

    def of_first(self, make: Callable[[], T]) -> T:
        return make()


class Distributed:
    """The default process group, which has been initialised; ``device`` is where its backend wants tensors."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self.share = Share(dist.get_rank(), dist.get_world_size())

    def mean(self, values: Sequence[float]) -> list[float]:
        together = self._reduced(values, dist.ReduceOp.SUM)
        return [value / self.share.world for value in together]

    def largest(self, value: int) -> int:
        return int(self._reduced([value], dist.ReduceOp.MAX)[0])

    def of_all(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.share.world
        dist.all_gather_object(found, value)
        return found

    def of_first(self, make: Callable[[], T]) -> T:
        sent: list[Any] = [None, None]  # what was made, or why it was not
        error: SpatialAvatarError | OSError | None = None
        if self.share.rank == 0:
            try:
                sent[0] = make()
            except (SpatialAvatarError, OSError) as e:
                error, sent[1] = e, str(e)
        dist.broadcast_object_list(sent, src=0, device=self._device)
        if sent[1] is not None:
            raise error or Elsewhere(sent[1])
        made: T = sent[0]
        return made

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, op=operation)
        found: list[float] = tensor.tolist()
        return found


def unanimous(group: Group, work: Callable[[], T]) -> T:
    """What ``work`` gives in this process; where it fails in one, all of them raise that one's reason. Collective.

    ``work`` must not leave one process waiting for another: who fails in the middle of steps taken together says so to
    the others, which raise Elsewhere.
    """
    failed: SpatialAvatarError | OSError | None = None
    try:
        result = work()
    except (SpatialAvatarError, OSError) as e:
        failed = e
    own = None if failed is None or isinstance(failed, Elsewhere) else str(failed)
    reasons = [reason for reason in group.of_all(own) if reason is not None]
    if failed is not None and group.share.world == 1:
        raise failed
    if reasons:
        raise SpatialAvatarError(reasons[0]) from failed
    if failed is not None:
        raise failed
    return result
