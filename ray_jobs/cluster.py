"""The cluster that this process is connected to: its machines, what is free on them, what its exceptions say."""

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

SECONDS_TO_ANSWER = 2.0  # of a machine
ASKED_AT_ONCE = 16  # machines
ROUNDING = 1e-9
LINE = 300  # characters of an exception that a person can use

Machines = Sequence[Mapping[str, float]]  # resources of each


def machines() -> list[dict[str, float]]:
    """Resources of each machine of the cluster, without those that went away and are not missed yet."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    there = [node for node in alive if _answers(node)]
    return [node["Resources"] for node in there or alive]  # none answers a driver that is outside the cluster


def machines_that_answer(wanted: set[str]) -> set[str]:
    """Those of the machines that are there, by Ray's names of them, as far as this process can ask: Ray misses one only
    after a while."""
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    asked = sorted(wanted & nodes.keys())
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        found = {id for id, answered in zip(asked, pool.map(lambda id: _answers(nodes[id]), asked)) if answered}
        if found or not asked:
            return found
        # none: a driver outside of the cluster's network hears from nobody, and has to believe Ray
        others = sorted(nodes.keys() - wanted)[:ASKED_AT_ONCE]
        return set() if any(pool.map(lambda id: _answers(nodes[id]), others)) or not others else set(asked)


def workers_on(nodes: Machines, worker: Mapping[str, float]) -> int:
    """How many there is room for, each of which takes the resources of ``worker``."""
    return sum(min(int(node.get(name, 0) / need + ROUNDING) for name, need in worker.items()) for node in nodes)


def total(nodes: Machines, name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)


def free_now() -> str:
    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU"


def beside_driver(kind: type, **options: Any) -> Any:
    """An actor that takes no CPU, on the driver's own machine, so that it ends with the driver alone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here, **options).remote()


def first_line(error: BaseException) -> str:
    """What an exception of Ray says, without the pages around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:LINE]


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether somebody listens at a machine."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True
