"""``python -m ray_jobs.refine`` without a cluster: what another run in the output notices, what is said at last."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.config import FleetConfig
from spatialavatar.fleet.pipeline import Outcome
from spatialavatar.fleet.records import AVATARS, Recipe, write_record
from spatialavatar.fleet.run import FleetRun, Selection
from spatialavatar.fleet.status import read_status
from spatialavatar.fleet.subjects import Listing, read_subjects
from tests.builders.fleet_records import record_of

pytest.importorskip("ray", reason="ray is not installed")
RECIPE = Recipe("c" * 64, "l" * 64)


class Instruments:
    def __init__(self, config: FleetConfig, listing: Listing) -> None:
        self.config, self.recipe = config, RECIPE


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command with a pool that ends as it is told; its exit code."""
    import ray_jobs.refine
    from ray_jobs import connect
    from tests.builders.ray_commands import exit_code

    files.write_bytes(tmp_path / "m.csv", b"id,clip\nanna,a\nben,b\n")
    pools = ModuleType("ray_jobs.refine_pool")
    monkeypatch.setitem(sys.modules, "ray_jobs.refine_pool", pools)
    monkeypatch.setattr(ray_jobs.refine, "instruments", Instruments)

    def run(go: Callable[[FleetRun], None], *options: str, joins: Callable[..., None] = lambda *_: None) -> int:
        class Pool:
            def __init__(self, fleet: FleetRun, *arguments: Any) -> None:
                self._fleet = fleet

            def go(self) -> None:
                go(self._fleet)

        pools.Pool = Pool  # type: ignore[attr-defined]
        monkeypatch.setattr(connect, "connect", joins)
        places = ["--subjects", f"{tmp_path}/m.csv", "--output", f"{tmp_path}/out"]
        return exit_code(monkeypatch, "refine", *places, *options)

    return run


def refine_all(fleet: FleetRun) -> None:
    for case in fleet.ledger.take(100):
        record = record_of(RECIPE, case.subject)
        files.write_bytes(f"{fleet.config.output}/{record['avatar']}/avatar.json", b"{}")
        write_record(fleet.config.output, RECIPE.name(case.subject), record)
        fleet.settle(Outcome(case.subject.id, "done", record=record), "worker")


def interrupted(fleet: FleetRun) -> None:
    raise KeyboardInterrupt


def no_cluster(*address: Any) -> None:
    raise SpatialAvatarError("no Ray cluster answers there")


@pytest.mark.parametrize("option", ["--resume", "--no-resume"])
def test_without_a_cluster_another_run_goes_on(
    command: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str
) -> None:
    config = FleetConfig(subjects=f"{tmp_path}/m.csv", output=f"{tmp_path}/out")
    other = FleetRun(config, RECIPE, read_subjects(config.subjects), Selection())
    other.begin()
    assert command(refine_all, option, joins=no_cluster) == 2
    assert "no Ray cluster answers there" in capfd.readouterr().err
    refine_all(other)
    other.finish("finished", alone=True)
    assert read_status(tmp_path / "out").done == 2


def test_without_a_cluster_there_is_no_run(command: Callable[..., int], tmp_path: Path) -> None:
    assert command(refine_all, joins=no_cluster) == 2
    assert files.list_folder(tmp_path / "out") == []


def test_no_cluster_is_joined_for_nothing(command: Callable[..., int], tmp_path: Path) -> None:
    assert command(refine_all) == 0
    assert command(interrupted, joins=no_cluster) == 0
    assert read_status(tmp_path / "out").done == len(files.list_folder(tmp_path / "out" / AVATARS)) == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--resume", "interrupted; run the same command again to go on"),
        ("--no-resume", "interrupted; go on without --no-resume, which would start over"),
    ],
)
def test_how_to_go_on(
    command: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    assert command(interrupted, option) == 130
    assert capfd.readouterr().err.endswith(f"error: {said}\n")
    assert read_status(tmp_path / "out").state == "stopped"


def test_what_was_left_undone_is_said(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def silent(run: FleetRun) -> None:
        raise OSError("no answer")

    monkeypatch.setattr(FleetRun, "_remove_superseded", silent)
    assert command(refine_all) == 0
    assert "what is superseded could not all be removed: no answer" in capfd.readouterr().err
