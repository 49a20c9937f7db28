"""How the benchmarks take times: wall milliseconds, CUDA awaited, the first repetitions left out."""

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def timed(call: Callable[[], object], repeats: int, device: torch.device, warm_up: int = 5) -> tuple[float, float]:
    """Median and minimum of a call's milliseconds."""
    watch = Stopwatch(device, warm_up)
    for _ in range(warm_up + repeats):
        with watch.measure("call"):
            call()
        watch.lap()
    return watch.medians()["call"], watch.minima()["call"]


class Stopwatch:
    """Milliseconds by piece, each without the pieces inside it; a lap is one repetition."""

    def __init__(self, device: torch.device, warm_up: int) -> None:
        self._device, self._warm_up = device, warm_up
        self._laps: list[dict[str, float]] = [defaultdict(float)]
        self._inside: list[float] = []  # seconds that pieces inside of the open ones took

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        began = self._begin()
        try:
            yield
        finally:
            self._end(name, began)

    @contextlib.contextmanager
    def attached(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Measure the forward of modules."""
        began: list[float] = []
        handles: list[Any] = []
        for name, module in modules.items():

            def leave(*_: Any, name: str = name) -> None:
                self._end(name, began.pop())

            handles.append(module.register_forward_pre_hook(lambda *_: began.append(self._begin())))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def lap(self) -> None:
        self._laps.append(defaultdict(float))

    def medians(self) -> dict[str, float]:
        return {name: round(statistics.median(values), 3) for name, values in self._pieces().items()}

    def minima(self) -> dict[str, float]:
        return {name: round(min(values), 3) for name, values in self._pieces().items()}

    def totals(self, without: str = "") -> tuple[float, float]:
        """Median and minimum over laps of all pieces together."""
        totals = [sum(value for name, value in lap.items() if name != without) for lap in self._measured()]
        return round(statistics.median(totals), 3), round(min(totals), 3)

    def _measured(self) -> list[dict[str, float]]:
        return self._laps[self._warm_up : -1]

    def _pieces(self) -> dict[str, list[float]]:
        laps = self._measured()
        return {name: [lap[name] for lap in laps] for name in laps[0]}

    def _begin(self) -> float:
        self._wait()
        self._inside.append(0.0)
        return time.perf_counter()

    def _end(self, name: str, began: float) -> None:
        self._wait()
        whole = time.perf_counter() - began
        self._laps[-1][name] += 1e3 * (whole - self._inside.pop())
        if self._inside:
            self._inside[-1] += whole

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def cuda_peak_gib(device: torch.device) -> float | None:
    """The most memory that tensors took on the device since the last call; None on the CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 2)
