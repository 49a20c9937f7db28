"""Trainings on Ray as jobs of their own: a driver in a process, which tests disturb while it trains."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from spatialavatar import files
from spatialavatar.generator.checkpoint import complete_checkpoints
from spatialavatar.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
LONGEST = 240.0  # seconds that a test waits for anything


def write_config(file: Path, config: TrainConfig) -> Path:
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return file


@contextmanager
def job(config: Path, out: str, address: str | None, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """``python -m ray_jobs.train``; killed at the end if it is still there."""
    command = [sys.executable, "-m", "ray_jobs.train", "--config", str(config), "--out", out, *options]
    command += ["--address", address] if address else []
    with started(command) as process:
        yield process


@contextmanager
def started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A program whose output is kept; killed at the end if it is still there."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and all that the job printed."""
    printed, _ = process.communicate(timeout=LONGEST)
    return process.returncode, printed


def wait_for(what: Callable[[], Any], process: "subprocess.Popen[str]") -> Any:
    """Until ``what`` gives something true, while the job runs."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until:
        if found := what():
            return found
        if process.poll() is not None:
            raise AssertionError(f"the job ended with {process.returncode}: {process.stdout and process.stdout.read()}")
        time.sleep(0.05)  # between two looks
    raise AssertionError(f"nothing in {LONGEST} s")


def checkpoint_of(out: str, step: int) -> bool:
    return any(int(folder[-8:]) >= step for folder in complete_checkpoints(out))


def training_workers(address: str) -> list[psutil.Process]:
    """Processes of Ray Train's workers on the machines here of the cluster at an address."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("RayTrainWorker" in word for word in process.info["cmdline"] or ()):
            raylet = process.parent()
            if raylet is not None and any(word.endswith(f"={address}") for word in raylet.cmdline()):
                found.append(process)
    return found


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


def curve(out: str) -> dict[int, dict[str, float]]:
    """Losses by step, as the run's log has them."""
    lines = [json.loads(line) for line in files.read_bytes(files.join(out, "train.jsonl")).decode().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


def assert_same_curve(out: str, other: str) -> None:
    """Within what rounding grows to in some tens of steps, when sums are taken in another order."""
    found, expected = curve(out), curve(other)
    assert found.keys() == expected.keys()
    for step, line in expected.items():
        for name in ("loss", "l1", "learning_rate"):
            assert abs(found[step][name] - line[name]) <= 1e-4 * abs(line[name]), (step, name)
