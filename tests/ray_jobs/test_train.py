"""Trainings on Ray: the same as in one process, through whatever happens to workers, driver, machines and stores."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spatialavatar import files
from spatialavatar.generator.checkpoint import complete_checkpoints
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.run import train
from tests.builders.ray_commands import exit_code
from tests.builders.store import EVERY, Fault
from tests.builders.train_jobs import (
    ROOT,
    assert_same_curve,
    checkpoint_of,
    curve,
    ended,
    job,
    kill,
    training_workers,
    wait_for,
    write_config,
)
from tests.builders.training import training_folder, training_in

if TYPE_CHECKING:
    from tests.builders.store import FaultyStore

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("deepspeed", reason="deepspeed is not installed")
STEPS, EVERY_STEPS = 20, 4  # all, and from checkpoint to checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_folder(tmp_path_factory.mktemp("jobs"))


def settings(folder: Path, **changes: Any) -> TrainConfig:
    values = {"batch_size": 4, "steps": STEPS, "log_every": 1, "checkpoint_every": EVERY_STEPS}
    values |= {"keep_checkpoints": 3, "data": {"workers": 1}}
    return training_in(folder, **{**values, **changes})


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    return write_config(folder / "train.yaml", settings(folder))


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> str:
    """The same training in one process, without Ray."""
    train(settings(folder), folder / "undisturbed")
    return str(folder / "undisturbed")


@pytest.mark.slow
def test_workers_are_killed(
    ray_cluster: str, faulty_store: "FaultyStore", s3_bucket: str, config: Path, undisturbed: str
) -> None:
    """One, and of two later both, with all on S3; the run ends as one in one process without Ray does.

    In between the store refuses the checkpoint at step 8 for good: the one before stays, and the training goes on.
    """
    out = f"{s3_bucket}/run"
    options = ["--workers", "2", "--set", "distributed.zero_stage=2", "--set", "keep_checkpoints=100"]
    faulty_store.inject(Fault("answer", EVERY, method="PUT", path="step-00000008/", status=403))
    with job(config, out, ray_cluster, *options) as process:
        for killed, step in [(1, 4), (2, 12)]:
            wait_for(lambda step=step: checkpoint_of(out, step), process)
            workers = training_workers(ray_cluster)
            assert len(workers) == 2
            for worker in workers[:killed]:
                kill(worker)
        code, printed = ended(process)
    assert code == 0, printed
    assert printed.count("start again from the newest checkpoint") == 2
    assert f"{out}: {STEPS} steps, checkpoint {out}/checkpoints/step-000000{STEPS}" in printed
    assert_same_curve(out, undisturbed)
    lines = [line for line in printed.splitlines() if line]
    assert len(lines) < 60 and not any("Traceback" in line for line in lines), printed
    assert files.list_folder(f"{out}/tensorboard")
    performance = curve(out)[STEPS]["performance"]
    assert performance.keys() >= {"step_seconds", "data_seconds", "samples_per_second", "memory_gib"}  # type: ignore
    steps = {int(folder[-8:]) for folder in complete_checkpoints(out)}
    assert {4, 12, STEPS} <= steps and 8 not in steps
    assert "no checkpoint at step 8" in printed and "going on, the newest one is" in printed
    assert "step-00000004" in printed.split("no checkpoint at step 8", 1)[1].splitlines()[0]


BAD_INPUT = {
    "unknown key": (["--set", "loss.lambda_spp=1"], "unknown key loss.lambda_spp; did you mean loss.lambda_sp?"),
    "no shards": (["--set", "data.clips=[]", "--set", "data.shards=/nowhere/shards"], "/nowhere/shards"),
    "no rows": (["--workers", "3"], "batch_size 4 cannot be shared evenly by 3 workers"),
    "no workers": (
        ["--workers", "4", "--set", "distributed.use_gpu=true", "--set", "distributed.wait_seconds=1"],
        "4 worker(s) of 1 CPU and 1 GPU each were asked for; the cluster, 1 machine(s) with 4 CPU and 0 GPU, has room "
        "for 0",
    ),
    "no phase 1": (["--set", "phase=2"], "phase 2 goes on from a Phase-1 run"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(
    ray_cluster: str, folder: Path, config: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = BAD_INPUT[case]
    out = str(folder / "bad")
    with pytest.MonkeyPatch.context() as patch:
        assert exit_code(patch, "train", "--config", config, "--out", out, *options) == 2
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert message in line and line.startswith("error: ")
    assert [told.split(":")[0] for told in before] == ["waiting for machines"] * (case == "no workers")
    assert not Path(out).exists() or not list(Path(out).iterdir())


def test_another_head_and_architecture_are_refused(folder: Path, undisturbed: str) -> None:
    from ray_jobs.training import check
    from spatialavatar.errors import SpatialAvatarError

    changes = {"phase": 2, "phase1_checkpoint": undisturbed}
    with pytest.raises(SpatialAvatarError, match="head"):
        check(settings(folder, **changes).model_copy(update={"head": None}), str(folder / "two"), False)
    generator = settings(folder).generator.model_copy(update={"uv_resolution": 16})
    with pytest.raises(SpatialAvatarError, match=r"another architecture .*uv_resolution: 32 there, 16 here"):
        check(settings(folder, **changes, generator=generator.model_dump()), str(folder / "two"), False)


@pytest.mark.slow
def test_driver_killed_then_stopped_and_submitted_again_with_other_numbers_of_workers(
    ray_cluster: str, folder: Path
) -> None:
    """Two workers; then one, which finds the newest checkpoint truncated; then two with ZeRO 1 in a Ray of their own.

    The second, which draws a sheet after every step, is slow enough to be stopped in the middle.
    """
    long = settings(folder, steps=30)
    train(long, folder / "long")
    config, out = write_config(folder / "long.yaml", long), str(folder / "disturbed")
    with job(config, out, ray_cluster, "--workers", "2") as process:
        wait_for(lambda: checkpoint_of(out, 2 * EVERY_STEPS), process)
        process.kill()
        ended(process)
    for worker in training_workers(ray_cluster):  # Ray ends them, some seconds later
        worker.wait(60)
    *_, before, newest = complete_checkpoints(out)
    file = Path(newest, "optimizer.safetensors")
    os.truncate(file, file.stat().st_size // 2)

    told = Path(out, "train.jsonl").stat()
    slow = ("--set", "checkpoint_every=1000", "--set", "sheet_every=1")
    with job(config, out, ray_cluster, "--workers", "1", *slow) as process:
        wait_for(lambda: Path(out, "train.jsonl").stat().st_mtime_ns != told.st_mtime_ns, process)
        process.send_signal(signal.SIGTERM)
        code, printed = ended(process)
    assert code == 130 and "with a checkpoint; the same command goes on" in printed, printed
    assert "passed over" in printed and f"going on from {before}" in printed
    saved = complete_checkpoints(out)[-1]
    assert int(before[-8:]) < int(saved[-8:]) < 30

    with job(config, out, None, "--workers", "2", "--set", "distributed.zero_stage=1") as process:
        code, printed = ended(process)
    assert code == 0, printed
    assert_same_curve(out, str(folder / "long"))


@pytest.mark.slow
def test_stopped_before_it_starts(ray_cluster: str, folder: Path, config: Path) -> None:
    """Another job holds all CPUs: it says so, and ends when it is told to."""
    import ray

    held = ray.util.placement_group([{"CPU": 4}])
    ray.get(held.ready())
    try:
        with job(config, str(folder / "waiting"), ray_cluster) as process:
            assert process.stdout
            for line in process.stdout:
                if "waiting for it" in line:
                    break
            assert "0 CPU and 0 GPU are free, other jobs hold the rest" in line
            process.send_signal(signal.SIGTERM)
            code, printed = ended(process)
    finally:
        ray.util.remove_placement_group(held)
    assert code == 130 and "interrupted; run the same command again to go on" in printed, printed


@pytest.mark.slow
def test_a_frame_that_cannot_be_read_stops_all(ray_cluster: str, tmp_path: Path) -> None:
    """One line that names the file, at once: it is not tried again and again."""
    folder = training_folder(tmp_path)
    damaged = tmp_path / "mono/clip1/images/000003.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    config = write_config(tmp_path / "train.yaml", settings(folder))
    with job(config, str(tmp_path / "run"), ray_cluster, "--workers", "2") as process:
        code, printed = ended(process)
    assert code == 2
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert "images/000003.jpg" in line and "start again" not in printed


NODES = """
    import sys
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20})
    nodes = [cluster.add_node(num_cpus=3, object_store_memory=100 * 2**20) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:  # the process that is a machine's raylet: that machine goes away
        (gone,) = (node for node in nodes if node.all_processes["raylet"][0].process.pid == int(line))
        cluster.remove_node(gone, allow_graceful=False)
        print("gone", flush=True)
    cluster.shutdown()
"""


@pytest.mark.slow
def test_a_machine_that_goes_away(ray_cluster: str, folder: Path, config: Path, undisturbed: str) -> None:
    """Each had one worker; both start again on the one that stays, with fewer CPUs each."""
    out = str(folder / "machine")
    environment = {**os.environ, "RAY_ADDRESS": "", "RAY_health_check_period_ms": "1000"}  # five until it is missed
    nodes = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(NODES)],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert nodes.stdin and nodes.stdout
    try:
        address = nodes.stdout.readline().strip()
        with job(config, out, address, "--workers", "2") as process:
            wait_for(lambda: checkpoint_of(out, EVERY_STEPS), process)
            raylet, _ = {worker.ppid() for worker in training_workers(address)}
            nodes.stdin.write(f"{raylet}\n")
            nodes.stdin.flush()
            assert nodes.stdout.readline().strip() == "gone"
            code, printed = ended(process)
    finally:
        nodes.stdin.close()
        nodes.wait(60)
    assert code == 0, printed
    assert "start again from the newest checkpoint" in printed, printed
    assert_same_curve(out, undisturbed)
