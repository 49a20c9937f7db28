"""What each process of a fleet is: an actor around the library's pipeline."""

import math
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from spatialavatar.fleet.pipeline import BatchReport, Job, Work

MakeWork = Callable[[Any, "torch.device", ThreadPoolExecutor], "Work"]
CALLS = 8  # at a time: batches in the three lanes, and the short ones


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself when it is ready."""

    name: str
    node: str  # Ray's name of its machine
    kind: str  # workers of one kind are equally fast
    warning: str = ""


class Refiner:
    """Ray never restarts it, and no call is repeated: the driver looks at what happened."""

    def __init__(self, make_work: MakeWork, instruments: Any, cpus: float, minutes: float) -> None:
        # nothing is opened here: what goes wrong comes back from ``open``, in words
        self._make_work, self._instruments, self._minutes = make_work, instruments, minutes
        self._threads = max(1, math.floor(cpus))

    def open(self) -> "Facts | Exception":
        import ray
        import torch

        from spatialavatar.errors import SpatialAvatarError
        from spatialavatar.fleet.device import worker_name
        from spatialavatar.fleet.pipeline import Pipeline

        promised, warning = bool(ray.get_gpu_ids()), ""
        device = torch.device("cuda" if promised and torch.cuda.is_available() else "cpu")
        if promised and device.type == "cpu":
            warning = f"{socket.gethostname()}: Ray counts a GPU there, torch sees none; that worker refines on its CPU"
        try:
            self._enter_lane()
            self._pipeline = Pipeline(
                lambda uploads: self._make_work(self._instruments, device, uploads), self._enter_lane, self._minutes
            )
        except SpatialAvatarError as e:
            return e
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return Facts(worker_name(device), ray.get_runtime_context().get_node_id(), kind, warning)

    def refine(self, jobs: "Sequence[Job]") -> "BatchReport":
        return self._pipeline.refine(jobs)

    def progress(self) -> float:
        """Of the batch that is optimised, in whole subjects."""
        return self._pipeline.progress()

    def stop(self) -> None:
        self._pipeline.stop()

    def _enter_lane(self) -> None:
        from spatialavatar.processors import use_threads

        use_threads(self._threads)
