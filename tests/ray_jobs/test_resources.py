"""CPUs that a Ray of this machine alone counts."""

import os
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is not installed")
from ray_jobs import resources


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1), ("1600000 100000", 3), (None, 3)],
)
def test_cpus_are_those_of_this_process(
    quota: str | None, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 9}, raising=False)
    monkeypatch.setattr(resources, "CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert resources.usable_cpus() == usable
    assert resources.local_cpus(2) == 4  # each worker needs one, and one for its batches
