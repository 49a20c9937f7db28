"""IMavatar's importer on miniature folders whose landmarks were projected by the tool's own formulas."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatialavatar.clip import FrameIndex, TrackedClip, validate_clip
from spatialavatar.clip.importers import ImportOptions, import_clips, open_source, recognise
from spatialavatar.errors import SpatialAvatarError
from tests.builders.trackers.checks import check_landmarks, check_rotations, check_upright_and_unmirrored
from tests.builders.trackers.head import flame_head
from tests.builders.trackers.imavatar import SIZE, ImavatarTruth, imavatar_folder, picture

T = 12
VARIANTS: dict[str, dict[str, Any]] = {
    "splatting-avatar": {"pictures": "rgba", "image_folder": "images"},
    "imavatar": {"pictures": "mask"},
    "pixel intrinsics": {"intrinsics": "pixels"},
    "4x4 matrices": {"matrix_rows": 4},
    "jumbled": {"jumbled": True},
}


def opened(folder: Path, **options: Any) -> TrackedClip:
    [clip] = open_source(folder, flame_head(), options=ImportOptions(**options))
    return clip


@pytest.fixture(scope="module", params=VARIANTS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImavatarTruth:
    return imavatar_folder(tmp_path_factory.mktemp("imavatar") / "marcel", instants=T, **VARIANTS[request.param])


def test_projected_landmarks_are_where_the_tool_saw_them(built: ImavatarTruth) -> None:
    clip = opened(built.folder)
    check_landmarks(clip, flame_head(), built.landmarks[:, None])
    assert clip.landmarks is not None and clip.face_box is not None
    np.testing.assert_allclose(clip.landmarks[:, 0], built.landmarks, atol=1e-4)
    np.testing.assert_allclose(clip.face_box[:, 0], built.box, atol=1e-4)


def test_cameras_are_rotations(built: ImavatarTruth) -> None:
    check_rotations(opened(built.folder))


def test_values_are_those_of_the_file(built: ImavatarTruth) -> None:
    """Stands for the round trip, as nothing of ours writes this format: to 1e-5 of what the builder knows."""
    clip = opened(built.folder)
    p = clip.params
    np.testing.assert_allclose(p.shape[0, :100], built.shape, atol=1e-5)
    np.testing.assert_allclose(p.expression[:, :50], built.expression, atol=1e-5)
    assert p.shape.shape == (T, 300) and not p.shape[:, 100:].any()
    assert p.expression.shape == (T, 100) and not p.expression[:, 50:].any()
    pose = np.concatenate([p.global_rotation, p.neck, p.jaw, p.eyes], -1)
    np.testing.assert_allclose(pose, built.pose, atol=1e-5)
    assert not p.translation.any() and p.static_offset is None
    world_to_camera = clip.world_to_camera[:, 0].double().numpy()
    centre = -np.einsum("tij,ti->tj", world_to_camera[:, :3, :3], world_to_camera[:, :3, 3])
    np.testing.assert_allclose(centre, built.camera_centre, atol=1e-5)
    expected = np.array([[4.0 * SIZE, 0, 0.48 * SIZE], [0, 4.2 * SIZE, 0.53 * SIZE], [0, 0, 1]])
    np.testing.assert_allclose(clip.intrinsics[:, 0], np.tile(expected, (T, 1, 1)), rtol=1e-6)


def test_the_face_is_upright_and_not_mirrored(built: ImavatarTruth) -> None:
    check_upright_and_unmirrored(opened(built.folder), flame_head())


def test_pictures_and_mattes(built: ImavatarTruth) -> None:
    """Those of their own instants, and straight."""
    clip = opened(built.folder)
    assert clip.matte_kind == "alpha"
    for t in range(T):
        image, matte = picture(t)
        frame = clip.frame(FrameIndex(t, 0))
        assert np.array_equal((frame.image * 255).round(), image), t
        assert np.array_equal((frame.matte * 255).round(), matte), t


def test_import_writes_a_sound_clip(built: ImavatarTruth, tmp_path: Path) -> None:
    [clip] = import_clips(built.folder, tmp_path / "clip", flame_head(), options=ImportOptions(test_last=4, fps=30))
    assert validate_clip(clip.location, flame_head()) == []
    assert (clip.identity, clip.instants, clip.fps, clip.test_from) == ("marcel", T, 30, T - 4)
    assert (clip.source.tool, clip.source.licence) == ("imavatar", "not stated")


def test_recognised() -> None:
    assert recognise(frozenset({"flame_params.json", "image", "mask"})) == "imavatar"
    assert recognise(frozenset({"image", "mask"}), "imavatar") is None


def test_opaque_alpha_gives_way_to_masks(tmp_path: Path) -> None:
    clip = opened(imavatar_folder(tmp_path / "a", instants=2, pictures="opaque rgba and mask").folder)
    image, matte = picture(1)
    frame = clip.frame(FrameIndex(1, 0))
    assert np.array_equal((frame.matte * 255).round(), matte)
    assert np.array_equal((frame.image * 255).round(), image)


def test_no_matte(tmp_path: Path) -> None:
    clip = opened(imavatar_folder(tmp_path / "a", instants=2, pictures="plain", ending="jpg").folder)
    assert clip.matte_kind == "none" and clip.header.image_format == "jpg"
    assert clip.encoded(FrameIndex(1, 0)).image == (tmp_path / "a/image/2.jpg").read_bytes()


def test_images_goes_before_image(tmp_path: Path) -> None:
    """As SplattingAvatar looks for them."""
    folder = imavatar_folder(tmp_path / "a", instants=2, pictures="plain").folder
    imavatar_folder(folder, instants=2, pictures="rgba", image_folder="images")
    assert opened(folder).matte_kind == "alpha"


def test_frames_without_boxes_and_points(tmp_path: Path) -> None:
    folder = imavatar_folder(tmp_path / "a", instants=2).folder
    edited(folder, lambda value: (value["frames"][1].pop("bbox"), value["frames"][0].pop("flame_keypoints")))
    clip = opened(folder)
    assert clip.face_box is None and clip.landmarks is None


def test_irises_after_the_68_points_are_left_out(tmp_path: Path) -> None:
    truth = imavatar_folder(tmp_path / "a", instants=2)
    edited(truth.folder, lambda value: [frame["flame_keypoints"].extend([[0, 0]] * 2) for frame in value["frames"]])
    clip = opened(truth.folder)
    assert clip.landmarks is not None
    np.testing.assert_allclose(clip.landmarks[:, 0], truth.landmarks, atol=1e-4)


def test_the_tools_own_split(tmp_path: Path) -> None:
    folder = imavatar_folder(tmp_path / "a", instants=2, pictures="plain").folder
    value = json.loads((folder / "flame_params.json").read_text())
    frame = value["frames"][0]
    value["frames"] = [{**frame, "file_path": f"./image/{t + 1}"} for t in range(351)]
    (folder / "flame_params.json").write_text(json.dumps(value))
    for t in range(2, 351):
        (folder / f"image/{t + 1}.png").hardlink_to(folder / "image/1.png")
    clip = opened(folder, keep_split=True)
    assert (clip.instants, clip.test_from) == (351, 1)
    assert opened(folder).test_from is None
    value["frames"].pop()
    (folder / "flame_params.json").write_text(json.dumps(value))
    with pytest.raises(SpatialAvatarError, match="holds out the last 350 instants, which leaves nothing of 350"):
        opened(folder, keep_split=True)


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    place = folder / "flame_params.json"
    value = json.loads(place.read_text())
    change(value)
    place.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("frames"), "flame_params.json: frames is not a list"),
        (lambda v: v.update(frames=[]), "frames is not a list"),
        (lambda v: v.update(frames=[3]), "frames is not a list"),
        (lambda v: v["frames"][1].update(file_path="./image/1"), "two frames of number 1"),
        (
            lambda v: v["frames"][1].update(file_path="./image/x"),
            r"file_path is './image/x', expected a path that ends",
        ),
        (lambda v: v["frames"][1].update(file_path="../other/2"), r"names the file '\.\./other/2'"),
        (lambda v: v["frames"][1].update(file_path="/etc/2"), "names the file '/etc/2'"),
        (lambda v: v["frames"][1].update(file_path="other/2"), "lie in several folders"),
        (lambda v: v["frames"][1].update(file_path="./image/9"), "frame 9 has no image 9.png in images/ or image/"),
        (lambda v: v["frames"][1].pop("pose"), "pose of frame './image/2' holds something else, expected 15 numbers"),
        (lambda v: v["frames"][1]["pose"].pop(), "pose of frame './image/2' holds 14 numbers, expected 15"),
        (lambda v: v["frames"][1]["expression"].pop(), "holds 49 numbers, expected 50"),
        (lambda v: v["frames"][1]["pose"].__setitem__(0, float("nan")), "holds NaN"),
        (lambda v: v["frames"][0]["world_mat"].pop(), "world_mat of frame './image/1' holds 2 x 4 numbers"),
        (lambda v: v["frames"][0]["world_mat"][0].__setitem__(0, 2), "not a rotation"),
        (lambda v: v["frames"][0]["world_mat"][0].__setitem__(0, "1"), "holds something else, expected 3 x 4"),
        (lambda v: v.update(intrinsics=[1, 2, 3]), "intrinsics holds 3 numbers, expected 4"),
        (lambda v: v.update(shape_params=[1.0] * 301), "shape_params has 301 codes, the head has 300, and code 300 is"),
    ],
)
def test_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    folder = imavatar_folder(tmp_path / "a", instants=2).folder
    edited(folder, change)
    with pytest.raises(SpatialAvatarError, match=message) as caught:
        opened(folder)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(folder))


def test_a_frame_without_its_mask_or_alpha(tmp_path: Path) -> None:
    folder = imavatar_folder(tmp_path / "a", instants=2, pictures="mask").folder
    (folder / "mask/2.png").unlink()
    with pytest.raises(SpatialAvatarError, match=r"frame 2 has no mask 2\.png in mask/"):
        opened(folder)
    folder = imavatar_folder(tmp_path / "b", instants=2).folder
    imavatar_folder(tmp_path / "plain", instants=2, pictures="plain")
    (folder / "image/2.png").write_bytes((tmp_path / "plain/image/2.png").read_bytes())
    with pytest.raises(SpatialAvatarError, match=r"image/2\.png: holds no alpha"):
        opened(folder).frame(FrameIndex(1, 0))
