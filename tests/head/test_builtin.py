"""The built-in head: sizes, symmetry, UV chart, codes, joints, and what blinking and opening the mouth do."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from spatialavatar.head.builtin import MARGIN, ROUNDS_UP, STEPS, builtin_mesh, generate_head, measures_of
from spatialavatar.head.builtin.anatomy import EYEBALL_RING
from spatialavatar.head.builtin.patches import EYE_LID_RINGS, MOUTH_COLUMNS, MOUTH_EDGE_RING
from spatialavatar.head.builtin.surface import EYE as EYE_CENTRE
from spatialavatar.head.builtin.surface import EYE_RADIUS
from spatialavatar.head.builtin.tessellation import EYE, MOUTH
from spatialavatar.head.file import head_from_arrays, write_head
from spatialavatar.head.model import HeadInfo, HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.head.uv_layout import build_layout
from spatialavatar.splat.camera import Camera

Generated = tuple[HeadInfo, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def generated() -> Generated:
    return generate_head()


@pytest.fixture(scope="module")
def head(generated: Generated, tmp_path_factory: pytest.TempPathFactory) -> HeadModel:
    info, arrays = generated
    return write_head(tmp_path_factory.mktemp("head") / "builtin.head.safetensors", info, arrays)


def expression(head: HeadModel, **codes: float) -> HeadParams:
    params = head.neutral()
    for name, value in codes.items():
        params.expression[0, head.info.expression_names.index(name)] = value
    return params


@pytest.mark.parametrize(
    "settings",
    [
        {"OMP_NUM_THREADS": "1"},  # as Ray gives its workers
        pytest.param({"OMP_NUM_THREADS": "3", "OPENBLAS_CORETYPE": "Prescott"}, marks=pytest.mark.slow),
    ],
    ids=["one_thread", "another_processor"],
)
def test_other_processes_make_the_same_bytes(generated: Generated, settings: dict[str, str]) -> None:
    script = "from spatialavatar.head.reference import builtin_head; print(builtin_head().content_hash)"
    environment = {**os.environ, **settings}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == head_from_arrays(*generated).content_hash


def test_no_number_lies_where_rounding_turns() -> None:
    """Then the noise of mathematical libraries changes no byte: new formulas may want another ROUNDS_UP."""
    for name, measures in measures_of(builtin_mesh()).items():
        part = np.mod(np.abs(measures) * STEPS, 1.0)
        assert np.abs(part - ROUNDS_UP).min(initial=1.0) > MARGIN, name


def test_sizes_and_names(head: HeadModel) -> None:
    assert (head.shape_codes, head.expression_codes, head.posedirs.shape[-1]) == (300, 100, 0)
    assert 4500 <= head.vertex_count <= 5500
    assert head.info.licence == "CC0-1.0"
    assert len(head.info.expression_names) == len(set(head.info.expression_names)) == 100
    assert head.mouth_opening_indices
    low, high = head.template.amin(0), head.template.amax(0)
    assert 0.20 < (high - low)[1] < 0.32
    assert 0.14 < (high - low)[0] < 0.22
    assert 0.19 < (high - low)[2] < 0.25
    assert set(head.face_part.tolist()) == set(range(len(head.info.part_names)))


def test_template_and_uv_are_symmetric(head: HeadModel) -> None:
    mirror = torch.from_numpy(builtin_mesh().mirror)
    assert torch.equal(head.template[mirror] * torch.tensor([-1.0, 1.0, 1.0]), head.template)
    assert torch.allclose(head.uv[mirror] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0]), head.uv, atol=1e-6)


def test_surface_is_one_oriented_disc(head: HeadModel) -> None:
    edges: dict[tuple[int, int], int] = {}
    for a, b, c in head.faces.tolist():
        for edge in ((a, b), (b, c), (c, a)):
            edges[edge] = edges.get(edge, 0) + 1
    assert set(edges.values()) == {1}, "neighbouring faces turn the same way round"
    border = {edge[0] for edge in edges if edge[::-1] not in edges}
    assert head.template[sorted(border), 1].max() < -0.145, "the neck's ring is the only border"
    undirected = {tuple(sorted(edge)) for edge in edges}
    assert head.vertex_count - len(undirected) + len(head.faces) == 1, "Euler characteristic of a disc"
    # outwards: skin faces look away from the head's middle
    corners = head.template[head.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outside = (normal * (corners.mean(1) - torch.tensor([0.0, 0.0, -0.014]))).sum(-1) > 0
    assert outside[head.face_part == head.info.part_names.index("scalp")].all()


def test_uv_chart_fills_the_square_without_overlap(head: HeadModel) -> None:
    corners = head.uv[head.uv_faces].double()
    d, e = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = (d[:, 0] * e[:, 1] - d[:, 1] * e[:, 0]) / 2
    assert (area > 0).all(), "no triangle is turned over"
    # all positive, and their sum is the square that the border encloses: so none lies over another
    assert area.sum() == pytest.approx(1.0, abs=0.02)
    assert head.uv.min() >= 0 and head.uv.max() <= 1
    layout = build_layout(head, 256)
    assert len(layout.texel) > 55_000
    assert (head.face_chart == 0).all()
    eye = head.face_part[layout.face_index] == head.info.part_names.index("eye_left")
    assert eye.sum() > 400


@pytest.mark.parametrize("name", ["shapedirs", "exprdirs"])
def test_codes_are_orthogonal(generated: Generated, name: str) -> None:
    basis = generated[1][name].astype(np.float64)
    basis = basis.reshape(-1, basis.shape[-1])
    basis /= np.linalg.norm(basis, axis=0)
    gram = basis.T @ basis
    # exact but for the rounding to a tenth of a micrometre, which the smallest modes (tens of micrometres) feel most
    assert np.abs(gram - np.eye(len(gram))).max() < 1e-3


def test_weights_and_joints(head: HeadModel) -> None:
    assert head.weights.min() >= -1e-6
    assert torch.allclose(head.weights.sum(1), torch.ones(head.vertex_count), atol=1e-5)
    joints = head.rest_joints(head.neutral())[0]
    assert torch.allclose(joints[3], torch.from_numpy(EYE_CENTRE * 1e-3).float(), atol=1e-6)
    assert torch.allclose(joints[4] * torch.tensor([-1.0, 1.0, 1.0]), joints[3], atol=1e-6)
    params = head.neutral()
    params.shape[0, :80] = torch.linspace(-1.5, 1.5, 80)
    eyeball = torch.from_numpy(builtin_mesh().select(EYE, 1) & (builtin_mesh().ring > EYEBALL_RING))
    vertices, centre = head(params)[0], head.rest_joints(params)[0, 3]
    radius = (vertices[eyeball] - centre).norm(dim=-1)
    assert (centre - joints[3]).norm() > 1e-4, "joints follow the shape"
    assert radius.max() - radius.min() < 2e-4, "eyeballs stay spheres about their joints"


def test_blink_closes_the_lids_over_the_eyeball(head: HeadModel) -> None:
    mesh = builtin_mesh()
    lids = mesh.select(EYE, 1) & (mesh.ring < EYE_LID_RINGS) & (mesh.ring > 0)
    for amount in (0.25, 0.5, 0.75, 1.0):
        vertices = head(expression(head, blink_left=amount))[0].numpy() * 1e3
        clearance = np.linalg.norm(vertices[lids] - EYE_CENTRE, axis=-1) - EYE_RADIUS
        assert clearance.min() > 0, f"at {amount} the lids are {clearance.min():.2f} mm off the eyeball"
    margin = np.flatnonzero(mesh.select(EYE, 1) & (mesh.ring == EYE_LID_RINGS - 1))
    margin = margin[np.argsort(mesh.column[margin])]
    partner = margin[(-np.arange(len(margin))) % len(margin)]
    gap = np.linalg.norm(vertices[margin] - vertices[partner], axis=-1)
    assert gap.max() < 0.6, "the margins meet"
    opened = head(head.neutral())[0].numpy() * 1e3
    assert np.linalg.norm(opened[margin] - opened[partner], axis=-1).max() > 8
    right = mesh.select(EYE, -1)
    assert np.abs(vertices[right] - opened[right]).max() < 0.01, "the other eye stays open"


def test_jaw_opens_the_mouth(head: HeadModel) -> None:
    mesh = builtin_mesh()
    edge = mesh.select(MOUTH) & (mesh.ring == MOUTH_EDGE_RING) & (mesh.side == 0)
    upper, lower = (
        np.flatnonzero(edge & (mesh.column == 0))[0],
        np.flatnonzero(edge & (mesh.column == MOUTH_COLUMNS - 1))[0],
    )
    params = dataclasses.replace(head.neutral(), jaw=torch.tensor([[0.3, 0.0, 0.0]]))
    moved = (head(params) - head(head.neutral()))[0, :, 1]
    assert moved[lower] < -0.01
    assert abs(float(moved[upper])) < 1e-3
    lips_only = (head(expression(head, mouth_open_lips=1.0)) - head(head.neutral()))[0, :, 1]
    assert lips_only[upper] - lips_only[lower] > 0.004


def test_expressions_do_what_their_names_say(head: HeadModel) -> None:
    rest = head.landmarks(head(head.neutral()))[0]

    def moved(**codes: float) -> torch.Tensor:
        return head.landmarks(head(expression(head, **codes)))[0] - rest

    smile = moved(smile_left=1.0, smile_right=1.0)
    assert smile[54, 0] > 0.003 and smile[48, 0] < -0.003
    assert smile[54, 1] > 0.003 and smile[48, 1] > 0.003
    assert moved(brow_raise_left=1.0)[24, 1] > 0.003
    assert abs(moved(brow_raise_left=1.0)[19, 1]) < 0.001
    assert moved(brow_frown=1.0)[21, 1] < -0.002
    pucker = moved(pucker=1.0)
    assert pucker[48, 0] > 0.002 and pucker[54, 0] < -0.002 and pucker[62, 2] > 0.002


def test_landmarks_are_upright_and_not_mirrored(head: HeadModel) -> None:
    points = head.landmarks(head(head.neutral()))
    assert points.shape == (1, 68, 3)
    world_to_camera = torch.tensor([[[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0.7], [0, 0, 0, 1]]])
    intrinsics = torch.tensor([[[500.0, 0, 128], [0, 500, 128], [0, 0, 1]]])
    pixels, depth = Camera(world_to_camera, intrinsics, 256, 256).project(points)
    p = pixels[0]
    assert (depth > 0).all()
    assert p[42:48, 0].mean() > p[36:42, 0].mean() + 20, "the subject's left eye is on the right of the picture"
    assert p[8, 1] > p[57, 1] > p[51, 1] > p[33, 1] > p[27, 1] > p[19, 1]
    assert p[0, 0] < p[8, 0] < p[16, 0]
    assert (p[17:26, 0].diff() > 0).all() and (p[48:55, 0].diff() > 0).all()
    mirrored = list(range(16, -1, -1))
    jaw = points[0, :17]
    assert torch.allclose(jaw[mirrored] * torch.tensor([-1.0, 1.0, 1.0]), jaw, atol=1e-6)


def test_eyes_follow_their_joints(head: HeadModel) -> None:
    mesh = builtin_mesh()
    pole = np.flatnonzero(mesh.select(EYE, 1) & (mesh.ring == mesh.ring[mesh.select(EYE)].max()))[0]
    params = head.neutral()
    params.eyes[0, 1] = 0.3  # about +y: towards the subject's left
    vertex = head(params)[0, pole].numpy() * 1e3 - EYE_CENTRE
    assert vertex == pytest.approx([EYE_RADIUS * np.sin(0.3), 0.0, EYE_RADIUS * np.cos(0.3)], abs=0.01)
