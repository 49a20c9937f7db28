"""How many processors this process may use, and how many it does."""

import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container; hosts have no such file


def usable_cpus() -> int:
    """Of this machine's, by the affinity of the process and the quota of its container; at least one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(cpus, round(int(quota) / int(period))))
    except (OSError, ValueError):  # "max": no quota
        return cpus


def use_threads(count: int) -> None:
    """How many threads torch and numba have for the work of the calling one; OpenCV has none of its own then."""
    import cv2
    import numba
    import torch

    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    cv2.setNumThreads(0)
