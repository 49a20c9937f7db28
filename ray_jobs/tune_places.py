"""How many trials of a sweep a cluster has room for at a time, and what each of them takes.

Ray Tune counts the small share of a trial's own process alone, and knows nothing of what Ray Train takes for its
workers. More trials than fit would wait for each other's machines for ever, so they are counted here.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_jobs.cluster import ROUNDING, Machines, machines, total, workers_on
from ray_jobs.train_places import HUNDREDTH, SECONDS_BETWEEN_LOOKS, Places, cpus_of_share, find_places, needs
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.config import TrainConfig

TRIAL_CPUS = 0.01  # of a trial's own process, which waits for its workers
LEAST_CPUS = 0.5  # of a worker without a GPU


@dataclass(frozen=True)
class Room:
    trials: int  # at a time
    places: tuple[Places, ...]  # of each trial


def find_room(
    configs: Sequence[TrainConfig], wanted: int | None, tell: Callable[[str], None] = lambda line: None
) -> Room:
    """For all trials, ``wanted`` at a time or as many as fit, on the cluster that this process is connected to.

    Waits ``distributed.wait_seconds`` at most, until there is room for one, or for ``wanted``; ``tell`` hears of that.
    Raises SpatialAvatarError when there is none by then.
    """
    largest = max(configs, key=lambda config: config.distributed.workers)
    until = time.monotonic() + largest.distributed.wait_seconds
    gpu = find_places(largest, tell, workers="set.distributed.workers", above="set.").gpu
    least = min(wanted or 1, len(configs))
    nodes = _machines_for(least, configs, gpu, until, tell)
    most = _room(configs, gpu, nodes)
    if most < least:
        raise SpatialAvatarError(
            f"{wanted} trials at a time were asked for; the cluster has room for {most} (each takes "
            f"{largest.distributed.workers} worker(s), and a CPU to prepare batches beside each); lower --trials, "
            "add machines, or wait longer for a cluster that grows: set.distributed.wait_seconds, now "
            f"{largest.distributed.wait_seconds:g}"
        )
    trials = min(most, wanted or most)
    return Room(trials, tuple(_places(config, gpu, nodes, trials) for config in configs))


def _machines_for(
    trials: int, configs: Sequence[TrainConfig], gpu: bool, until: float, tell: Callable[[str], None]
) -> list[dict[str, float]]:
    """The machines, once there is room on them for so many trials at a time, or as they are ``until`` then.

    A cluster that grows is asked for what is missing.
    """
    from ray.autoscaler.sdk import request_resources

    asked = False
    try:
        while True:
            nodes = machines()
            if (room := _room(configs, gpu, nodes)) >= trials or time.monotonic() >= until:
                return nodes
            if not asked:
                tell(f"waiting for machines: {trials} trials at a time were asked for, there is room for {room}")
                workers = trials * max(config.distributed.workers for config in configs)
                cpus = max(_least_cpus(config, gpu) for config in configs)
                request_resources(bundles=[needs(cpus, gpu), {"CPU": 1.0}] * workers)
                asked = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        if asked:
            request_resources(bundles=[])  # it would hold machines for ever; the trials ask for their own


def _room(configs: Sequence[TrainConfig], gpu: bool, nodes: Machines) -> int:
    """Trials at a time; at least the one for which there are places."""
    return max(1, min(len(configs), *(_most(config, gpu, nodes) for config in configs)))


def _most(config: TrainConfig, gpu: bool, nodes: Machines) -> int:
    """Trials for which there is room when each takes the least that it can."""
    workers = config.distributed.workers
    least = _least_cpus(config, gpu)
    by_cpu = total(nodes, "CPU") / (workers * (least + 1) + TRIAL_CPUS)
    return min(int(by_cpu + ROUNDING), workers_on(nodes, needs(least, gpu)) // workers)


def _places(config: TrainConfig, gpu: bool, nodes: Machines, trials: int) -> Places:
    """A fair share of the cluster."""
    workers = config.distributed.workers
    share = (total(nodes, "CPU") / trials - TRIAL_CPUS) / workers  # of a worker and what prepares its batches
    cpus = config.distributed.cpus_per_worker
    if cpus is None:
        cpus = cpus_of_share(share, gpu)
        while cpus > LEAST_CPUS and workers_on(nodes, needs(cpus, gpu)) < trials * workers:
            cpus = round(cpus - 1 / HUNDREDTH, 2)
    left = max(1, int(share - cpus + ROUNDING))
    return Places(workers, cpus, gpu, min(left, config.data.workers or left))


def _least_cpus(config: TrainConfig, gpu: bool) -> float:
    return config.distributed.cpus_per_worker or (1.0 if gpu else LEAST_CPUS)
