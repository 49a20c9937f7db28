"""The VHAP importer on folders built by its layout, each of the layout's traps, and the way out and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatialavatar.clip import FrameIndex, TrackedClip, validate_clip
from spatialavatar.clip.exporters.vhap import export_vhap
from spatialavatar.clip.importers import ImportOptions, open_source
from spatialavatar.clip.pictures import decode
from spatialavatar.clip.writer import save_clip
from spatialavatar.errors import SpatialAvatarError
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.trackers.checks import (
    check_landmarks,
    check_rotations,
    check_upright_and_unmirrored,
    projected_landmarks,
)
from tests.builders.trackers.head import flame_head
from tests.builders.trackers.vhap import (
    HEIGHT,
    WIDTH,
    VhapTake,
    read_listing,
    vhap_take,
    write_listing,
    write_png,
)


def open_one(folder: Path, **options: Any) -> TrackedClip:
    [clip] = open_source(folder, flame_head(), "vhap", ImportOptions(**options))
    return clip


def pixels_of(clip: TrackedClip, t: int, c: int) -> tuple[np.ndarray, np.ndarray | None]:
    frame = clip.encoded(FrameIndex(t, c))
    matte = None if frame.matte is None else decode(frame.matte, clip.width, clip.height, color=False)
    return decode(frame.image, clip.width, clip.height, color=True), matte


# conventions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cameras", [1, 3])
def test_landmarks_fall_where_the_tool_draws_them(tmp_path: Path, cameras: int) -> None:
    take = vhap_take(cameras=cameras)
    clip = open_one(take.write(tmp_path / "someone"))
    truth = take.landmarks(flame_head())
    check_landmarks(clip, flame_head(), truth)
    np.testing.assert_allclose(projected_landmarks(clip, flame_head()), truth, atol=1e-3)  # far better: float32
    assert (clip.instants, clip.cameras, clip.width, clip.height, clip.fps) == (4, cameras, WIDTH, HEIGHT, 25)
    assert clip.identity == "someone" and clip.source.tool == "vhap" and clip.source.licence == "not stated"


def test_rotations_are_rotations_and_the_face_is_upright_and_not_mirrored(tmp_path: Path) -> None:
    clip = open_one(vhap_take(timesteps=6).write(tmp_path / "someone"))
    check_rotations(clip)
    check_upright_and_unmirrored(clip, flame_head())


@pytest.mark.parametrize("cameras", [1, 2])
def test_out_and_back(tmp_path: Path, cameras: int) -> None:
    head, take = flame_head(), vhap_take(cameras=cameras)
    take.params["static_offset"] = take.params["static_offset"][:, : head.vertex_count]
    clip = open_one(take.write(tmp_path / "a"))
    report = export_vhap(clip, head, tmp_path / "b", None)
    assert report.files == sum(1 for p in (tmp_path / "b").rglob("*") if p.is_file())
    again = open_one(tmp_path / "b")
    assert set(again.arrays()) == set(clip.arrays())
    for name, values in clip.arrays().items():
        # intrinsics by their size: a pixel's float32 is not finer
        np.testing.assert_allclose(again.arrays()[name], values, rtol=1e-6, atol=1e-5, err_msg=name)
    for t in range(clip.instants):
        for c in range(cameras):
            (image, matte), (image_again, matte_again) = pixels_of(clip, t, c), pixels_of(again, t, c)
            assert matte is not None and matte_again is not None
            assert np.array_equal(matte, matte_again)
            assert np.array_equal(image[matte == 255], image_again[matte == 255])
            alpha = matte[..., None] / 255
            assert np.abs(alpha * (image.astype(float) - image_again)).max() <= 1


def test_every_parameter_has_its_slot(tmp_path: Path) -> None:
    take = vhap_take()
    p = open_one(take.write(tmp_path / "a")).params
    names = {"global_rotation": "rotation", "neck": "neck_pose", "jaw": "jaw_pose", "eyes": "eyes_pose"}
    for ours, theirs in {**names, "translation": "translation", "expression": "expr"}.items():
        np.testing.assert_array_equal(getattr(p, ours).double().numpy(), take.params[theirs])
    assert (p.shape.double().numpy() == take.params["shape"]).all()
    assert p.static_offset is not None
    v = flame_head().vertex_count
    assert (p.static_offset.double().numpy() == take.params["static_offset"][:, :v]).all()  # the teeth come last


# pictures -------------------------------------------------------------------------------------------------------------


def test_white_is_taken_out_of_the_pictures(tmp_path: Path) -> None:
    take = vhap_take()
    clip = open_one(take.write(tmp_path / "a"))
    assert clip.matte_kind == "alpha" and clip.header.image_format == "png"
    soft = 0
    for t in range(4):
        for c in range(2):
            image, matte = pixels_of(clip, t, c)
            truth = take.images[t, c].astype(float)
            assert matte is not None and np.array_equal(matte, take.mattes[t, c])
            assert np.array_equal(image[matte == 255], truth[matte == 255])
            between = (matte > 0) & (matte < 255)
            soft += between.sum()
            # one level was cut off the composite
            assert (np.abs(image - truth).max(-1) * matte / 255)[between].max() <= 1.5
    assert soft > 500
    saved = save_clip(clip, tmp_path / "saved")
    assert validate_clip(saved.location, flame_head()) == []


def test_straight_pictures_keep_their_bytes(tmp_path: Path) -> None:
    take = vhap_take()
    folder = take.write(tmp_path / "a")
    for t in range(4):
        for c in range(2):
            write_png(folder / f"images/{t:05d}_{c:02d}.png", take.images[t, c])
    clip = open_one(folder)
    for frame in clip.split("all"):
        name = f"{frame.instant:05d}_{frame.camera:02d}.png"
        encoded = clip.encoded(frame)
        assert encoded.image == (folder / "images" / name).read_bytes()
        assert encoded.matte == (folder / "fg_masks" / name).read_bytes()


def test_alpha_inside_the_pictures(tmp_path: Path) -> None:
    take = vhap_take(cameras=1)
    folder = take.write(tmp_path / "a", masks=False)
    for t in range(4):
        rgba = np.concatenate([take.images[t, 0], take.mattes[t, 0][..., None]], -1)
        write_png(folder / f"images/{t:05d}_00.png", rgba)
    clip = open_one(folder)
    image, matte = pixels_of(clip, 2, 0)
    assert np.array_equal(image, take.images[2, 0])
    assert matte is not None and np.array_equal(matte, take.mattes[2, 0])
    write_png(folder / "images/00001_00.png", take.images[1, 0])
    with pytest.raises(SpatialAvatarError, match=r"images/00001_00\.png: holds no alpha"):
        clip.encoded(FrameIndex(1, 0))


def test_no_mattes(tmp_path: Path) -> None:
    take = vhap_take(cameras=1)
    clip = open_one(take.write(tmp_path / "a", masks=False))
    assert clip.matte_kind == "none"
    assert np.array_equal(pixels_of(clip, 3, 0)[0], take.images[3, 0])


# listings -------------------------------------------------------------------------------------------------------------


def test_timesteps_in_order_of_their_numbers(tmp_path: Path) -> None:
    """100000 sorts before 99999 as text; and a listing may be in any order."""
    take = vhap_take(cameras=2)
    folder = take.write(tmp_path / "a")
    frames = [{**f, "timestep_index": f["timestep_index"] + 99998} for f in take.frames()]
    write_listing(folder, "transforms.json", frames[::-1])
    clip = open_one(folder)
    np.testing.assert_array_equal(clip.params.expression.double().numpy(), take.params["expr"])
    for c in range(2):
        np.testing.assert_allclose(clip.intrinsics[:, c, 0, 0], take.focal[c, 0])
        assert np.array_equal(pixels_of(clip, 1, c)[1], take.mattes[1, c])


def test_listing_from_its_three_parts(tmp_path: Path) -> None:
    take = vhap_take(timesteps=5, cameras=3)
    folder = take.write_split(take.write(tmp_path / "a"))
    whole = open_one(folder, keep_split=True)
    (folder / "transforms.json").unlink()
    parts = open_one(folder, keep_split=True)
    for clip in (whole, parts):
        assert (clip.instants, clip.cameras, clip.test_from, clip.test_cameras) == (5, 3, 4, [2])
    for name, values in whole.arrays().items():
        assert np.array_equal(parts.arrays()[name], values)
    plain = open_one(folder)
    assert (plain.test_from, plain.test_cameras) == (None, [])
    assert open_one(folder, keep_split=True, test_last=2).test_from == 3


def test_split_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    take = vhap_take(timesteps=4, cameras=1)
    folder = take.write(tmp_path / "a")
    frames = take.frames()
    for name, chosen in (("train", [0, 2, 3]), ("test", [1])):
        write_listing(folder, f"transforms_{name}.json", [frames[i] for i in chosen])
    clip = open_one(folder, keep_split=True)
    assert clip.test_from is None and "1 test timesteps are not the last ones" in clip.source.note
    for name in ("train", "test"):
        (folder / f"transforms_{name}.json").unlink()
    assert "no split found" in open_one(folder, keep_split=True).source.note


def test_instants_that_lack_a_camera_are_dropped(tmp_path: Path) -> None:
    take = vhap_take(timesteps=4, cameras=2)
    folder = take.write(tmp_path / "a")
    frames = take.frames()
    write_listing(folder, "transforms.json", [f for i, f in enumerate(frames) if i not in (2, 7)])
    clip = open_one(folder)
    assert clip.instants == 2 and "2 of 4 timesteps dropped" in clip.source.note
    np.testing.assert_array_equal(clip.params.expression.double().numpy(), take.params["expr"][[0, 2]])
    write_listing(folder, "transforms.json", [frames[i] for i in (0, 3, 4, 7)])
    with pytest.raises(SpatialAvatarError, match="none of the 4 timesteps is seen by all 2 cameras"):
        open_one(folder)


def test_camera_from_its_angle_alone(tmp_path: Path) -> None:
    """GaussianAvatars reads only camera_angle_x: others write nothing else."""
    take = vhap_take(cameras=1)
    take.extra = {key: None for key in ("fl_x", "fl_y", "cx", "cy", "camera_angle_y")}
    folder = take.write(tmp_path / "a")
    listing = read_listing(folder)
    write_listing(folder, "transforms.json", listing["frames"], **{k: None for k in ("fl_x", "fl_y", "cx", "cy")})
    clip = open_one(folder)
    expected = [[take.focal[0, 0], 0, WIDTH / 2], [0, take.focal[0, 0], HEIGHT / 2], [0, 0, 1]]
    np.testing.assert_allclose(clip.intrinsics[0, 0], expected, rtol=1e-6)


def test_size_from_the_pictures_when_not_listed(tmp_path: Path) -> None:
    take = vhap_take(cameras=1)
    folder = take.write(tmp_path / "a")
    frames = [{k: v for k, v in f.items() if k not in ("w", "h")} for f in take.frames()]
    write_listing(folder, "transforms.json", frames, w=None, h=None)
    assert (open_one(folder).width, open_one(folder).height) == (WIDTH, HEIGHT)


# unions ---------------------------------------------------------------------------------------------------------------


def write_union(root: Path) -> tuple[Path, list[VhapTake]]:
    takes = [vhap_take(timesteps=3, seed=s) for s in range(3)]
    names = ["074_EMO-1_v16_DS4", "074_EMO-2_v16_DS4", "074_EXP-9_v16_DS4"]
    for name, take in zip(names, takes):
        take.write(root / name)
    union = root / "UNION_074"
    union.mkdir()
    (union / "canonical_flame_param.npz").write_bytes((root / names[0] / "canonical_flame_param.npz").read_bytes())
    (union / "sequences_trainval.txt").write_text("".join(f"{name}\n" for name in names[:2]))
    (union / "sequences_test.txt").write_text(names[2] + "\n")
    listed = [take.frames(f"../{name}/", 3 * i) for i, (name, take) in enumerate(zip(names, takes))]
    trainval = listed[0] + listed[1]
    write_listing(union, "transforms_train.json", [f for f in trainval if f["camera_index"] == 0])
    write_listing(union, "transforms_val.json", [f for f in trainval if f["camera_index"] == 1])
    write_listing(union, "transforms_test.json", listed[2])
    return union, takes


def test_union_of_sequences(tmp_path: Path) -> None:
    union, takes = write_union(tmp_path)
    clips = open_source(union, flame_head(), options=ImportOptions(keep_split=True))
    assert [clip.location.rsplit("/", 1)[-1] for clip in clips] == [
        "074_EMO-1_v16_DS4",
        "074_EMO-2_v16_DS4",
        "074_EXP-9_v16_DS4",
    ]
    assert {clip.identity for clip in clips} == {"074"}
    for clip, take in zip(clips, takes):
        np.testing.assert_array_equal(clip.params.expression.double().numpy(), take.params["expr"])
        assert np.array_equal(pixels_of(clip, 2, 1)[1], take.mattes[2, 1])
    assert [clip.test_cameras for clip in clips] == [[1], [1], []]
    assert [clip.test_from for clip in clips] == [None] * 3
    assert "holds out this whole sequence" in clips[2].source.note


@pytest.mark.parametrize(
    "place",
    [
        "../074_EXP-8_v16_DS4/images/00000_00.png",  # not listed
        "../074_EMO-1_v16_DS4/../074_EMO-2_v16_DS4/images/00000_00.png",
        "../../images/00000_00.png",
        "/etc/passwd",
        "images\\..\\x.png",
        "s3://bucket/x.png",
        "C:/x.png",
        "",
        None,
        7,
    ],
)
def test_files_elsewhere_are_refused(tmp_path: Path, place: Any) -> None:
    union, takes = write_union(tmp_path)
    for key in ("file_path", "fg_mask_path", "flame_param_path"):
        frames = takes[0].frames("../074_EMO-1_v16_DS4/")
        frames[1][key] = place
        if place is None and key == "fg_mask_path":
            continue
        write_listing(union, "transforms_train.json", frames)
        with pytest.raises(SpatialAvatarError, match=r"transforms_train\.json: names the file") as caught:
            open_source(union, flame_head())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["../other", "..", ".", "a/b", "a\\b", "s3:"])
def test_sequences_elsewhere_are_refused(tmp_path: Path, line: str) -> None:
    union, _ = write_union(tmp_path)
    (union / "sequences_test.txt").write_text(line)
    with pytest.raises(SpatialAvatarError, match=r"sequences_test\.txt"):
        open_source(union, flame_head())


# parameters -----------------------------------------------------------------------------------------------------------


def test_fewer_codes_than_the_head_has(tmp_path: Path) -> None:
    take = vhap_take(static_offset=False)
    take.params["shape"], take.params["expr"] = take.params["shape"][:100], take.params["expr"][:, :50]
    params = open_one(take.write(tmp_path / "a")).params
    assert params.shape.shape == (4, 300) and params.expression.shape == (4, 100) and params.static_offset is None
    np.testing.assert_array_equal(params.expression[:, :50].double().numpy(), take.params["expr"])
    assert not params.shape[:, 100:].any() and not params.expression[:, 50:].any()


def test_dynamic_offsets(tmp_path: Path) -> None:
    take = vhap_take()
    folder = take.write(tmp_path / "a")
    zero = np.zeros((1, flame_head().vertex_count + 120, 3), np.float32)
    take.write_parameters(folder, 1, dynamic_offset=zero)
    assert "dynamic" not in open_one(folder).source.note
    take.write_parameters(folder, 2, dynamic_offset=zero + np.float32([0.002, 0, 0]))
    with pytest.raises(SpatialAvatarError, match=r"00002\.npz: dynamic_offset moves vertices by up to 2 mm"):
        open_one(folder)
    assert "dynamic offsets of up to 2 mm dropped" in open_one(folder, drop_dynamic_offsets=True).source.note


def test_shape_that_changes(tmp_path: Path) -> None:
    take = vhap_take()
    folder = take.write(tmp_path / "a")
    shape = take.params["shape"].astype(np.float32)
    take.write_parameters(folder, 3, shape=np.nextafter(shape, np.float32(9)))  # rounding
    assert (open_one(folder).params.shape.numpy() == shape).all()
    take.write_parameters(folder, 3, shape=shape + np.float32(0.01))
    with pytest.raises(SpatialAvatarError, match=r"00003\.npz: shape differs from .*00000\.npz by 0\.01"):
        open_one(folder)
    take.write_parameters(folder, 3, static_offset=None)
    with pytest.raises(SpatialAvatarError, match=r"00003\.npz: static_offset is not as in"):
        open_one(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neck_pose": None}, "lacks neck_pose"),
        ({"jaw_pose": np.zeros((1, 4))}, r"jaw_pose has shape \[1, 4\], expected 3"),
        ({"expr": np.zeros((2, 100))}, r"expr has shape \[2, 100\]"),
        ({"expr": np.zeros((1, 50))}, "expr has 50 numbers"),
        ({"expr": np.array([["a"]])}, "expr is <U1, expected numbers"),
        ({"rotation": np.full((1, 3), np.nan)}, "global_rotation: holds NaN"),
        ({"rotation": np.full((1, 3), 1e300)}, "global_rotation: holds NaN or infinity"),
        ({"shape": np.full(300, np.nan)}, "shape differs"),
    ],
)
def test_refused_parameters(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    take = vhap_take(cameras=1)
    folder = take.write(tmp_path / "a")
    take.write_parameters(folder, 1, **changes)
    with pytest.raises(SpatialAvatarError, match=message) as caught:
        open_one(folder)
    assert "\n" not in str(caught.value)


def test_offset_of_another_head(tmp_path: Path) -> None:
    take = vhap_take(cameras=1)
    take.params["static_offset"] = np.zeros((1, 5143, 3))
    with pytest.raises(SpatialAvatarError, match="static_offset has 5143 rows, head 'flame-like' has 345 vertices"):
        open_one(take.write(tmp_path / "a"))


def test_surplus_codes(tmp_path: Path) -> None:
    take = vhap_take(cameras=1)
    take.params["expr"] = np.concatenate([take.params["expr"], np.zeros((4, 5))], 1)
    folder = take.write(tmp_path / "a")
    assert open_one(folder).params.expression.shape == (4, 100)
    take.params["expr"][2, 103] = 0.5
    with pytest.raises(SpatialAvatarError, match="expr has 105 codes, the head has 100, and code 103 is not zero"):
        open_one(take.write(tmp_path / "a"))


# refused listings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": WIDTH * 2}, r"frame 1 \(.*00001_00\.png\) is 128 x 48 pixels, others are 64 x 48"),
        ({"w": 99999}, "frame 1 is 99999 x 48 pixels"),
        ({"w": 10.5}, r"frame 1 is 10\.5 x 48 pixels"),
        ({"h": 0}, "frame 1 is 64 x 0 pixels"),
        ({"timestep_index": None}, "frame 1 lacks timestep_index"),
        ({"timestep_index": "1"}, "frame 1: timestep_index is '1'"),
        ({"timestep_index": 0}, "frame 1: is a second picture of timestep 0"),
        ({"timestep_index": True}, "frame 1: timestep_index is True"),
        ({"camera_id": "other"}, "share or lack a camera_index"),
        ({"camera_id": {"a": 1}}, "camera_id is a dict"),
        ({"fl_x": "wide"}, "fl_x is 'wide', a number was expected"),
        ({"fl_x": float("nan")}, "fl_x is nan"),
        ({"fl_x": -90.0}, "intrinsics: focal lengths -90, 91"),
        ({"transform_matrix": [[1, 2], [3]]}, "frame 1: transform_matrix holds something else, expected 4 x 4 numbers"),
        ({"transform_matrix": np.zeros((4, 4)).tolist()}, "frame 1: transform_matrix is no rotation"),
        ({"transform_matrix": np.diag([1, 1, -1, 1]).tolist()}, "frame 1: transform_matrix .* determinant -1"),
        ({"flame_param_path": None}, "lacks flame_param_path"),
        ({"fg_mask_path": None}, "frame 1 lacks fg_mask_path"),
        ({"file_path": "images/absent.png"}, r"images/absent\.png: no such file"),
    ],
)
def test_refused_frames(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    take = vhap_take(timesteps=3, cameras=1)
    folder = take.write(tmp_path / "a")
    frames = take.frames()
    frames[1] = {k: v for k, v in {**frames[1], **changes}.items() if v is not None}
    write_listing(folder, "transforms.json", frames)
    with pytest.raises(SpatialAvatarError, match=message) as caught:
        clip = open_one(folder)
        clip.encoded(FrameIndex(1, 0))
    assert "\n" not in str(caught.value)


def test_cameras_of_a_timestep_share_its_parameters(tmp_path: Path) -> None:
    take = vhap_take(timesteps=2, cameras=2)
    folder = take.write(tmp_path / "a")
    frames = take.frames()
    frames[1]["flame_param_path"] = "flame_param/00001.npz"
    write_listing(folder, "transforms.json", frames)
    with pytest.raises(SpatialAvatarError, match=r"frame 1 names .*00001\.npz, another frame of timestep 0 names "):
        open_one(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 5000,
        '{"frames": 1' + "0" * 5000 + "}",
        '{"frames": {}}',
        '{"frames": [1]}',
        '{"frames": []}',
    ],
)
def test_refused_listings(tmp_path: Path, text: str) -> None:
    folder = vhap_take(cameras=1).write(tmp_path / "a")
    (folder / "transforms.json").write_text(text)
    with pytest.raises(SpatialAvatarError) as caught:
        open_one(folder)
    assert "transforms.json" in str(caught.value) and "\n" not in str(caught.value)


def test_picture_of_another_size_or_damaged(tmp_path: Path) -> None:
    take = vhap_take(cameras=1)
    folder = take.write(tmp_path / "a")
    clip = open_one(folder)
    write_png(folder / "images/00001_00.png", take.images[1, 0, :-8])
    with pytest.raises(SpatialAvatarError, match=r"images/00001_00\.png: is 64 x 40 pixels, expected 64 x 48"):
        clip.encoded(FrameIndex(1, 0))
    whole = (folder / "fg_masks/00002_00.png").read_bytes()
    (folder / "fg_masks/00002_00.png").write_bytes(whole[:-20])
    with pytest.raises(SpatialAvatarError, match=r"fg_masks/00002_00\.png: the PNG is truncated"):
        clip.encoded(FrameIndex(2, 0))


# export ---------------------------------------------------------------------------------------------------------------


def test_exported_layout(tmp_path: Path) -> None:
    take = vhap_take(timesteps=10, cameras=9)
    clip = open_one(take.write(tmp_path / "a"))
    report = export_vhap(clip, flame_head(), tmp_path / "b", None)
    out = tmp_path / "b"
    whole = read_listing(out)
    assert whole["timestep_indices"] == list(range(10)) and whole["camera_indices"] == list(range(9))
    frame = whole["frames"][9 * 3 + 2]
    expected = take.frame(3, 2)
    assert set(frame) == set(expected)
    for key in ("w", "h", "timestep_index", "camera_index", "file_path", "fg_mask_path", "flame_param_path"):
        assert frame[key] == expected[key]
    for key in ("cx", "cy", "fl_x", "fl_y", "camera_angle_x", "camera_angle_y"):
        assert frame[key] == pytest.approx(expected[key], rel=1e-6)
    np.testing.assert_allclose(frame["transform_matrix"], expected["transform_matrix"], atol=1e-6)
    assert isinstance(frame["camera_id"], str)
    # first ceil(0.7 T) train; camera 8 validates
    sizes = {name: len(read_listing(out, f"transforms_{name}.json")["frames"]) for name in ("train", "val", "test")}
    assert sizes == {"train": 7 * 8, "val": 7, "test": 3 * 9}
    assert {f["camera_index"] for f in read_listing(out, "transforms_val.json")["frames"]} == {8}

    with np.load(out / "flame_param/00003.npz") as row, np.load(out / "canonical_flame_param.npz") as canonical:
        shapes = {name: row[name].shape for name in row.files}
        assert {row[name].dtype for name in row.files} == {canonical[name].dtype for name in canonical.files}
        assert {row[name].dtype for name in row.files} == {np.dtype(np.float32)}
        v = flame_head().vertex_count
        assert shapes == {
            **{name: (1, 3) for name in ("translation", "rotation", "neck_pose", "jaw_pose")},
            "eyes_pose": (1, 6),
            "shape": (300,),
            "expr": (1, 100),
            "static_offset": (1, v, 3),
        }
        np.testing.assert_allclose(canonical["jaw_pose"], [[0.3, 0, 0]])
        assert not canonical["expr"].any() and np.array_equal(canonical["shape"], row["shape"])
    # the pictures are on white
    image = decode((out / "images/00003_02.png").read_bytes(), WIDTH, HEIGHT, color=True)
    assert (image[take.mattes[3, 2] == 0] == 255).all()
    assert np.abs(image.astype(int) - take.composites()[3, 2]).max() <= 1

    text = " | ".join(report.notes)
    assert "principal points lie up to 11.0 pixels off" in text  # 3 + camera 8
    assert "is no FLAME" in text and "focal lengths of x and y differ" in text and "frame rate (25)" in text
    assert "world was moved" not in text


def test_clip_of_another_head_and_with_its_own_split(tmp_path: Path) -> None:
    """A head with few codes, translations that are not centred, a split, no mattes, a region."""
    clip = tiny_clip(tmp_path / "a", instants=5, cameras=3, test_from=3, test_cameras=[0], matte_kind="none")
    report = export_vhap(clip, tiny_head(), tmp_path / "b", None)
    [again] = open_source(tmp_path / "b", tiny_head(), "vhap", ImportOptions(keep_split=True))
    assert (again.test_from, again.test_cameras, again.matte_kind) == (3, [0], "none")
    with np.load(tmp_path / "b/flame_param/00000.npz") as row:
        assert row["shape"].shape == (300,) and row["expr"].shape == (1, 100)
    np.testing.assert_allclose(again.params.translation.mean(0), 0, atol=1e-7)
    # the world moved as a whole: every vertex stays where it is seen
    frames = clip.split("all")
    with torch.no_grad():
        before = clip.camera(frames).project(tiny_head()(clip.params_at(frames)))[0]
        after = again.camera(frames).project(tiny_head()(again.params_at(frames)))[0]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    text = " | ".join(report.notes)
    assert "'tiny' is no FLAME" in text and "the world was moved by" in text
    assert "no fg_masks" in text and "regions of interest" in text and "face boxes" in text
    image = decode((tmp_path / "b/images/00002_01.png").read_bytes(), 32, 24, color=True)
    original = decode(clip.encoded(FrameIndex(2, 1)).image, 32, 24, color=True)
    assert np.array_equal(image, original)


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [(1, {"train": 3, "val": 0, "test": 1}), (2, {"train": 3, "val": 3, "test": 2})],
)
def test_split_of_a_clip_without_one(tmp_path: Path, cameras: int, expected: dict[str, int]) -> None:
    clip = tiny_clip(tmp_path / "a", instants=4, cameras=cameras)
    steps: list[tuple[int, int]] = []
    export_vhap(clip, tiny_head(), tmp_path / "b", lambda done, of: steps.append((done, of)))
    assert {
        n: len(json.loads((tmp_path / f"b/transforms_{n}.json").read_text())["frames"]) for n in expected
    } == expected
    assert steps == [(i + 1, 4 * cameras) for i in range(4 * cameras)]
