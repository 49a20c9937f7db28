"""The ICT head from a prepared archive (npz): ICT-FaceKit in metres with joints, weights and a UV atlas.

Keys read: v_template, faces, uv_atlas, uv_faces, shapedirs, exprdirs, expr_names, J_regressor, lbs_weights, face_part,
part_names, landmarks68. ``ict_checkout.py`` makes the same head from a checkout of ICT-FaceKit itself.
"""

import numpy as np

from spatialavatar import files, npz_files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.convert.charts import uv_charts
from spatialavatar.head.convert.checked import indices, numbers, texts
from spatialavatar.head.model import JOINTS, HeadInfo

ID = "ict-facekit"
LICENCE = "MIT"
ATTRIBUTION = (
    "ICT-FaceKit (github.com/ICT-VGL/ICT-FaceKit), (c) 2020 USC Institute for Creative Technologies, MIT licence; "
    "joints, skinning weights and UV atlas are not ICT's"
)
KEYS = (
    "v_template",
    "faces",
    "uv_atlas",
    "uv_faces",
    "shapedirs",
    "exprdirs",
    "expr_names",
    "J_regressor",
    "lbs_weights",
    "face_part",
    "part_names",
    "landmarks68",
)


def ict_info(id: str | None, part_names: list[str], expression_names: list[str]) -> HeadInfo:
    """ICT opens the jaw by an expression and regresses its joints from the shape alone."""
    return HeadInfo(
        id=id or ID,
        licence=LICENCE,
        attribution=ATTRIBUTION,
        joints_follow_expression=False,
        part_names=part_names,
        expression_names=expression_names,
        mouth_opening_codes=[name for name in ("jawOpen",) if name in expression_names],
        landmark_scheme="ibug68",
    )


def convert_ict_archive(source: files.Location, id: str | None = None) -> tuple[HeadInfo, dict[str, np.ndarray]]:
    """Raises SpatialAvatarError: not an npz, damaged, or a key missing."""
    archive = npz_files.read_npz(source)
    missing = [key for key in KEYS if key not in archive]
    if missing:
        raise SpatialAvatarError(
            f"{source}: ICT archive lacks {', '.join(missing)}; give the archive that holds the whole head, or a "
            "checkout of ICT-FaceKit"
        )
    if "joint_names" in archive and (names := texts(source, archive, "joint_names")) != list(JOINTS):
        raise SpatialAvatarError(f"{source}: joints are {names}, expected {list(JOINTS)}")
    template = numbers(source, archive, "v_template", (None, 3))
    faces = indices(source, archive, "faces", (None, 3))
    v, f, j = len(template), len(faces), len(JOINTS)
    uv_faces = indices(source, archive, "uv_faces", (f, 3))
    landmark_faces, landmark_barycentric = landmarks_at_vertices(
        faces, indices(source, archive, "landmarks68", (None,))
    )
    arrays = {
        "template": template,
        "faces": faces,
        "uv": numbers(source, archive, "uv_atlas", (None, 2)),
        "uv_faces": uv_faces,
        "face_chart": uv_charts(uv_faces),
        "face_part": indices(source, archive, "face_part", (f,)),
        "shapedirs": numbers(source, archive, "shapedirs", (v, 3, None)),
        "exprdirs": numbers(source, archive, "exprdirs", (v, 3, None)),
        "posedirs": np.zeros((v, 3, 0)),
        "joint_regressor": numbers(source, archive, "J_regressor", (j, v)),
        "weights": numbers(source, archive, "lbs_weights", (v, j)),
        "landmark_faces": landmark_faces,
        "landmark_barycentric": landmark_barycentric,
    }
    return ict_info(id, texts(source, archive, "part_names"), texts(source, archive, "expr_names")), arrays


def landmarks_at_vertices(faces: np.ndarray, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks that are vertices, as (face [L], barycentric [L, 3]): a corner of the lowest face that has the vertex.

    Raises SpatialAvatarError when a vertex belongs to no face.
    """
    face_of, corner_of = [], []
    for vertex in np.asarray(vertices).ravel():
        at = np.argwhere(faces == vertex)
        if not len(at):
            raise SpatialAvatarError(f"landmark vertex {vertex} belongs to no face of the head; the source is damaged")
        face_of.append(at[0, 0])
        corner_of.append(at[0, 1])
    return np.array(face_of, np.int64), np.eye(3)[np.array(corner_of, np.int64)]
