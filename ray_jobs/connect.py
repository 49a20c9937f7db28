"""Joining a Ray cluster, or starting one on this machine, without noise."""

import logging
import os
import signal
import socket
import threading

from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.processors import usable_cpus

ADDRESS_VARIABLE = "RAY_ADDRESS"
SECONDS_TO_ANSWER = 10.0  # of a cluster's head; Ray itself would wait for minutes


def connect(address: str | None = None, cpus: int | None = None) -> None:
    """Join the cluster at ``address`` or RAY_ADDRESS (a submitted job's own); else start one here with ``cpus``.

    For the main thread, whose handler of SIGTERM stays. Nothing happens when this process is connected already. Raises
    SpatialAvatarError when no cluster answers.
    """
    # Ray says on stderr what it is about to change in later versions
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    wanted = address or os.environ.get(ADDRESS_VARIABLE) or "local"
    if wanted != "local":
        _require_answer(wanted)
    logging.getLogger("ray").setLevel(logging.ERROR)
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=wanted,
            num_cpus=cpus if wanted == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ray.exceptions.AuthenticationError as e:
        reason = in_short(e, 300)
        raise SpatialAvatarError(f"{wanted}: wants a token (RAY_AUTH_TOKEN; cluster/README.md): {reason}") from None
    except (ConnectionError, RuntimeError, ValueError) as e:
        reason = in_short(e, 300)
        raise SpatialAvatarError(f"{wanted}: no Ray cluster to join there ({reason})") from None
    if on_term is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray has set a handler of its own
    # The jobs say in their own words who was lost; Ray would print a paragraph each time, and has no option against it
    ray._private.worker._worker_logs_enabled = False


def local_cpus(workers: int) -> int:
    """What a Ray of this machine alone should count: its CPUs, and at least two for each of a training's workers."""
    return max(usable_cpus(), 2 * workers)


def _require_answer(address: str) -> None:
    """Raises SpatialAvatarError when nobody listens at HOST:PORT or ray://HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like: Ray knows what is meant
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    except OSError as e:
        raise SpatialAvatarError(
            f"{address}: no Ray cluster answers there ({e.strerror or e}); start it, or unset {ADDRESS_VARIABLE} to "
            "run on this machine"
        ) from None
