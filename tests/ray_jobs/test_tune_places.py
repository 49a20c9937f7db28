"""Room for trials on a cluster that grows, and what is said where there is none."""

from pathlib import Path
from typing import Any

import pytest

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.config import TrainConfig
from tests.builders.training import tiny_training

pytest.importorskip("ray", reason="ray is not installed")

from ray.autoscaler import sdk

from ray_jobs import train_places, tune_places
from ray_jobs.tune_places import find_room

MACHINE = {"CPU": 8.0, "GPU": 1.0}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster that has ``there`` machines, and one more at every look once more is asked for, up to ``most``."""
    state: dict[str, Any] = {"there": 1, "most": 1, "asked": []}

    def machines() -> list[dict[str, float]]:
        if state["asked"] and state["asked"][-1]:
            state["there"] = min(state["there"] + 1, state["most"])
        return [MACHINE] * state["there"]

    for module in (train_places, tune_places):
        monkeypatch.setattr(module, "machines", machines)
        monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(sdk, "request_resources", lambda bundles: state["asked"].append(bundles))
    return state


def configs(wait: float, workers: int = 1) -> list[TrainConfig]:
    distributed = {"workers": workers, "wait_seconds": wait}
    return [tiny_training("clips/*", Path("head"), distributed=distributed)] * 6


def test_a_cluster_that_grows_is_waited_for(cluster: dict[str, Any]) -> None:
    cluster["most"] = 4
    told: list[str] = []
    assert find_room(configs(100), 4, told.append).trials == 4
    assert cluster["asked"] == [[{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}] * 4, []]
    assert told == ["waiting for machines: 4 trials at a time were asked for, there is room for 1"]


def test_without_a_wish_what_is_there_is_taken(cluster: dict[str, Any]) -> None:
    cluster["most"] = 4
    assert find_room(configs(100), None).trials == 1 and not cluster["asked"]


def test_too_little_room_is_said_in_words_of_a_sweep(cluster: dict[str, Any]) -> None:
    with pytest.raises(
        SpatialAvatarError, match=r"room for 1 \(.*lower --trials, .*: set.distributed.wait_seconds, now 0$"
    ):
        find_room(configs(0), 2)
    with pytest.raises(
        SpatialAvatarError, match=r"has room for 1; lower set.distributed.workers .*: set.distributed.wait"
    ):
        find_room(configs(0, workers=3), None)
    assert not cluster["asked"]
