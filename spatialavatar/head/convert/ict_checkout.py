"""The ICT head from a checkout of ICT-FaceKit (github.com/ICT-VGL/ICT-FaceKit): the same head as the archive holds.

FaceXModel/ has one OBJ for the neutral, for each of 100 identities and for each of 53 expressions. Kept are the face,
head, mouth and eye sockets, gums, tongue, teeth and eyeballs (vertices 0..24590, in ICT's order); lacrimal fluid, eye
blend, eye occlusion and eyelashes are dropped. Units become metres, quads become triangles; joints, weights
(``ict_rig.py``) and the UV atlas (``ict_atlas.py``) are ours.
"""

from collections.abc import Sequence

import numpy as np

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.convert.charts import uv_charts
from spatialavatar.head.convert.ict_archive import ict_info, landmarks_at_vertices
from spatialavatar.head.convert.ict_atlas import atlas
from spatialavatar.head.convert.ict_rig import joint_regressor, skinning_weights
from spatialavatar.head.convert.obj import ObjMesh, read_obj, read_obj_vertices
from spatialavatar.head.model import HeadInfo

IDENTITIES = 100
METRES = 0.01  # ICT is in centimetres
VERTICES, POLYGONS = 24591, 24692  # kept; the published mesh has more
# name, last vertex and last polygon of each part
PARTS = (
    ("face", 9408, 9229),
    ("head_neck", 11247, 11143),
    ("mouth_socket", 13293, 13225),
    ("eye_socket_left", 13677, 13629),
    ("eye_socket_right", 14061, 14033),
    ("gums_tongue", 17038, 17005),
    ("teeth", 21450, 21495),
    ("eyeball_left", 23020, 23093),
    ("eyeball_right", 24590, 24691),
)


def convert_ict_checkout(
    source: files.Location,
    id: str | None = None,
    identities: Sequence[int] | None = None,
    expressions: Sequence[str] | None = None,
) -> tuple[HeadInfo, dict[str, np.ndarray]]:
    """``identities`` and ``expressions`` choose some of the shapes, for a head of fewer codes; all by default.

    Raises SpatialAvatarError naming the first mesh that is missing or does not fit.
    """
    folder = source if "vertex_indices.json" in files.list_folder(source) else files.join(source, "FaceXModel")
    index_file = files.join(folder, "vertex_indices.json")
    present = set(files.list_folder(folder))
    if "vertex_indices.json" not in present:
        raise SpatialAvatarError(f"{source}: no checkout of ICT-FaceKit, FaceXModel/vertex_indices.json is not there")
    indices = files.read_json(index_file)
    try:
        names = [str(name) for name in indices["expressions"]]
        landmark_vertices = np.array(indices["idx_to_landmark_verts"], np.int64)
    except (KeyError, TypeError, ValueError) as e:
        raise SpatialAvatarError(f"{index_file}: expressions or landmarks unreadable ({e}); check out again") from None

    chosen = range(IDENTITIES) if identities is None else identities
    expression_names = names if expressions is None else list(expressions)
    shapes = [f"identity{number:03d}.obj" for number in chosen]
    moods = [f"{name}.obj" for name in expression_names]
    needed = ["generic_neutral_mesh.obj", *shapes, *moods]
    missing = [name for name in needed if name not in present]
    if missing:
        raise SpatialAvatarError(
            f"{folder}: {missing[0]} is missing ({len(needed) - len(missing)} of {len(needed)} meshes are there); "
            "get the whole of ICT-FaceKit"
        )

    neutral_file = files.join(folder, needed[0])
    mesh = read_obj(neutral_file)
    if len(mesh.vertices) < VERTICES or len(mesh.polygons) < POLYGONS:
        raise SpatialAvatarError(
            f"{neutral_file}: {len(mesh.vertices)} vertices and {len(mesh.polygons)} polygons, ICT-FaceKit's neutral "
            f"has at least {VERTICES} and {POLYGONS}; the file is truncated or another mesh"
        )
    ict = mesh.vertices[:VERTICES]
    template = ict * METRES + _origin(ict)
    face_part, faces, uv_faces, material = _triangulate(mesh, template, neutral_file)
    used, renumbered = np.unique(uv_faces, return_inverse=True)
    uv_faces = renumbered.reshape(uv_faces.shape)
    vertex_part = np.searchsorted([last for _, last, _ in PARTS], np.arange(VERTICES))

    def offsets(meshes: Sequence[str]) -> np.ndarray:
        basis = np.empty((VERTICES, 3, len(meshes)), np.float32)
        for column, name in enumerate(meshes):
            vertices = read_obj_vertices(files.join(folder, name))
            if len(vertices) != len(mesh.vertices):
                raise SpatialAvatarError(
                    f"{files.join(folder, name)}: {len(vertices)} vertices, the neutral has {len(mesh.vertices)}; "
                    "the file is truncated, check out again"
                )
            basis[..., column] = (vertices[:VERTICES] - ict) * METRES
        return basis

    landmark_faces, landmark_barycentric = landmarks_at_vertices(faces, landmark_vertices)
    arrays = {
        "template": template,
        "faces": faces,
        "uv": atlas(mesh.uv[used].astype(np.float32), uv_faces, face_part, material),
        "uv_faces": uv_faces,
        "face_chart": uv_charts(uv_faces),
        "face_part": face_part,
        "shapedirs": offsets(shapes),
        "exprdirs": offsets(moods),
        "posedirs": np.zeros((VERTICES, 3, 0)),
        "joint_regressor": joint_regressor(ict, template, vertex_part),
        "weights": skinning_weights(ict, vertex_part),
        "landmark_faces": landmark_faces,
        "landmark_barycentric": landmark_barycentric,
    }
    return ict_info(id, [name for name, _, _ in PARTS], expression_names), arrays


def _origin(ict: np.ndarray) -> np.ndarray:
    """Translation, metres, that puts the origin midway between the ears (ICT centimetres in)."""
    face = ict[: PARTS[0][1] + 1]
    ears = face[(np.abs(face[:, 0]) > 8.2) & (face[:, 1] > -5) & (face[:, 1] < 8)]
    return -np.array([0, ears[:, 1].mean(), ears[:, 2].mean()]) * METRES


def _triangulate(
    mesh: ObjMesh, template: np.ndarray, location: files.Location
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Quads split on their shorter diagonal in space: (part [F], faces [F, 3], uv_faces [F, 3], material [F])."""
    part_of_polygon = np.searchsorted([last for _, _, last in PARTS], np.arange(POLYGONS))
    part, faces, uv_faces, material = [], [], [], []
    for number, polygon in enumerate(mesh.polygons[:POLYGONS]):
        if len(polygon) not in (3, 4) or any(v >= VERTICES or t < 0 for v, t in polygon):
            raise SpatialAvatarError(f"{location}: polygon {number} is not as in ICT-FaceKit; check out again")
        corners = [(0, 1, 2)]
        if len(polygon) == 4:
            a, b, c, d = (template[v] for v, _ in polygon)
            corners = [(0, 1, 2), (0, 2, 3)]
            if np.linalg.norm(a - c) > np.linalg.norm(b - d):
                corners = [(1, 2, 3), (1, 3, 0)]
        for triangle in corners:
            part.append(part_of_polygon[number])
            faces.append([polygon[k][0] for k in triangle])
            uv_faces.append([polygon[k][1] for k in triangle])
            material.append(mesh.materials[number])
    return np.array(part), np.array(faces), np.array(uv_faces), np.array(material)
