"""The built-in head: a procedural stand-in that needs no download, with FLAME's parameter sizes.

Everything comes from formulas: the skin is an implicit surface (``surface``), eyes, mouth and ears are structured
patches over it (``patches``), joined to one mesh (``tessellation``) with one UV chart (``unwrap``), joints and skinning
weights (``skinning``), shape and expression codes (``bases``) and landmarks (``landmarks``).
"""

from functools import lru_cache

import numpy as np

from spatialavatar.head.builtin.anatomy import PARTS, face_parts, texel_importance
from spatialavatar.head.builtin.bases import expression_basis, expression_names, shape_basis
from spatialavatar.head.builtin.expressions import MOUTH_OPENING
from spatialavatar.head.builtin.landmarks import landmarks
from spatialavatar.head.builtin.skinning import joint_regressor, skinning_weights
from spatialavatar.head.builtin.tessellation import NECK, HeadMesh, tessellate
from spatialavatar.head.builtin.unwrap import unwrap_half
from spatialavatar.head.model import HeadInfo

HEAD_ID = "builtin-1"
STEPS = 1e7  # of rounding in a metre: a tenth of a micrometre
ROUNDS_UP = 0.501798445  # part of a step; no number of this head lies within MARGIN of it
MARGIN = 2.5e-6  # of a step; processors, thread counts and linear algebra libraries were seen to differ by 2e-8


def generate_head() -> tuple[HeadInfo, dict[str, np.ndarray]]:
    """The built-in head as ``HeadInfo`` and HeadModel's arrays (metres, float32 and int32).

    Numbers are rounded, so that the noise in which mathematical libraries differ does not reach the head's hash: with
    millions of numbers some lie as near as that noise to a half, hence a boundary (ROUNDS_UP) where none lies.
    """
    mesh = builtin_mesh()
    landmark_faces, landmark_barycentric = landmarks(mesh)
    info = HeadInfo(
        id=HEAD_ID,
        licence="CC0-1.0",
        attribution="SpatialAvatar built-in procedural head (CC0-1.0)",
        joints_follow_expression=False,
        part_names=list(PARTS),
        expression_names=expression_names(),
        mouth_opening_codes=list(MOUTH_OPENING),
        landmark_scheme="ibug68",
    )
    whole = {
        "faces": mesh.faces,
        "uv_faces": mesh.faces,
        "face_chart": np.zeros(len(mesh.faces)),
        "face_part": face_parts(mesh),
        "landmark_faces": landmark_faces,
    }
    measures = {**measures_of(mesh), "landmark_barycentric": landmark_barycentric}
    return info, {
        **{name: a.astype(np.int32) for name, a in whole.items()},
        **{name: _rounded(a).astype(np.float32) for name, a in measures.items()},
    }


def measures_of(mesh: HeadMesh) -> dict[str, np.ndarray]:
    """HeadModel's arrays of metres, weights and UV, before they are rounded."""
    return {
        "template": 1e-3 * mesh.points,
        "uv": _uv(mesh),
        "shapedirs": 1e-3 * shape_basis(mesh),
        "exprdirs": 1e-3 * expression_basis(mesh),
        "posedirs": np.zeros((len(mesh.points), 3, 0)),
        "joint_regressor": joint_regressor(mesh),
        "weights": skinning_weights(mesh),
    }


def _rounded(a: np.ndarray) -> np.ndarray:
    steps = np.floor(np.abs(a) * STEPS + (1.0 - ROUNDS_UP))
    return np.where(steps > 0, np.copysign(steps / STEPS, a), 0.0)  # never -0, whose bytes differ from 0's


@lru_cache(maxsize=1)
def builtin_mesh() -> HeadMesh:
    """The template with what its vertices are (patch, ring, column); vertices in the order of ``generate_head``."""
    return tessellate()


def _uv(mesh: HeadMesh) -> np.ndarray:
    left = mesh.side >= 0
    assert left[: left.sum()].all(), "the left half comes first"
    faces = mesh.faces[mesh.face_side > 0]
    border = np.flatnonzero(mesh.select(NECK) & (mesh.ring == 0) & left)
    border = border[np.argsort(mesh.column[border])]
    importance = texel_importance(mesh)[faces].mean(1)
    half = unwrap_half(mesh.points[left], faces, np.flatnonzero(mesh.side == 0), border, importance)
    uv = np.empty((len(mesh.points), 2))
    uv[left] = half
    uv[~left] = half[mesh.mirror[~left]] * np.array([-1.0, 1.0]) + np.array([1.0, 0.0])
    return uv
