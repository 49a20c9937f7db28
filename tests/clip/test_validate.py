"""Each kind of damage is found, and several at once are all listed."""

import copy
import json
import zlib
from collections.abc import Callable
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from spatialavatar import files
from spatialavatar.clip import Fault, FrameIndex, open_clip, validate_clip
from spatialavatar.clip.arrays import read_arrays, write_arrays
from spatialavatar.clip.pictures import encode
from spatialavatar.clip.validate import check_frame, check_geometry, check_values
from spatialavatar.errors import SpatialAvatarError
from tests.builders.clips import tiny_clip, tiny_head, tiny_params

Damage = Callable[[Path], None]


def header(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "clip.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def array(name: str, change: Callable[[np.ndarray], Any]) -> Damage:
    """``change`` edits in place or returns another array."""

    def damage(folder: Path) -> None:
        arrays = {key: a.copy() for key, a in read_arrays(folder).items()}
        changed = change(arrays[name])
        arrays[name] = arrays[name] if changed is None else changed
        write_arrays(folder, arrays)

    return damage


def put(at: Any, value: Any) -> Callable[[np.ndarray], None]:
    def change(a: np.ndarray) -> None:
        a[at] = value

    return change


def without(name: str) -> Damage:
    def damage(folder: Path) -> None:
        write_arrays(folder, {key: a for key, a in read_arrays(folder).items() if key != name})

    return damage


def truncate(name: str, share: float = 0.6) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def replace(name: str, pixels: np.ndarray, kind: Any) -> Damage:
    return lambda folder: (folder / name).write_bytes(encode(pixels, kind)) and None


def remove(name: str) -> Damage:
    return lambda folder: files.remove(folder / name)


def flip_byte(name: str, at: int) -> Damage:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 0xFF
        (folder / name).write_bytes(data)

    return damage


def scaled(a: np.ndarray) -> None:
    a[1, 0, :3, :3] *= 5


def mirrored(a: np.ndarray) -> None:
    a[1, 0, 0, :3] *= -1


def turned_away(a: np.ndarray) -> None:
    a[1, 0, :3] *= np.array([1, -1, -1])[:, None]


def grey(width: int, height: int, channels: int = 0) -> np.ndarray:
    return np.full((height, width, channels) if channels else (height, width), 90, np.uint8)


JSON, PARAMS = "clip.json", "params.safetensors"
ONE = FrameIndex(1, 0)

DAMAGES: dict[str, tuple[Damage, str, FrameIndex | None, str, str]] = {
    "image missing": (remove("images/000001.jpg"), "images/000001.jpg", ONE, "file", "is missing"),
    "image truncated": (truncate("images/000001.jpg"), "images/000001.jpg", ONE, "content", "truncated"),
    "image cut in its header": (truncate("images/000001.jpg", 0.05), "images/000001.jpg", ONE, "content", "truncated"),
    "image empty": (truncate("images/000001.jpg", 0), "images/000001.jpg", ONE, "content", "empty"),
    "image larger": (
        replace("images/000001.jpg", grey(64, 48, 3), "jpg"),
        "images/000001.jpg",
        ONE,
        "size",
        "is 64 x 48 pixels, clip.json says 32 x 24",
    ),
    "image of another kind": (
        replace("images/000001.jpg", grey(32, 24, 3), "png"),
        "images/000001.jpg",
        ONE,
        "format",
        "is a png picture, expected jpg",
    ),
    "image no picture": (
        lambda folder: (folder / "images/000001.jpg").write_text("no picture") and None,
        "images/000001.jpg",
        ONE,
        "content",
        "neither a JPEG nor a PNG",
    ),
    "image too many": (
        replace("images/000004.jpg", grey(32, 24, 3), "jpg"),
        "images/000004.jpg",
        FrameIndex(4, 0),
        "file",
        "belongs to no frame",
    ),
    "images absent": (remove("images"), "images/000001.jpg", ONE, "file", "is missing"),
    "matte missing": (remove("masks/000001.png"), "masks/000001.png", ONE, "file", "is missing"),
    "matte of another size": (
        replace("masks/000001.png", grey(16, 12), "png"),
        "masks/000001.png",
        ONE,
        "size",
        "is 16 x 12",
    ),
    "matte truncated": (truncate("masks/000001.png"), "masks/000001.png", ONE, "content", "truncated"),
    "matte damaged": (flip_byte("masks/000001.png", 60), "masks/000001.png", ONE, "content", "damaged in its"),
    "region of another size": (
        replace("roi/000001.png", grey(31, 24), "png"),
        "roi/000001.png",
        ONE,
        "size",
        "31 x 24",
    ),
    "region missing": (remove("roi/000001.png"), "roi/000001.png", ONE, "file", "is missing"),
    "mattes announced": (remove("masks"), JSON, None, "matte", "is 'alpha', but there is no folder masks/"),
    "mattes denied": (
        header(matte="burnt_black"),
        JSON,
        None,
        "matte",
        "is 'burnt_black', but the folder masks/ holds 4",
    ),
    "regions announced": (remove("roi"), JSON, None, "region", "is 'true', but there is no folder roi/"),
    "regions denied": (header(region=False), JSON, None, "region", "is 'false', but the folder roi/ holds 4"),
    "not a number": (array("expression", put((1, 2), np.nan)), PARAMS, ONE, "expression", "NaN"),
    "infinite": (array("jaw", put((1, 0), np.inf)), PARAMS, ONE, "jaw", "NaN or infinity"),
    "shape not finite": (array("shape", put(0, np.nan)), PARAMS, None, "shape", "NaN"),
    "camera not finite": (array("intrinsics", put((1, 0, 0, 0), np.nan)), PARAMS, ONE, "intrinsics", "NaN"),
    "row too few": (array("neck", lambda a: a[:-1]), PARAMS, None, "neck", "has shape 3 x 3, clip.json asks for 4 x 3"),
    "row too many": (array("eyes", lambda a: np.concatenate([a, a[:1]])), PARAMS, None, "eyes", "has shape 5 x 6"),
    "code too few": (array("expression", lambda a: a[:, :3]), PARAMS, None, "expression", "clip.json asks for 4 x 4"),
    "shape code too many": (array("shape", lambda a: np.append(a, a[:1])), PARAMS, None, "shape", "has shape 4,"),
    "double precision": (array("jaw", lambda a: a.astype(np.float64)), PARAMS, None, "jaw", "is float64"),
    "array missing": (without("translation"), PARAMS, None, "translation", "is missing"),
    "arrays truncated": (truncate(PARAMS), PARAMS, None, "file", "not a readable safetensors file"),
    "arrays missing": (remove(PARAMS), PARAMS, None, "file", "no such file"),
    "scale in the camera": (array("world_to_camera", scaled), PARAMS, ONE, "world_to_camera", "not a rotation: R R^T"),
    "mirrored camera": (array("world_to_camera", mirrored), PARAMS, ONE, "world_to_camera", "determinant -1"),
    "row-vector camera": (
        array("world_to_camera", lambda a: np.swapaxes(a, -1, -2)),
        PARAMS,
        ONE,
        "world_to_camera",
        "last row is not 0 0 0 1",
    ),
    "camera looks away": (array("world_to_camera", turned_away), PARAMS, ONE, "world_to_camera", "looks away"),
    "head beside the image": (
        array("world_to_camera", put((1, 0, 0, 3), 0.5)),
        PARAMS,
        ONE,
        "world_to_camera",
        "falls outside the 32 x 24 image",
    ),
    "focal length negative": (array("intrinsics", put((1, 0, 1, 1), -30)), PARAMS, ONE, "intrinsics", "focal lengths"),
    "intrinsics normalised": (
        array("intrinsics", lambda a: a / np.array([32, 32, 1], np.float32)[:, None]),
        PARAMS,
        ONE,
        "intrinsics",
        "focal lengths 1.2, 1.2, expected at least 3.2",
    ),
    "intrinsics transposed": (
        array("intrinsics", lambda a: np.swapaxes(a, -1, -2)),
        PARAMS,
        ONE,
        "intrinsics",
        "is not [[fx 0 cx] [0 fy cy] [0 0 1]]",
    ),
    "principal point far off": (
        array("intrinsics", put((1, 0, 0, 2), 900)),
        PARAMS,
        ONE,
        "intrinsics",
        "principal point",
    ),
    "face out of frame": (array("face_box", put((1, 0), [40, 5, 60, 20])), PARAMS, ONE, "face_box", "100% of the box"),
    "face box empty": (array("face_box", put((1, 0), [20, 5, 10, 20])), PARAMS, ONE, "face_box", "is empty"),
    "test set beyond the end": (header(test_from=4), JSON, None, "test_from", "is 4, expected 1..3"),
    "test camera absent": (header(test_cameras=[1]), JSON, None, "test_cameras", "with at least one camera left"),
    "unknown key": (header(images="../../etc"), JSON, None, "clip.json", 'holds unknown keys: "images"'),
    "no rate": (header(fps=0), JSON, None, "fps", "0"),
    "head of another hash": (
        header(head={"id": "flame2020", "hash": "0" * 64, "licence": "", "attribution": ""}),
        JSON,
        None,
        "head.hash",
        "was tracked with 'flame2020'",
    ),
    "head without hash": (header(head={"id": "tiny"}), JSON, None, "head", "lacks hash, licence, attribution"),
    "code count of another head": (header(shape_codes=5), JSON, None, "shape_codes", "is 5, head 'tiny' has 3"),
}


def found(faults: list[Fault], file: str, frame: FrameIndex | None, field: str, message: str) -> bool:
    return any((f.file, f.frame, f.field) == (file, frame, field) and message in f.message for f in faults)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(tmp_path: Path, name: str) -> None:
    tiny_clip(tmp_path)
    damage, *expected = DAMAGES[name]
    damage(tmp_path)
    faults = validate_clip(tmp_path, tiny_head())
    assert found(faults, *expected), "\n".join(map(str, faults))
    assert all("\n" not in str(fault) and str(tmp_path) not in str(fault) for fault in faults)


def test_one_fault_is_one_line(tmp_path: Path) -> None:
    """Damage to one frame is reported once, not echoed by other checks."""
    for name in ("image missing", "matte truncated", "not a number", "mirrored camera", "camera looks away", "no rate"):
        tiny_clip(tmp_path, force=True)
        DAMAGES[name][0](tmp_path)
        assert len(validate_clip(tmp_path, tiny_head())) == 1, name


def test_all_faults_at_once(tmp_path: Path) -> None:
    tiny_clip(tmp_path)
    names = ["image missing", "matte truncated", "region of another size", "not a number", "focal length negative"]
    names += ["test set beyond the end", "row too few", "mirrored camera", "head of another hash", "unknown key"]
    for name in names:
        DAMAGES[name][0](tmp_path)
    faults = validate_clip(tmp_path, tiny_head())
    for name in names:
        assert found(faults, *DAMAGES[name][1:]), name
    assert len(faults) == len(names), "\n".join(map(str, faults))


def test_faults_name_the_camera(tmp_path: Path) -> None:
    tiny_clip(tmp_path, cameras=3)
    truncate("images/000002_01.jpg")(tmp_path)
    array("world_to_camera", put((3, 2, 2, 3), -0.6))(tmp_path)
    faults = validate_clip(tmp_path)
    assert [(f.file, f.frame) for f in faults] == [
        ("params.safetensors", FrameIndex(3, 2)),
        ("images/000002_01.jpg", FrameIndex(2, 1)),
    ]
    assert str(faults[1]) == "images/000002_01.jpg, instant 2 camera 1: content: the JPEG is truncated or damaged"


def test_landmarks_far_from_the_mesh(tmp_path: Path) -> None:
    head = tiny_head()
    clip = tiny_clip(tmp_path)
    landmarks = clip.camera(clip.split("all")).project(head.landmarks(head(clip.params)))[0][:, None]
    clip = tiny_clip(tmp_path, landmarks=landmarks, force=True)
    assert validate_clip(tmp_path, head) == []
    array("landmarks", lambda a: a * np.array([1, 0.2], np.float32))(tmp_path)
    faults = validate_clip(tmp_path, head)
    assert faults and all(f.field == "landmarks" and "from the posed head's landmarks" in f.message for f in faults)


def test_static_offset_of_another_head(tmp_path: Path) -> None:
    params = replaced(tiny_params(4), static_offset=torch.zeros(4, tiny_head().vertex_count, 3))
    tiny_clip(tmp_path, params=params)
    assert validate_clip(tmp_path, tiny_head()) == []
    array("static_offset", lambda a: a[:-2])(tmp_path)
    (fault,) = validate_clip(tmp_path, tiny_head())
    assert fault.field == "static_offset" and "has 75 rows, head 'tiny' has 77 vertices" in fault.message


def test_no_clip_at_all(tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match=r"holds no clip\.json"):
        validate_clip(tmp_path)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_small_header_cannot_ask_for_much_work(tmp_path: Path, damaged: bool) -> None:
    """100 million frames are claimed: the work grows with the files that there are."""
    tiny_clip(tmp_path, cameras=2)
    header(instants=999_999, cameras=100)(tmp_path)
    if damaged:
        truncate("masks/000001_01.png")(tmp_path)
    asked: list[tuple[int, int]] = []
    faults = validate_clip(tmp_path, tiny_head(), lambda *progress: asked.append(progress))
    assert len(asked) == 8 and len(faults) < 100
    assert found(faults, "images/000000_02.jpg", FrameIndex(0, 2), "file", "is missing")
    assert found(faults, "images/", None, "files", f"{99_999_900 - 8 - 20} more are missing: clip.json says 999999")
    assert found(faults, "masks/000001_01.png", FrameIndex(1, 1), "content", "truncated") == damaged


def test_missing_pictures_are_listed_up_to_a_number(tmp_path: Path) -> None:
    tiny_clip(tmp_path, instants=30)
    for t in range(5, 29):
        remove(f"roi/{t:06d}.png")(tmp_path)
    faults = validate_clip(tmp_path, tiny_head())
    assert [f.frame for f in faults] == [FrameIndex(t, 0) for t in range(5, 25)] + [None]
    assert str(faults[-1]) == "roi/: files: 4 more are missing: clip.json says 30 instants, 1 cameras"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": "Anna Müller"}, "expected letters a-z, digits, '.', '_' and '-'"),
        ({"identity": "anna\n"}, "expected letters a-z"),
        ({"identity": "a" * 101}, "expected at most 100 characters"),
        ({"width": 9000}, "is 9000, expected 8..8192"),
        ({"fps": 0}, "is 0, expected more than 0"),
        ({"matte": "green"}, 'is "green", expected "alpha" or "burnt_black" or "none"'),
        ({"region": "yes"}, 'is "yes", expected boolean'),
        ({"test_cameras": [0, 0]}, "is [0, 0], expected each once"),
        ({"head": {"id": "", "hash": "0" * 64 + "\n", "licence": "", "attribution": ""}}, "64 hexadecimal digits"),
    ],
)
def test_faults_are_not_in_the_language_of_the_schema(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tiny_clip(tmp_path)
    header(**changes)(tmp_path)
    faults = [f for f in validate_clip(tmp_path) if f.file == JSON]
    assert faults and message in faults[0].message
    assert not any(word in faults[0].message for word in ("match", "^", "non-unique", "maximum", "property"))


def test_header_of_a_later_version(tmp_path: Path) -> None:
    tiny_clip(tmp_path)
    header(version=2)(tmp_path)
    (fault,) = validate_clip(tmp_path)
    assert fault.field == "version" and "this program reads 1" in fault.message


def test_huge_pictures_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that claims 60000 x 60000 pixels is refused from its bytes."""
    clip = tiny_clip(tmp_path, image_format="png")
    data = bytearray((tmp_path / "images/000001.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (tmp_path / "images/000001.png").write_bytes(data)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(SpatialAvatarError, match="is 60000 x 60000 pixels, expected 32 x 24"):
        clip.frame(FrameIndex(1, 0))


# the parts, for clips that may be anywhere


def test_the_parts_find_what_validate_finds(tmp_path: Path) -> None:
    head, clip = tiny_head(), tiny_clip(tmp_path, cameras=2)
    truncate("masks/000001_00.png")(tmp_path)
    replace("images/000003_01.jpg", grey(16, 16, 3), "jpg")(tmp_path)
    array("world_to_camera", turned_away)(tmp_path)
    away = open_clip(tmp_path)
    assert check_values(clip, head) == check_values(away, head) == []
    found = check_geometry(away.header, away.arrays(), head)
    assert found and {fault.field for fault in found} == {"world_to_camera"}
    for index in away.header.frames():
        found += check_frame(away.header, index, away.encoded(index))
    assert found == validate_clip(tmp_path, head)


def test_values_of_another_head(tmp_path: Path) -> None:
    clip, other = tiny_clip(tmp_path), copy.copy(tiny_head())
    other.content_hash = "b" * 64
    assert [fault.field for fault in check_values(clip, other)] == ["head.hash"]


def test_landmarks_elsewhere(tmp_path: Path) -> None:
    head, clip = tiny_head(), tiny_clip(tmp_path)
    points = clip.camera(clip.split("all")).project(head.landmarks(head(clip.params)))[0][:, None]
    for landmarks, said in ((points, None), (points * 0.3, "the posed head's"), (points[:, :, :2] * 0.3, "middle")):
        arrays = {**clip.arrays(), "landmarks": landmarks.numpy()}
        faults = check_geometry(clip.header, arrays, head)
        assert [fault.frame for fault in faults] == ([FrameIndex(t, 0) for t in range(4)] if said else [])
        assert all(fault.field == "landmarks" and str(said) in fault.message for fault in faults)
        assert check_geometry(clip.header, arrays, None) == []  # without a head there is nothing to compare with


def test_pictures_that_the_header_does_not_tell_of(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path)
    frame, index = clip.read_frame(FrameIndex(1, 0)), FrameIndex(1, 0)
    (fault,) = check_frame(clip.header, index, replaced(frame, matte=None))
    assert fault.message.startswith("is missing: clip.json says matte 'alpha'")
    (fault,) = check_frame(replaced(clip.header, matte="none"), index, frame)
    assert fault.message.startswith("is there, but clip.json says matte 'none'")
