"""Exports read back, and what another program would make of them."""

import dataclasses

import numpy as np
import plyfile
import pytest
import torch
from scipy.spatial.transform import Rotation

from spatialavatar.avatar.export import read_ply, write_gaussian_avatars, write_ply
from spatialavatar.avatar.export.ply import read_bound_ply
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.convert.charts import uv_charts
from spatialavatar.head.file import head_from_arrays
from spatialavatar.head.model import HeadInfo, HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.head.uv_layout import build_layout
from spatialavatar.splat.binding import bind
from spatialavatar.splat.gaussians import LocalGaussians, WorldGaussians
from tests.builders.flame_like import flame_like, with_teeth

PLAIN = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(45))]
PLAIN += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def flame_head(teeth: bool = False, shape_codes: int = 300) -> HeadModel:
    a = flame_like(shape_codes=shape_codes)
    a = with_teeth(a) if teeth else a
    uv_faces = np.full((len(a["f"]), 3), -1)
    uv_faces[: len(a["ft"])] = a["ft"]
    arrays = {
        "template": a["v_template"],
        "faces": a["f"],
        "uv": a["vt"],
        "uv_faces": uv_faces,
        "face_chart": uv_charts(uv_faces),
        "face_part": np.zeros(len(a["f"])),
        "shapedirs": a["shapedirs"][..., :shape_codes],
        "exprdirs": a["shapedirs"][..., shape_codes:],
        "posedirs": a["posedirs"],
        "joint_regressor": a["J_regressor"],
        "weights": a["weights"],
        "landmark_faces": np.zeros(0),
        "landmark_barycentric": np.zeros((0, 3)),
    }
    return head_from_arrays(HeadInfo("flame-like", "none", "made by a test", True), arrays)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return flame_head()


@pytest.fixture(scope="module")
def layout(head):
    return build_layout(head, 24)


def random_world(n: int = 50, channels: int = 3) -> WorldGaussians:
    g = torch.Generator().manual_seed(0)
    return WorldGaussians(
        means=torch.randn(1, n, 3, generator=g),
        quats=torch.randn(1, n, 4, generator=g),
        scales=torch.rand(1, n, 3, generator=g) * 0.01 + 1e-5,
        colors=torch.rand(1, n, channels, generator=g),
        opacities=torch.rand(1, n, generator=g),
    )


def random_local(n: int, channels: int = 3) -> LocalGaussians:
    w = random_world(n, channels)
    return LocalGaussians(w.means, w.quats, w.scales.log(), w.colors, torch.logit(w.opacities, eps=1e-3))


def random_params(head: HeadModel, t: int, offset: bool = True) -> HeadParams:
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g) * 0.3

    return HeadParams(
        shape=draw(1, 300).expand(t, -1),
        expression=draw(t, 100),
        global_rotation=draw(t, 3),
        neck=draw(t, 3),
        jaw=draw(t, 3),
        eyes=draw(t, 6),
        translation=draw(t, 3),
        static_offset=draw(1, head.vertex_count, 3).expand(t, -1, -1) * 0.01 if offset else None,
    )


@pytest.mark.parametrize("channels", [3, 32])
def test_plain_ply_round_trip(tmp_path, channels):
    world = random_world(channels=channels)
    write_ply(tmp_path / "a.ply", world, ["licence: none", "made\nby a tést"])
    read = read_ply(tmp_path / "a.ply")
    torch.testing.assert_close(read.means, world.means)
    torch.testing.assert_close(read.quats, torch.nn.functional.normalize(world.quats, dim=-1))
    torch.testing.assert_close(read.scales, world.scales)
    torch.testing.assert_close(read.colors, world.colors[..., :3], atol=1e-6, rtol=0)
    torch.testing.assert_close(read.opacities, world.opacities, atol=1e-5, rtol=0)


def test_plain_ply_is_what_viewers_expect(tmp_path):
    world = random_world()
    write_ply(tmp_path / "a.ply", world, ["licence: none"])
    data = (tmp_path / "a.ply").read_bytes()
    assert data.startswith(b"ply\nformat binary_little_endian 1.0\ncomment licence: none\nelement vertex 50\n")
    # the reference viewer reads 62 floats a record, whatever the header says
    assert len(data) == data.index(b"end_header\n") + len(b"end_header\n") + 50 * 62 * 4
    vertex = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"]
    assert [p.name for p in vertex.properties] == PLAIN
    assert {p.val_dtype for p in vertex.properties} == {"f4"}
    assert not any(vertex[name].any() for name in PLAIN if name.startswith(("n", "f_rest")))
    np.testing.assert_allclose(0.5 + 0.28209479 * vertex["f_dc_1"], world.colors[0, :, 1], atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-vertex["opacity"])), world.opacities[0], atol=1e-5)


def test_degree_zero_leaves_f_rest_out(tmp_path):
    write_ply(tmp_path / "a.ply", random_world(), sh_degree=0)
    names = [p.name for p in plyfile.PlyData.read(tmp_path / "a.ply")["vertex"].properties]
    assert names == [name for name in PLAIN if not name.startswith("f_rest")]
    assert read_ply(tmp_path / "a.ply").means.shape == (1, 50, 3)


def test_extremes_stay_finite_and_nan_is_refused(tmp_path):
    world = random_world()
    edge = dataclasses.replace(world, opacities=world.opacities.round(), scales=world.scales * 0)
    write_ply(tmp_path / "a.ply", edge)
    torch.testing.assert_close(read_ply(tmp_path / "a.ply").opacities, edge.opacities, atol=2e-6, rtol=0)
    with pytest.raises(SpatialAvatarError, match="f_dc_0 of the avatar holds NaN"):
        write_ply(tmp_path / "b.ply", dataclasses.replace(world, colors=world.colors * torch.nan))
    assert not (tmp_path / "b.ply").exists()


@pytest.mark.parametrize("content", [b"", b"ply", b"\xff" * 50, "cut", "other", "huge"])
def test_unreadable_ply(tmp_path, content):
    path = tmp_path / "a.ply"
    write_ply(path, random_world())
    written = path.read_bytes()
    other = written.replace(b"rot_3", b"rot_4")
    huge = written.replace(b"vertex 50", b"vertex 99999999999")
    path.write_bytes({"cut": written[:-5], "other": other, "huge": huge}.get(content, content))
    with pytest.raises(SpatialAvatarError, match=r"a\.ply: "):
        read_ply(path)
    with pytest.raises(SpatialAvatarError, match="no binding_0"):
        write_ply(path, random_world())
        read_bound_ply(path)


def as_gaussian_avatars_does(vertices: np.ndarray, faces: np.ndarray, splats: np.ndarray) -> dict[str, np.ndarray]:
    """World Gaussians from the exported values, derived from formats.md 5.4 and 5.0 alone (a2 = -n(a1 x a0))."""
    v0, v1, v2 = (vertices[faces[splats["binding_0"].astype(np.int32)]][:, k] for k in range(3))

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    a0 = unit(v1 - v0)
    a1 = unit(np.cross(a0, v2 - v0))
    a2 = -unit(np.cross(a1, a0))
    frame = np.stack([a0, a1, a2], -1)
    assert np.allclose(np.linalg.det(frame), 1)
    size = (np.linalg.norm(v1 - v0, axis=1) + np.abs(((v2 - v0) * a2).sum(1))) / 2

    def columns(*names: str) -> np.ndarray:
        return np.stack([splats[name].astype(np.float64) for name in names], -1)

    local = Rotation.from_quat(columns("rot_0", "rot_1", "rot_2", "rot_3"), scalar_first=True)
    position = columns("x", "y", "z")
    return {
        "means": size[:, None] * np.einsum("nij,nj->ni", frame, position) + (v0 + v1 + v2) / 3,
        "rotations": frame @ local.as_matrix(),
        "scales": np.exp(columns("scale_0", "scale_1", "scale_2")) * size[:, None],
        "opacities": 1 / (1 + np.exp(-splats["opacity"].astype(np.float64))),
        "colors": 0.5 + 0.28209479 * columns("f_dc_0", "f_dc_1", "f_dc_2"),
    }


def test_gaussian_avatars_shows_the_same_gaussians(tmp_path, head, layout):
    local, params = random_local(layout.count, channels=32), random_params(head, 2)
    write_gaussian_avatars(tmp_path, head, layout, local, params)
    splats = plyfile.PlyData.read(tmp_path / "point_cloud.ply")["vertex"].data
    motion = np.load(tmp_path / "flame_param.npz")
    read = HeadParams(
        shape=torch.from_numpy(motion["shape"])[None].expand(2, -1),
        expression=torch.from_numpy(motion["expr"]),
        global_rotation=torch.from_numpy(motion["rotation"]),
        neck=torch.from_numpy(motion["neck_pose"]),
        jaw=torch.from_numpy(motion["jaw_pose"]),
        eyes=torch.from_numpy(motion["eyes_pose"]),
        translation=torch.from_numpy(motion["translation"]),
        static_offset=torch.from_numpy(motion["static_offset"][:, : head.vertex_count]).expand(2, -1, -1),
    )
    for t in range(2):
        vertices = head(read[t])
        ours = bind(local, head(params[t]), head.faces, layout.face_index)
        theirs = as_gaussian_avatars_does(vertices[0].double().numpy(), head.faces.numpy(), splats)
        np.testing.assert_allclose(theirs["means"], ours.means[0], atol=1e-6)
        np.testing.assert_allclose(theirs["scales"], ours.scales[0], rtol=1e-4)
        np.testing.assert_allclose(theirs["opacities"], ours.opacities[0], atol=1e-6)
        np.testing.assert_allclose(theirs["colors"], ours.colors[0, :, :3], atol=1e-6)
        rotations = Rotation.from_quat(ours.quats[0].double().numpy(), scalar_first=True).as_matrix()
        np.testing.assert_allclose(theirs["rotations"], rotations, atol=1e-4)


def test_gaussian_avatars_files(tmp_path, head, layout):
    local, params = random_local(layout.count), random_params(head, 3)
    write_gaussian_avatars(tmp_path, head, layout, local, params, ["licence: none"])
    vertex = plyfile.PlyData.read(tmp_path / "point_cloud.ply")["vertex"]
    assert [p.name for p in vertex.properties] == [*PLAIN, "binding_0"]
    read, faces = read_bound_ply(tmp_path / "point_cloud.ply")
    assert torch.equal(faces, layout.face_index) and faces.max() < 9976
    torch.testing.assert_close(read.position, local.position, atol=0, rtol=0)
    torch.testing.assert_close(read.log_scale, local.log_scale, atol=0, rtol=0)
    torch.testing.assert_close(read.opacity_logit, local.opacity_logit, atol=0, rtol=0)
    with np.load(tmp_path / "flame_param.npz") as motion:
        shapes = {name: motion[name].shape for name in motion.files}
        assert {motion[name].dtype for name in motion.files} == {np.dtype(np.float32)}  # others are dropped
        np.testing.assert_array_equal(motion["static_offset"][0, :5023], params.static_offset[0])
        assert not motion["static_offset"][0, 5023:].any() and not motion["dynamic_offset"].any()
    assert shapes == {
        "shape": (300,),
        "expr": (3, 100),
        "rotation": (3, 3),
        "neck_pose": (3, 3),
        "jaw_pose": (3, 3),
        "eyes_pose": (3, 6),
        "translation": (3, 3),
        "static_offset": (1, 5143, 3),
        "dynamic_offset": (3, 5143, 3),
    }


def test_gaussian_avatars_of_a_head_with_teeth(tmp_path, layout):
    teeth = flame_head(teeth=True)
    same = build_layout(teeth, 24)
    assert torch.equal(same.face_index, layout.face_index)
    params = random_params(teeth, 2)
    write_gaussian_avatars(tmp_path, teeth, same, random_local(same.count), params)
    with np.load(tmp_path / "flame_param.npz") as motion:
        np.testing.assert_array_equal(motion["static_offset"][0], params.static_offset[0])


def test_gaussian_avatars_takes_flame_only(tmp_path, head, layout):
    local, params = random_local(layout.count), random_params(head, 2)
    with pytest.raises(SpatialAvatarError, match=r"10 shape and 100 expression codes; GaussianAvatars takes FLAME"):
        write_gaussian_avatars(tmp_path, flame_head(shape_codes=10), layout, local, params)
    turning = dataclasses.replace(params, shape=torch.randn(2, 300))
    with pytest.raises(SpatialAvatarError, match=r"params\.shape changes over time"):
        write_gaussian_avatars(tmp_path, head, layout, local, turning)
    assert list(tmp_path.iterdir()) == []


def test_one_subject_at_a_time(tmp_path, head, layout):
    world = random_world()
    two = WorldGaussians(**{name: t.expand(2, *t.shape[1:]) for name, t in vars(world).items()})
    with pytest.raises(ValueError, match="one subject"):
        write_ply(tmp_path / "a.ply", two)
    with pytest.raises(ValueError, match="7 Gaussians for a layout"):
        write_gaussian_avatars(tmp_path, head, layout, random_local(7), random_params(head, 1))
