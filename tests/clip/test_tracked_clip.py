"""Writing a clip and reading it back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from spatialavatar import files
from spatialavatar.clip import ClipSource, EncodedFrame, FrameIndex, open_clip, validate_clip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import write_head
from tests.builders.clips import tiny_clip, tiny_head, tiny_params, tiny_pictures


def test_round_trip(tmp_path: Path) -> None:
    offset = 0.001 * torch.ones(1, tiny_head().vertex_count, 3).expand(4, -1, -1)
    params = tiny_params(4)
    params = type(params)(**{**vars(params), "static_offset": offset})
    landmarks = torch.rand(4, 1, 4, 2) * 20
    landmarks[2, 0, 1] = torch.nan  # not found
    tiny_clip(
        tmp_path / "clip",
        params=params,
        landmarks=landmarks,
        test_from=3,
        source=ClipSource("by hand", "a note", "CC0"),
        image_format="png",
    )
    clip = open_clip(tmp_path / "clip" / "clip.json")
    assert (clip.identity, clip.instants, clip.cameras, clip.width, clip.height) == ("tiny0", 4, 1, 32, 24)
    assert (clip.fps, clip.test_from, clip.test_cameras, clip.matte_kind, clip.has_region) == (25, 3, [], "alpha", True)
    assert clip.head.id == "tiny" and clip.head.hash == tiny_head().content_hash
    assert clip.source == ClipSource("by hand", "a note", "CC0")
    for name, value in vars(params).items():
        assert torch.equal(getattr(clip.params, name), value), name
    assert clip.landmarks is not None and torch.equal(clip.landmarks.nan_to_num(-1), landmarks.nan_to_num(-1))
    assert clip.face_box is not None and clip.face_box.shape == (4, 1, 4)
    for index in clip.split("all"):
        image, matte, region = (torch.from_numpy(a).float() / 255 for a in tiny_pictures(*index, 32, 24))
        frame = clip.frame(index)
        assert torch.equal(frame.image, image) and torch.equal(frame.matte, matte) and torch.equal(frame.region, region)
        assert frame.image.dtype == frame.matte.dtype == frame.region.dtype == torch.float32
    assert validate_clip(clip.location) == []


def test_jpeg_is_close(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path)
    image = torch.from_numpy(tiny_pictures(1, 0, 32, 24)[0]).float() / 255
    assert (clip.frame(FrameIndex(1, 0)).image - image).abs().max() < 0.03


@pytest.mark.parametrize("url", ["memory://clips/one", "file://{tmp}/two"])
def test_clips_behind_urls(url: str, tmp_path: Path) -> None:
    folder = url.format(tmp=tmp_path)
    tiny_clip(folder, cameras=2)
    clip = open_clip(f"{folder}/clip.json")
    assert clip.frame(FrameIndex(3, 1)).image.shape == (24, 32, 3)
    assert validate_clip(folder, tiny_head()) == []
    files.remove(folder)


def test_lazy(tmp_path: Path) -> None:
    tiny_clip(tmp_path)
    (tmp_path / "images/000002.jpg").unlink()
    clip = open_clip(tmp_path)
    clip.frame(FrameIndex(1, 0))
    with pytest.raises(SpatialAvatarError, match=r"images/000002\.jpg: no such file"):
        clip.frame(FrameIndex(2, 0))


def test_splits(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path, instants=3, cameras=3, test_from=2, test_cameras=[1])
    assert clip.split("train") == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert clip.split("test") == [(2, 0), (2, 2)]
    assert clip.split("view") == [(0, 1), (1, 1), (2, 1)]
    assert len(clip.split("all")) == 9 and set(clip.split("all")) == {(t, c) for t in range(3) for c in range(3)}
    with pytest.raises(ValueError, match="no split named"):
        clip.split("validation")  # type: ignore[arg-type]


def test_splits_without_test_set(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path, instants=3)
    assert clip.split("train") == clip.split("all") and not clip.split("test") and not clip.split("view")


def test_batches_of_frames(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path, instants=3, cameras=2)
    frames = [FrameIndex(2, 1), FrameIndex(0, 0)]
    camera, params = clip.camera(frames), clip.params_at(frames)
    assert torch.equal(camera.world_to_camera, torch.stack([clip.world_to_camera[2, 1], clip.world_to_camera[0, 0]]))
    assert torch.equal(params.expression, clip.params.expression[[2, 0]])
    assert clip.camera(frames[0]).batch == clip.params_at(frames[0]).batch == 1
    with pytest.raises(SpatialAvatarError, match=r"instants 0\.\.2 and cameras 0\.\.1"):
        clip.camera(FrameIndex(3, 0))
    with pytest.raises(SpatialAvatarError, match="no frame at instant -1"):
        clip.frame(FrameIndex(-1, 0))


def test_size_at_keeps_the_aspect(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path)
    assert clip.size_at(16) == (16, 12) and clip.size_at(32) == (32, 24) and clip.size_at(64) == (64, 48)


@pytest.mark.parametrize("size", [(16, 12), (32, 24), (64, 48), (20, 24), (13, 11)])
def test_resized_picture_and_camera_agree(tmp_path: Path, size: tuple[int, int]) -> None:
    """A projected point falls on the same colour: red and green of the test pictures hold the place in the image."""
    clip = tiny_clip(tmp_path, matte_kind="none", has_region=False, image_format="png")
    index = FrameIndex(0, 0)
    points = torch.tensor([[[0.03, 0.02, 0.1], [-0.05, 0.0, 0.05], [0.0, -0.04, 0.08]]])
    pixels = clip.camera(index).resized(*size).project(points)[0][0]
    full = clip.camera(index).project(points)[0][0]
    torch.testing.assert_close(pixels / torch.tensor(size), full / torch.tensor([32.0, 24.0]))
    frame = clip.frame(index, *size)
    assert frame.image.shape == (size[1], size[0], 3)
    sampled = torch.nn.functional.grid_sample(
        frame.image.permute(2, 0, 1)[None],
        (pixels / torch.tensor(size) * 2 - 1)[None, None],
        mode="bilinear",
        align_corners=False,
    )[0, :2, 0].T
    torch.testing.assert_close(sampled, full / torch.tensor([32.0, 24.0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("background", [0.0, 1.0, 0.3])
def test_compositing_and_shrinking_commute(tmp_path: Path, background: float) -> None:
    clip = tiny_clip(tmp_path, image_format="png")
    full, small = clip.frame(FrameIndex(1, 0)), clip.frame(FrameIndex(1, 0), 8, 6)

    def composite(frame):  # type: ignore[no-untyped-def]
        return frame.matte[..., None] * frame.image + (1 - frame.matte[..., None]) * background

    expected = composite(full).reshape(6, 4, 8, 4, 3).mean((1, 3))
    torch.testing.assert_close(composite(small), expected, atol=1e-5, rtol=0)
    assert small.image.min() >= 0 and small.image.max() <= 1


def test_region_stays_binary(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path)  # rows 0..20 of 24 count
    region = clip.frame(FrameIndex(0, 0), 16, 12).region
    assert set(region.unique().tolist()) == {0.0, 1.0}
    assert region[:10].all() and region[10].all() and not region[11].any()  # row 10 is covered by half


def test_clips_without_matte_and_region(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path, matte_kind="burnt_black", has_region=False)
    frame = clip.frame(FrameIndex(0, 0), 16, 12)
    assert frame.matte.shape == frame.region.shape == (12, 16)
    assert (frame.matte == 1).all() and (frame.region == 1).all()
    assert clip.matte_kind == "burnt_black" and not (tmp_path / "masks").exists()


def test_another_head_is_refused(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path)
    clip.require_head(tiny_head())
    head = tiny_head()
    arrays = {name: buffer.numpy() for name, buffer in head.named_buffers()}
    other = write_head("memory://other.head.safetensors", head.info, {**arrays, "template": arrays["template"] * 1.1})
    with pytest.raises(SpatialAvatarError, match="head"):
        clip.require_head(other)
    fewer = write_head(
        "memory://fewer.head.safetensors", head.info, {**arrays, "shapedirs": arrays["shapedirs"][..., :2]}
    )
    with pytest.raises(SpatialAvatarError, match="clip has 3 shape and 4 expression codes, head 'tiny' has 2 and 4"):
        clip.require_head(fewer)


def test_encoded_frames_are_stored_byte_for_byte(tmp_path: Path) -> None:
    image, matte, _ = tiny_pictures(0, 0, 32, 24)
    content = EncodedFrame.from_arrays(image, matte)
    content = EncodedFrame(content.image + b"trailing", content.matte)
    clip = tiny_clip(tmp_path, instants=2, has_region=False, frames=lambda t, c: content)
    assert (tmp_path / "images/000001.jpg").read_bytes() == content.image
    assert clip.encoded(FrameIndex(1, 0)) == content


def test_interrupted_write_leaves_no_clip(tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_clip(tmp_path, instants=5, progress=stop)
    assert not (tmp_path / "clip.json").exists()
    with pytest.raises(SpatialAvatarError, match="interrupted; run the command that made it again"):
        open_clip(tmp_path)
    assert tiny_clip(tmp_path, instants=5).instants == 5  # without force: the unfinished clip is ours
    assert files.list_folder(tmp_path) == ["clip.json", "images", "masks", "params.safetensors", "roi"]


def test_a_shorter_clip_replaces_a_longer_one_whole(tmp_path: Path) -> None:
    tiny_clip(tmp_path, instants=5, cameras=2)
    tiny_clip(tmp_path, instants=2, has_region=False, force=True)
    assert files.list_folder(tmp_path / "images") == ["000000.jpg", "000001.jpg"]
    assert validate_clip(tmp_path, tiny_head()) == []


def test_foreign_folders_need_force(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SpatialAvatarError, match="holds something else"):
        tiny_clip(tmp_path)
    tiny_clip(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": float("nan")}, "fps"),
        ({"identity": "../escape"}, "identity"),
        ({"test_from": 4}, r"test_from: is 4, expected 1\.\.3 or null"),
        ({"test_cameras": [0]}, "test_cameras"),
        ({"frames": lambda t, c: tiny_pictures(t, c, 33, 24)}, "images: is 33 x 24 pixels, expected 32 x 24"),
        ({"world_to_camera": torch.full((4, 1, 4, 4), torch.nan)}, "world_to_camera: holds NaN"),
        ({"intrinsics": torch.zeros(4, 2, 3, 3)}, "intrinsics: has shape 4 x 2 x 3 x 3"),
        ({"frames": lambda t, c: (np.zeros((24, 32, 3), np.uint8),)}, "masks: .*this frame has none"),
        ({"frames": lambda t, c: EncodedFrame(b"GIF89a", b"", b"")}, "instant 0, camera 0: images: neither"),
        ({"params": tiny_params(3)}, "world_to_camera: has shape 4 x 1 x 4 x 4"),
    ],
)
def test_writer_refuses(tmp_path: Path, changes: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(SpatialAvatarError, match=message) as caught:
        tiny_clip(tmp_path / "clip", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "clip/clip.json").exists()


def test_shape_must_be_one_per_clip(tmp_path: Path) -> None:
    params = tiny_params(4)
    params = type(params)(**{**vars(params), "shape": torch.arange(12.0).reshape(4, 3)})
    with pytest.raises(SpatialAvatarError, match="shape changes from instant to instant"):
        tiny_clip(tmp_path, params=params)


def test_opening_what_is_no_clip(tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match="no such folder"):
        open_clip(tmp_path / "absent")
    with pytest.raises(SpatialAvatarError, match=r"holds no clip\.json"):
        open_clip(tmp_path)
    (tmp_path / "clip.json").write_text("{")
    with pytest.raises(SpatialAvatarError, match="not valid JSON"):
        open_clip(tmp_path)


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    """The format has no file names; whoever adds some is refused, like every unknown key."""
    tiny_clip(tmp_path)
    header = json.loads((tmp_path / "clip.json").read_text())
    for change in ({"images": "../../etc"}, {"image_format": "../jpg"}, {"identity": "../x"}, {"identity": ".."}):
        (tmp_path / "clip.json").write_text(json.dumps({**header, **change}))
        with pytest.raises(SpatialAvatarError, match=next(iter(change))):
            open_clip(tmp_path)
