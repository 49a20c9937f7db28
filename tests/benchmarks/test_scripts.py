"""The benchmarks of one process run, at their smallest, and leave a record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.page import ROOT
from tests.builders.clips import tiny_clip
from tests.builders.training import tiny_head_file

pytestmark = pytest.mark.slow


def record_of(tmp_path: Path, script: str, *options: str) -> dict[str, object]:
    out = tmp_path / "record.json"
    subprocess.run([sys.executable, f"benchmarks/{script}.py", *options, "--out", str(out)], cwd=ROOT, check=True)
    record: dict[str, object] = json.loads(out.read_text())
    assert str(record["command"]).startswith(f"python benchmarks/{script}.py ")
    return record


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("rasterizer", "--scenes 256/14.5K --repeats 1 --reference-repeats 0"),
        ("refinement", "--iterations 1 --reference-iterations 0 --batch 2"),
    ],
)
def test_speed(tmp_path: Path, script: str, options: str) -> None:
    record = record_of(tmp_path, script, *options.split())
    assert record["name"] == script
    assert record["results"]


def test_sweep(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip", test_from=3)
    _, head = tiny_head_file(tmp_path)
    variants = tmp_path / "variants.yaml"
    variants.write_text("common: [iterations=2, resolution=32, uv_resolution=16]\nruns: {one: [], two: [seed=1]}\n")
    options = ["--head", str(head), "--variants", str(variants), "--name", "tiny"]
    record = record_of(tmp_path, "refine_sweep", clip.location, *options)
    assert record["name"] == "tiny"
    assert list(record["results"]["runs"]) == ["one", "two"]  # type: ignore[index]
