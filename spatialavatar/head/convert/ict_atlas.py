"""One UV square for the whole ICT head.

ICT spreads its parts over several tiles, and both eyes lie on top of the face. The atlas gives the face the left and
the head the right of the upper part, and gums, teeth, scleras and irises six boxes in the strip below.
"""

import numpy as np
from jaxtyping import Float, Int

from spatialavatar.errors import SpatialAvatarError

STRIP, SPLIT, MARGIN = 0.15, 0.60, 0.006  # height of the strip, where the head begins, free border of a box
BOXES = (  # left, bottom, right, top
    (0.0, STRIP, SPLIT, 1.0),  # face
    (SPLIT, STRIP, 1.0, 1.0),  # head, neck and sockets
    *((i / 6, 0.0, i / 6 + STRIP, STRIP) for i in range(6)),  # gums and tongue, teeth, left eye's two, right eye's two
)
EYES = ("M_ScleraLeft", "M_IrisLeft", "M_ScleraRight", "M_IrisRight")
TILES = (0, 1, 2, 3, 0, 0, 0, 0)  # u of the ICT tile of each group


def atlas(
    uv: Float[np.ndarray, "U 2"],
    uv_faces: Int[np.ndarray, "F 3"],
    face_part: Int[np.ndarray, " F"],
    material: np.ndarray,  # name of each face's material, which tells sclera from iris
) -> Float[np.ndarray, "U 2"]:
    """UV in [0, 1]^2, v up, from ICT's tiled UV. Raises SpatialAvatarError when two groups share a UV vertex."""
    group = np.select([face_part == 0, face_part <= 4, face_part == 5, face_part == 6], [0, 1, 2, 3], -1)
    for number, name in enumerate(EYES, 4):
        group[material == name] = number
    packed = np.full((len(uv), 2), np.nan)
    for number, (left, bottom, right, top) in enumerate(BOXES):
        members = np.unique(uv_faces[group == number])
        if not np.isnan(packed[members]).all():
            raise SpatialAvatarError("ICT-FaceKit: two parts share a UV vertex; this is not the published mesh")
        inside = uv[members].astype(np.float64) - [TILES[number], 0]
        low, high = inside.min(0), inside.max(0)
        inside = (inside - low) / (high - low)
        size = np.array([right - left, top - bottom]) - 2 * MARGIN
        packed[members] = np.array([left, bottom]) + MARGIN + inside * size
    if np.isnan(packed).any():
        raise SpatialAvatarError("ICT-FaceKit: a face belongs to no part of the atlas; this is not the published mesh")
    return packed
