"""The gate's bounds, and the tracking residual against one computed by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from spatialavatar.clip import TrackedClip
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.fleet import gate as gate_module
from spatialavatar.fleet.config import Gate
from spatialavatar.fleet.gate import review, tracking_residual
from tests.builders.clips import tiny_cameras, tiny_head, tiny_params, tiny_parts

GATE = Gate(min_psnr=20.0, max_aspect_ratio=8.0, max_tracking_residual=0.02)
SOUND: dict[str, Any] = {"psnr": 20.0, "max_aspect_ratio": 8.0, "tracking_residual": 0.02}


def test_the_bounds_themselves_pass() -> None:
    assert review(GATE, SOUND) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("psnr", 19.99, "PSNR 19.99 dB, at least 20 is delivered"),
        ("psnr", -math.inf, "PSNR -inf dB, at least 20 is delivered"),
        ("psnr", math.nan, "PSNR nan dB, at least 20 is delivered"),
        ("max_aspect_ratio", 8.01, "aspect ratio 8.01, at most 8 is delivered"),
        ("max_aspect_ratio", math.nan, "aspect ratio nan, at most 8 is delivered"),
        ("tracking_residual", 0.03456, "tracking residual 0.03456 of the image, at most 0.02 is delivered"),
    ],
)
def test_what_lies_beyond_a_bound_is_told(key: str, value: float, said: str) -> None:
    assert review(GATE, {**SOUND, key: value}) == [said]
    field = {"psnr": "min_psnr"}.get(key, f"max_{key.removeprefix('max_')}")
    assert review(GATE.model_copy(update={field: None}), {**SOUND, key: value}) == []


def test_every_reason_is_told() -> None:
    assert len(review(GATE, {"psnr": 1.0, "max_aspect_ratio": 99.0, "tracking_residual": 1.0})) == 3


@pytest.mark.parametrize("key", SOUND)
def test_what_was_not_measured_passes(key: str) -> None:
    assert review(GATE, {**SOUND, key: None}) == []
    assert review(GATE, {name: value for name, value in SOUND.items() if name != key}) == []
    assert review(GATE, {}) == []


def on_screen(cameras: int, width: int, height: int) -> np.ndarray:
    """Landmarks of the neutral tiny head, [C L 2]: the middle of a triangle, through a pinhole; in plain numpy."""
    head = tiny_head()
    corners = head.template.numpy().astype(np.float64)[head.faces.numpy()[head.landmark_faces.numpy()]]
    points = corners.mean(1)
    extrinsic, intrinsic = (a[0].numpy().astype(np.float64) for a in tiny_cameras(1, cameras, width, height))
    seen = []
    for c in range(cameras):
        x, y, z = extrinsic[c, :3, :3] @ points.T + extrinsic[c, :3, 3:]
        seen.append(np.stack([intrinsic[c, 0, 0] * x / z + width / 2, intrinsic[c, 1, 1] * y / z + height / 2], -1))
    return np.stack(seen)


def clip_with(landmarks: Any, cameras: int = 1, instants: int = 1, width: int = 32, height: int = 24) -> TrackedClip:
    shown = None if landmarks is None else torch.tensor(np.asarray(landmarks), dtype=torch.float32)
    params = tiny_head().neutral(instants)
    parts = tiny_parts(instants=instants, cameras=cameras, width=width, height=height, params=params, landmarks=shown)
    return assemble_clip("gate", **parts)


@pytest.mark.parametrize(("width", "height"), [(32, 24), (20, 40)])
def test_the_residual_by_hand(monkeypatch: pytest.MonkeyPatch, width: int, height: int) -> None:
    """Five instants of two cameras with points that are off by 5, 0 and 13 pixels, or not found at all."""
    off = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, np.nan], [-5.0, 12.0]])
    landmarks = np.broadcast_to(on_screen(2, width, height) + off, (5, 2, 4, 2)).copy()
    landmarks[4, 1] = np.nan  # nobody seen by the second camera at the end
    clip = clip_with(landmarks, cameras=2, instants=5, width=width, height=height)
    expected = (5.0 + 0.0 + 13.0) / 3 / max(width, height)
    assert tracking_residual(clip, tiny_head()) == pytest.approx(expected, rel=1e-5)
    landmarks[2:, :, 3] = np.nan  # the worst point in the first two instants alone
    clip = clip_with(landmarks, cameras=2, instants=5, width=width, height=height)
    whole = tracking_residual(clip, tiny_head())
    assert whole == pytest.approx((9 * 5.0 + 4 * 13.0) / (9 + 9 + 4) / max(width, height), rel=1e-5)
    monkeypatch.setattr(gate_module, "_FRAMES_AT_ONCE", 3)
    assert tracking_residual(clip, tiny_head()) == pytest.approx(whole, rel=1e-12)


def test_the_posed_head_is_compared() -> None:
    """Landmarks of the neutral head do not fit one that has turned."""
    landmarks = np.broadcast_to(on_screen(1, 32, 24), (3, 1, 4, 2))
    moved = assemble_clip(
        "gate",
        **tiny_parts(instants=3, params=tiny_params(3, seed=4), landmarks=torch.tensor(landmarks, dtype=torch.float32)),
    )
    still, turned = (
        tracking_residual(clip_with(landmarks, instants=3), tiny_head()),
        tracking_residual(moved, tiny_head()),
    )
    assert still is not None and turned is not None
    assert still < 1e-6 and turned > 0.005


def test_what_has_no_residual() -> None:
    assert tracking_residual(clip_with(None), tiny_head()) is None
    assert tracking_residual(clip_with(np.full((1, 1, 4, 2), np.nan)), tiny_head()) is None
    for points in (3, 5, 68):  # of other landmarks than the head's
        assert tracking_residual(clip_with(np.ones((1, 1, points, 2))), tiny_head()) is None
