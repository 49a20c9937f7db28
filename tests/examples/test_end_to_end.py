"""The whole mission, as examples/end_to_end.sh runs it, with hardly any data: every job, the failures, the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from spatialavatar.fleet.status import read_status
from spatialavatar.report import read_section

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "end_to_end.sh"
LONGEST = 1500  # seconds


def run(*options: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, options)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=LONGEST,
        cwd=cwd,
    )


def programs() -> set[str]:
    """Processes of the clusters of such runs."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        found |= {f"{process.pid} {word}" for word in words if "/e2e." in word}
    return found


@pytest.mark.slow
@pytest.mark.timeout(LONGEST)
def test_smallest(tmp_path: Path) -> None:
    before, out = programs(), tmp_path / "out"
    done = run("out", "smallest", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert programs() <= before, "what it started is ended"

    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert all(step["exit_code"] == 0 for step in steps)
    submitted = [step["command"] for step in steps if step["command"].startswith("ray job submit")]
    for module, times in (("ingest", 2), ("train", 2), ("tune", 1), ("refine", 1), ("evaluate", 2)):
        assert sum(f"-m ray_jobs.{module} " in command for command in submitted) == times
    assert any(not step["command"] and "was killed" in step["title"] for step in steps)

    results = out / "results"
    data = read_section(str(results / "shards" / "monocular"))
    assert data.headline.startswith("4 people, 4 clips") and [p.what for p in data.problems] == ["broken"]
    assert read_section(str(results / "shards" / "multiview")).headline.startswith("3 people, 3 clips, 45 frames")
    assert "4 of 4 steps" in read_section(str(results / "runs" / "phase1")).headline
    assert "3 of 3 steps" in read_section(str(results / "runs" / "phase2")).headline
    assert "1 of 1 variant measured" in read_section(str(results / "sweep")).headline

    fleet = read_section(str(results / "fleet"))
    status = read_status(str(results / "fleet"))
    assert (status.state, status.total, status.done, status.failed) == ("finished", 8, 7, 1)
    assert status.workers_lost == 1
    poison = next(problem for problem in fleet.problems if problem.what == "poison")
    assert "images/000001.jpg" in poison.reason and "given up after 2 attempts" in poison.handling
    for kind, subjects in (("generator", 2), ("avatars", 7)):
        evaluated = read_section(str(results / "evaluation" / kind))
        assert evaluated.headline.startswith(f"{subjects} subjects, PSNR") and not evaluated.problems
    assert (out / "report.html").stat().st_size > 100_000


def test_mistakes(tmp_path: Path) -> None:
    for options, text in (
        ((tmp_path / "out", "huge"), "error: huge: expected documented or smallest, or nothing\n"),
        ((tmp_path,), f"error: {tmp_path}: exists; name a new folder\n"),
        ((".",), "error: .: exists; name a new folder\n"),
        (
            (tmp_path / "a b",),
            f"error: {tmp_path}/a b: name a folder of plain letters; it goes through the command lines of jobs\n",
        ),
    ):
        done = run(*options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, text)
    assert not list(tmp_path.iterdir())
