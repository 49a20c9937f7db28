"""The UV layout, against brute force in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.file import head_from_arrays
from spatialavatar.head.model import HeadInfo, HeadModel
from spatialavatar.head.uv_layout import build_layout, texel_spacing


def head_with_uv(uv: np.ndarray, uv_faces: np.ndarray, template: np.ndarray | None = None) -> HeadModel:
    """A head that is nothing but its unwrap: one vertex for each UV vertex, in the plane unless given."""
    uv, uv_faces = np.asarray(uv, float), np.asarray(uv_faces)
    v = len(uv)
    flat = np.concatenate([uv, np.zeros((v, 1))], 1)
    weights = np.zeros((v, 5))
    weights[:, 0] = 1
    arrays = {
        "template": flat if template is None else template,
        "faces": np.where(uv_faces < 0, [0, 1, 2], uv_faces),
        "uv": uv,
        "uv_faces": uv_faces,
        "face_chart": np.where((uv_faces < 0).any(1), -1, 0),
        "face_part": np.zeros(len(uv_faces)),
        "shapedirs": np.zeros((v, 3, 1)),
        "exprdirs": np.zeros((v, 3, 1)),
        "posedirs": np.zeros((v, 3, 0)),
        "joint_regressor": np.full((5, v), 1 / v),
        "weights": weights,
        "landmark_faces": np.zeros(0),
        "landmark_barycentric": np.zeros((0, 3)),
    }
    return head_from_arrays(HeadInfo("flat", "none", "made by a test", False), arrays)


def brute_force(head: HeadModel, r: int) -> dict[int, tuple[int, list[Fraction]]]:
    """texel -> (lowest face that holds its centre, barycentric weights), in exact arithmetic."""
    uv = [[Fraction(float(x)) for x in row] for row in head.uv]
    owners = {}
    for row in range(r):
        for column in range(r):
            u, v = Fraction(2 * column + 1, 2 * r), 1 - Fraction(2 * row + 1, 2 * r)
            for face, corners in enumerate(head.uv_faces.tolist()):
                if min(corners) < 0:
                    continue
                (x0, y0), (x1, y1), (x2, y2) = (uv[c] for c in corners)
                area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
                if area == 0:
                    continue
                w1 = ((u - x0) * (y2 - y0) - (x2 - x0) * (v - y0)) / area
                w2 = ((x1 - x0) * (v - y0) - (u - x0) * (y1 - y0)) / area
                if min(1 - w1 - w2, w1, w2) >= 0:
                    owners[row * r + column] = (face, [1 - w1 - w2, w1, w2])
                    break
    return owners


def check(head: HeadModel, r: int) -> None:
    layout, expected = build_layout(head, r), brute_force(head, r)
    assert layout.texel.tolist() == sorted(expected)  # row-major
    assert layout.face_index.tolist() == [expected[t][0] for t in sorted(expected)]
    weights = np.array([[float(w) for w in expected[t][1]] for t in sorted(expected)]).reshape(-1, 3)
    np.testing.assert_allclose(layout.barycentric.numpy(), weights, atol=1e-6)


SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
HALVES = np.array([[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize("r", [1, 2, 3, 4, 7, 16])
def test_the_square_is_covered_once_and_the_lower_face_owns_the_diagonal(r):
    head = head_with_uv(SQUARE, HALVES)
    check(head, r)
    layout = build_layout(head, r)
    assert layout.texel.tolist() == list(range(r * r))
    # v is up, so the diagonal u = v runs from the lower left to the upper right: texels (row, R - 1 - row)
    on_diagonal = layout.texel // r + layout.texel % r == r - 1
    assert (layout.face_index[on_diagonal] == 0).all()
    assert build_layout(head_with_uv(SQUARE, HALVES[::-1]), r).face_index[on_diagonal].eq(0).all()


def test_first_row_is_the_top():
    head = head_with_uv(np.array([[0, 0.5], [1, 0.5], [1, 1], [0, 1]]), HALVES)
    assert build_layout(head, 4).texel.tolist() == list(range(8))


def test_turned_thin_and_missing_triangles():
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5]])
    faces = np.array([[0, 4, 2], [-1, -1, -1], [0, 2, 1], [4, 4, 3], [3, 2, 0]])  # no area, none, clockwise, no area
    head = head_with_uv(uv, faces)
    check(head, 8)
    assert set(build_layout(head, 8).face_index.tolist()) == {2, 4}


def test_a_triangle_beyond_the_square_is_cut():
    check(head_with_uv(np.array([[-1.0, -0.5], [2.0, 0.25], [0.25, 1.75]]), np.array([[0, 1, 2]])), 6)


def test_nothing_covered():
    layout = build_layout(head_with_uv(np.array([[0.3, 0.3], [0.31, 0.3], [0.3, 0.31]]), np.array([[0, 1, 2]])), 2)
    assert layout.count == 0 and layout.barycentric.shape == (0, 3)


dyadic = st.integers(-2, 18).map(lambda k: k / 16)  # many centres lie exactly on edges and corners
# multiples of 2^-20: float32 holds them and float64 computes with them exactly, so the layout must agree to the texel
anything = st.integers(-(2**18), 5 * 2**18).map(lambda k: k / 2**20)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(dyadic, dyadic) | st.tuples(anything, anything), min_size=3, max_size=8),
    st.lists(st.tuples(*[st.integers(0, 7)] * 3), min_size=1, max_size=6),
    st.integers(1, 8),
)
def test_any_triangles_as_by_brute_force(uv, faces, r):
    check(head_with_uv(np.array(uv), np.array(faces) % len(uv)), r)


def test_maps_and_points():
    head = head_with_uv(SQUARE * 0.75, HALVES)
    layout = build_layout(head, 8)
    values = torch.randn(2, layout.count, 3)
    grid = layout.to_map(values, fill=-5.0)
    assert grid.shape == (2, 3, 8, 8) and (grid == -5).sum() == 2 * 3 * (64 - layout.count)
    torch.testing.assert_close(layout.from_map(grid), values)
    torch.testing.assert_close(grid[0, :, layout.texel[5] // 8, layout.texel[5] % 8], values[0, 5])
    # the head is its own unwrap, so the point of a texel is its centre
    points = layout.points(head.template[None], head.faces)[0]
    centre = torch.stack([(layout.texel % 8 + 0.5) / 8, 1 - (layout.texel // 8 + 0.5) / 8], -1)
    torch.testing.assert_close(points[:, :2], centre, atol=1e-6, rtol=0)
    torch.testing.assert_close(texel_spacing(head, layout), torch.full((layout.count,), 1 / 8))


def test_fingerprint_names_faces_uv_and_resolution():
    layout = build_layout(head_with_uv(SQUARE, HALVES), 4)
    assert layout.fingerprint == build_layout(head_with_uv(SQUARE, HALVES), 4).fingerprint
    moved = SQUARE * (1 - 2**-20)  # covers the same texels
    others = [
        build_layout(head_with_uv(SQUARE, HALVES), 5),
        build_layout(head_with_uv(moved, HALVES), 4),
        build_layout(head_with_uv(SQUARE, HALVES[::-1]), 4),
        build_layout(head_with_uv(SQUARE, HALVES[:, [1, 2, 0]]), 4),
    ]
    assert others[1].texel.tolist() == layout.texel.tolist()
    assert len({layout.fingerprint, *(o.fingerprint for o in others)}) == 5
    shape_of_head = head_with_uv(SQUARE, HALVES, template=np.random.default_rng(0).normal(size=(4, 3)))
    assert build_layout(shape_of_head, 4).fingerprint == layout.fingerprint
    layout.require(layout.fingerprint, "anna")
    with pytest.raises(SpatialAvatarError) as error:
        layout.require(others[0].fingerprint, "avatars/anna")
    text = str(error.value)
    assert text.startswith("avatars/anna: ") and layout.fingerprint[:12] in text and others[0].fingerprint[:12] in text
    assert "resolution 4" in text and "use the head" in text


def test_resolution_must_be_positive():
    with pytest.raises(SpatialAvatarError, match="at least 1"):
        build_layout(head_with_uv(SQUARE, HALVES), 0)
