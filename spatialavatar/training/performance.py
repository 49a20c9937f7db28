"""How fast a training runs, and what it waits for: the numbers beside the losses in its log."""

import math
import time
from collections.abc import Callable
from contextlib import suppress

import torch

from spatialavatar.peak_memory import peak_memory

GIBIBYTE = 2**30


class Meter:
    """Times of the steps since it was last read, on one process.

    ``read`` gives, per step: ``step_seconds`` all of it, ``data_seconds`` waiting for the batch; ``memory_gib`` the
    process' largest so far (on CUDA the device's), and on CUDA ``gpu_utilization`` in percent, NaN where NVML tells
    nothing.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._began = self._got = clock()

    def begin(self) -> None:
        """A step begins, which is to wait for its batch."""
        self._began = self._got = self._clock()

    def got_batch(self) -> None:
        """The batch of the step is there."""
        self._got = self._clock()

    def end(self) -> None:
        """The step is done."""
        self._steps += 1
        self._seconds += self._clock() - self._began
        self._waited += self._got - self._began

    def read(self) -> dict[str, float]:
        """The numbers since the last reading, which starts anew."""
        count = max(1, self._steps)
        found = {
            "step_seconds": self._seconds / count,
            "data_seconds": self._waited / count,
            "memory_gib": peak_memory(self._device) / GIBIBYTE,
        }
        if self._device.type == "cuda":
            found["gpu_utilization"] = math.nan
            with suppress(Exception):  # without NVML, or where it refuses, nobody knows; its errors are of its own kind
                found["gpu_utilization"] = float(torch.cuda.utilization(self._device))
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        return found
