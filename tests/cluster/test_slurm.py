"""slurm.sh where there is no Slurm: its programs are stand-ins that run here what they are given."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import CLUSTER

pytest.importorskip("ray")

SCRIPT = CLUSTER / "slurm.sh"

SCONTROL = """#!/bin/bash
[ "$1 $2" = "show hostnames" ] && printf '%s\\n' ${3//,/ }
"""
SRUN = """#!/bin/bash
tasks=1
while [[ $1 == --* ]]; do
    [[ $1 == --ntasks=* ]] && tasks=${1#*=}
    options+=("$1")
    shift
done
echo "srun ${options[*]} $1" >> "$LOG"
[ "$tasks" = 1 ] && exec "$@"
trap 'kill $(jobs -p)' TERM
for ((i = 0; i < tasks; i++)); do "$@" & done
wait
wait
"""
RAY = """#!/bin/bash
[ "$1" = health-check ] && exit
[ -n "$RAY_IS_BROKEN" ] && exit 1
sleep 100 &
trap 'echo stopped >> "$LOG"; kill $!; exit' TERM
echo "$*" >> "$LOG"
wait
"""
PYTHON = """#!/bin/bash
case $2 in *secrets*) echo secret ;; *) echo nodes $(($(grep -c ^start "$LOG") - LOST)) ;; esac
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a batch script, with stand-ins for Slurm's programs and RAY_TMP."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    folder = tempfile.mkdtemp(prefix="s-")  # short, as the script asks
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    yield unset | {
        "PATH": os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "LOG": str(tmp_path / "log"),
        "HEAD_IP": "127.0.0.1",
        "RAY_TMP": folder,
        "SLURM_JOB_ID": str(10 * os.getpid()),
        "SLURM_JOB_NODELIST": "one",
    }
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def without_ray(slurm: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Ray and Python are stand-ins, too: three nodes, which all join."""
    for name, text in (("ray", RAY), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return slurm | {"SLURM_JOB_NODELIST": "one,two,three", "LOST": "0", "SLURM_CPUS_PER_TASK": "4"}


def run(env: dict[str, str], *command: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([SCRIPT, *command], env=env, capture_output=True, text=True, timeout=timeout)


def logged(env: dict[str, str]) -> list[str]:
    return Path(env["LOG"]).read_text().splitlines()


def test_starts_each_node_once_runs_the_command_and_stops(without_ray: dict[str, str]) -> None:
    show = 'echo "$RAY_ADDRESS $RAY_AUTH_MODE $RAY_AUTH_TOKEN"; exit 7'
    done = run(without_ray, "bash", "-c", show)
    port = 20000 + int(without_ray["SLURM_JOB_ID"]) % 10000
    assert done.returncode == 7, done.stderr
    assert done.stdout.split() == [f"127.0.0.1:{port}", "token", "secret"]
    log = logged(without_ray)
    steps = sorted(line for line in log if line.startswith("srun"))
    assert steps == [
        "srun --nodes=1 --ntasks=1 --nodelist=one ray",
        "srun --nodes=2 --ntasks=2 --exclude=one bash",
        "srun --nodes=3 --ntasks=3 rm",
    ]
    head, *others = sorted(
        (_start_options(line) for line in log if line.startswith("start")), key=lambda o: not o["head"]
    )
    assert head["head"] and (head["node_ip_address"], head["port"]) == ("127.0.0.1", port)
    assert len(others) == 2
    assert all(not other["head"] and other["address"] == f"127.0.0.1:{port}" for other in others)
    for options in (head, *others):
        assert options["block"] and options["num_cpus"] == 4
        assert options["temp_dir"] == f"{without_ray['RAY_TMP']}/ray-{without_ray['SLURM_JOB_ID']}"
    assert log.count("stopped") == 3


def test_one_node_and_further_options(without_ray: dict[str, str]) -> None:
    one = {"SLURM_JOB_NODELIST": "one", "RAY_OPTIONS": "--object-store-memory=100000000 --num-gpus=0"}
    assert run(without_ray | one, "true").returncode == 0
    (started,) = [_start_options(line) for line in logged(without_ray) if line.startswith("start")]
    assert started["head"] and started["object_store_memory"] == 100_000_000 and started["num_gpus"] == 0


def test_end_of_time_reaches_the_command_and_its_exit_code_counts(without_ray: dict[str, str]) -> None:
    command = "trap 'echo saved; kill $!; exit 3' TERM; sleep 100 & echo ready; wait"
    with subprocess.Popen(
        [SCRIPT, "bash", "-c", command], env=without_ray, stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "ready\n"
        script.send_signal(signal.SIGTERM)
        assert script.stdout.read() == "saved\n"
        assert script.wait(60) == 3
    assert logged(without_ray).count("stopped") == 3


def test_ray_that_does_not_start_is_a_failure(without_ray: dict[str, str]) -> None:
    done = run(without_ray | {"RAY_IS_BROKEN": "yes"}, "echo", "ran")
    assert done.returncode == 1
    assert "Ray ended while it started" in done.stderr
    assert done.stdout == ""


def test_a_node_that_does_not_join_is_a_failure(without_ray: dict[str, str]) -> None:
    done = run(without_ray | {"LOST": "1", "NODE_WAIT": "3"}, "echo", "ran")
    assert done.returncode == 1
    assert "not all of 3 nodes" in done.stderr
    assert done.stdout == ""
    log = logged(without_ray)
    assert log.count("stopped") == sum(line.startswith("start") for line in log)


def test_needs_a_command(without_ray: dict[str, str]) -> None:
    done = run(without_ray)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")


@pytest.mark.slow
def test_runs_a_command_on_a_real_ray(slurm: dict[str, str]) -> None:
    psutil = pytest.importorskip("psutil")
    code = "import ray; ray.init(); f = ray.remote(lambda: 6 * 7); print(ray.get(f.remote()), ray.cluster_resources())"
    temp = Path(slurm["RAY_TMP"])
    options = "--object-store-memory=80000000 --include-dashboard=false"
    env = slurm | {"SLURM_CPUS_PER_TASK": "2", "RAY_OPTIONS": options, "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = run(env, sys.executable, "-c", code, timeout=150)
        assert done.returncode == 0, done.stderr
        (answer,) = [line for line in done.stdout.splitlines() if line.startswith("42")]
        assert "'CPU': 2.0" in answer
        assert _processes_of(psutil, temp) == []
        assert not list(temp.iterdir())
    finally:
        for process in _processes_of(psutil, temp):
            process.kill()


def _processes_of(psutil: Any, folder: Path) -> list[Any]:
    """Those that have the folder in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def _start_options(line: str) -> dict[str, Any]:
    """Of a logged ``start ...``; click refuses what ``ray start`` has not."""
    from ray.scripts.scripts import start

    with start.make_context("start", line.split()[1:]) as context:
        return dict(context.params)
