"""The NeRSemble importer on miniature participants: geometry, pixels of every source, colours, refused calibrations."""

import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spatialavatar.clip import FrameIndex, TrackedClip, validate_clip
from spatialavatar.clip.exporters.vhap import export_vhap
from spatialavatar.clip.importers import ImportOptions, import_clips, open_source, recognise
from spatialavatar.clip.importers.nersemble_calibration import rigid_motion
from spatialavatar.clip.importers.nersemble_pixels import unpacked_frame
from spatialavatar.clip.pictures import decode
from spatialavatar.errors import SpatialAvatarError
from tests.builders.trackers.checks import (
    check_landmarks,
    check_rotations,
    check_upright_and_unmirrored,
    projected_landmarks,
)
from tests.builders.trackers.head import flame_head
from tests.builders.trackers.nersemble import (
    HEIGHT,
    PARTICIPANT,
    SEQUENCE,
    WIDTH,
    Participant,
    participant,
    truly_corrected,
    write_video,
)
from tests.builders.trackers.vhap import read_listing, write_listing


def open_one(folder: Path, **options: Any) -> TrackedClip:
    [clip] = open_source(folder, flame_head(), options=ImportOptions(**options))
    return clip


def pixels_of(clip: TrackedClip, t: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    frame = clip.encoded(FrameIndex(t, c))
    assert frame.matte is not None
    image = decode(frame.image, clip.width, clip.height, color=True)
    return image, decode(frame.matte, clip.width, clip.height, color=False)


# conventions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cameras", [1, 3])
def test_landmarks_fall_where_vhap_draws_them(tmp_path: Path, cameras: int) -> None:
    made = participant(tmp_path, cameras=cameras)
    clip = open_one(made.write())
    truth = made.take.landmarks(flame_head())
    check_landmarks(clip, flame_head(), truth)
    np.testing.assert_allclose(projected_landmarks(clip, flame_head()), truth, atol=5e-3)  # far better: float32
    assert (clip.identity, clip.instants, clip.cameras) == (PARTICIPANT, 3, cameras)
    assert (clip.width, clip.height, clip.source.tool) == (WIDTH, HEIGHT, "nersemble")
    assert ("could not be checked" in clip.source.note) == (cameras == 1)


def test_rotations_are_rotations_and_the_face_is_upright_and_not_mirrored(tmp_path: Path) -> None:
    clip = open_one(participant(tmp_path).write())
    check_rotations(clip)
    check_upright_and_unmirrored(clip, flame_head())


def test_out_and_back(tmp_path: Path) -> None:
    """What NeRSemble and VHAP give together goes out in VHAP's layout and comes back."""
    clip = open_one(participant(tmp_path).write())
    export_vhap(clip, flame_head(), tmp_path / "out", None)
    again = open_one(tmp_path / "out")
    for name, values in clip.arrays().items():
        np.testing.assert_allclose(again.arrays()[name], values, rtol=1e-6, atol=1e-5, err_msg=name)


def test_sound_when_written(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.write()
    head = flame_head()
    [clip] = import_clips(made.folder, tmp_path / "clip", head, options=ImportOptions(test_last=1, licence="research"))
    assert validate_clip(clip.location, head) == []
    assert (clip.test_from, clip.source.licence) == (2, "research")


def test_rigid_motion() -> None:
    rng = np.random.default_rng(0)
    target = np.tile(np.eye(4), (5, 1, 1))
    target[:, :3, :3], target[:, :3, 3] = Rotation.random(5, random_state=1).as_matrix(), rng.normal(0, 1, (5, 3))
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = Rotation.random(random_state=2).as_matrix(), [1, -2, 3]
    found, shift, turn = rigid_motion(target @ motion, target)
    np.testing.assert_allclose(found, motion, atol=1e-12)
    assert shift.max() < 1e-12 and turn.max() < 1e-6
    # one camera turned about its own place: found by its degrees, and its share of the mean is known
    turned = target @ motion
    turned[3] = _turned(turned[3], 2.0)
    _, shift, turn = rigid_motion(turned, target)
    assert turn.argmax() == 3 and turn[3] == pytest.approx(2 * 4 / 5, rel=1e-3)


def _turned(world_to_camera: np.ndarray, degrees: float) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0, np.radians(degrees), 0]).as_matrix()
    return turn @ world_to_camera


# pixels ---------------------------------------------------------------------------------------------------------------


def check_pictures(clip: TrackedClip, made: Participant, tolerance: float) -> None:
    """Within the matte, where nothing was composited, the pixels are those filmed, corrected."""
    for t in range(clip.instants):
        for c in range(clip.cameras):
            image, matte = pixels_of(clip, t, c)
            assert np.array_equal(matte, made.take.mattes[t, c])
            truth = truly_corrected(made.take.images[t, c], made.colors[made.take.camera_ids[c]])
            difference = np.abs(image - truth)[matte == 255]
            assert difference.mean() < tolerance, (t, c)


def test_pixels_of_the_export(tmp_path: Path) -> None:
    made = participant(tmp_path, cameras=3)
    clip = open_one(made.write())
    assert "pixels from VHAP's export" in clip.source.note and clip.fps == 25
    check_pictures(clip, made, 2.0)  # JPEG at quality 95


def test_pixels_that_vhap_unpacked(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.take.numbers = [40, 42, 44]
    made.write()
    made.write_unpacked()
    clip = open_one(made.sequence)
    assert "images/cam_*.jpg" in clip.source.note and clip.fps == 12.5  # every second frame
    check_pictures(clip, made, 3.0)
    (made.sequence / "images/cam_222200038_000042.jpg").unlink()
    assert "VHAP's export" in open_one(made.sequence).source.note


@pytest.mark.parametrize(("rate", "unpacked"), [(25.0, True), (73.0, True), (73.0, False)])
def test_pixels_of_the_videos(tmp_path: Path, rate: float, unpacked: bool) -> None:
    """VHAP unpacks at 25 frames in a second by default; else it counts the video's frames. Both are recognised."""
    made = participant(tmp_path)
    made.take.numbers = [2, 5, 8]
    frame_of = {t: unpacked_frame(n, rate) if unpacked else n for t, n in enumerate(made.take.numbers)}
    shown = {(frame_of[t], c): made.take.images[t, c, :-1, :-1] for t in frame_of for c in range(2)}
    other = np.full((HEIGHT - 1, WIDTH - 1, 3), 255, np.uint8)
    made.write()
    made.write_videos(rate, max(frame_of.values()) + 3, lambda n, c: shown.get((n, c), other))
    clip = open_one(made.sequence)
    assert "pixels from images/cam_*.mp4" in clip.source.note
    assert clip.fps == pytest.approx((25 if unpacked else rate) / 3)
    check_pictures(clip, made, 6.0)
    backwards = [pixels_of(clip, t, 0)[0] for t in (2, 0, 1, 1)]
    assert np.array_equal(backwards[2], backwards[3])
    assert np.array_equal(backwards[1], pixels_of(clip, 0, 0)[0])
    assert open_one(made.sequence, fps=24.0).fps == 24


def test_videos_of_something_else_are_not_used(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.write()
    made.write_videos(25, 6, lambda n, c: np.full((HEIGHT - 1, WIDTH - 1, 3), 250, np.uint8))
    clip = open_one(made.sequence)
    assert "not those that were tracked" in clip.source.note and "pixels from VHAP's export" in clip.source.note
    check_pictures(clip, made, 2.0)


def test_export_without_its_pictures(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.write()
    made.write_videos(25, 3, lambda n, c: made.take.images[n, c, :-1, :-1])
    for path in (made.sequence / "vhap/images").iterdir():
        path.unlink()
    clip = open_one(made.sequence)
    assert "not checked" in clip.source.note
    check_pictures(clip, made, 6.0)


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0\x18ftypmp42\0\0\0\0"])
def test_damaged_video(tmp_path: Path, content: bytes) -> None:
    made = participant(tmp_path)
    made.write()
    made.write_videos(25, 3, lambda n, c: made.take.images[n, c, :-1, :-1])
    video = made.sequence / "images/cam_222200038.mp4"
    video.write_bytes(content)
    with pytest.raises(SpatialAvatarError, match=r"cam_222200038\.mp4: not a readable video"):
        open_one(made.sequence)


def test_video_that_ends_early(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.write()
    made.write_videos(25, 3, lambda n, c: made.take.images[n, c, :-1, :-1])
    write_video(made.sequence / "images/cam_222200038.mp4", 25, [made.take.images[0, 1, :-1, :-1]])
    clip = open_one(made.sequence)
    pixels_of(clip, 0, 1)
    with pytest.raises(SpatialAvatarError, match=r"cam_222200038\.mp4: ends before frame 2, after 1"):
        clip.encoded(FrameIndex(2, 1))


@pytest.mark.parametrize("rate", ["73/1", "73/3", "30/1", "50/1"])
def test_frames_are_counted_as_ffmpeg_unpacks_them(tmp_path: Path, rate: str) -> None:
    """The filter that VHAP unpacks with, run on a video whose frames show their numbers."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error"]
    raw = ["-f", "rawvideo", "-pix_fmt", "gray"]
    count = 120
    made = [*ffmpeg, *raw, "-s", "16x16", "-r", rate, "-i", "-", "-c:v", "libx264", "-qp", "0", tmp_path / "a.mp4"]
    subprocess.run(made, input=b"".join(bytes([n]) * 256 for n in range(count)), check=True, timeout=60)
    unpack = [*ffmpeg, "-i", tmp_path / "a.mp4", "-vf", "fps=25", *raw, "-"]
    unpacked = subprocess.run(unpack, capture_output=True, check=True, timeout=60).stdout
    shown = np.frombuffer(unpacked, np.uint8).reshape(-1, 256)[:, 0].tolist()
    numerator, denominator = map(int, rate.split("/"))
    assert shown == [unpacked_frame(n, numerator / denominator) for n in range(len(shown))]
    assert len(shown) > 30


# colours --------------------------------------------------------------------------------------------------------------


def test_no_color_calibration(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.write()
    (made.folder / "calibration/color_calibration.json").unlink()
    clip = open_one(made.sequence)
    assert "colours are the cameras' own" in clip.source.note
    made.colors = {serial: np.eye(3).tolist() for serial in made.colors}
    check_pictures(clip, made, 2.0)


def test_color_calibration_without_a_camera(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.write()
    del made.colors["222200038"]
    made.write_calibration()
    with pytest.raises(SpatialAvatarError, match=r"color_calibration\.json: lacks camera '222200038'"):
        open_one(made.sequence)


# where things stand ---------------------------------------------------------------------------------------------------


def test_recognised() -> None:
    assert recognise(frozenset(["calibration", "sequences"])) == "nersemble"
    assert recognise(frozenset(["images", "vhap"])) == "nersemble"
    assert recognise(frozenset(["images", "vhap", "notes.txt"])) == "nersemble"
    for bare in (["images"], ["images", "images_4", "alpha_maps", "landmark2d"]):
        assert recognise(frozenset(bare)) is None, "anything may be in a folder images/"
        assert recognise(frozenset(bare), "nersemble") == "nersemble"
    assert recognise(frozenset(["images", "sparse"]), "nersemble") is None
    assert recognise(frozenset(["images", "sparse"])) is None
    assert recognise(frozenset(["images", "transforms.json", "flame_param"])) == "vhap"


def test_tracking_beside_others(tmp_path: Path) -> None:
    """VHAP's documentation exports to folders like 074_EMO-1_v16_DS4 side by side."""
    made = participant(tmp_path / "data")
    exports = tmp_path / "exports"
    made.write(exports / "030_EMO-1_v16_DS4")
    with pytest.raises(SpatialAvatarError, match="no sequence has tracking in its folder vhap/"):
        open_one(made.folder)
    for folder in (made.folder, made.sequence):
        for tracking in (exports, exports / "030_EMO-1_v16_DS4"):
            clip = open_one(folder, tracking=tracking)  # format "auto", although the sequence holds images/ alone
            assert clip.location.endswith(f"sequences/{SEQUENCE}")
    made.take.write(exports / "030_EMO-1_again")
    with pytest.raises(SpatialAvatarError, match="030_EMO-1_again and 030_EMO-1_v16_DS4 both track EMO-1"):
        open_one(made.folder, tracking=exports)


def test_every_sequence_of_a_participant(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.write()
    second = made.folder / "sequences/SEN-10-port_strong_smokey"
    (second / "images").mkdir(parents=True)
    made.take.write(second / "vhap")
    (made.folder / "sequences/FREE/images").mkdir(parents=True)  # not tracked
    clips = import_clips(made.folder, tmp_path / "clips", flame_head())
    assert [clip.identity for clip in clips] == [PARTICIPANT] * 2
    names = sorted(p.name for p in (tmp_path / "clips").iterdir())
    assert names == ["030_EMO-1-shout_laugh", "030_SEN-10-port_strong_smokey"]
    with pytest.raises(SpatialAvatarError, match=r"tracking of one sequence, .* holds several"):
        open_one(made.folder, tracking=second / "vhap")


def test_split_of_the_tool(tmp_path: Path) -> None:
    made = participant(tmp_path, timesteps=4)
    made.write()
    made.take.write_split(made.sequence / "vhap")
    clip = open_one(made.sequence, keep_split=True)
    assert (clip.test_from, clip.test_cameras) == (3, [1])


# refused calibrations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "degrees", "message"),
    [
        (0.04, 0.0, r"camera 220700191 .* is 2\.67 cm and 0\.00 degrees off"),
        (0.0, 3.0, r"camera 220700191 .* and 2\.00 degrees off"),
    ],
)
def test_cameras_that_stand_elsewhere(tmp_path: Path, shift: float, degrees: float, message: str) -> None:
    made = participant(tmp_path, cameras=3)
    made.write()
    pose = made.world_to_camera["220700191"]
    pose = _turned(pose, degrees)
    pose[:3, 3] += [shift, 0, 0]  # a shift of the camera along its own axis
    made.world_to_camera["220700191"] = pose
    made.write_calibration()
    with pytest.raises(SpatialAvatarError, match=message) as caught:
        open_one(made.sequence)
    assert "\n" not in str(caught.value)


def test_small_disagreement_is_fine(tmp_path: Path) -> None:
    made = participant(tmp_path, cameras=3)
    made.write()
    made.world_to_camera["220700191"][:3, 3] += [0.005, 0, 0]
    made.write_calibration()
    assert open_one(made.sequence).cameras == 3


def test_mirrored_world_is_no_rigid_motion(tmp_path: Path) -> None:
    made = participant(tmp_path, cameras=3)
    made.write()
    flip = np.diag([-1.0, 1, 1, 1])
    made.world_to_camera = {serial: flip @ pose @ flip for serial, pose in made.world_to_camera.items()}
    made.write_calibration()
    with pytest.raises(SpatialAvatarError, match="cameras do not stand as in"):
        open_one(made.sequence)


def test_pictures_of_another_size_than_vhap_took_them_for(tmp_path: Path) -> None:
    """VHAP takes unpacked pictures for 2200 x 3208; those of another size were tracked with wrong intrinsics."""
    made = participant(tmp_path)
    made.take.focal *= 1.1
    made.write()
    with pytest.raises(SpatialAvatarError, match=r"intrinsics that are 10\.0% off the calibration's"):
        open_one(made.sequence)


def test_principal_point_from_the_wrong_edge(tmp_path: Path) -> None:
    """cy is stored from the lower edge; taken from the upper one it would be 3 % of the height off."""
    made = participant(tmp_path)
    made.intrinsics[1, 2] = 3208 / 2 + 50
    made.take.centre[:, 1] = made.intrinsics[1, 2] / 8  # not flipped
    made.write()
    with pytest.raises(SpatialAvatarError, match=r"intrinsics that are 3\.1% off"):
        open_one(made.sequence)


def test_union_as_tracking(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.write()
    union = made.sequence / "UNION"
    union.mkdir()
    (union / "canonical_flame_param.npz").write_bytes(b"")
    (union / "sequences_trainval.txt").write_text("vhap\n")
    write_listing(union, "transforms_train.json", made.take.frames("../vhap/"))
    with pytest.raises(SpatialAvatarError, match="is a union of sequences"):
        open_source(made.sequence, flame_head(), "nersemble", ImportOptions(tracking=union))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_2_cam": None}, "lacks world_2_cam"),
        ({"world_2_cam": {"222200037": [[1]]}}, "camera '222200037' holds 1 x 1 numbers, expected 4 x 4"),
        ({"world_2_cam": {"222200037": np.zeros((4, 4)).tolist()}}, "camera '222200037' is no rotation"),
        ({"world_2_cam": {"222200037": np.eye(4).tolist()}}, r"camera '222200038' is not in .*camera_params\.json"),
        ({"intrinsics": [1, 2, 3]}, "intrinsics holds 3 numbers, expected 3 x 3"),
        ({"intrinsics": np.full((3, 3), np.nan).tolist()}, "intrinsics holds NaN"),
        ({"intrinsics": np.zeros((3, 3)).tolist()}, "focal lengths must be positive"),
    ],
)
def test_refused_calibrations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    made = participant(tmp_path)
    made.write()
    made.write_calibration(**changes)
    with pytest.raises(SpatialAvatarError, match=message) as caught:
        open_one(made.sequence)
    assert "\n" not in str(caught.value)


def test_calibration_that_is_missing_or_damaged(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.write()
    location = made.folder / "calibration/camera_params.json"
    location.write_text("{")
    with pytest.raises(SpatialAvatarError, match=r"camera_params\.json: not usable JSON"):
        open_one(made.sequence)
    location.unlink()
    with pytest.raises(SpatialAvatarError, match=r"camera_params\.json: no such file"):
        open_one(made.sequence)


def test_listing_counts_by_timestep_when_nothing_else_is_said(tmp_path: Path) -> None:
    made = participant(tmp_path)
    made.take.extra = {"timestep_id": None, "timestep_index_original": None}
    made.write()
    assert "timestep_id" not in read_listing(made.sequence / "vhap")["frames"][0]
    made.write_unpacked()
    clip = open_one(made.sequence)
    assert "images/cam_*.jpg" in clip.source.note and clip.fps == 25
