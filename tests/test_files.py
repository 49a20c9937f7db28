"""Files: URLs, all-or-nothing writes, damaged content."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from spatialavatar import files, npz_files, tensor_files
from spatialavatar.errors import SpatialAvatarError


@pytest.mark.parametrize("scheme", ["local", "file", "memory"])
def test_tensors_round_trip_through_any_url(tmp_path: Path, scheme: str) -> None:
    root = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": "memory://files-test"}[scheme]
    where = files.join(root, "deep", "a.safetensors")
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.array([1, 2], np.int32)}
    tensor_files.write_tensors(where, arrays, {"k": "v"})
    back, metadata = tensor_files.read_tensors(where)
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
        tensor_files.write_tensors(tmp_path / "t", {"b": np.ones(3), "a": np.zeros(2)}, {"x": "1", "y": "2", "z": "3"})
        written.add((tmp_path / "t").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize("keep", [0, 4, 9, 40, -1])
def test_truncated_tensors_are_one_clear_error(tmp_path: Path, keep: int) -> None:
    where = tmp_path / "a.safetensors"
    tensor_files.write_tensors(where, {"x": np.ones(100, np.float32)})
    where.write_bytes(where.read_bytes()[:keep])
    with pytest.raises(SpatialAvatarError, match=r"a\.safetensors"):
        tensor_files.read_tensors(where)


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    for read in (files.read_bytes, tensor_files.read_tensors, files.read_json):
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
    hashes = {tensor_files.content_hash(x) for x in [base, *others]} | {tensor_files.content_hash(base, "text")}
    assert len(hashes) == 6
    assert tensor_files.content_hash(base) == tensor_files.content_hash({"a": base["a"].copy()})


@pytest.mark.parametrize("metadata", ["5", "[]", "null", '{"a": 1}', '{"a": {}}', "{", "[" * 100_000])
def test_metadata_that_are_no_texts_by_name(tmp_path: Path, metadata: str) -> None:
    where = tmp_path / "a.safetensors"
    where.write_bytes(safetensors.numpy.save({"x": np.ones(3, np.float32)}, metadata={"spatialavatar": metadata}))
    for read in (tensor_files.read_tensor_metadata, tensor_files.read_tensors):
        with pytest.raises(SpatialAvatarError, match=r"a\.safetensors: not a readable safetensors file"):
            read(where)


def test_metadata_in_a_header_of_another_form(tmp_path: Path) -> None:
    where = tmp_path / "a.safetensors"
    for header in (b'{"__metadata__":{"spatialavatar":5}}', b'{"__metadata__":null}', b"[]", b"7"):
        where.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(SpatialAvatarError, match=r"a\.safetensors: not a readable safetensors file"):
            tensor_files.read_tensor_metadata(where)


def test_limits_are_looked_at_before_the_content(tmp_path: Path) -> None:
    where = tmp_path / "large"
    where.write_bytes(b"PK\x03\x04")
    os.truncate(where, 1 << 40)  # sparse: takes no room, and could not be read into memory
    assert files.read_start(where, 4) == b"PK\x03\x04"
    assert files.read_start(tmp_path / "large", 0) == b""
    with pytest.raises(SpatialAvatarError, match=f"{1 << 40} bytes, such files are read up to 1000"):
        files.read_bytes(where, 1000)
    with pytest.raises(SpatialAvatarError, match=f"read up to {2 << 30}"):
        npz_files.read_npz(where)


NPZ = {
    "vertices": np.arange(24.0).reshape(8, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "half": np.float16([[1.5]]),
    "names": np.array(["jaw", "neck"]),
    "empty": np.zeros((0, 3), np.float32),
    "number": np.float64(25),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(tmp_path: Path, save: Callable[..., None]) -> None:
    where = tmp_path / "a.npz"
    save(where, **NPZ)
    back = npz_files.read_npz(where)
    assert list(back) == list(NPZ)
    for name, array in NPZ.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype and back[name].flags.writeable
    assert list(npz_files.read_npz(where, ("number", "half", "absent"))) == ["half", "number"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz_is_one_clear_error_or_as_written(tmp_path: Path, save: Callable[..., None]) -> None:
    where = tmp_path / "a.npz"
    save(where, **NPZ)
    good = where.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for flip in range(400):
        damaged = bytearray(good)
        damaged[rng.integers(len(good))] ^= 1 << rng.integers(8)
        where.write_bytes(damaged if flip % 8 else damaged[: rng.integers(len(good))])
        try:
            back = npz_files.read_npz(where)
        except SpatialAvatarError as e:
            refused += 1
            message = str(e)
            assert message.startswith(f"{where}: not a readable npz archive") and "\n" not in message, message
            assert "pickle" not in message
        else:  # a byte that says nothing of the arrays, such as a date, or a name
            for name in set(back) & set(NPZ):
                np.testing.assert_array_equal(back[name], NPZ[name])
    assert refused > 200


def test_npz_of_what_is_not_loaded(tmp_path: Path) -> None:
    where = tmp_path / "a.npz"
    np.savez(where, x=np.array([{"a": 1}]), y=np.ones(2))
    with pytest.raises(SpatialAvatarError, match=r"a\.npz: not a readable npz .*x\.npy holds Python objects") as error:
        npz_files.read_npz(where)
    assert "allow_pickle" not in str(error.value)
    assert list(npz_files.read_npz(where, ["y"])) == ["y"]
    np.savez_compressed(where, x=np.zeros(1 << 20))  # 8 kB that unpack to 8 MB
    with pytest.raises(SpatialAvatarError, match="take more than 1000000 bytes"):
        npz_files.read_npz(where, max_bytes=1_000_000)
    with zipfile.ZipFile(where, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", b"\x93NUMPY")
    with pytest.raises(SpatialAvatarError, match="in a way that numpy does not write"):
        npz_files.read_npz(where)
    header = str({"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}).encode()
    with zipfile.ZipFile(where, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(SpatialAvatarError, match="has not the bytes of its shape"):
        npz_files.read_npz(where)
    for content in (b"", b"hello", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04N."):
        where.write_bytes(content)
        with pytest.raises(SpatialAvatarError, match="not a readable npz archive"):
            npz_files.read_npz(where)
