"""FLAME pickles to head files, on a head with FLAME's counts and none of its content."""

import json
import os
import pickle

import numpy as np
import pytest
import scipy.sparse
from typer.testing import CliRunner

from spatialavatar import files
from spatialavatar.cli.head import app
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.convert import convert_head
from spatialavatar.head.convert.charts import uv_charts
from spatialavatar.head.file import read_head, write_head
from tests.builders.flame_like import (
    FACES,
    VERTICES,
    dumps_python2,
    fake_chumpy,
    flame_like,
    with_teeth,
    write_flame_pickle,
    write_template_obj,
)

SMALL = flame_like(rings=4)  # 122 vertices, 174 faces, all 400 codes


@pytest.fixture
def small(tmp_path):
    """(pickle, template OBJ) of a small head."""
    pickled = write_flame_pickle(tmp_path / "generic_model.pkl", SMALL)
    return pickled, write_template_obj(tmp_path / "head_template.obj", SMALL)


def test_flame_with_its_own_counts(tmp_path):
    flame = flame_like()
    source = write_flame_pickle(tmp_path / "generic_model.pkl", flame)
    template = write_template_obj(tmp_path / "head_template.obj", flame)
    head = write_head(tmp_path / "f.head.safetensors", *convert_head(source, uv=template))
    assert (head.vertex_count, head.faces.shape[0]) == (VERTICES, FACES)
    assert (head.shape_codes, head.expression_codes, head.posedirs.shape[-1]) == (300, 100, 36)


@pytest.mark.parametrize("python2", [True, False])
@pytest.mark.parametrize("chumpy", [True, False])
def test_arrays_arrive(tmp_path, small, python2, chumpy):
    source = write_flame_pickle(tmp_path / "generic_model.pkl", SMALL, python2, chumpy)
    info, arrays = convert_head(source, uv=small[1])
    assert info.id == "flame2020" and info.joints_follow_expression and info.mouth_opening_codes == []
    assert info.licence.startswith("FLAME licence (non-commercial") and info.part_names == ["head"]
    expected = {
        "template": SMALL["v_template"],
        "faces": SMALL["f"],
        "uv": SMALL["vt"],
        "uv_faces": SMALL["ft"],
        "shapedirs": SMALL["shapedirs"][..., :300],
        "exprdirs": SMALL["shapedirs"][..., 300:],
        "posedirs": SMALL["posedirs"],
        "joint_regressor": SMALL["J_regressor"],
        "weights": SMALL["weights"],
    }
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, atol=1e-8, err_msg=name)
    assert set(arrays["face_chart"]) == {0}


@pytest.mark.parametrize(
    ("name", "id", "expected"),
    [
        ("generic_model.pkl", None, ("flame2020", "FLAME licence")),
        ("flame2023.pkl", None, ("flame2023", "FLAME licence")),
        ("flame2023_no_jaw.pkl", None, ("flame2023", "FLAME licence")),
        ("flame2023_Open.pkl", None, ("flame2023-open", "CC-BY-4.0")),
        ("model.pkl", "flame2023-open", ("flame2023-open", "CC-BY-4.0")),
        ("open.pkl", None, ("flame2020", "FLAME licence")),
    ],
)
def test_licence_by_name_or_id(tmp_path, small, name, id, expected):
    source = write_flame_pickle(tmp_path / name, SMALL)
    info, _ = convert_head(source, uv=small[1], id=id)
    assert info.id == expected[0] and info.licence.startswith(expected[1])
    assert ("CC-BY-4.0" in info.attribution) == (info.licence == "CC-BY-4.0")


@pytest.mark.parametrize(
    "names", [("vt", "ft"), ("uv", "uv_faces"), ("verts_uvs", "textures_idx"), ("uvcoords", "uvfaces")]
)
def test_uv_from_npz(tmp_path, small, names):
    path = tmp_path / "flame_uv.npz"
    np.savez(path, **{names[0]: SMALL["vt"], names[1]: SMALL["ft"], "verts_idx": SMALL["f"]})
    _, from_npz = convert_head(small[0], uv=path)
    _, from_obj = convert_head(small[0], uv=small[1])
    np.testing.assert_allclose(from_npz["uv"], from_obj["uv"], atol=1e-8)
    np.testing.assert_array_equal(from_npz["uv_faces"], from_obj["uv_faces"])


def test_template_with_a_teeth_patch(tmp_path, small):
    teeth = with_teeth(SMALL)["f"][len(SMALL["f"]) :].astype(int)
    template = write_template_obj(tmp_path / "teeth.obj", SMALL, extra_faces=teeth)
    _, arrays = convert_head(small[0], uv=template)
    np.testing.assert_array_equal(arrays["uv_faces"], SMALL["ft"])


def test_model_with_a_teeth_patch(tmp_path):
    flame = flame_like()
    source = write_flame_pickle(tmp_path / "teeth.pkl", with_teeth(flame))
    np.savez(tmp_path / "uv.npz", vt=flame["vt"], ft=flame["ft"])
    info, arrays = convert_head(source, uv=tmp_path / "uv.npz")
    head = write_head(tmp_path / "teeth.head.safetensors", info, arrays)
    assert (head.vertex_count, head.faces.shape[0]) == (5143, 10144) and info.part_names == ["head", "teeth"]
    assert (head.uv_faces[FACES:] == -1).all() and (head.uv_faces[:FACES] >= 0).all()
    assert head.face_part.tolist() == [0] * FACES + [1] * 168


def test_fewer_codes_must_be_stated(tmp_path, small):
    few = flame_like(rings=4, shape_codes=10, expression_codes=5)
    source = write_flame_pickle(tmp_path / "few.pkl", few)
    with pytest.raises(SpatialAvatarError, match=r"15 columns .*--codes 100,50"):
        convert_head(source, uv=small[1])
    with pytest.raises(SpatialAvatarError, match="15 columns"):
        convert_head(source, uv=small[1], codes=(10, 4))
    _, arrays = convert_head(source, uv=small[1], codes=(10, 5))
    np.testing.assert_array_equal(arrays["exprdirs"], few["shapedirs"][..., 10:])


def test_landmark_embedding(tmp_path, small):
    faces, weights = np.arange(70)[None] % 100, np.full((1, 70, 3), 1 / 3)
    embedding = {"full_lmk_faces_idx": faces, "full_lmk_bary_coords": weights}
    np.savez(tmp_path / "l.npz", **embedding)
    np.save(tmp_path / "l.npy", embedding, allow_pickle=True)
    (tmp_path / "l.pkl").write_bytes(dumps_python2({"lmk_face_idx": faces[0, :68], "lmk_b_coords": weights[0, :68]}))
    for name in ("l.npz", "l.npy", "l.pkl"):
        info, arrays = convert_head(small[0], uv=small[1], landmarks=tmp_path / name)
        assert info.landmark_scheme == "ibug68"
        np.testing.assert_array_equal(arrays["landmark_faces"], np.arange(68))
    np.savez(tmp_path / "few.npz", lmk_face_idx=faces[0, :51], lmk_b_coords=weights[0, :51])
    with pytest.raises(SpatialAvatarError, match="51 landmarks, 68 expected"):
        convert_head(small[0], uv=small[1], landmarks=tmp_path / "few.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lmk_b_coords": np.full((68, 2), 0.5)}, r"lmk_b_coords has shape \[68, 2\], expected \['any', 3\] or"),
        ({"lmk_face_idx": np.zeros((2, 34))}, r"lmk_face_idx has shape \[2, 34\]"),
        ({"lmk_face_idx": np.full(68, np.nan)}, "lmk_face_idx holds what is no index"),
        ({"lmk_face_idx": np.full(68, 0.5)}, "lmk_face_idx holds what is no index"),
        ({"lmk_b_coords": np.full((68, 3), "a")}, "lmk_b_coords holds no numbers"),
        ({"lmk_b_coords": np.full((68, 3), np.nan)}, "not on the mesh"),
        ({"lmk_face_idx": np.full(68, 1 << 20)}, "not on the mesh"),
    ],
)
def test_landmarks_that_do_not_fit(tmp_path, small, change, message):
    embedding = {"lmk_face_idx": np.zeros(68, int), "lmk_b_coords": np.full((68, 3), 1 / 3), **change}
    np.savez(tmp_path / "l.npz", **embedding)
    (tmp_path / "l.pkl").write_bytes(dumps_python2(embedding))
    for name in ("l.npz", "l.pkl"):
        with pytest.raises(SpatialAvatarError, match=message) as error:
            convert_head(small[0], uv=small[1], landmarks=tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def nested(depth: int = 28) -> list:
    """2^depth numbers for numpy, and a few bytes in a pickle."""
    a: list = [0.0]
    for _ in range(depth):
        a = [a, a]
    return a


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("v_template", nested()),
        ("v_template", scipy.sparse.csc_matrix((1 << 28, 3))),
        ("f", scipy.sparse.csr_matrix((1 << 28, 3))),
        ("f", [[0, 1, 2]]),
        ("f", None),
        ("kintree_table", nested()),
        ("J_regressor", nested()),
    ],
)
def test_only_arrays_are_taken_for_arrays(small, key, value):
    small[0].write_bytes(pickle.dumps({**SMALL, key: value}))
    with pytest.raises(SpatialAvatarError, match=rf"generic_model\.pkl: {key} is a .*, expected a"):
        convert_head(small[0], uv=small[1])


@pytest.mark.parametrize("key", ["lmk_face_idx", "lmk_b_coords"])
@pytest.mark.parametrize("value", [nested(), scipy.sparse.coo_matrix((1, 1 << 34)), "text"])
def test_only_arrays_are_taken_for_landmarks(tmp_path, small, key, value):
    embedding = {"lmk_face_idx": np.zeros(68, int), "lmk_b_coords": np.full((68, 3), 1 / 3), key: value}
    (tmp_path / "l.pkl").write_bytes(pickle.dumps(embedding))
    with pytest.raises(SpatialAvatarError, match=rf"l\.pkl: {key} "):
        convert_head(small[0], uv=small[1], landmarks=tmp_path / "l.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ft": np.zeros((5, 4), int)}, r"ft has shape \[5, 4\], expected"),
        ({"ft": np.zeros((174, 3), complex)}, "ft holds no numbers"),
        ({"ft": SMALL["ft"] + 0.5}, "ft holds what is no index"),
        ({"ft": np.full((174, 3), np.inf)}, "ft holds what is no index"),
        ({"vt": np.float64(3)}, r"vt has shape \[\], expected"),
        ({"vt": np.zeros((4, 5))}, r"vt has shape \[4, 5\]"),
        ({"vt": np.full((200, 2), "a")}, "vt holds no numbers"),
        ({"verts_idx": np.zeros((3, 3), int)}, r"verts_idx has shape \[3, 3\], expected \[174, 3\]"),
    ],
)
def test_uv_arrays_that_do_not_fit(tmp_path, small, change, message):
    path = tmp_path / "uv.npz"
    np.savez(path, **{"vt": SMALL["vt"], "ft": SMALL["ft"], **change})
    with pytest.raises(SpatialAvatarError, match=rf"uv\.npz: {message}"):
        convert_head(small[0], uv=path)


def test_a_source_is_read_once_and_only_when_it_is_a_head(tmp_path, small, monkeypatch):
    read = []
    original = files.read_bytes
    monkeypatch.setattr(files, "read_bytes", lambda where, *limit: read.append(str(where)) or original(where, *limit))
    convert_head(small[0], uv=small[1])
    assert sorted(read) == sorted(map(str, small))
    large = tmp_path / "film.mp4"
    for start, uv, message in (
        (b"film", None, "not a head that can be converted"),
        (b"PK\x03\x04", None, "read up to"),
        (b"\x80", small[1], "read up to"),
    ):
        large.write_bytes(start)
        os.truncate(large, 1 << 40)  # sparse: takes no room, and could not be read into memory
        with pytest.raises(SpatialAvatarError, match=message):
            convert_head(large, uv=uv)
    for name in ("l.npz", "l.npy", "l.pkl"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 1 << 40)
        with pytest.raises(SpatialAvatarError, match=rf"{name}: {1 << 40} bytes, such files are read up to {64 << 20}"):
            convert_head(small[0], uv=small[1], landmarks=tmp_path / name)


def test_damaged_npy(tmp_path, small):
    np.save(tmp_path / "l.npy", {"a": 1}, allow_pickle=True)
    good = (tmp_path / "l.npy").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(good)
        damaged[rng.integers(len(good))] ^= 1 << rng.integers(8)
        (tmp_path / "l.npy").write_bytes(damaged)
        with pytest.raises(SpatialAvatarError, match=r"l\.npy: ") as error:
            convert_head(small[0], uv=small[1], landmarks=tmp_path / "l.npy")
        assert "\n" not in str(error.value)


def _swapped(arrays, a=3, b=9):
    order = np.arange(len(arrays["f"]))
    order[[a, b]] = order[[b, a]]
    return {**arrays, "f": arrays["f"][order], "ft": arrays["ft"][order]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, o: p, "holds no UV; add --uv"),
        (lambda p, o: write_template_obj(o, _swapped(SMALL)), "face 3 joins vertices"),
        (lambda p, o: write_template_obj(o, flame_like(rings=5)), "UV for 232 faces, .* has 174"),
        (lambda p, o: write_template_obj(o, flame_like(rings=3)), "UV for 116 faces"),
        (lambda p, o: write_template_obj(o, {**SMALL, "vt": SMALL["vt"] * 512}), r"UV beyond \[0, 1\]"),
        (lambda p, o: o.write_text("v 0 0 0\nf 1 1 1\n") and o, "holds no UV"),
        (lambda p, o: o.write_text("v 0 0\n") and o, "three numbers"),
        (lambda p, o: o.write_text("v 0 0 0\nf 1/1 2/2 3/3\n") and o, "line 2 is not readable as OBJ"),
        (lambda p, o: o.with_name("none.obj"), "no such file"),
        (lambda p, o: write_flame_pickle(p, {**SMALL, "v_template": SMALL["v_template"][:-1]}) and o, "has shape"),
        (
            lambda p, o: write_flame_pickle(p, {**SMALL, "posedirs": SMALL["posedirs"][..., :9]}) and o,
            "posedirs has sh",
        ),
        (lambda p, o: write_flame_pickle(p, {**SMALL, "f": SMALL["f"] + 500}) and o, "f names vertices"),
        (
            lambda p, o: write_flame_pickle(p, {**SMALL, "kintree_table": np.zeros((2, 5))}) and o,
            "joints hang together",
        ),
        (lambda p, o: write_flame_pickle(p, {**SMALL, "weights": SMALL["weights"].astype(str)}) and o, "no numbers"),
        (lambda p, o: p.write_bytes(dumps_python2({"f": 1})) and o, "not a FLAME model, v_template"),
        (lambda p, o: p.write_bytes(dumps_python2([1])) and o, "holds a list"),
        (lambda p, o: p.write_bytes(p.read_bytes()[:5000]) and o, "damaged or truncated"),
        (lambda p, o: p.write_bytes(b"hello") and o, "not a readable pickle"),
    ],
)
def test_errors_say_what_and_where(small, change, message):
    source, template = small
    uv = change(source, template)
    with pytest.raises(SpatialAvatarError, match=message) as error:
        convert_head(source, uv=None if uv == source else uv)
    assert "\n" not in str(error.value) and str(source.parent) in str(error.value)


def test_a_basis_that_chumpy_would_have_to_compute(tmp_path, small):
    with fake_chumpy() as fake:
        content = {**SMALL, "shapedirs": fake.dot(a=fake.Ch(SMALL["shapedirs"]), b=fake.Ch(np.eye(400)))}
        small[0].write_bytes(dumps_python2(content))
    with pytest.raises(SpatialAvatarError, match=r"generic_model\.pkl: shapedirs: .*chumpy\.linalg\.dot"):
        convert_head(small[0], uv=small[1])


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY", "npy", "cut"])
def test_damaged_npz(tmp_path, small, content):
    path = tmp_path / "uv.npz"
    if isinstance(content, str):
        with path.open("wb") as f:
            np.save(f, SMALL["vt"]) if content == "npy" else np.savez(f, vt=SMALL["vt"], ft=SMALL["ft"])
        content = path.read_bytes() if content == "npy" else path.read_bytes()[:900]
    path.write_bytes(content)
    with pytest.raises(SpatialAvatarError, match=r"uv\.npz: not a readable npz"):
        convert_head(small[0], uv=path)


def test_charts_are_connected_pieces_in_the_order_of_faces():
    uv_faces = np.array([[5, 6, 7], [0, 1, 2], [-1, -1, -1], [2, 3, 4], [7, 8, 9], [10, 11, 12]])
    assert uv_charts(uv_faces).tolist() == [0, 1, -1, 1, 0, 2]
    assert uv_charts(np.full((2, 3), -1)).tolist() == [-1, -1]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_command_line(tmp_path, small):
    out = tmp_path / "f.head.safetensors"
    result = run("convert", small[0], "--uv", small[1], "--id", "mine", "--out", out)
    assert result.exit_code == 0 and "must say" in result.output
    facts = json.loads(run("info", out, "--json").output)
    head = read_head(out)
    assert facts["id"] == "mine" and facts["hash"] == head.content_hash and facts["vertices"] == 122
    assert facts["faces"] == 174 and facts["shape_codes"] == 300 and facts["charts"] == 1 and facts["texels_at_256"] > 0
    assert "non-commercial" in run("info", out).output


def test_command_line_replaces_only_the_same_head(tmp_path, small):
    out = tmp_path / "f.head.safetensors"
    arguments = ("convert", small[0], "--uv", small[1], "--out", out)
    assert run(*arguments, "--id", "mine").exit_code == 0
    before = out.read_bytes()
    for other in (arguments, ("generate", "--out", out)):
        error = run(*other).exception
        assert isinstance(error, SpatialAvatarError) and "holds head mine, not " in str(error), error
        assert "--force" in str(error) and out.read_bytes() == before
    assert run(*arguments, "--id", "mine").exit_code == 0
    assert run(*arguments, "--force").exit_code == 0 and read_head(out).info.id == "flame2020"


def test_command_line_overwrites_only_head_files(tmp_path, small):
    out = tmp_path / "f.head.safetensors"
    arguments = ("convert", small[0], "--uv", small[1], "--out", out)
    assert run(*arguments).exit_code == 0
    assert run(*arguments).exit_code == 0  # an earlier head file may go
    out.write_bytes(b"something precious")
    assert isinstance(run(*arguments).exception, SpatialAvatarError) and out.read_bytes() == b"something precious"
    assert run(*arguments, "--force").exit_code == 0
    refused = run("convert", small[0], "--uv", small[1], "--out", tmp_path / "x.npz").exception
    assert "head files are named" in str(refused)
    assert "two numbers" in str(run(*arguments, "--codes", "many").exception)


def test_other_files_are_no_head(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "a.txt": "not a head that can be",
        "b.txt": "no such file",
        "folder": "no checkout of",
    }.items():
        with pytest.raises(SpatialAvatarError, match=message):
            convert_head(tmp_path / name)
