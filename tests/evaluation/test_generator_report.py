"""Rows of held-out subjects and their means, against what ``held_out`` measures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.estimators import Estimators
from spatialavatar.evaluation.generator_report import METRICS, mean, measure_pool, measure_subject, summary
from spatialavatar.evaluation.held_out import batches_of, cases, from_sources, measure
from spatialavatar.generator.generator import Generator
from spatialavatar.training.folder_pool import FolderPool
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.generators import IMAGE_SIZE, awaken, tiny_generator


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> FolderPool:
    folder = tmp_path_factory.mktemp("report")
    for number, changes in enumerate(({}, {"cameras": 2}, {"matte_kind": "none"})):
        tiny_clip(folder / f"{number}", instants=7, width=32, height=32, seed=number, **changes)
    return FolderPool([f"{folder}/*"], tiny_head(), 1.0)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return awaken(tiny_generator(tiny_head())).eval()


def test_rows_are_the_cases_of_every_k(pool: FolderPool, generator: Generator) -> None:
    rows = measure_pool(generator, pool, sources=(1, 3), targets=2, resolution=32)
    assert [(row["identity"], row["k"]) for row in rows] == [
        (pool.name(clip), k) for clip in range(3) for k in (1, 3) for _ in range(2)
    ]
    for k in (1, 3):
        listed = cases(pool, k, 2)
        found = measure(from_sources(generator), generator, batches_of(pool, listed, IMAGE_SIZE, 32))
        mine = [row for row in rows if row["k"] == k]
        assert [(row["instant"], row["camera"]) for row in mine] == [case.target for case in listed]
        assert [row["psnr"] for row in mine] == pytest.approx(found["psnr"].tolist(), abs=1e-3)
        assert [row["ssim"] for row in mine] == pytest.approx(found["ssim"].tolist(), abs=1e-4)
    assert all(row[name] is None for row in rows for name in METRICS[2:])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_a_subject_is_the_same_alone(pool: FolderPool, generator: Generator, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sources": (2,), "targets": 3, "resolution": 32}
    rows = measure_pool(generator, pool, **options)
    alone = FolderPool([pool.name(1)], tiny_head(), 0.0)
    again = measure_subject(generator, alone, 0, number=1, identity="b", **options)
    assert again == [{**row, "identity": "b"} for row in rows[3:6]]
    others = measure_subject(generator, alone, 0, number=1, seed=5, **options)
    assert [row["instant"] for row in others] != [row["instant"] for row in again]


def test_without_a_matte_both_are_over_black(pool: FolderPool) -> None:
    (batch,) = batches_of(pool, cases(pool, 1, 1), IMAGE_SIZE, 32)
    assert batch.background.tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]


def test_estimators_see_pictures(pool: FolderPool, generator: Generator) -> None:
    """A toy that finds a face in bright pictures alone: the rest have no value and count for no mean."""
    seen: list[torch.Tensor] = []

    def identity(pictures: torch.Tensor) -> torch.Tensor:
        seen.append(pictures)
        embedding = pictures.mean(1).flatten(1)
        return torch.where(pictures.mean((1, 2, 3))[:, None] > 0.5, embedding, torch.nan)

    rows = measure_pool(
        generator, pool, sources=(1,), targets=2, resolution=32, estimators=Estimators(identity=identity)
    )
    assert all(p.shape[1:] == (32, 32, 3) and float(p.min()) >= 0 and float(p.max()) <= 1 for p in seen)
    csim = [row["csim"] for row in rows]
    assert all(0.5 < value <= 1 for value in csim[:4]) and csim[4:] == [None, None], csim
    assert summary(rows)["overall"]["csim"] == pytest.approx(sum(csim[:4]) / 4)
    assert {row["aed"] for row in rows} == {None}


def test_means_by_hand() -> None:
    nothing = dict.fromkeys(METRICS)
    rows = [{**nothing, "k": k, "psnr": psnr, "csim": csim} for k, psnr, csim in ((1, 20.0, None), (2, 24.0, 0.5))]
    rows.append({**nothing, "k": 2, "psnr": 25.0, "csim": 0.75})
    found = summary(rows, {"csim": "not said: there are values", "aed": "none installed"})
    assert found["overall"] == {**nothing, "cases": 3, "psnr": 23.0, "csim": 0.625}
    assert found["by_k"] == {
        "1": {**nothing, "cases": 1, "psnr": 20.0},
        "2": {**nothing, "cases": 2, "psnr": 24.5, "csim": 0.625},
    }
    assert found["reasons"] == {"aed": "none installed"}
    assert mean([]) is None


def test_what_cannot_be_measured_is_said(tmp_path: Path, generator: Generator) -> None:
    tiny_clip(tmp_path / "short", instants=4, width=32, height=32)
    short = FolderPool([str(tmp_path / "short")], tiny_head(), 0.0)
    with pytest.raises(SpatialAvatarError, match="short: too short to show anything, it takes 5 frames"):
        measure_subject(generator, short, 0, resolution=32)
    with pytest.raises(SpatialAvatarError, match=r"K = 5 sources; 1\.\.4 are expected"):
        measure_subject(generator, short, 0, sources=(5,), resolution=32)


def test_small_pictures_have_no_lpips(pool: FolderPool, generator: Generator) -> None:
    def never(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked for LPIPS of a picture that is too small")

    rows = measure_subject(generator, pool, 0, sources=(1,), targets=1, resolution=24, lpips=never)  # type: ignore[arg-type]
    assert rows[0]["lpips"] is None and rows[0]["psnr"] > 0
