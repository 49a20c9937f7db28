"""The ICT head: from the archive, and from a checkout as the same head."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.convert import convert_head
from spatialavatar.head.convert.ict_archive import landmarks_at_vertices
from spatialavatar.head.convert.ict_checkout import convert_ict_checkout
from spatialavatar.head.convert.obj import read_obj
from spatialavatar.head.file import head_from_arrays
from spatialavatar.head.model import HeadModel
from spatialavatar.head.uv_layout import build_layout

IDENTITIES, EXPRESSIONS = [0, 1, 99], ["eyeBlink_L", "jawOpen", "mouthSmile_R"]


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("SPATIALAVATAR_TEST_DATA")
    if not folder:
        pytest.skip("SPATIALAVATAR_TEST_DATA is not set: no ICT head to convert")
    return Path(folder) / "data"


@pytest.fixture(scope="module")
def archive(data):
    return convert_head(data / "ict_head.npz")


@pytest.fixture(scope="module")
def head(archive) -> HeadModel:
    return head_from_arrays(*archive)


def test_archive(archive, head):
    info, _ = archive
    assert (head.vertex_count, head.faces.shape[0]) == (24591, 48836)
    assert (head.shape_codes, head.expression_codes, head.posedirs.shape[-1]) == (100, 53, 0)
    assert info.mouth_opening_codes == ["jawOpen"] and not info.joints_follow_expression
    assert info.licence == "MIT" and "USC Institute for Creative Technologies" in info.attribution
    assert "face" in info.part_names and len(info.part_names) == 9


def test_layout_is_that_of_the_pack(head):
    layout = build_layout(head, 256)
    assert layout.count == 51_884
    skin = head.face_part[layout.face_index] < 2  # face, head and neck
    assert int(skin.sum()) == 44_546
    # a change here makes every artefact of this head unreadable
    assert layout.fingerprint == "13bbeeac6378dacadb665572f4358077a0bbe1f2f62bfb174e6c438aef506d0b"


def test_hash_is_stable(data, head):
    again = head_from_arrays(*convert_head(data / "ict_head.npz"))
    assert again.content_hash == head.content_hash
    assert head_from_arrays(*convert_head(data / "ict_head.npz", id="other")).content_hash != head.content_hash


def test_axes_landmarks_and_mouth(head):
    rest = head.neutral()
    vertices = head(rest)
    joints = head.rest_joints(rest)[0]
    assert joints[3, 0] > 0.02 > joints[4, 0]  # +x is the subject's left
    marks = head.landmarks(vertices)[0]
    assert marks[45, 0] > marks[36, 0]  # outer corners of the left and the right eye
    assert marks[27, 1] > marks[8, 1] and marks[30, 2] == marks[:, 2].max()  # brow over chin, nose tip in front
    opened = rest.expression.clone()
    opened[:, head.mouth_opening_indices] = 1
    lips = head.landmarks(head(type(rest)(**{**vars(rest), "expression": opened})))[0]
    gap = (marks[62] - marks[66]).norm(), (lips[62] - lips[66]).norm()
    assert gap[1] > gap[0] + 0.01


def test_checkout_makes_the_same_head(data, archive):
    info, expected = archive
    checkout_info, arrays = convert_ict_checkout(data / "ict_checkout_sample", None, IDENTITIES, EXPRESSIONS)
    assert checkout_info.part_names == info.part_names and checkout_info.mouth_opening_codes == ["jawOpen"]
    columns = [info.expression_names.index(name) for name in EXPRESSIONS]
    bases = {"shapedirs": expected["shapedirs"][..., IDENTITIES], "exprdirs": expected["exprdirs"][..., columns]}
    for name, array in {**expected, **bases}.items():
        # the archive keeps its bases in float16: at most 0.015 mm off
        tolerance = 1.6e-5 if name in bases else 0
        ours, theirs = np.float32(arrays[name]), np.float32(array)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=max(tolerance, 1e-7), err_msg=name)
        if name in ("faces", "uv_faces", "face_part", "face_chart", "landmark_faces"):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_checkout_without_a_mesh_names_it(data):
    with pytest.raises(SpatialAvatarError, match=r"identity002\.obj is missing \(7 of 154 meshes"):
        convert_head(data / "ict_checkout_sample")
    with pytest.raises(SpatialAvatarError, match=r"jawLeft\.obj is missing"):
        convert_ict_checkout(data / "ict_checkout_sample", None, [], ["jawLeft"])


def test_damaged_checkout(data, tmp_path):
    sample = data / "ict_checkout_sample" / "FaceXModel"
    folder = tmp_path / "FaceXModel"
    folder.mkdir()
    for name in ("vertex_indices.json", "generic_neutral_mesh.obj"):
        shutil.copyfile(sample / name, folder / name)
    jaw = (sample / "jawOpen.obj").read_bytes()
    (folder / "jawOpen.obj").write_bytes(jaw[: len(jaw) // 4].rpartition(b"\n")[0])
    for place in (tmp_path, folder):  # the checkout or its FaceXModel
        with pytest.raises(SpatialAvatarError, match=r"jawOpen\.obj: \d+ vertices, the neutral has 26719"):
            convert_ict_checkout(place, None, [], ["jawOpen"])
    neutral = folder / "generic_neutral_mesh.obj"
    neutral.write_bytes(neutral.read_bytes()[:2_000_000])
    with pytest.raises(SpatialAvatarError, match="truncated"):
        convert_ict_checkout(tmp_path, None, [], [])
    (folder / "vertex_indices.json").write_text(json.dumps({}))
    with pytest.raises(SpatialAvatarError, match="expressions or landmarks unreadable"):
        convert_ict_checkout(tmp_path, None, [], [])


def test_damaged_archive(tmp_path):
    path = tmp_path / "ict.npz"
    np.savez(path, v_template=np.zeros((3, 3)))
    with pytest.raises(SpatialAvatarError, match="lacks faces, uv_atlas"):
        convert_head(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SpatialAvatarError, match="not a readable npz"):
        convert_head(path)
    np.savez(path, v_template=np.array([{}]))
    with pytest.raises(SpatialAvatarError, match="not a readable npz"):
        convert_head(path)


def write_archive(path: Path, **changes: np.ndarray) -> Path:
    """An archive as ``convert_head`` reads it, of two triangles."""
    content = {
        "v_template": np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]),
        "faces": np.array([[0, 1, 2], [2, 1, 3]]),
        "uv_atlas": np.float32([[0, 0], [1, 0], [0, 1], [1, 1]]),
        "uv_faces": np.array([[0, 1, 2], [2, 1, 3]]),
        "shapedirs": np.zeros((4, 3, 2), np.float16),
        "exprdirs": np.zeros((4, 3, 1), np.float16),
        "expr_names": np.array(["jawOpen"]),
        "J_regressor": np.full((5, 4), 0.25),
        "lbs_weights": np.full((4, 5), 0.2),
        "face_part": np.array([0, 0]),
        "part_names": np.array(["face"]),
        "landmarks68": np.array([0, 3]),
        **changes,
    }
    np.savez(path, **content)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faces": np.zeros(3, int)}, r"faces has shape \[3\], expected \['any', 3\]"),
        ({"uv_faces": np.zeros((1, 3), int)}, r"uv_faces has shape \[1, 3\], expected \[2, 3\]"),
        ({"v_template": np.float32(0)}, r"v_template has shape \[\]"),
        ({"v_template": np.full((4, 3), "a")}, "v_template holds no numbers"),
        ({"face_part": np.array([0.5, 0])}, "face_part holds what is no index"),
        ({"landmarks68": np.float64(1)}, "landmarks68 has shape"),
        ({"expr_names": np.array([5])}, "expr_names is no list of texts"),
        ({"joint_names": np.zeros((5, 2))}, "joint_names is no list of texts"),
        ({"joint_names": np.array(["a", "b"])}, "joints are .*'a', 'b'"),
    ],
)
def test_archive_whose_arrays_do_not_fit(tmp_path, change, message):
    info, arrays = convert_head(write_archive(tmp_path / "ict.npz"))
    assert head_from_arrays(info, arrays).mouth_opening_indices == [0]
    with pytest.raises(SpatialAvatarError, match=rf"ict\.npz: {message}"):
        convert_head(write_archive(tmp_path / "ict.npz", **change))


def test_an_ict_head_takes_no_flame_options(tmp_path):
    path = tmp_path / "ict.npz"
    np.savez(path, v_template=np.zeros((3, 3)))
    with pytest.raises(SpatialAvatarError, match="leave out --uv"):
        convert_head(path, uv="head_template.obj")


def test_landmarks_at_vertices():
    faces = np.array([[4, 5, 6], [0, 1, 2], [2, 1, 3]])
    index, weights = landmarks_at_vertices(faces, np.array([2, 3]))
    assert index.tolist() == [1, 2] and weights.tolist() == [[0, 0, 1], [0, 0, 1]]
    with pytest.raises(SpatialAvatarError, match="vertex 9 belongs to no face"):
        landmarks_at_vertices(faces, np.array([9]))


def test_obj_with_quads_materials_and_negative_indices(tmp_path):
    path = tmp_path / "m.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 1\nusemtl skin\nf 1/1 2/2/9 -2 -1//1\nf 1 2 3\n")
    mesh = read_obj(path)
    assert mesh.polygons == [[(0, 0), (1, 1), (2, -1), (3, -1)], [(0, -1), (1, -1), (2, -1)]]
    assert mesh.materials == ["skin", "skin"]
    with pytest.raises(SpatialAvatarError, match="face 0 has 4 corners"):
        mesh.triangles(path)
