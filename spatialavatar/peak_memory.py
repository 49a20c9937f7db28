"""How much memory was in use at most."""

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the device's allocator's, else this process' since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
