"""Files: URLs, all-or-nothing writes, damaged content."""

import os
from pathlib import Path

import numpy as np
import pytest

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError


@pytest.mark.parametrize("scheme", ["local", "file", "memory"])
def test_tensors_round_trip_through_any_url(tmp_path: Path, scheme: str) -> None:
    root = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": "memory://files-test"}[scheme]
    where = files.join(root, "deep", "a.safetensors")
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.array([1, 2], np.int32)}
    files.write_tensors(where, arrays, {"k": "v"})
    back, metadata = files.read_tensors(where)
    assert metadata == {"k": "v"}
    assert files.list_folder(files.join(root, "deep")) == ["a.safetensors"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "state"
    files.write_bytes(where, b"old")

    def disk_full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError):
        files.write_bytes(where, b"new" * 1000)
    assert where.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    written = set()
    for _ in range(8):
        files.write_tensors(tmp_path / "t", {"b": np.ones(3), "a": np.zeros(2)}, {"x": "1", "y": "2", "z": "3"})
        written.add((tmp_path / "t").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize("keep", [0, 4, 9, 40, -1])
def test_truncated_tensors_are_one_clear_error(tmp_path: Path, keep: int) -> None:
    where = tmp_path / "a.safetensors"
    files.write_tensors(where, {"x": np.ones(100, np.float32)})
    where.write_bytes(where.read_bytes()[:keep])
    with pytest.raises(SpatialAvatarError, match=r"a\.safetensors"):
        files.read_tensors(where)


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    for read in (files.read_bytes, files.read_tensors, files.read_json):
        with pytest.raises(SpatialAvatarError, match="no such file"):
            read(tmp_path / "none")
    with pytest.raises(SpatialAvatarError, match="is a folder"):
        files.read_bytes(tmp_path)


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "m.json", {"psnr": float("nan")})
    assert not (tmp_path / "m.json").exists()


def test_output_folder_is_claimed_only_when_it_is_ours(tmp_path: Path) -> None:
    files.claim_output_folder(tmp_path / "new", "avatar.json")
    (tmp_path / "new" / "thesis.tex").write_text("years of work")
    with pytest.raises(SpatialAvatarError, match=r"thesis\.tex.*--force"):
        files.claim_output_folder(tmp_path / "new", "avatar.json")
    files.claim_output_folder(tmp_path / "new", "avatar.json", force=True)
    (tmp_path / "new" / "avatar.json").write_text("{}")
    files.claim_output_folder(tmp_path / "new", "avatar.json")
    assert (tmp_path / "new" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(SpatialAvatarError, match="is a file"):
        files.claim_output_folder(tmp_path / "new" / "thesis.tex", "avatar.json")


def test_content_hash_sees_names_types_shapes_and_values() -> None:
    base = {"a": np.zeros((2, 3), np.float32)}
    others = [
        {"b": base["a"]},
        {"a": base["a"].astype(np.float64)},
        {"a": base["a"].reshape(3, 2)},
        {"a": base["a"] + 1},
    ]
    hashes = {files.content_hash(x) for x in [base, *others]} | {files.content_hash(base, "text")}
    assert len(hashes) == 6
    assert files.content_hash(base) == files.content_hash({"a": base["a"].copy()})
