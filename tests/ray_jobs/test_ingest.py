"""The ingest on a real cluster: sources that end their process, stores that do not answer, a driver that is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.shards.ingest import Count, IngestSummary, Work, finish, ingest, prepare
from spatialavatar.shards.ingest_config import IngestConfig
from spatialavatar.shards.manifest import open_shards
from spatialavatar.shards.records import read_records
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.folders import folder_content
from tests.builders.ray_commands import exit_code

pytest.importorskip("ray")

REPOSITORY = Path(__file__).parents[2]


def clips_of(folder: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        tiny_clip(folder / name, seed=seed, instants=2)
    return folder


def config_for(source: Path, output: Path, **changes: Any) -> IngestConfig:
    tiny_head()
    head = "memory://builders/tiny.head.safetensors"
    return IngestConfig(**{"source": str(source), "output": str(output), "head": head, **changes})


def ingest_on_ray(config: IngestConfig, **options: Any) -> IngestSummary:
    from ray_jobs.ingest import on_ray

    return ingest(config, lambda work: on_ray(work, **options))


def run_instead(monkeypatch: pytest.MonkeyPatch, before: Callable[[Any], Any]) -> None:
    """In the workers: ``before`` sees a group first, and what it returns, if anything, is the outcome."""
    import ray_jobs.ingest

    real = ray_jobs.ingest._convert

    def convert(group: Any, *rest: Any) -> Any:
        outcome = before(group)
        return real(group, *rest) if outcome is None else outcome

    monkeypatch.setattr(ray_jobs.ingest, "_convert", convert)


def test_the_same_bytes_as_in_one_process(tmp_path: Path, ray_cluster: str) -> None:
    source = clips_of(tmp_path / "in", [f"c{n}" for n in range(5)])
    (source / "c3/images/000001.jpg").write_bytes(b"")
    assert ingest_on_ray(config_for(source, tmp_path / "ray", clips_per_shard=2), workers=2).rejected == 1
    ingest(config_for(source, tmp_path / "alone", clips_per_shard=2))
    assert folder_content(tmp_path / "ray") == folder_content(tmp_path / "alone")


def test_a_source_that_ends_its_process_is_rejected(
    tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in a group with a sound one, which arrives all the same."""
    source = clips_of(tmp_path / "in", ["a-sound", "b-ends", "c-sound"])

    def fragile(group: Any) -> None:
        from spatialavatar.shards import convert

        opened = convert.open_clip

        def opening(location: str) -> Any:
            if location.endswith("b-ends"):
                os.kill(os.getpid(), signal.SIGKILL)
            return opened(location)

        convert.open_clip = opening

    run_instead(monkeypatch, fragile)
    config = config_for(source, tmp_path / "out", clips_per_shard=2)
    summary = ingest_on_ray(config, workers=2)
    assert (summary.clips, summary.rejected, summary.left) == (2, 1, 0)
    shards = open_shards(tmp_path / "out")
    assert sorted(shards.column("key")) == ["a-sound", "c-sound"]
    (rejected,) = shards.rejected
    assert rejected.key == "b-ends"
    assert rejected.reason.startswith(f"{source}/b-ends: ended the process that read it 2 times: ")
    assert ingest(config).converted == 0


def test_a_source_that_never_ends_ends_its_process(tmp_path: Path) -> None:
    """Out of code that does not return; the frames of Python that it hangs in go to the worker's log."""
    source = clips_of(tmp_path / "in", ["a"])
    program = f"""
import signal
from ray_jobs.ingest import _convert
from spatialavatar.shards import convert
from spatialavatar.shards.find import find_sources
from spatialavatar.shards.ingest_config import IngestConfig
from spatialavatar.shards.plan import plan_groups
from tests.builders.clips import tiny_head

def never(location):
    while True:
        signal.pause()

convert.open_clip = never
tiny_head()
config = IngestConfig(source={str(source)!r}, output={str(tmp_path / "out")!r})
(group,) = plan_groups(config, find_sources(config.source).sources, [], "settings")
_convert(group, config, tiny_head(), 0.001)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and "in never" in ended.stderr, ended.stderr
    assert not list((tmp_path / "out/shards").glob("*.json"))


def test_a_store_that_does_not_answer_leaves_clips_for_another_run(
    tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = clips_of(tmp_path / "in", ["away", "back", "sound"])
    counter = str(tmp_path / "tries")

    def away(group: Any) -> Exception | None:
        (key,) = [item.source.key for item in group.items]
        if key == "sound":
            return None
        with open(counter, "a") as f:
            f.write(f"{key}\n")
        tries = Path(counter).read_text().split().count(key)
        return StoreError(f"{key} did not answer") if key == "away" or tries < 3 else None

    config = config_for(source, tmp_path / "out", clips_per_shard=1)
    with monkeypatch.context() as patch:
        run_instead(patch, away)
        summary = ingest_on_ray(config, workers=2)
    assert summary == IngestSummary(clips=2, rejected=0, converted=2, frames=4, left=1)
    assert Path(counter).read_text().split().count("away") == 3
    assert ingest_on_ray(config, workers=1) == IngestSummary(clips=3, rejected=0, converted=1, frames=2, left=0)


def test_a_full_disk_stops_the_run(tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(clips_of(tmp_path / "in", ["a", "b"]), tmp_path / "out", clips_per_shard=1)
    run_instead(monkeypatch, lambda group: OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        ingest_on_ray(config)
    assert read_records(tmp_path / "out") == []


def test_what_comes_back_of_a_group_is_done(tmp_path: Path, ray_cluster: str) -> None:
    """Two runs of the same work at once, group by group in turn."""
    from ray_jobs.ingest import on_ray

    source = clips_of(tmp_path / "in", [f"c{n}" for n in range(4)])
    config = config_for(source, tmp_path / "out", clips_per_shard=1)
    works: list[Work] = [prepare(config), prepare(config)]
    counts = [Count(work) for work in works]
    for both in zip(*(on_ray(work, workers=1) for work in works), strict=True):
        for count, converted in zip(counts, both):
            count.add(converted)
    assert {finish(work, count) for work, count in zip(works, counts)} == {IngestSummary(4, 0, 4, 8, 0)}
    ingest(config_for(source, tmp_path / "alone", clips_per_shard=1))
    assert folder_content(tmp_path / "out") == folder_content(tmp_path / "alone")


def command(monkeypatch: pytest.MonkeyPatch, *options: Any) -> int:
    """The command in this process, as far as it connects to Ray; its exit code."""
    return exit_code(monkeypatch, "ingest", *options)


def head_file(folder: Path) -> Path:
    tiny_head()
    path = folder / "tiny.head.safetensors"
    path.write_bytes(files.read_bytes("memory://builders/tiny.head.safetensors"))
    return path


def test_the_command(
    tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Quiet: progress on stderr, two lines on stdout."""
    source = clips_of(tmp_path / "in", ["anna/1", "anna/2", "berta/1"])
    (source / "anna/2/clip.json").write_text("{}")
    options = ["--source", source, "--output", tmp_path / "out", "--head", head_file(tmp_path)]
    options += ["--identity-pattern", "^([a-z]+)/", "--test-last", "1", "--clips-per-shard", "2"]
    assert command(monkeypatch, *options) == 0
    stdout, stderr = capfd.readouterr()
    assert stdout == (f"{tmp_path}/out: 2 clips, 2 new\n1 rejected, with reasons in {tmp_path}/out/rejected.jsonl\n")
    assert stderr.splitlines() and all(line.startswith("ingesting: ") for line in stderr.splitlines()), stderr
    assert stderr.splitlines()[-1].startswith("ingesting: 3/3, ")
    shards = open_shards(tmp_path / "out")
    assert sorted(zip(shards.column("identity"), shards.column("train_instants"))) == [("anna", 1), ("berta", 1)]

    assert command(monkeypatch, *options) == 0
    assert capfd.readouterr().out.startswith(f"{tmp_path}/out: 2 clips, nothing new\n1 rejected")
    assert command(monkeypatch, *options, "--fps", "30") == 2
    assert "was made with fps None, not 30.0; use the same settings" in capfd.readouterr().err


def test_an_interruption_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray_jobs.connect
    import ray_jobs.ingest

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_jobs.connect, "connect", lambda *_: None)
    monkeypatch.setattr(ray_jobs.ingest, "on_ray", interrupted)
    source = clips_of(tmp_path / "in", ["a"])
    options = ["--source", source, "--output", tmp_path / "out", "--head", head_file(tmp_path)]
    assert command(monkeypatch, *options) == 130
    assert capsys.readouterr().err == "error: interrupted; run the same command again to go on\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--format", "vhs"], "error: no source format named 'vhs'; there are auto, clip"),
        (["--test-last", "-1"], "Invalid value for '--test-last'"),
        (["--image-format", "bmp"], "error: --image-format bmp: "),
        (["--fps", "0"], "error: --fps 0.0: input should be greater than 0"),
        (["--identity-pattern", "a"], "error: --identity-pattern 'a': has no group"),
        (["--head", "none.head.safetensors"], "error: none.head.safetensors: no such file"),
    ],
)
def test_mistakes_are_one_line_before_ray_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    expected: str,
) -> None:
    import ray_jobs.connect

    monkeypatch.setattr(ray_jobs.connect, "connect", lambda *_: pytest.fail("connected"))
    source = clips_of(tmp_path / "in", ["a"])
    named = ["--source", source, "--output", tmp_path / "out", "--head", head_file(tmp_path)]
    assert command(monkeypatch, *named, *options) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_driver_and_its_rerun_make_the_same_data_set(tmp_path: Path, ray_cluster: str) -> None:
    source, out, head = (
        clips_of(tmp_path / "in", [f"c{n:02d}" for n in range(12)]),
        tmp_path / "out",
        head_file(tmp_path),
    )
    (source / "c05/images/000001.jpg").write_bytes(b"")

    def start(workers: int) -> subprocess.Popen[str]:
        options = ["--source", source, "--output", out, "--head", head, "--clips-per-shard", 1, "--workers", workers]
        return subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.ingest", *map(str, options)],
            cwd=REPOSITORY,
            env={**os.environ, "RAY_ADDRESS": ray_cluster},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start(1)
    while first.poll() is None and not list((out / "shards").glob("*.json")):
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()

    second = start(2)
    stdout, stderr = second.communicate(timeout=300)
    assert second.returncode == 0, stderr
    assert stdout.startswith(f"{out}: 11 clips, ") and "1 rejected, with reasons in" in stdout
    assert all(line.startswith("ingesting: ") for line in stderr.splitlines()), stderr
    ingest(config_for(source, tmp_path / "alone", head=str(head), clips_per_shard=1))
    made = {name: data for name, data in folder_content(out).items() if "/.ingest-" not in name}
    assert made == folder_content(tmp_path / "alone")


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from ray_jobs.connect import connect

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SpatialAvatarError, match=r"127\.0\.0\.1:1: no Ray cluster answers there"):
        connect()
