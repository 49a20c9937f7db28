"""The commands of ray_jobs in this process, which may be connected to Ray already."""

import importlib
import sys
from typing import Any

import pytest

from ray_jobs.command import run


def exit_code(monkeypatch: pytest.MonkeyPatch, name: str, *options: Any) -> int:
    """Of ``python -m ray_jobs.NAME`` with these options."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    try:
        run(importlib.import_module(f"ray_jobs.{name}").app, f"ray_jobs.{name}")
    except SystemExit as e:
        return int(e.code or 0)
    return 0
