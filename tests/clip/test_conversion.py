"""Clips at another size and with other pictures: pixels, cameras and boxes stay together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatialavatar.clip import FrameIndex, save_clip, validate_clip
from spatialavatar.clip.conversion import resized, with_image_format
from spatialavatar.clip.pictures import decode, encode, encoded_size
from spatialavatar.errors import SpatialAvatarError
from tests.builders.clips import tiny_clip, tiny_head, tiny_pictures


def with_landmarks(folder: Path, **changes: Any) -> Any:
    head = tiny_head()
    clip = tiny_clip(folder, **changes)
    landmarks = clip.camera(clip.split("all")).project(head.landmarks(head(clip.params)))[0][:, None]
    return tiny_clip(folder, landmarks=landmarks, force=True, **changes)


def area_means(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    blocks = pixels.reshape(height // factor, factor, width // factor, factor, -1).astype(np.float64)
    return blocks.mean((1, 3))


def test_a_smaller_clip_shows_the_same_scene(tmp_path: Path) -> None:
    head = tiny_head()
    clip = with_landmarks(tmp_path, width=96, height=64, image_format="png")
    small = resized(clip, 48)
    assert (small.width, small.height, small.header.image_format) == (48, 32, "png")
    assert small.landmarks is not None and small.face_box is not None and clip.face_box is not None
    points = head.landmarks(head(small.params))
    projected = small.camera(small.split("all")).project(points)[0][:, None]
    torch.testing.assert_close(projected, small.landmarks, atol=1e-4, rtol=0)
    torch.testing.assert_close(small.face_box, clip.face_box / 2)
    save_clip(small, tmp_path / "small")
    assert validate_clip(tmp_path / "small", head) == []

    # float64 truth: what is composited and then averaged
    image, matte, region = (a.astype(np.float64) / 255 for a in tiny_pictures(1, 0, 96, 64))
    frame = small.frame(FrameIndex(1, 0))
    found_image, found_matte = frame.image.double().numpy(), frame.matte.double().numpy()[..., None]
    for background in (0.0, 1.0):
        truth = area_means(image * matte[..., None] + background * (1 - matte[..., None]), 2)
        found = found_image * found_matte + background * (1 - found_matte)
        np.testing.assert_allclose(found, truth, atol=1.01 / 255)
    np.testing.assert_allclose(found_matte, area_means(matte, 2), atol=0.51 / 255)
    np.testing.assert_array_equal(frame.region.numpy(), area_means(region, 2)[..., 0] >= 0.5)


@pytest.mark.parametrize("matte_kind", ["none", "burnt_black"])
def test_a_smaller_clip_without_mattes(tmp_path: Path, matte_kind: str) -> None:
    clip = tiny_clip(tmp_path, width=64, height=48, matte_kind=matte_kind, has_region=False, image_format="png")
    encoded = resized(clip, 32).encoded(FrameIndex(2, 0))
    assert encoded.matte is None and encoded.region is None
    truth = area_means(tiny_pictures(2, 0, 64, 48)[0], 2)
    np.testing.assert_allclose(decode(encoded.image, 32, 24, color=True), truth, atol=0.51)


def test_a_size_that_does_not_divide(tmp_path: Path) -> None:
    """Each axis by its own ratio, for the number of pixels is whole."""
    head = tiny_head()
    clip = with_landmarks(tmp_path, width=96, height=61)
    small = resized(clip, 50)
    assert (small.width, small.height) == (50, 32)
    points = small.camera(small.split("all")).project(head.landmarks(head(small.params)))[0][:, None]
    assert small.landmarks is not None
    torch.testing.assert_close(points, small.landmarks, atol=1e-4, rtol=0)


def test_small_clips_stay_themselves(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path)
    assert resized(clip, 32) is clip and with_image_format(clip, "jpg") is clip


def test_png_to_jpeg(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "png", image_format="png")
    as_jpg = with_image_format(clip, "jpg")
    index = FrameIndex(1, 0)
    before, after = clip.encoded(index), as_jpg.encoded(index)
    image = tiny_pictures(1, 0, 32, 24)[0]
    assert after.image == encode(image, "jpg") and encoded_size(after.image).kind == "jpg"
    assert (after.matte, after.region) == (before.matte, before.region)
    save_clip(as_jpg, tmp_path / "jpg")
    assert validate_clip(tmp_path / "jpg", tiny_head()) == []


def test_both_at_once_encode_once(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path, width=64, height=48, image_format="png", has_region=False, matte_kind="none")
    small = with_image_format(resized(clip, 32, "jpg"), "jpg")
    means = np.round(area_means(tiny_pictures(0, 0, 64, 48)[0], 2))
    assert small.header.image_format == "jpg"
    found = decode(small.encoded(FrameIndex(0, 0)).image, 32, 24, color=True)
    expected = decode(encode(means.astype(np.uint8), "jpg"), 32, 24, color=True)
    np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=3)


def test_damage_names_the_file(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path, width=64, height=48, image_format="png")
    path = tmp_path / "images/000002.png"
    path.write_bytes(path.read_bytes()[:-20])
    for converted in (with_image_format(clip, "jpg"), resized(clip, 32)):
        with pytest.raises(SpatialAvatarError, match=r"images/000002\.png: the PNG is truncated"):
            converted.encoded(FrameIndex(2, 0))


def test_a_strip_cannot_become_too_narrow(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path, width=256, height=16)
    with pytest.raises(SpatialAvatarError, match=r"height: is 4, expected 8\.\.8192"):
        resized(clip, 64)
