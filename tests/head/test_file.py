"""The head file: round trip, damage, other versions, arrays that do not fit."""

import dataclasses

import numpy as np
import pytest
import torch

from spatialavatar import files, tensor_files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.file import head_from_arrays, read_head, stored_head_id, write_head
from spatialavatar.head.model import ARRAYS, HeadInfo
from tests.head.test_uv_layout import HALVES, SQUARE, head_with_uv

INFO = HeadInfo("small", "MIT", "made by a test", True, ["skin"], ["smile"], ["smile"], "none")


def arrays() -> dict[str, np.ndarray]:
    head = head_with_uv(SQUARE, HALVES)
    return {name: getattr(head, name).numpy().astype(np.float64) for name in ARRAYS}


def test_round_trip(tmp_path):
    path = tmp_path / "a.head.safetensors"
    written = write_head(path, INFO, arrays())
    read = read_head(path)
    assert read.info == INFO and read.content_hash == written.content_hash and len(read.content_hash) == 64
    assert read.mouth_opening_indices == [0]
    for name in ARRAYS:
        assert torch.equal(getattr(read, name), getattr(written, name)), name
        assert getattr(read, name).dtype in (torch.float32, torch.int64)
    assert stored_head_id(path) == "small" and files.list_folder(tmp_path) == [path.name]


def test_hash_is_of_content_and_info():
    digest = head_from_arrays(INFO, arrays()).content_hash
    assert head_from_arrays(INFO, arrays()).content_hash == digest
    assert head_from_arrays(dataclasses.replace(INFO, licence="none"), arrays()).content_hash != digest
    moved = arrays()
    moved["template"][0, 0] += 1e-3
    assert head_from_arrays(INFO, moved).content_hash != digest


def test_any_url(tmp_path):
    written = write_head("memory://heads/a.head.safetensors", INFO, arrays())
    assert read_head("memory://heads/a.head.safetensors").content_hash == written.content_hash


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated(tmp_path, keep):
    path = tmp_path / "a.head.safetensors"
    write_head(path, INFO, arrays())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SpatialAvatarError, match=r"a\.head\.safetensors: not a readable safetensors file"):
        read_head(path)
    assert stored_head_id(path) is None


def test_a_flipped_bit(tmp_path):
    path = tmp_path / "a.head.safetensors"
    write_head(path, INFO, arrays())
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(SpatialAvatarError, match="does not match its own hash"):
        read_head(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "99"}, "version 99, this program reads 1"),
        ({"format": "else"}, "not a head model of ours"),
        ({"info": "{"}, "without readable info"),
        ({"info": '{"id": "x"}'}, "without readable info"),
        ({"hash": "0"}, "does not match its own hash"),
    ],
)
def test_metadata(tmp_path, change, message):
    path = tmp_path / "a.head.safetensors"
    write_head(path, INFO, arrays())
    content, metadata = tensor_files.read_tensors(path)
    tensor_files.write_tensors(path, content, {**metadata, **change})
    with pytest.raises(SpatialAvatarError, match=message):
        read_head(path)


def test_a_missing_array(tmp_path):
    path = tmp_path / "a.head.safetensors"
    write_head(path, INFO, arrays())
    content, metadata = tensor_files.read_tensors(path)
    del content["weights"]
    tensor_files.write_tensors(path, content, metadata)
    with pytest.raises(SpatialAvatarError, match="lacks weights"):
        read_head(path)


def test_not_there(tmp_path):
    with pytest.raises(SpatialAvatarError, match="no such file"):
        read_head(tmp_path / "none.head.safetensors")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("weights", lambda a: a[:, :4], r"weights has shape \[4, 4\], expected \[4, 5\]"),
        ("weights", lambda a: a * 2, "do not sum to 1"),
        ("template", lambda a: a * np.nan, "template holds NaN"),
        ("faces", lambda a: a + 2, r"faces holds 2\.\.5, expected 0\.\.3"),
        ("uv_faces", lambda a: a - 9, "uv_faces holds"),
        ("face_chart", lambda a: a - 1, "must have -1 in uv_faces and in face_chart"),
        ("face_part", lambda a: a + 1, "face_part holds 1"),
        ("posedirs", lambda a: np.zeros((4, 3, 7)), "posedirs has 7 correctives, expected 0 or 36"),
        ("exprdirs", lambda a: np.zeros((4, 3, 2)), "1 expression names for 2"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, name, change, message):
    wrong = arrays()
    wrong[name] = change(wrong[name])
    with pytest.raises(SpatialAvatarError, match=message):
        write_head(tmp_path / "a.head.safetensors", INFO, wrong)
    assert files.list_folder(tmp_path) == []


def test_unknown_mouth_codes():
    with pytest.raises(SpatialAvatarError, match="yawn"):
        head_from_arrays(dataclasses.replace(INFO, mouth_opening_codes=["yawn"]), arrays())
