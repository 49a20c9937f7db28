"""Joining Ray, or starting one."""

import signal
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")
import ray

from ray_jobs import connect


def test_a_ray_of_this_machine_has_room_for_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "usable_cpus", lambda: 3)
    assert connect.local_cpus(1) == 3
    assert connect.local_cpus(2) == 4  # each worker needs one, and one for its batches


def test_the_handler_of_the_program_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray sets one of its own."""

    def init(**options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    try:
        connect.connect("local", 1)
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
