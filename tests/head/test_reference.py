"""Finding a head again: damaged files on the way do not matter, and are named when it is not found."""

import dataclasses

import pytest

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.file import write_head
from spatialavatar.head.reference import HeadReference, find_head
from tests.head.test_file import INFO, arrays


def test_damaged_files_do_not_stop_the_search(tmp_path):
    head = write_head(tmp_path / "z.head.safetensors", INFO, arrays())
    write_head(tmp_path / "y.head.safetensors", dataclasses.replace(INFO, id="other"), arrays())
    good = (tmp_path / "z.head.safetensors").read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    damaged = {"a": b"", "b": b"hello, I am no head", "c": good[:200], "d": bytes(flipped)}  # d says it is the one
    for name, content in damaged.items():
        (tmp_path / f"{name}.head.safetensors").write_bytes(content)
    (tmp_path / "folder.head.safetensors").mkdir()
    places = [str(tmp_path / "d.head.safetensors"), str(tmp_path)]
    assert find_head(HeadReference.of(head), "clip", places).content_hash == head.content_hash
    (tmp_path / "z.head.safetensors").unlink()
    with pytest.raises(SpatialAvatarError, match=r"clip: needs head small .*--head") as error:
        find_head(HeadReference.of(head), "clip", [str(tmp_path)])
    assert all(str(tmp_path / f"{name}.head.safetensors") in str(error.value) for name in damaged)
    assert "y.head" not in str(error.value) and "\n" not in str(error.value)
