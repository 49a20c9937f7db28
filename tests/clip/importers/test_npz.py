"""The npz importer on a hand-made folder, and on the test pack's clip when it is there."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatialavatar.clip import FrameIndex, TrackedClip, validate_clip
from spatialavatar.clip.importers import ImportOptions, import_clips
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel
from tests.builders.clips import (
    CHIN,
    EYE_LEFT,
    EYE_RIGHT,
    NOSE,
    tiny_cameras,
    tiny_clip,
    tiny_head,
    tiny_params,
    tiny_pictures,
)
from tests.builders.trackers.checks import check_upright_and_unmirrored
from tests.builders.trackers.npz import HEIGHT, WIDTH, T, npz_folder


def import_one(source: Path, out: Path, head: HeadModel, *, force: bool = False, **options: Any) -> TrackedClip:
    [clip] = import_clips(source, out, head, options=ImportOptions(**options), force=force)
    return clip


def test_import(tmp_path: Path) -> None:
    source = npz_folder(tmp_path / "Anna K.")
    clip = import_one(source, tmp_path / "clip", tiny_head(), test_last=2, licence="CC0")
    assert (clip.identity, clip.instants, clip.cameras, clip.fps, clip.test_from) == ("Anna_K.", T, 1, 30, 3)
    assert clip.matte_kind == "alpha" and clip.has_region and clip.source.licence == "CC0"
    p = tiny_params(T)
    assert torch.equal(clip.params.shape, p.shape) and torch.equal(clip.params.expression, p.expression)
    assert torch.equal(clip.params.eyes, p.eyes) and torch.equal(clip.params.jaw, p.jaw)
    assert not clip.params.neck.any() and not clip.params.translation.any()
    for folder, ending in (("images", "jpg"), ("masks", "png"), ("roi", "png")):
        for t in range(T):
            copied = (tmp_path / f"clip/{folder}/{t:06d}.{ending}").read_bytes()
            assert copied == (source / f"{folder}/{10 + t:06d}.{ending}").read_bytes()
    assert validate_clip(clip.location, tiny_head()) == []


def test_left_is_right_in_the_picture(tmp_path: Path) -> None:
    head = tiny_head()
    clip = import_one(npz_folder(tmp_path / "source"), tmp_path / "clip", head)
    check_upright_and_unmirrored(clip, head, left=EYE_LEFT, right=EYE_RIGHT, up=NOSE, down=CHIN)


def test_png_images_and_no_region(tmp_path: Path) -> None:
    clip = import_one(npz_folder(tmp_path / "source", roi=False, kind="png"), tmp_path / "clip", tiny_head())
    assert not clip.has_region
    expected = torch.from_numpy(tiny_pictures(2, 0, WIDTH, HEIGHT)[0]).float() / 255
    assert torch.equal(clip.frame(FrameIndex(2, 0)).image, expected)


def test_camera_for_each_frame(tmp_path: Path) -> None:
    k = tiny_cameras(T, 1, WIDTH, HEIGHT)[1][:, 0].numpy() * (1 + np.arange(T)[:, None, None] * [[0.01], [0.01], [0]])
    clip = import_one(npz_folder(tmp_path / "source", K=k), tmp_path / "clip", tiny_head())
    np.testing.assert_allclose(clip.intrinsics[:, 0], k, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w2c": None}, r"params\.npz: lacks w2c"),
        (
            {"expr": np.zeros((T, 9), np.float32)},
            r"expr has shape \[5, 9\], expected \[5, 4\] .*head 'tiny' has 3 shape",
        ),
        ({"jaw": np.zeros((T + 1, 3), np.float32)}, r"jaw has shape \[6, 3\]"),
        ({"w2c": np.full((T, 4, 4), np.nan)}, "world_to_camera: holds NaN"),
        ({"image_size": np.array([64, 24])}, "images: is 32 x 24 pixels, expected 64 x 24"),
        ({"frame_ids": np.arange(T)}, r"images/000000\.\w+: no such file"),
        ({"frame_ids": np.arange(T) - 2}, "frame_ids must lie in"),
        ({"frame_ids": np.zeros(0)}, "frame_ids must be a list"),
        ({"landmarks2d": np.zeros(7)}, r"landmarks2d has shape \[7\]"),
        ({"shape": np.array([{"pickled": 1}])}, "not a readable npz archive of plain arrays"),
        ({"shape": np.array(["a", "b", "c"])}, "shape is <U1, expected numbers"),
    ],
)
def test_refused_sources(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source = npz_folder(tmp_path / "source", **changes)
    with pytest.raises(SpatialAvatarError, match=message) as caught:
        import_one(source, tmp_path / "clip", tiny_head())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "clip/clip.json").exists()


def test_refused_requests(tmp_path: Path) -> None:
    source = npz_folder(tmp_path / "source")
    for arguments, message in (
        ({"test_last": T}, r"expected 1\.\.4"),
        ({"test_last": -1}, r"expected 1\.\.4"),
    ):
        with pytest.raises(SpatialAvatarError, match=message):
            import_one(source, tmp_path / "clip", tiny_head(), **arguments)
    with pytest.raises(SpatialAvatarError, match="there are auto, npz"):
        import_clips(source, tmp_path / "clip", tiny_head(), "abc")
    with pytest.raises(SpatialAvatarError, match="is the source folder"):
        import_one(source, source, tiny_head(), force=True)
    with pytest.raises(SpatialAvatarError, match="no such folder"):
        import_one(tmp_path / "absent", tmp_path / "clip", tiny_head())
    tiny_clip(tmp_path / "ready")
    with pytest.raises(SpatialAvatarError, match="ready: is a tracked clip already"):
        import_clips(tmp_path / "ready", tmp_path / "clip", tiny_head())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpatialAvatarError, match="no such folder"):
        import_one(tmp_path / "empty", tmp_path / "clip", tiny_head())
    (source / "params.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(SpatialAvatarError, match="not a readable npz archive"):
        import_one(source, tmp_path / "clip", tiny_head())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrackedClip, HeadModel]:
    root = os.environ.get("SPATIALAVATAR_TEST_DATA")
    if not root:
        pytest.skip("SPATIALAVATAR_TEST_DATA is not set: no test pack")
    from spatialavatar.head import write_head
    from spatialavatar.head.convert import convert_head

    folder = tmp_path_factory.mktemp("real")
    head = write_head("memory://real/ict.head.safetensors", *convert_head(str(Path(root, "data/ict_head.npz"))))
    clip = import_one(Path(root, "data/clips/speaker"), folder / "speaker", head, test_last=50)
    return clip, head


def test_real_clip(real: tuple[TrackedClip, HeadModel]) -> None:
    clip, head = real
    assert (clip.instants, clip.width, clip.height, clip.fps, clip.has_region) == (241, 512, 512, 24, True)
    assert len(clip.split("train")) == 191 and len(clip.split("test")) == 50
    assert validate_clip(clip.location, head) == []


def test_real_clip_is_upright_and_fits(real: tuple[TrackedClip, HeadModel]) -> None:
    """Mean distance of tracked and projected landmarks: the pack's README measured 2.63 px over all frames."""
    clip, head = real
    check_upright_and_unmirrored(clip, head, left=45, right=36, up=30, down=8)  # ibug68: eye corners, nose tip, chin
    frames = clip.split("all")[::10]
    with torch.no_grad():
        projected = clip.camera(frames).project(head.landmarks(head(clip.params_at(frames))))[0]
    assert clip.landmarks is not None
    assert (projected - clip.landmarks[::10, 0]).norm(dim=-1).mean() < 3.0
