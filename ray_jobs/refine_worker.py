"""What each process of a fleet is: an actor around the library's pipeline."""

import math
import os
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

    host: str
    node: str  # Ray's name of it
    process: int
    device: str
    kind: str  # workers of one kind are equally fast
    warning: str = ""


class Refiner:
    """Ray never restarts it, and no call is repeated: the driver looks at what happened."""

    def __init__(self, make_work: MakeWork, given: Any, cpus: float, minutes: float) -> None:
        # nothing is opened here: what goes wrong comes back from ``open``, in words
        self._make_work, self._given, self._threads, self._minutes = make_work, given, max(1, math.floor(cpus)), minutes

    def open(self) -> "Facts | Exception":
        import ray
        import torch

        from spatialavatar.errors import SpatialAvatarError
        from spatialavatar.fleet.pipeline import Pipeline

        promised, warning = bool(ray.get_gpu_ids()), ""
        device = torch.device("cuda" if promised and torch.cuda.is_available() else "cpu")
        if promised and device.type == "cpu":
            warning = f"{socket.gethostname()}: Ray counts a GPU there, torch sees none; that worker refines on its CPU"
        try:
            self._enter_lane()
            self._pipeline = Pipeline(
                lambda uploads: self._make_work(self._given, device, uploads), self._enter_lane, self._minutes
            )
        except SpatialAvatarError as e:
            return e
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return Facts(
            socket.gethostname(), ray.get_runtime_context().get_node_id(), os.getpid(), str(device), kind, warning
        )

    def refine(self, jobs: "Sequence[Job]") -> "BatchReport":
        return self._pipeline.refine(jobs)

    def progress(self) -> float:
        """Of the batch that is optimised, in whole subjects."""
        return self._pipeline.progress()

    def stop(self) -> None:
        self._pipeline.stop()

    def _enter_lane(self) -> None:
        import cv2
        import numba
        import torch

        torch.set_num_threads(self._threads)
        numba.set_num_threads(min(self._threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        cv2.setNumThreads(0)
