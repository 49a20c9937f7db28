"""Several processes of one torch.distributed group, as a training's workers are, without Ray."""

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_group(work: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What ``work(*arguments)`` returns in each of ``world`` processes; the function must be importable."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(_enter, (world, port, str(folder), work, arguments), nprocs=world, start_method=_method())
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(world)]


def _method() -> str:
    """Forks of one process that has imported what takes seconds; CUDA is not for forks."""
    if torch.cuda.is_available():
        return "spawn"
    multiprocessing.set_forkserver_preload([f"{__package__}.group_imports"])
    return "forkserver"


def _enter(rank: int, world: int, port: int, folder: str, work: Callable[..., Any], arguments: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_RANK": str(rank), "OMP_WAIT_POLICY": "passive"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        result = work(*arguments)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        raise
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
