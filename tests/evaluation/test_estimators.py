"""CSIM, AED, APD and AKD by toy estimators: numbers by hand, what is installed, what is missing and why."""

import math
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation import estimators
from spatialavatar.evaluation.estimators import (
    METRICS_OF,
    Estimators,
    Tracked,
    akd,
    csim,
    find_estimators,
    mean_distance,
    reasons,
    require_estimators,
)

HERE = "tests.evaluation.test_estimators"


def corners(pictures: Tensor) -> Tensor:
    """Embedding, codes or keypoints to tell by hand: the first row's values."""
    return pictures[:, 0, :, 0].double()


def toy_identity(device: torch.device) -> Any:
    return corners


def toy_tracking(device: torch.device) -> Any:
    return lambda pictures: Tracked(corners(pictures), pictures[:, 0, :2, 1].double())


def toy_keypoints(device: torch.device) -> Any:
    return lambda pictures: 10 * pictures[:, :, :2, 2].double()


def broken(device: torch.device) -> Any:
    raise OSError("weights.bin is not there\n")


def install(monkeypatch: pytest.MonkeyPatch, **makers: str) -> None:
    points = [EntryPoint(name.rstrip("_"), f"{HERE}:{maker}", estimators.GROUP) for name, maker in makers.items()]
    monkeypatch.setattr(estimators, "entry_points", lambda group: points if group == estimators.GROUP else [])
    module = __import__("sys").modules[__name__]
    monkeypatch.setitem(__import__("sys").modules, HERE, module)


def test_metrics_by_hand() -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, math.nan]], dtype=torch.float64)
    b = torch.tensor([[4.0, 3.0], [-2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert csim(a, b)[:2].tolist() == pytest.approx([24 / 25, -1.0], abs=1e-12) and csim(a, b)[2].isnan()
    assert mean_distance(a, b)[:2].tolist() == pytest.approx([1.0, 1.5], abs=1e-12) and mean_distance(a, b)[2].isnan()
    points = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [math.nan, 1.0]]], dtype=torch.float64)
    assert akd(points, torch.zeros_like(points)).tolist() == pytest.approx([2.5, 0.0], abs=1e-12)
    assert akd(points, torch.full_like(points, math.nan)).isnan().all()


def test_pictures_are_compared_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, identity="toy_identity", tracking="toy_tracking", keypoints="toy_keypoints")
    a, b = torch.zeros(2, 1, 2, 2, 3)
    a[0, 0, :, 0], b[0, 0, :, 0] = torch.tensor([0.3, 0.4]), torch.tensor([0.4, 0.3])
    a[0, 0, :, 1] = torch.tensor([0.2, 0.6])
    a[0, :, :, 2] = torch.tensor([[0.3, 0.4], [0.0, 0.0]])
    found = find_estimators().compare(a, b)
    assert {name: float(value) for name, value in found.items() if value is not None} == pytest.approx(
        {"csim": 0.96, "aed": 0.1, "apd": 0.4, "akd": 2.5}, abs=1e-6
    )
    assert find_estimators().names["identity"] == f"{HERE}:toy_identity"
    assert reasons(find_estimators().names, lpips=True) == {}


def test_what_is_missing_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, identity="toy_identity")
    found = find_estimators()
    a = torch.rand(2, 4, 4, 3)
    assert [name for name, value in found.compare(a, a).items() if value is None] == ["aed", "apd", "akd"]
    why = reasons(found.names, lpips=False)
    assert list(why) == ["lpips", "aed", "apd", "akd"] and why["lpips"].startswith("no AlexNet weights")
    assert why["akd"] == (
        "no keypoints estimator installed; a package that offers the entry point spatialavatar.estimators: keypoints "
        "gives it"
    )
    assert set(Estimators().compare(a, a).values()) == {None}


@pytest.mark.parametrize(
    ("makers", "expected"),
    [
        ({"identity": "broken"}, r"its identity estimator \(.*broken\) cannot be loaded \(weights.bin is not there\)"),
        ({"identity": "nothing"}, "cannot be loaded"),
        ({"hair": "broken"}, "spatialavatar.estimators: hair; there are identity, tracking, keypoints"),
        ({"identity": "broken", "identity_": "toy_identity"}, "both offer spatialavatar.estimators: identity"),
    ],
)
def test_what_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch, makers: dict[str, str], expected: str) -> None:
    install(monkeypatch, **makers)
    with pytest.raises(SpatialAvatarError, match=expected):
        find_estimators()


def test_one_that_fails_is_named() -> None:
    def weak(pictures: Tensor) -> Tensor:
        raise ValueError("no face\nin sight")

    a = torch.rand(2, 4, 4, 3)
    for name in METRICS_OF:
        found = Estimators(**{name: weak}, names={name: "faces 1.2"})  # type: ignore[arg-type]
        with pytest.raises(SpatialAvatarError) as e:
            found.compare(a, a)
        assert str(e.value).startswith(f"faces 1.2: its {name} estimator failed (ValueError: no face in sight); ")


def test_other_ones_than_the_evaluation_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, identity="toy_identity")
    assert require_estimators({"identity": f"{HERE}:toy_identity"}).identity is corners
    with pytest.raises(SpatialAvatarError, match="the machines have different estimators"):
        require_estimators({})


def test_an_answer_of_another_shape_is_refused() -> None:
    a = torch.rand(2, 4, 4, 3)
    with pytest.raises(SpatialAvatarError, match=r"the keypoints estimator answered \[2, 4\], expected \[2 \* 2\]"):
        Estimators(keypoints=corners).compare(a, a)
    with pytest.raises(SpatialAvatarError, match=r"the identity estimator answered float, expected \[2 \*\]"):
        Estimators(identity=lambda pictures: 1.0).compare(a, a)  # type: ignore[arg-type,return-value]
