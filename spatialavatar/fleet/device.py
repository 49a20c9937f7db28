"""What a worker refines on: what its errors mean to a fleet, how full it is, and its name."""

import gc
import os
import platform
import resource
import socket
from collections.abc import Callable
from typing import TypeVar

import torch

from spatialavatar.fleet.pipeline import Broken, OutOfMemory

T = TypeVar("T")


def on_device(action: Callable[[], T], too_large: str) -> T:
    """What the errors of torch mean to a fleet. Raises OutOfMemory, with all freed that can be, and Broken."""
    try:
        return action()
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as e:
        if not is_broken(e):
            raise
        raise Broken(f"{type(e).__name__}: {e}") from None
    # out of the handler, in which the error's traceback still holds the frames that hold the tensors
    gc.collect()
    torch.cuda.empty_cache()
    raise OutOfMemory(too_large)


def is_broken(error: Exception) -> bool:
    """An error of the GPU itself, after which every further call of the process fails."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def with_index(device: torch.device) -> torch.device:
    """As tensors name their device; a plain 'cuda' would never be equal to it, and everything copied."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_in_use(device: torch.device, cpus: float) -> float:
    """Share of a worker's memory that was in use at most since the peak was forgotten; without a GPU that is the share
    of the machine's which goes with its ``cpus``."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        in_use = total - free - reserved + torch.cuda.max_memory_allocated(device)  # with other processes
        return in_use / total
    share = cpus / (os.cpu_count() or 1)
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / (installed * min(1.0, share))


def worker_name(device: torch.device) -> str:
    """What records and failures say of who worked on a subject: this process, its machine, and what it refines on."""
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return f"process {os.getpid()} on {socket.gethostname()}, {model}"
