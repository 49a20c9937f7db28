"""GAGAvatar_track's folders, in and out, on miniature folders that the builder projects by itself."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import cv2
import imageio
import lmdb
import numpy as np
import pytest
import torch

from spatialavatar.clip import FrameIndex, TrackedClip, save_clip, validate_clip
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.exporters.gagavatar_track import export_gagavatar_track
from spatialavatar.clip.importers import ImportOptions, import_clips, open_source, recognise
from spatialavatar.clip.importers.mp4_header import mp4_frame_rate
from spatialavatar.clip.pictures import decode, encode
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, HeadParams
from spatialavatar.head.canonical import canonical
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.trackers.checks import (
    check_landmarks,
    check_rotations,
    check_upright_and_unmirrored,
    projected_landmarks,
)
from tests.builders.trackers.gagavatar_track import (
    TrackFolder,
    picture,
    tool_landmarks,
    tool_pixels,
    tool_vertices,
    track_folder,
    track_records,
)
from tests.builders.trackers.head import NOSE, flame_head

T, SIZE, NAME = 12, 64, "anna_k"
KEYS = [f"{NAME}_{i}" for i in range(T)]


def opened(folder: Path, **options: Any) -> TrackedClip:
    [clip] = open_source(folder, flame_head(), options=ImportOptions(**options))
    return clip


@pytest.fixture
def made() -> TrackFolder:
    return track_folder(T, NAME, SIZE)


@pytest.fixture(scope="module", params=[64, 512])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return track_folder(T, NAME, request.param).write(tmp_path_factory.mktemp("track") / str(request.param))


# the importer's conventions ------------------------------------------------------------------------------------------


def test_projected_landmarks_are_where_the_tool_saw_them(folder: Path) -> None:
    size, records = int(folder.name), track_records(T, NAME)
    expected = np.stack([tool_landmarks(records[key], size) for key in KEYS])[:, None]
    clip = opened(folder)
    assert (clip.width, clip.height, clip.cameras, clip.instants) == (size, size, 1, T)
    check_landmarks(clip, flame_head(), expected)
    np.testing.assert_allclose(projected_landmarks(clip, flame_head()), expected, atol=0.02 * size / 512)
    assert clip.face_box is not None
    np.testing.assert_allclose(clip.face_box[:, 0], [records[key]["bbox"] * size for key in KEYS], rtol=1e-6)


def test_cameras_are_rotations_of_the_stated_focal_length(folder: Path) -> None:
    clip = opened(folder)
    check_rotations(clip)
    size = int(folder.name)
    focal = {64: 384.0, 512: 3072.0}[size]
    expected = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    assert torch.equal(clip.intrinsics, expected.expand(T, 1, 3, 3))


def test_the_face_is_upright_and_not_mirrored(folder: Path) -> None:
    check_upright_and_unmirrored(opened(folder), flame_head())


def test_values_and_pictures(folder: Path, tmp_path: Path) -> None:
    records = track_records(T, NAME)
    clip = opened(folder)
    assert clip.identity == NAME and clip.matte_kind == "burnt_black" and clip.source.tool == "gagavatar-track"
    p = clip.params
    for t, key in enumerate(KEYS):
        record = records[key]
        np.testing.assert_allclose(p.shape[t], record["shapecode"], rtol=1e-6)
        np.testing.assert_array_equal(p.expression[t], record["expcode"])
        np.testing.assert_array_equal(p.jaw[t], record["posecode"][3:])
        np.testing.assert_array_equal(p.eyes[t], record["eyecode"])
        assert clip.encoded(FrameIndex(t, 0)).image == picture(t, clip.width)
    assert not p.global_rotation.any() and not p.neck.any() and not p.translation.any()
    saved = save_clip(clip, tmp_path / "saved")
    assert validate_clip(saved.location, flame_head()) == []
    assert saved.encoded(FrameIndex(10, 0)).image == picture(10, clip.width)


# traps ---------------------------------------------------------------------------------------------------------------


def test_frames_are_sorted_by_number(made: TrackFolder, tmp_path: Path) -> None:
    """As texts, _10 and _11 come before _2."""
    clip = opened(made.write(tmp_path))
    assert [clip.encoded(FrameIndex(t, 0)).image for t in range(T)] == [picture(t, SIZE) for t in range(T)]
    np.testing.assert_array_equal(clip.params.jaw[10], made.optim[f"{NAME}_10"]["posecode"][3:])


def test_smoothed_values_come_first(made: TrackFolder, tmp_path: Path) -> None:
    assert opened(made.write(tmp_path / "optim")).source.note.startswith("optim.pkl")
    made.smoothed = {key: {**record, "eyecode": record["eyecode"] * 0.5} for key, record in made.optim.items()}
    clip = opened(made.write(tmp_path / "both"))
    assert clip.source.note.startswith("smoothed.pkl")
    np.testing.assert_array_equal(clip.params.eyes[3], made.smoothed[KEYS[3]]["eyecode"])
    (tmp_path / "both/optim.pkl").unlink()
    assert opened(tmp_path / "both").source.note.startswith("smoothed.pkl")


def test_a_root_pose_that_is_not_zero_turns_the_head(made: TrackFolder, tmp_path: Path) -> None:
    for i, record in enumerate(made.optim.values()):
        record["posecode"][:3] = [0.2, -0.3 + 0.05 * i, 0.1]
    clip = opened(made.write(tmp_path))
    assert clip.params.global_rotation.abs().max() > 0.2
    expected = np.stack([tool_landmarks(made.optim[key], SIZE) for key in KEYS])[:, None]
    check_landmarks(clip, flame_head(), expected)


def test_shapes_of_batches_are_averaged(made: TrackFolder, tmp_path: Path) -> None:
    """The tool has one for each batch of a long video, and its batches interleave in time."""
    first, second = np.full(300, 0.5, np.float32), np.full(300, -0.1, np.float32)
    for i, key in enumerate(KEYS):
        made.optim[key]["shapecode"] = second if i % 3 == 1 else first
    clip = opened(made.write(tmp_path))
    np.testing.assert_allclose(clip.params.shape, np.full((T, 300), 0.3), atol=1e-6)
    assert "2 different" in clip.source.note


def test_several_videos(made: TrackFolder, tmp_path: Path) -> None:
    other = track_folder(5, "ben", SIZE, seed=1)
    made.optim |= other.optim
    made.pictures |= {key: picture(20 + i, SIZE) for i, key in enumerate(other.pictures)}
    clips = open_source(made.write(tmp_path / "two"), flame_head())
    assert [(clip.identity, clip.instants) for clip in clips] == [(NAME, T), ("ben", 5)]
    assert not torch.equal(clips[0].params.shape[0], clips[1].params.shape[0])
    assert clips[1].encoded(FrameIndex(4, 0)).image == picture(24, SIZE)
    written = import_clips(tmp_path / "two", tmp_path / "out", flame_head())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [NAME, "ben"]
    assert all(validate_clip(clip.location, flame_head()) == [] for clip in written)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["ann", "ben"], ["mia_ann", "mia_ben"]),
        (["x/ann", "x/ben"], ["mia_ann", "mia_ben"]),
        (["a b", "a:b"], ["mia_000", "mia_001"]),  # of which folders' names are made alike
        ([120 * "a", 121 * "a"], ["mia_000", "mia_001"]),
        (["ann", "a\r\x1b"], ["mia_a_r_x1b", "mia_ann"]),
    ],
)
def test_several_videos_of_one_person(tmp_path: Path, names: list[str], folders: list[str]) -> None:
    made = track_folder(1, names[0], SIZE)
    other = track_folder(1, names[1], SIZE)
    made.optim |= other.optim
    made.pictures |= other.pictures
    source = made.write(tmp_path / "source")
    clips = open_source(source, flame_head(), options=ImportOptions(identity="mia"))
    assert [clip.identity for clip in clips] == ["mia", "mia"] and clips[0].location.isprintable()
    import_clips(source, tmp_path / "out", flame_head(), options=ImportOptions(identity="mia"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == folders


def test_none_of_several_is_written_where_one_may_not_be(tmp_path: Path) -> None:
    made, other = track_folder(1, "ann", SIZE), track_folder(1, "ben", SIZE)
    made.optim |= other.optim
    made.pictures |= other.pictures
    tiny_clip(tmp_path / "out/ben")
    with pytest.raises(SpatialAvatarError, match="ben: holds a clip"):
        import_clips(made.write(tmp_path / "source"), tmp_path / "out", flame_head())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["ben"]


def test_a_tracked_frame_without_picture(made: TrackFolder, tmp_path: Path) -> None:
    del made.pictures[KEYS[7]]
    with pytest.raises(SpatialAvatarError, match=r"img_lmdb/data\.mdb: holds no picture for 'anna_k_7', which .*optim"):
        opened(made.write(tmp_path))


def test_pictures_without_tracking_are_left_out(made: TrackFolder, tmp_path: Path) -> None:
    del made.optim[KEYS[7]], made.optim[KEYS[3]]
    clip = opened(made.write(tmp_path))
    assert clip.instants == T - 2 and "2 pictures without tracking left out" in clip.source.note
    assert clip.encoded(FrameIndex(6, 0)).image == picture(8, SIZE)


def video(path: Path, fps: float, frames: int = 12) -> bytes:
    with imageio.get_writer(path, fps=fps, codec="libx264", macro_block_size=16) as writer:
        for i in range(frames):
            writer.append_data(np.full((32, 32, 3), 20 * i, np.uint8))
    return path.read_bytes()


@pytest.mark.parametrize(("stated", "taken"), [(25, 25), (30000 / 1001, 30000 / 1001), (50, 50), (60, 30)])
def test_frame_rate_of_the_video(made: TrackFolder, tmp_path: Path, stated: float, taken: float) -> None:
    """Above 50 the tool dropped every second frame and still states the full rate."""
    made.others["tracked.mp4"] = video(tmp_path / "v.mp4", stated)
    folder = made.write(tmp_path / "folder")
    assert opened(folder).fps == pytest.approx(taken, rel=1e-3)
    assert opened(folder, fps=12).fps == 12


def test_frame_rate_where_nothing_says_it(made: TrackFolder, tmp_path: Path) -> None:
    clip = opened(made.write(tmp_path / "none"))
    assert clip.fps == 25 and "not stated" in clip.source.note
    made.others["tracked.mp4"] = b"\0\0\0\x08free" * 5
    assert opened(made.write(tmp_path / "broken")).fps == 25


def test_any_damage_of_the_video_costs_only_its_frame_rate(tmp_path: Path) -> None:
    whole = video(tmp_path / "v.mp4", 30)
    assert mp4_frame_rate(tmp_path / "v.mp4") == pytest.approx(30)
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole[: rng.integers(0, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for at in rng.integers(0, max(1, len(data)), 4) if data else ():
            data[at] = rng.integers(256)
        (tmp_path / "d.mp4").write_bytes(data)
        rate = mp4_frame_rate(tmp_path / "d.mp4")
        assert rate is None or rate >= 0


@pytest.mark.parametrize(
    ("split", "test_from", "note"),
    [
        ({"train": KEYS[:9], "val": KEYS[9:10], "test": KEYS[10:]}, 9, None),
        ({"train": KEYS, "val": [], "test": []}, None, None),
        ({"train": ["ben_1"], "test": KEYS}, None, "holds out the whole video: not kept"),
        ({"train": KEYS[2:], "test": KEYS[:2]}, None, "holds out 2 of 12 frames, not the last ones: not kept"),
    ],
    ids=["last", "none", "all", "first"],
)
def test_the_tools_split(
    made: TrackFolder, tmp_path: Path, split: dict[str, list[str]], test_from: int | None, note: str | None
) -> None:
    made.others["dataset.json"] = repr(split).replace("'", '"').encode()
    folder = made.write(tmp_path)
    assert opened(folder).test_from is None and "dataset.json" not in opened(folder).source.note
    clip = opened(folder, keep_split=True)
    assert clip.test_from == test_from
    assert (note or "12 pictures") in clip.source.note if note else "dataset.json" not in clip.source.note
    assert opened(folder, test_last=4).test_from == 8


@pytest.mark.parametrize("text", [b"[1]", b'{"test": 5}', b'{"test": [["a"]]}', b'{"val": null}', b"[" * 100000])
def test_a_broken_split(made: TrackFolder, tmp_path: Path, text: bytes) -> None:
    made.others["dataset.json"] = text
    with pytest.raises(SpatialAvatarError, match=r"dataset\.json: not .*") as error:
        opened(made.write(tmp_path), keep_split=True)
    assert "\n" not in str(error.value)
    assert opened(tmp_path).instants == T


def test_heads_with_other_codes(made: TrackFolder, tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match=r"optim\.pkl: shapecode has 300 codes, the head has 3"):
        open_source(made.write(tmp_path / "full"), tiny_head())
    for record in made.optim.values():
        record["shapecode"][3:], record["expcode"][4:] = 0, 0
    [clip] = open_source(made.write(tmp_path / "few"), tiny_head())
    assert clip.params.shape.shape == (T, 3) and clip.params.expression.shape == (T, 4)


BROKEN: dict[str, tuple[Any, str]] = {
    "missing field": ({"eyecode": None}, r"optim\.pkl: 'anna_k_4': eyecode is no array"),
    "wrong shape": ({"posecode": np.zeros(3, np.float32)}, r"'anna_k_4': posecode is shape \[3\] of float32"),
    "text": ({"bbox": np.array(["a"] * 4)}, r"'anna_k_4': bbox is shape \[4\] of <U1"),
    "nan": ({"expcode": np.full(100, np.nan, np.float32)}, r"instant 4 camera 0: expression: holds NaN"),
    "scaled": ({"transform_matrix": np.eye(3, 4) * 5.0}, "not a rotation"),
    "mirrored": ({"transform_matrix": np.diag([1.0, 1, -1, 0])[:3] + np.eye(3, 4, 3)[:, :4] * 0}, "determinant -1"),
    "box": ({"bbox": np.full(4, np.nan, np.float32)}, "face_box: holds NaN"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_records(made: TrackFolder, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    made.optim[KEYS[4]] |= change
    with pytest.raises(SpatialAvatarError, match=message) as error:
        opened(made.write(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_lost_face(made: TrackFolder, tmp_path: Path) -> None:
    """An empty box is how that is said, in the clip as in the tool's file."""
    made.optim[KEYS[4]]["bbox"] = np.float32([0.5, 0.5, 0.5, 0.6])
    clip = opened(made.write(tmp_path))
    assert clip.face_box is not None
    np.testing.assert_allclose(clip.face_box[4, 0], SIZE * np.float32([0.5, 0.5, 0.5, 0.6]))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("anna", "key 'anna' is not of the form NAME_NUMBER"),
        ("anna_k_04", "'anna_k_4' and 'anna_k_04'|'anna_k_04' and 'anna_k_4'"),
        ("a\nb_1", r"key 'a\\nb_1' is not"),
        (7, "key 7 is not"),
    ],
)
def test_broken_keys(made: TrackFolder, tmp_path: Path, key: Any, message: str) -> None:
    made.optim[key] = made.optim[KEYS[4]]
    with pytest.raises(SpatialAvatarError, match=message):
        opened(made.write(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04 as torch.save writes", "neither a JPEG nor a PNG"),
        (encode(np.zeros((32, 48, 3), np.uint8), "jpg"), "48 x 32 pixels, the tool's are square"),
        (encode(np.zeros((9000, 9000), np.uint8), "png"), "is 9000, expected 8..8192"),
    ],
    ids=["no picture", "not square", "huge"],
)
def test_broken_pictures(made: TrackFolder, tmp_path: Path, data: bytes, message: str) -> None:
    made.pictures[KEYS[0]] = data
    with pytest.raises(SpatialAvatarError, match=message):
        opened(made.write(tmp_path))


def test_a_damaged_picture_is_named_when_it_is_read(made: TrackFolder, tmp_path: Path) -> None:
    made.pictures[KEYS[5]] = made.pictures[KEYS[5]][:100]
    clip = opened(made.write(tmp_path))
    assert clip.frame(FrameIndex(4, 0)).image.shape == (SIZE, SIZE, 3)
    with pytest.raises(SpatialAvatarError, match=r"instant 5, camera 0: images: the JPEG is truncated"):
        clip.frame(FrameIndex(5, 0))


@pytest.mark.parametrize("content", [pickle.dumps([]), pickle.dumps({}), b"", pickle.dumps(os.system)])
def test_a_pickle_of_something_else(made: TrackFolder, tmp_path: Path, content: bytes) -> None:
    made.write(tmp_path)
    (tmp_path / "optim.pkl").write_bytes(content)
    with pytest.raises(SpatialAvatarError, match=r"optim\.pkl: "):
        opened(tmp_path)


def test_recognised_by_its_names() -> None:
    assert recognise(frozenset({"img_lmdb", "optim.pkl", "base.pkl"})) == "gagavatar-track"
    assert recognise(frozenset({"img_lmdb", "smoothed.pkl"})) == "gagavatar-track"
    assert recognise(frozenset({"img_lmdb", "base.pkl"})) is None


def test_a_store_and_nothing_left_behind(made: TrackFolder, tmp_path: Path) -> None:
    import fsspec

    made.write(tmp_path)
    fsspec.filesystem("memory").put(str(tmp_path) + "/", "/gagavatar-track/", recursive=True)
    before = len(os.listdir("/proc/self/fd"))
    [clip] = open_source("memory://gagavatar-track", flame_head())
    assert clip.encoded(FrameIndex(3, 0)).image == picture(3, SIZE)
    del clip
    assert len(os.listdir("/proc/self/fd")) == before


# the exporter --------------------------------------------------------------------------------------------------------


def exported(
    clip: TrackedClip, out: Path, head: HeadModel | None = None
) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """The folder as the tool's own readers see it: plain pickle and LMDB; and the notes."""
    report = export_gagavatar_track(clip, head or flame_head(), str(out))
    with lmdb.open(str(out / "img_lmdb"), readonly=True, lock=False) as environment, environment.begin() as transaction:
        pictures = {key.decode(): bytes(value) for key, value in transaction.cursor()}
    assert report.files == sum(p.is_file() and p.name != "lock.mdb" for p in out.rglob("*"))
    return pickle.loads((out / "optim.pkl").read_bytes()), pictures, "; ".join(report.notes)


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    source = track_folder(T, NAME, 512)
    source.others["dataset.json"] = b'{"train": [], "test": ["anna_k_10", "anna_k_11"]}'
    clip = opened(source.write(tmp_path / "in"), keep_split=True)
    records, pictures, notes = exported(clip, tmp_path / "out")
    back = opened(tmp_path / "out", keep_split=True)
    for name, value in vars(clip.params).items():
        if value is not None:
            torch.testing.assert_close(getattr(back.params, name), value, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.world_to_camera, clip.world_to_camera, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.face_box, clip.face_box, atol=1e-4, rtol=1e-6)
    assert torch.equal(back.intrinsics, clip.intrinsics) and back.test_from == 10
    assert "fitted" not in notes and "'anna_k' is named anna-k" in notes and back.identity == "anna-k"
    # the tool's own fields as they came in, and the JPEGs byte for byte
    assert list(records) == [f"anna-k_{i}" for i in range(T)]
    for i, record in enumerate(records.values()):
        assert {key: value.dtype for key, value in record.items()} == dict.fromkeys(source.optim[KEYS[i]], np.float32)
        for key, value in record.items():
            np.testing.assert_allclose(value, source.optim[KEYS[i]][key], atol=1e-5)
        assert pictures[f"anna-k_{i}"] == source.pictures[KEYS[i]]


def own_clip(
    *, cameras: int = 1, size: tuple[int, int] = (512, 512), focal: float = 3072.0, neck: float = 0.0, **changes: Any
) -> TrackedClip:
    """Our own clip of the head: rigid motion in the parameters, a white dot where the nose's tip is, alpha matte."""
    head, rng = flame_head(), np.random.default_rng(3)
    count, (width, height) = 6, size

    def draw(n: int, scale: float) -> torch.Tensor:
        return torch.from_numpy(rng.normal(0, scale, (count, n))).float()

    params = HeadParams(
        draw(300, 0.5)[:1].expand(count, -1), draw(100, 0.5), draw(3, 0.1), draw(3, neck), draw(3, 0.05), draw(6, 0.1),
        draw(3, 0.004),
    )  # fmt: skip
    world_to_camera = torch.eye(4).repeat(count, cameras, 1, 1)
    for c in range(cameras):
        yaw = 0.4 * c
        turn = torch.tensor([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
        world_to_camera[:, c, :3, :3] = torch.diag(torch.tensor([1.0, -1, -1])) @ turn.float()
    world_to_camera[..., 2, 3] = 2.2 * focal / 3072 * 512 / min(width, height)
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]).repeat(count, cameras, 1, 1)

    def frames(t: int, c: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.float64(dots[t, c])
        image = np.full((height, width, 3), 60, np.uint8)
        cv2.circle(image, (round(16 * (x - 0.5)), round(16 * (y - 0.5))), 16 * 6, (255,) * 3, -1, cv2.LINE_AA, 4)
        matte = np.zeros((height, width), np.uint8)
        cv2.circle(matte, (round(x), round(y)), 40, 255, -1)
        return image, matte

    parts: dict[str, Any] = {
        "identity": "mia",
        "head": head,
        "params": params,
        "world_to_camera": world_to_camera,
        "intrinsics": intrinsics,
        "width": width,
        "height": height,
        "fps": 30.0,
        "frames": frames,
        **changes,
    }
    clip = assemble_clip("memory://own", **parts)
    dots = projected_landmarks(clip, head)[:, :, NOSE]
    return clip


def dot_of(data: bytes) -> np.ndarray:
    """Where the white dot is, in pixels of an exported picture."""
    pixels = decode(data, 512, 512, color=True).min(-1).astype(np.float64)
    weight = (pixels - 100).clip(0)
    assert weight.sum() > 0
    y, x = np.mgrid[:512, :512] + 0.5
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def test_rigid_motion_goes_into_the_camera(tmp_path: Path) -> None:
    clip = own_clip()
    assert clip.params.global_rotation.any() and clip.params.translation.any()
    records, pictures, notes = exported(clip, tmp_path)
    assert "fitted" not in notes and "mattes are not held" in notes and "no FLAME" in notes
    expected = projected_landmarks(clip, flame_head())
    for t in range(clip.instants):
        record = records[f"mia_{t}"]
        assert not record["posecode"][:3].any()
        np.testing.assert_allclose(tool_landmarks(record, 512), expected[t, 0], atol=0.02)
        np.testing.assert_allclose(dot_of(pictures[f"mia_{t}"]), tool_landmarks(record, 512)[NOSE], atol=0.5)
    back = opened(tmp_path)
    params, world_to_camera = canonical(flame_head(), clip.params, clip.world_to_camera)
    torch.testing.assert_close(back.world_to_camera, world_to_camera, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.params.jaw, params.jaw, atol=1e-5, rtol=0)
    check_rotations(back)
    check_upright_and_unmirrored(back, flame_head())
    # on black outside the matte
    assert decode(pictures["mia_0"], 512, 512, color=True)[:40, :40].max() < 5


def test_a_square_of_another_size_is_resized(tmp_path: Path) -> None:
    clip = own_clip(size=(256, 256), focal=1536.0)
    records, pictures, notes = exported(clip, tmp_path)
    assert "fitted" not in notes and "cut out" not in notes
    for t in range(clip.instants):
        seen = tool_landmarks(records[f"mia_{t}"], 512)
        np.testing.assert_allclose(seen, 2 * projected_landmarks(clip, flame_head())[t, 0], atol=0.02)
        np.testing.assert_allclose(dot_of(pictures[f"mia_{t}"]), seen[NOSE], atol=0.5)


REFITTED: dict[str, tuple[dict[str, Any], str]] = {
    "wide": ({"size": (640, 480), "focal": 900.0}, "another camera"),
    "neck": ({"neck": 0.2}, "a neck rotation"),
    "wide and neck": ({"size": (480, 640), "focal": 1500.0, "neck": 0.2}, "another camera"),
    "static offset": ({"static": True}, "a neck rotation or a static offset"),
}


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize(("change", "why"), REFITTED.values(), ids=REFITTED)
def test_other_cameras_and_necks_are_fitted(tmp_path: Path, change: dict[str, Any], why: str, box: bool) -> None:
    """The head falls on the same place of the picture, within the error that the report states."""
    change = dict(change)
    head = flame_head()
    if change.pop("static", False):
        offset = 0.001 * torch.randn(head.vertex_count, 3, generator=torch.Generator().manual_seed(0))
        plain = own_clip()
        rows = offset.expand(plain.instants, -1, -1)
        change["params"] = HeadParams(**{**vars(plain.params), "static_offset": rows})
    if box:
        w, h = change.get("size", (512, 512))
        change["face_box"] = torch.tensor([0.3 * w, 0.25 * h, 0.7 * w, 0.7 * h]).expand(6, 1, 4)
    clip = own_clip(**change)
    records, pictures, notes = exported(clip, tmp_path)
    stated = re.search(r"vertices are ([0-9.]+) pixels off on average, ([0-9.]+) at most", notes)
    assert stated is not None and why in notes
    mean, largest = float(stated[1]), float(stated[2])
    assert mean < 5 and largest < 15
    distances = []
    for t in range(clip.instants):
        nose = tool_landmarks(records[f"mia_{t}"], 512)[NOSE]
        distances.append(np.linalg.norm(dot_of(pictures[f"mia_{t}"]) - nose))
    assert max(distances) < largest + 0.5
    check_rotations(opened(tmp_path))
    check_upright_and_unmirrored(opened(tmp_path), head)


def test_the_square_does_not_trail_a_moving_head(tmp_path: Path) -> None:
    """As much behind it at the first frame as before it at the last."""
    corner = torch.stack([100 + 20.0 * torch.arange(6), torch.full((6,), 120.0)], -1)
    box = torch.cat([corner, corner + 150], -1)[:, None]
    records, _, notes = exported(own_clip(size=(640, 480), focal=900.0, face_box=box), tmp_path)
    assert f"squares of {round(1.65 * 150)}..{round(1.65 * 150)}" in notes
    places = np.array([512 * record["bbox"][[0, 2]].mean() for record in records.values()])
    np.testing.assert_allclose(places + places[::-1], 512, atol=4)
    assert (np.diff(places) > 10).all()  # it is smoothed: the head moves within


def test_where_a_face_was_lost_the_posed_head_says_where_it_is(tmp_path: Path) -> None:
    plain = own_clip(size=(640, 480), focal=900.0)
    seen = projected_landmarks(plain, flame_head())[:, 0]
    box = torch.from_numpy(np.concatenate([seen.min(1), seen.max(1)], -1)).float()[:, None]
    box[0] = 0
    records, _, notes = exported(own_clip(size=(640, 480), focal=900.0, face_box=box), tmp_path)
    least = re.search(r"squares of ([0-9]+)\.\.", notes)
    assert least is not None and int(least[1]) > np.ptp(seen, axis=1).max()
    left, top, right, bottom = records["mia_0"]["bbox"]
    assert 0 < left < 0.4 < 0.6 < right < 1 and 0 < top < 0.4 < 0.6 < bottom < 1


def test_the_stated_error_is_that_of_the_vertices(tmp_path: Path) -> None:
    """Recomputed by the tool's own forward, where the square is the whole picture."""
    clip, head = own_clip(neck=0.25), flame_head()
    records, _, notes = exported(clip, tmp_path)
    frames = clip.header.frames()
    with torch.no_grad():
        true = clip.camera(frames).project(head(clip.params_at(frames)))[0].double().numpy()
    on_head = (head.weights[:, 1:].sum(-1) > 0.5).numpy()
    errors, unfitted = [], []
    for t in range(clip.instants):
        record = records[f"mia_{t}"]
        vertices = tool_vertices(record)
        errors.append(
            np.linalg.norm(tool_pixels(vertices, record["transform_matrix"], 512) - true[t], axis=-1)[on_head]
        )
    params, world_to_camera = canonical(head, clip.params, clip.world_to_camera)
    with torch.no_grad():
        still = head(HeadParams(**{**vars(params), "neck": torch.zeros_like(params.neck)})).numpy()
    for t in range(clip.instants):
        seen = still[t] @ world_to_camera[t, 0, :3, :3].numpy().T + world_to_camera[t, 0, :3, 3].numpy()
        pixels = (seen @ clip.intrinsics[t, 0].numpy().T)[:, :2] / seen[:, 2:]
        unfitted.append(np.linalg.norm(pixels - true[t], axis=-1)[on_head])
    assert f"{np.mean(errors):.2f} pixels off on average, {np.max(errors):.2f} at most" in notes
    assert np.mean(errors) < 0.05 * np.mean(unfitted)


def test_each_camera_is_a_video(tmp_path: Path) -> None:
    clip = own_clip(cameras=2, test_from=4, test_cameras=[1])
    records, pictures, _ = exported(clip, tmp_path / "out")
    assert list(records) == [f"mia-{c:02d}_{t}" for c in range(2) for t in range(6)] and set(records) == set(pictures)
    expected = projected_landmarks(clip, flame_head())
    for c in range(2):
        np.testing.assert_allclose(tool_landmarks(records[f"mia-{c:02d}_5"], 512), expected[5, c], atol=0.02)
    clips = open_source(tmp_path / "out", flame_head(), options=ImportOptions(keep_split=True))
    assert [(c.identity, c.test_from) for c in clips] == [("mia-00", 4), ("mia-01", None)]
    assert "the whole video" in clips[1].source.note


@pytest.mark.parametrize(
    ("identity", "cameras", "names"),
    [
        ("a_b_c", 1, ["a-b-c"]),
        ("img", 1, ["img-00"]),
        ("img", 2, ["img-00", "img-01"]),
        ("plain", 1, ["plain"]),
    ],
)
def test_names_have_no_underscores(tmp_path: Path, identity: str, cameras: int, names: list[str]) -> None:
    """What stands before the first underscore is the video's name, unless it is "img"."""
    records, _, notes = exported(own_clip(cameras=cameras, identity=identity), tmp_path)
    assert sorted({key.split("_")[0] for key in records}) == names and all(key.count("_") == 1 for key in records)
    assert ("is named" in notes) == (cameras == 1 and names != [identity])


def test_pictures_are_full_color_jpegs(tmp_path: Path) -> None:
    _, pictures, _ = exported(own_clip(), tmp_path)
    for data in pictures.values():
        start = data.index(b"\xff\xc0")
        assert data[start + 11] == 0x11  # the first component is not sampled more densely than the others: 4:4:4


def test_pickles_are_those_of_numpy_1(tmp_path: Path) -> None:
    exported(own_clip(), tmp_path)
    assert b"numpy._core" not in (tmp_path / "optim.pkl").read_bytes()
    assert (tmp_path / "optim.pkl").read_bytes() == (tmp_path / "smoothed.pkl").read_bytes()


def test_heads_with_other_codes_are_refused(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip", width=64, height=64)
    records, _, notes = exported(clip, tmp_path / "out", tiny_head())
    first = records["tiny0_0"]
    np.testing.assert_array_equal(first["shapecode"][:3], clip.params.shape[0])
    assert first["shapecode"].shape == (300,) and not first["shapecode"][3:].any() and "no FLAME" in notes
    with pytest.raises(SpatialAvatarError, match="clip has 3 shape"):
        export_gagavatar_track(clip, flame_head(), str(tmp_path / "other"))


def test_a_head_behind_the_camera_is_refused(tmp_path: Path) -> None:
    world_to_camera = torch.eye(4).repeat(6, 1, 1, 1)
    world_to_camera[..., 2, 3] = 2.2
    world_to_camera[3, :, 2, 3] = -2.2
    with pytest.raises(SpatialAvatarError, match="camera 0: instant 3: the head is not before the camera"):
        export_gagavatar_track(own_clip(world_to_camera=world_to_camera), flame_head(), str(tmp_path))


def test_progress_counts_pictures(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    export_gagavatar_track(own_clip(cameras=2), flame_head(), str(tmp_path), lambda *step: seen.append(step))
    assert seen == [(i + 1, 12) for i in range(12)]


def test_export_to_a_store(tmp_path: Path) -> None:
    clip = own_clip()
    export_gagavatar_track(clip, flame_head(), "memory://exported-track")
    [back] = open_source("memory://exported-track", flame_head())
    _, world_to_camera = canonical(flame_head(), clip.params, clip.world_to_camera)
    torch.testing.assert_close(back.world_to_camera, world_to_camera, atol=1e-5, rtol=0)
