"""What FLAME keeps outside its pickle: the unwrap and the landmark embedding."""

import io
from typing import Any

import numpy as np

from spatialavatar import files, npz_files
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.head.convert.checked import indices, numbers
from spatialavatar.head.convert.obj import read_obj
from spatialavatar.head.flame import TEETH_FACES
from spatialavatar.unpickle import unpickle

# UV vertices and UV corners of each face, under the names that publishers use
UV_KEYS = (
    ("vt", "ft"),  # FLAME's texture space
    ("uv", "uv_faces"),  # ours
    ("verts_uvs", "textures_idx"),  # PyTorch3D
    ("verts_uvs", "faces_uvs"),
    ("uvcoords", "uvfaces"),  # DECA
)
FACE_KEYS = ("f", "faces", "verts_idx")  # the mesh's own faces, where the npz has them

# face and barycentric weights of each landmark
LANDMARK_KEYS = (
    ("full_lmk_faces_idx", "full_lmk_bary_coords"),  # DECA, VHAP
    ("landmark_faces", "landmark_barycentric"),  # ours
    ("lmk_face_idx", "lmk_b_coords"),  # FLAME's static embedding, where it holds all 68
)
LANDMARKS = 68
_LARGEST_EMBEDDING = 64 << 20  # bytes; those that are published are under 1e6


def read_flame_uv(location: files.Location, faces: np.ndarray, source: files.Location) -> tuple[np.ndarray, np.ndarray]:
    """(uv [U, 2] in [0, 1], v up; uv_faces [F, 3]) for a mesh with these faces.

    The unwrap must list the faces in the mesh's order. Mesh or unwrap may have a tracker's teeth patch at its end that
    the other has not. Raises SpatialAvatarError.
    """
    if str(location).endswith(".npz"):
        uv, uv_faces, mesh_faces = _uv_of_npz(location)
    else:
        mesh = read_obj(location)
        uv, (mesh_faces, uv_faces) = mesh.uv, mesh.triangles(location)
    if not len(uv) or not len(uv_faces) or (uv_faces < 0).all():
        raise SpatialAvatarError(f"{location}: holds no UV; give FLAME's head_template.obj")
    common = min(len(faces), len(uv_faces))
    if abs(len(faces) - len(uv_faces)) not in (0, TEETH_FACES):
        raise SpatialAvatarError(
            f"{location}: UV for {len(uv_faces)} faces, {source} has {len(faces)}; it is of another mesh"
        )
    if mesh_faces is not None and not np.array_equal(mesh_faces[:common], faces[:common]):
        at = int((mesh_faces[:common] != faces[:common]).any(1).argmax())
        raise SpatialAvatarError(
            f"{location}: face {at} joins vertices {mesh_faces[at].tolist()}, in {source} {faces[at].tolist()}; "
            "the unwrap is of another mesh or lists the faces in another order"
        )
    if uv_faces.max() >= len(uv):
        raise SpatialAvatarError(f"{location}: a face names UV vertex {uv_faces.max()} of {len(uv)}; it is damaged")
    if not np.isfinite(uv).all() or uv.min() < -1e-3 or uv.max() > 1 + 1e-3:
        raise SpatialAvatarError(f"{location}: UV beyond [0, 1]; give the unwrap in units of the image, v up")
    padded = np.full((len(faces), 3), -1, np.int64)
    padded[:common] = uv_faces[:common]
    return uv, padded


def read_flame_landmarks(location: files.Location, faces: int) -> tuple[np.ndarray, np.ndarray]:
    """(face [68], barycentric [68, 3]) in the order of iBUG, from an npz, npy or pickle; irises are left out.

    Raises SpatialAvatarError.
    """
    content = _embedding(location)
    for face_key, weight_key in LANDMARK_KEYS:
        if face_key in content and weight_key in content:
            index = indices(location, content, face_key, (None,), (1, None)).reshape(-1)[:LANDMARKS]
            weights = numbers(location, content, weight_key, (None, 3), (1, None, 3)).reshape(-1, 3)[:LANDMARKS]
            break
    else:
        pairs = ", ".join("/".join(pair) for pair in LANDMARK_KEYS)
        raise SpatialAvatarError(f"{location}: no landmark embedding found in it; expected one of {pairs}")
    if len(index) != LANDMARKS or len(weights) != LANDMARKS:
        raise SpatialAvatarError(
            f"{location}: {len(index)} landmarks, {LANDMARKS} expected; give landmark_embedding.npy, the full one"
        )
    if index.min() < 0 or index.max() >= faces or not np.abs(weights.sum(1) - 1).max() <= 1e-3:  # not (NaN)
        raise SpatialAvatarError(f"{location}: landmarks that are not on the mesh; the embedding is of another head")
    return index, weights.astype(np.float64)


def _uv_of_npz(location: files.Location) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    content = npz_files.read_npz(location)
    for uv_key, face_key in UV_KEYS:
        if uv_key in content and face_key in content:
            either = [(*batch, None, columns) for batch in ((), (1,)) for columns in (2, 3)]
            uv = numbers(location, content, uv_key, *either)
            uv = uv.reshape(-1, uv.shape[-1])[:, :2].astype(np.float64)
            uv_faces = indices(location, content, face_key, (None, 3), (1, None, 3)).reshape(-1, 3)
            break
    else:
        pairs = ", ".join("/".join(pair) for pair in UV_KEYS)
        raise SpatialAvatarError(f"{location}: no unwrap found in it; expected one of {pairs}")
    f = len(uv_faces)
    mesh_faces = [
        indices(location, content, key, (f, 3), (1, f, 3)).reshape(-1, 3) for key in FACE_KEYS if key in content
    ]
    uv_faces[(uv_faces < 0).any(1)] = -1
    return uv, uv_faces, mesh_faces[0] if mesh_faces else None


def _embedding(location: files.Location) -> dict[str, Any]:
    name = str(location)
    if name.endswith(".npz"):
        return dict(npz_files.read_npz(location, max_bytes=_LARGEST_EMBEDDING))
    data = files.read_bytes(location, _LARGEST_EMBEDDING)
    if name.endswith(".npy"):
        # an npy of a dictionary is a header and a pickle, which numpy itself would run
        stream = io.BytesIO(data)
        try:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
            )
            read_header(stream)
        except Exception as e:  # damaged bytes can fail in any way, down to the tokenizer of numpy's header
            raise SpatialAvatarError(
                f"{location}: not a readable npy file ({in_short(e, 120, plain=True)}); get it again"
            ) from None
        data = data[stream.tell() :]
    content = unpickle(data, location)
    if isinstance(content, np.ndarray) and content.size == 1:
        content = content.reshape(-1)[0]
    if not isinstance(content, dict):
        raise SpatialAvatarError(f"{location}: holds a {type(content).__name__}, a landmark embedding is a dictionary")
    return content
