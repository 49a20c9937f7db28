"""What the workers of a training take of a cluster, and whether it is there."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray

from ray_jobs.cluster import ROUNDING, Machines, free_now, machines, total, workers_on
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.config import TrainConfig

SECONDS_BETWEEN_LOOKS = 1.0
HUNDREDTH = 100  # Ray takes finer fractions, people do not


@dataclass(frozen=True)
class Places:
    """Room for a training: its workers, and the CPUs beside them that prepare batches."""

    workers: int
    cpus: float  # of each worker
    gpu: bool  # one for each worker
    data_workers: int  # parts that are prepared at a time for each worker, one CPU each

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, as Ray counts them."""
        return needs(self.cpus, self.gpu)


def held_by_others(places: Places) -> str:
    """What the cluster has for a training, but not now; empty when there is nothing to wait for."""
    free = ray.available_resources()
    if all(free.get(name, 0) + ROUNDING >= places.workers * need for name, need in places.resources.items()):
        return ""
    each = _each(places.resources)
    return f"{places.workers} worker(s) need {each} each; {free_now()} are free, other jobs hold the rest"


def find_places(
    config: TrainConfig,
    tell: Callable[[str], None] = lambda line: None,
    *,
    workers: str = "--workers",
    above: str = "",
) -> Places:
    """Room for the training on the cluster that this process is connected to; waits ``wait_seconds`` for it at most.

    A cluster that grows is asked for what is missing, which ``tell`` hears when that takes time. Raises
    SpatialAvatarError that says what is missing, and what to change: the option ``workers``, and keys of the training,
    which stand under ``above``.
    """
    from ray.autoscaler.sdk import request_resources

    until = time.monotonic() + config.distributed.wait_seconds
    asked = False
    try:
        while True:
            nodes = machines()
            places, missing = _look(config, nodes, above)
            if places is not None:
                return places
            if time.monotonic() >= until:
                raise SpatialAvatarError(
                    f"{missing}; lower {workers} (batches are shared out evenly), add machines, or wait longer for a "
                    f"cluster that grows: {above}distributed.wait_seconds, now {config.distributed.wait_seconds:g}"
                )
            if not asked:
                tell(f"waiting for machines: {missing}")
                worker = _wanted(config, total(nodes, "CPU"), config.distributed.use_gpu or False)
                request_resources(bundles=[worker] * config.distributed.workers)
                asked = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        if asked:
            request_resources(bundles=[])  # it would hold machines for ever; a training asks for its own


def _look(config: TrainConfig, nodes: Machines, above: str) -> tuple[Places | None, str]:
    """The places, or what is missing."""
    wanted, workers = config.distributed, config.distributed.workers
    cpus, gpus = total(nodes, "CPU"), total(nodes, "GPU")
    gpu = gpus > 0 if wanted.use_gpu is None else wanted.use_gpu
    worker = _wanted(config, cpus, gpu)
    room, each = workers_on(nodes, worker), _each(worker)
    there = f"{len(nodes)} machine(s) with {cpus:g} CPU and {gpus:g} GPU"
    if room < workers:
        return None, f"{workers} worker(s) of {each} each were asked for; the cluster, {there}, has room for {room}"
    left = int(cpus - workers * worker["CPU"] + ROUNDING)
    if left < workers:
        return None, (
            f"{workers} worker(s) of {each} each leave {left} CPU(s) of {there} to prepare batches, expected one for "
            f"each ({above}distributed.cpus_per_worker may be a fraction)"
        )
    data = min(left, config.data.workers or left) // workers
    return Places(workers, worker["CPU"], gpu, max(1, data)), ""


def _wanted(config: TrainConfig, total_cpus: float, gpu: bool) -> dict[str, float]:
    """Resources of a worker."""
    wanted = config.distributed
    cpus = wanted.cpus_per_worker
    return needs(cpus_of_share(total_cpus / wanted.workers, gpu) if cpus is None else cpus, gpu)


def cpus_of_share(share: float, gpu: bool) -> float:
    """Of a worker's share of the CPUs, those that it takes itself; the others prepare its batches."""
    # without a GPU, training and preparing take about as long; each worker leaves a whole one
    return 1.0 if gpu else max(math.floor(HUNDREDTH * min(share / 2, share - 1)) / HUNDREDTH, 1 / HUNDREDTH)


def needs(cpus: float, gpu: bool) -> dict[str, float]:
    """Resources of a worker, as Ray counts them."""
    return {"CPU": cpus} | ({"GPU": 1.0} if gpu else {})


def _each(worker: Mapping[str, float]) -> str:
    return " and ".join(f"{need:g} {name}" for name, need in worker.items())
