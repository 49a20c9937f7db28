"""Held-out cases of a generator: fixed frames, no target among the sources, and what is measured of them."""

from pathlib import Path

import pytest
import torch

from spatialavatar.clip import FrameIndex
from spatialavatar.evaluation.held_out import MOST_SOURCES, Case, batches_of, cases, from_sources, measure
from spatialavatar.evaluation.metrics import psnr
from spatialavatar.training.folder_pool import FolderPool
from spatialavatar.training.step import render
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.generators import IMAGE_SIZE, awaken, tiny_generator


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> FolderPool:
    folder = tmp_path_factory.mktemp("held-out")
    for number, cameras in enumerate((1, 3, 1)):
        tiny_clip(folder / f"{number}", instants=9, cameras=cameras, width=32, height=32, seed=number)
    return FolderPool([f"{folder}/*"], tiny_head(), 1.0)


def test_targets_are_the_same_for_any_k_and_never_a_source(pool: FolderPool) -> None:
    by_k = {k: cases(pool, k, 3) for k in range(1, MOST_SOURCES + 1)}
    for k, listed in by_k.items():
        assert [(c.clip, c.target) for c in listed] == [(c.clip, c.target) for c in by_k[1]]
        assert all(len(set(case.sources)) == k and case.target not in case.sources for case in listed)
        assert all(case.sources[:1] == first.sources for case, first in zip(listed, by_k[1], strict=True))
    assert {case.sources[0].instant for case in by_k[1]} == {0}
    assert {case.sources[0] for case in by_k[1] if case.clip != 1} == {FrameIndex(0, 0)}
    assert len({cases(pool, 1, 1, seed)[1].sources[0].camera for seed in range(20)}) == 3  # of the take
    assert [case.clip for case in by_k[1]] == [0] * 3 + [1] * 3 + [2] * 3
    assert cases(pool, 1, 3) == by_k[1] and cases(pool, 1, 3, seed=1) != by_k[1]


def test_a_short_clip_gives_the_cases_that_it_has(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "short", instants=5, width=32, height=32)
    short = FolderPool([str(tmp_path / "short")], tiny_head(), 1.0)
    assert len(cases(short, 4, 3)) == 1


def test_measures_are_of_the_pictures(pool: FolderPool) -> None:
    generator = awaken(tiny_generator(tiny_head())).eval()
    listed = cases(pool, 2, 3)
    found = measure(from_sources(generator), generator, batches_of(pool, listed, IMAGE_SIZE, 32))
    assert found.keys() == {"psnr", "ssim"} and found["psnr"].shape == (9,)
    (one,) = batches_of(pool, listed[4:5], IMAGE_SIZE, 32)
    with torch.no_grad():
        pictures = render(generator, generator(one.sources, one.target.params, one.target.camera), one)
    assert float(found["psnr"][4]) == pytest.approx(float(psnr(pictures.prediction, pictures.target)), abs=1e-3)
    assert torch.equal(one.background, torch.ones(1, 3))


def test_another_persons_portrait_is_another_source(pool: FolderPool) -> None:
    own = Case(0, cases(pool, 1, 1)[0].sources, cases(pool, 1, 1)[0].target)
    swapped = Case(0, own.sources, own.target, portrayed=2)
    (mine,), (theirs,) = (list(batches_of(pool, [case], IMAGE_SIZE, 32)) for case in (own, swapped))
    assert torch.equal(mine.target.image, theirs.target.image)
    assert not torch.equal(mine.sources.params.shape, theirs.sources.params.shape)
    generator = awaken(tiny_generator(tiny_head())).eval()
    values = [measure(from_sources(generator), generator, [batch])["psnr"] for batch in (mine, theirs)]
    assert not torch.equal(*values)
