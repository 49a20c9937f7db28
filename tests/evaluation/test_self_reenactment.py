"""Self-reenactment against numbers worked out by hand in numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spatialavatar.avatar import AvatarRenderer
from spatialavatar.clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.estimators import Estimators
from spatialavatar.evaluation.self_reenactment import compare, evaluate, spread
from tests.avatar.test_avatar import avatar
from tests.builders.clips import tiny_clip, tiny_head


@pytest.fixture
def clip(tmp_path: Path) -> TrackedClip:
    return tiny_clip(tmp_path / "clip", instants=5, width=40, height=32, test_from=2)


def renderer() -> AvatarRenderer:
    return AvatarRenderer(avatar(), tiny_head(), "cpu")


def test_metrics_by_hand(clip: TrackedClip) -> None:
    background = torch.tensor([0.1, 0.7, 0.4])
    report = evaluate(renderer(), clip, "test", resolution=40, background=background, lpips=None)
    b = background.numpy().astype(np.float64)
    errors = []
    for index in clip.split("test"):
        frame = clip.frame(index)
        image, matte, region = (x.numpy().astype(np.float64) for x in (frame.image, frame.matte, frame.region))
        shown = renderer().render(clip.params_at(index), clip.camera(index))
        features, alpha = shown.features[0].numpy(), shown.alpha[0].numpy()
        total = 0.0
        for y in range(32):
            for x in range(40):
                if region[y, x]:
                    target = matte[y, x] * image[y, x] + (1 - matte[y, x]) * b
                    render = np.clip(features[y, x] + (1 - alpha[y, x]) * b, 0, 1)
                    total += ((target - render) ** 2).sum()
        errors.append(total / (32 * 40 * 3))
    assert not (region == 1).all(), "the region leaves something out"
    assert [row["mse"] for row in report["per_frame"]] == pytest.approx(errors, rel=1e-4)
    assert report["mse"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert report["psnr"] == pytest.approx(np.mean(-10 * np.log10(errors)), rel=1e-5)
    worst = int(np.argmax(errors))
    assert report["worst_frame"]["instant"] == clip.split("test")[worst].instant
    assert report["lpips"] is None and report["frames"] == 3


def test_background_alone_is_compared_outside_the_region(clip: TrackedClip) -> None:
    green = torch.tensor([0.0, 1.0, 0.0])
    for c in compare(renderer(), clip, clip.split("all"), 40, green):
        outside = clip.frame(c.index).region == 0
        assert torch.equal(c.target[outside], green.expand(int(outside.sum()), 3))
        assert torch.equal(c.render[outside], green.expand(int(outside.sum()), 3))


def test_limit_spreads_over_the_split(clip: TrackedClip) -> None:
    report = evaluate(renderer(), clip, "all", resolution=40, background=torch.ones(3), lpips=None, limit=2)
    assert [row["instant"] for row in report["per_frame"]] == [0, 2]
    frames = clip.split("all")
    assert spread(frames, None) == spread(frames, 99) == frames
    assert spread(frames, 1) == frames[:1]


def test_pictures_too_small_for_lpips_have_none(clip: TrackedClip) -> None:
    def never(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked for LPIPS of a picture that is too small")

    report = evaluate(renderer(), clip, "test", resolution=24, background=torch.ones(3), lpips=never)  # type: ignore[arg-type]
    assert report["lpips"] is None and report["psnr"] > 0


def test_split_without_frames_says_what_there_is(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "c", instants=2)
    with pytest.raises(SpatialAvatarError, match=r"no frames in split 'test' \(test_from None.*--split"):
        evaluate(renderer(), clip, "test", resolution=32, background=torch.ones(3), lpips=None)


def test_estimators_add_their_metrics(clip: TrackedClip) -> None:
    def half(pictures: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[3.0, 4.0]]) if float(pictures.mean()) > 0 else torch.tensor([[torch.nan, 0.0]])

    options = {"resolution": 40, "background": torch.ones(3), "lpips": None}
    report = evaluate(renderer(), clip, "test", estimators=Estimators(identity=half), **options)  # type: ignore[arg-type]
    assert report["csim"] == pytest.approx(1.0) and report["aed"] is None and len(report["per_frame"][0]) == 10
    assert "csim" not in evaluate(renderer(), clip, "test", **options)  # type: ignore[arg-type]
