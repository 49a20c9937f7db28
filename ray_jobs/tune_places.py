"""How many trials of a sweep a cluster has room for at a time, and what each of them takes.

Ray Tune counts the small share of a trial's own process alone, and knows nothing of what Ray Train takes for its
workers. More trials than fit would wait for each other's machines for ever, so they are counted here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from ray_jobs.resources import Places, find_places
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.config import TrainConfig

TRIAL_CPUS = 0.01  # of a trial's own process, which waits for its workers
LEAST_CPUS = 0.5  # of a worker without a GPU
HUNDREDTHS = 100
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Room:
    trials: int  # at a time
    places: tuple[Places, ...]  # of each trial


def find_room(configs: Sequence[TrainConfig], wanted: int | None) -> Room:
    """For all trials, ``wanted`` at a time or as many as fit, on the cluster that this process is connected to.

    Raises SpatialAvatarError when there is no room for one, or not for ``wanted``.
    """
    first = find_places(max(configs, key=lambda config: config.distributed.workers))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = min(len(configs), *(_most(config, first.gpu, nodes) for config in configs))
    if wanted is not None and min(wanted, len(configs)) > max(1, most):
        raise SpatialAvatarError(
            f"{wanted} trials at a time were asked for; the cluster has room for {max(1, most)} (each takes "
            f"{configs[0].distributed.workers} worker(s), and a CPU to prepare batches beside each); lower --trials, "
            "or add machines"
        )
    trials = max(1, min(most, wanted or most))
    return Room(trials, tuple(_places(config, first.gpu, nodes, trials) for config in configs))


def _most(config: TrainConfig, gpu: bool, nodes: Sequence[dict[str, float]]) -> int:
    """Trials for which there is room when each takes the least that it can."""
    workers = config.distributed.workers
    least = config.distributed.cpus_per_worker or (1.0 if gpu else LEAST_CPUS)
    by_cpu = _total(nodes, "CPU") / (workers * (least + 1) + TRIAL_CPUS)
    return min(int(by_cpu + _ROUNDING), _workers_on(nodes, least, gpu) // workers)


def _places(config: TrainConfig, gpu: bool, nodes: Sequence[dict[str, float]], trials: int) -> Places:
    """A fair share of the cluster."""
    workers = config.distributed.workers
    share = (_total(nodes, "CPU") / trials - TRIAL_CPUS) / workers  # of a worker and what prepares its batches
    cpus = config.distributed.cpus_per_worker
    if cpus is None:
        # as for one training: on CPUs, half of it, and never the last whole one
        cpus = 1.0 if gpu else max(math.floor(HUNDREDTHS * min(share / 2, share - 1)) / HUNDREDTHS, 1 / HUNDREDTHS)
        while cpus > LEAST_CPUS and _workers_on(nodes, cpus, gpu) < trials * workers:
            cpus = round(cpus - 1 / HUNDREDTHS, 2)
    left = max(1, int(share - cpus + _ROUNDING))
    return Places(workers, cpus, gpu, min(left, config.data.workers or left))


def _workers_on(nodes: Sequence[dict[str, float]], cpus: float, gpu: bool) -> int:
    needs = {"CPU": cpus} | ({"GPU": 1.0} if gpu else {})
    return sum(min(int(node.get(name, 0) / need + _ROUNDING) for name, need in needs.items()) for node in nodes)


def _total(nodes: Sequence[dict[str, float]], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)
