"""Processors that a process may use."""

import os
from pathlib import Path

import pytest

from spatialavatar import processors


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1), ("1600000 100000", 3), (None, 3)],
)
def test_cpus_are_those_of_this_process(
    quota: str | None, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 9}, raising=False)
    monkeypatch.setattr(processors, "CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert processors.usable_cpus() == usable
