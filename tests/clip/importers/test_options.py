"""What the importers share: codes of other lengths, names of files and numbers out of foreign JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spatialavatar import files
from spatialavatar.clip.importers.foreign_json import numbers, read_foreign_json, rigid_matrix
from spatialavatar.clip.importers.options import fitted_codes, safe_member
from spatialavatar.errors import SpatialAvatarError


def test_fewer_codes_are_followed_by_zeros() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert fitted_codes(values, 4, "a").tolist() == [[1, 2, 0, 0], [3, 4, 0, 0]]
    assert fitted_codes(values[0], 3, "a").tolist() == [1, 2, 0]
    assert torch.equal(fitted_codes(values, 2, "a"), values)
    assert fitted_codes(values.double(), 4, "a").dtype == torch.float64


def test_more_codes_only_when_they_are_zero() -> None:
    values = torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    assert fitted_codes(values, 2, "a").tolist() == [[1, 2], [3, 4]]
    values[0, 2] = 5
    with pytest.raises(SpatialAvatarError, match=r"^x\.pkl: expcode has 4 codes, the head has 2, and code 2 is not ze"):
        fitted_codes(values, 2, "x.pkl: expcode")
    values[0, 2] = float("nan")
    with pytest.raises(SpatialAvatarError):
        fitted_codes(values, 2, "x.pkl: expcode")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("images/00000_00.png", "data/images/00000_00.png"),
        ("./image/1", "data/image/1"),
        ("a/./b", "data/a/b"),
        ("über uns.png", "data/über uns.png"),
        ("..a/b..", "data/..a/b.."),
    ],
)
def test_names_inside_the_folder(name: str, place: str) -> None:
    assert safe_member("data", name, "data/x.json") == place
    assert safe_member("s3://bucket/data", name, "x.json") == f"s3://bucket/{place}"


OUTSIDE = [
    "../x.png",
    "a/../../x.png",
    "a/..",
    "/etc/passwd",
    "//host/x",
    "C:/x.png",
    "C:x.png",
    "a\\..\\x",
    "s3://bucket/x",
    "file:///etc/passwd",
    "simplecache::s3://bucket/x",
    "a\0.png",
    "a\n.png",
    "",
    ".",
    "./",
    "a//b",
    "a/",
    "\ud800",
    "é" * 200,
    "a/" * 2000 + "a",
]


@pytest.mark.parametrize("name", [*OUTSIDE, None, 3, ["a"], {"a": 1}, True], ids=repr)
def test_names_that_could_lie_elsewhere(name: Any) -> None:
    with pytest.raises(SpatialAvatarError, match=r"^x\.json: names the file .* expected a relative path") as caught:
        safe_member("data", name, "x.json")
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(name=st.text(max_size=30) | st.lists(st.sampled_from([*OUTSIDE, "a", "..", "/", "\\"]), max_size=5).map("".join))
@example("....//")
def test_any_name_stays_inside_or_is_refused(name: str) -> None:
    try:
        place = safe_member("/data/clip", name, "x.json")
    except SpatialAvatarError:
        return
    path = Path(place)
    assert path.resolve().is_relative_to("/data/clip") and path != Path("/data/clip")
    assert files.is_local(place)
    path.exists()  # a name that the file system takes


def test_numbers() -> None:
    assert numbers([[1, 2.5]], (1, 2), "a").dtype == np.float64
    assert numbers(3, (), "a") == 3
    assert numbers([[1, 2], [3, 4]], (None, 2), "a").shape == (2, 2)
    assert numbers([], (None,), "a").shape == (0,)


NO_TWO_NUMBERS = [
    *[None, "1", [1], [1, 2, 3], [[1, 2]], [1, "2"], [1, None], [1, True, [2]], {"a": 1}, [True, False], [[1], [2, 3]]],
    *[[1, float("nan")], [1, float("inf")], [1, 1e300], [1, -(10**18)], [1, 2**64 - 1], [1, 10**400]],
]


@pytest.mark.parametrize("value", NO_TWO_NUMBERS, ids=repr)
def test_what_are_no_two_numbers(value: Any) -> None:
    with pytest.raises(SpatialAvatarError, match=r"^x\.json: pose holds ") as caught:
        numbers(value, (2,), "x.json: pose")
    assert "\n" not in str(caught.value)


TURNED = [[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]]


def test_rigid_matrices() -> None:
    assert rigid_matrix(TURNED, "a").tolist() == TURNED
    mirrored, scaled = (np.diag([1, 1, f, 1]).tolist() for f in (-1, 2))
    transposed = [list(row) for row in zip(*TURNED)]
    for value, message in (
        (mirrored, r"differs from the identity by 0, determinant -1,"),
        (scaled, r"by 3, determinant 2"),
        (transposed, r"last row 5 6 7 1"),
    ):
        with pytest.raises(SpatialAvatarError, match=r"^x\.json: pose is no rotation and position .*" + message):
            rigid_matrix(value, "x.json: pose")


def test_deep_lists_are_no_numbers() -> None:
    value: Any = 1.0
    for _ in range(500):
        value = [value]
    with pytest.raises(SpatialAvatarError):
        numbers(value, (2,), "x.json: pose")


@pytest.mark.parametrize("data", [b"", b"[1]", b"null", b"\xff", b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_object(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(SpatialAvatarError, match=r"x\.json: not ") as caught:
        read_foreign_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_a_file_beyond_the_limit(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": "b" * 100}))
    assert read_foreign_json(tmp_path / "x.json", 200) == {"a": "b" * 100}
    with pytest.raises(SpatialAvatarError, match="read up to 50"):
        read_foreign_json(tmp_path / "x.json", 50)
