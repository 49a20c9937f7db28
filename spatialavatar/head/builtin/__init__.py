"""The built-in head: a procedural stand-in that needs no download, with FLAME's parameter sizes.

Everything comes from formulas: the skin is an implicit surface (``surface``), eyes, mouth and ears are structured
patches over it (``patches``), joined to one mesh (``tessellation``) with one UV chart (``unwrap``), joints and skinning
weights (``skinning``), shape and expression codes (``bases``) and landmarks (``landmarks``).
"""

from functools import lru_cache

import numpy as np

from spatialavatar.head.builtin.anatomy import PARTS, face_parts, texel_importance
from spatialavatar.head.builtin.bases import MOUTH_OPENING, expression_basis, expression_names, shape_basis
from spatialavatar.head.builtin.landmarks import landmarks
from spatialavatar.head.builtin.skinning import joint_regressor, skinning_weights
from spatialavatar.head.builtin.tessellation import NECK, HeadMesh, tessellate
from spatialavatar.head.builtin.unwrap import unwrap_half
from spatialavatar.head.model import HeadInfo

HEAD_ID = "builtin-1"
DECIMALS = 7  # a tenth of a micrometre


def generate_head() -> tuple[HeadInfo, dict[str, np.ndarray]]:
    """The built-in head as ``HeadInfo`` and HeadModel's arrays (metres, float32 and int32).

    Numbers are rounded to DECIMALS, far above the noise in which mathematical libraries differ, so that the head has
    the same hash on every machine.
    """
    mesh = builtin_mesh()
    uv = _uv(mesh)
    part = face_parts(mesh)
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
    arrays = {
        "template": 1e-3 * mesh.points,
        "faces": mesh.faces,
        "uv": uv,
        "uv_faces": mesh.faces,
        "face_chart": np.zeros(len(mesh.faces)),
        "face_part": part,
        "shapedirs": 1e-3 * shape_basis(mesh),
        "exprdirs": 1e-3 * expression_basis(mesh),
        "posedirs": np.zeros((len(mesh.points), 3, 0)),
        "joint_regressor": joint_regressor(mesh),
        "weights": skinning_weights(mesh),
        "landmark_faces": landmark_faces,
        "landmark_barycentric": landmark_barycentric,
    }
    whole = {"faces", "uv_faces", "face_chart", "face_part", "landmark_faces"}
    return info, {
        name: np.asarray(a, np.int32) if name in whole else np.round(a, DECIMALS).astype(np.float32)
        for name, a in arrays.items()
    }


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
