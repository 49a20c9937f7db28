"""FLAME pickles (Li et al. 2017): FLAME 2020, FLAME 2023 and FLAME 2023 Open.

The pickle holds the mesh, its bases and its joints, but no UV: that comes from the template OBJ that FLAME's authors
publish (head_template.obj) or from an npz. FLAME 2023 Open is CC-BY-4.0, all others are for non-commercial use; the
pickles do not say which they are, so the file name ("flame2023_Open.pkl") or the id (``--id flame2023-open``) must.
"""

import re
from pathlib import PurePosixPath

import numpy as np

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import flame
from spatialavatar.head.convert.charts import uv_charts
from spatialavatar.head.convert.checked import indices, numbers
from spatialavatar.head.convert.flame_assets import read_flame_landmarks, read_flame_uv
from spatialavatar.head.model import JOINTS, PARENTS, HeadInfo
from spatialavatar.unpickle import read_pickle

COLUMNS = (flame.SHAPE_CODES, flame.EXPRESSION_CODES)  # of shapedirs
KEYS = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")

OPEN_LICENCE = "CC-BY-4.0"
OPEN_ATTRIBUTION = (
    "FLAME 2023 Open (flame.is.tue.mpg.de; Li et al., Learning a model of facial shape and expression from 4D scans, "
    "SIGGRAPH Asia 2017), (c) Max Planck Society, CC-BY-4.0"
)
LICENCE = "FLAME licence (non-commercial; see flame.is.tue.mpg.de)"
ATTRIBUTION = (
    "FLAME (flame.is.tue.mpg.de; Li et al., Learning a model of facial shape and expression from 4D scans, "
    "SIGGRAPH Asia 2017), (c) Max Planck Society, non-commercial licence"
)


def convert_flame(
    source: files.Location,
    uv: files.Location | None,
    id: str | None = None,
    landmarks: files.Location | None = None,
    columns: tuple[int, int] | None = None,
) -> tuple[HeadInfo, dict[str, np.ndarray]]:
    """``columns``: how many shape and expression columns shapedirs has, where it is not FLAME's 300 and 100.

    Raises SpatialAvatarError: not a FLAME pickle, no UV given, or a UV of another mesh.
    """
    if uv is None:
        raise SpatialAvatarError(
            f"{source}: a FLAME pickle holds no UV; add --uv head_template.obj (from the FLAME download) or an npz"
        )
    model = _model(source)
    shape_codes, expression_codes = _columns(source, model["shapedirs"].shape[-1], columns)
    faces = model["f"]
    uv_vertices, uv_faces = read_flame_uv(uv, faces, source)
    if len(faces) == flame.FACES + flame.TEETH_FACES:
        uv_faces[flame.FACES :] = -1
    part = (np.arange(len(faces)) >= flame.FACES) & (len(faces) == flame.FACES + flame.TEETH_FACES)
    landmark_faces, landmark_barycentric = np.zeros(0, np.int64), np.zeros((0, 3))
    if landmarks is not None:
        landmark_faces, landmark_barycentric = read_flame_landmarks(landmarks, len(faces))

    id = id or _default_id(source)
    is_open = any(re.search(r"2023.?open", name, re.IGNORECASE) for name in (id, _file_name(source)))
    info = HeadInfo(
        id=id,
        licence=OPEN_LICENCE if is_open else LICENCE,
        attribution=OPEN_ATTRIBUTION if is_open else ATTRIBUTION,
        joints_follow_expression=True,
        part_names=["head", "teeth"] if part.any() else ["head"],
        landmark_scheme="none" if landmarks is None else "ibug68",
    )
    return info, {
        "template": model["v_template"],
        "faces": faces,
        "uv": uv_vertices,
        "uv_faces": uv_faces,
        "face_chart": uv_charts(uv_faces),
        "face_part": part.astype(np.int64),
        "shapedirs": model["shapedirs"][..., :shape_codes],
        "exprdirs": model["shapedirs"][..., shape_codes : shape_codes + expression_codes],
        "posedirs": model["posedirs"],
        "joint_regressor": model["J_regressor"],
        "weights": model["weights"],
        "landmark_faces": landmark_faces,
        "landmark_barycentric": landmark_barycentric,
    }


def _model(source: files.Location) -> dict[str, np.ndarray]:
    """The pickle's arrays, with the shapes that FLAME has."""
    content = read_pickle(source)
    if not isinstance(content, dict):
        raise SpatialAvatarError(f"{source}: holds a {type(content).__name__}, not a FLAME model (a dictionary)")
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise SpatialAvatarError(
            f"{source}: not a FLAME model, {', '.join(missing)} missing; give generic_model.pkl, flame2023.pkl or "
            "flame2023_Open.pkl"
        )
    template = numbers(source, content, "v_template", (None, 3))
    vertices, joints = len(template), len(JOINTS)
    model = {
        "v_template": template,
        "f": indices(source, content, "f", (None, 3)),
        "shapedirs": numbers(source, content, "shapedirs", (vertices, 3, None)),
        "posedirs": numbers(source, content, "posedirs", (vertices, 3, 9 * (joints - 1))),
        "J_regressor": numbers(source, content, "J_regressor", (joints, vertices)),
        "weights": numbers(source, content, "weights", (vertices, joints)),
    }
    if model["f"].size == 0 or model["f"].min() < 0 or model["f"].max() >= vertices:
        raise SpatialAvatarError(f"{source}: f names vertices that are not there; the file is damaged")
    parents = numbers(source, content, "kintree_table", (2, joints))[0].astype(np.int64)
    if tuple(parents[1:]) != PARENTS[1:]:  # the root's own is -1, or 2^32 - 1 in an unsigned table
        raise SpatialAvatarError(f"{source}: joints hang together as {parents.tolist()}, FLAME's as {list(PARENTS)}")
    return model


def _columns(source: files.Location, found: int, stated: tuple[int, int] | None) -> tuple[int, int]:
    if found != sum(stated or COLUMNS):
        split = f"--codes {stated[0]},{stated[1]}" if stated else "300 shape and 100 expression columns expected"
        raise SpatialAvatarError(
            f"{source}: shapedirs has {found} columns ({split}); state how many are shape and how many expression, "
            "e.g. --codes 100,50"
        )
    return stated or COLUMNS


def _file_name(source: files.Location) -> str:
    return PurePosixPath(str(source)).name


def _default_id(source: files.Location) -> str:
    name = _file_name(source)
    if "2023" not in name:
        return "flame2020"
    return "flame2023-open" if re.search("open", name, re.IGNORECASE) else "flame2023"
