"""Which part of the face each piece of the built-in head's mesh is."""

import numpy as np
from jaxtyping import Float, Int

from spatialavatar.head.builtin import patches
from spatialavatar.head.builtin.surface import smoothstep
from spatialavatar.head.builtin.tessellation import EAR, EYE, MOUTH, NECK, HeadMesh

PARTS = [
    "skin",
    "lips",
    "mouth_inside",
    "teeth",
    "eye_left",
    "eye_right",
    "scalp",
    "ear_left",
    "ear_right",
    "neck",
]
EYEBALL_RING = patches.EYE_LID_RINGS + 3  # first ring on the eyeball
LID_INSIDE_RING = patches.EYE_LID_RINGS + 1  # first ring behind the lids


def hairline(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, " N"]:
    """Signed distance-like value in mm: positive where hair grows (template positions in mm)."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    # forehead: higher in the middle, a recess at the temples, down in front of the ear, behind it to the nape
    front = 88.0 - 0.0035 * x**2 - 26.0 * smoothstep(40.0, 66.0, x)
    temple = 46.0 - 62.0 * smoothstep(34.0, 12.0, z)
    around_ear = -16.0 + 45.0 * smoothstep(12.0, -2.0, z) * smoothstep(-44.0, -30.0, z)
    nape = -52.0 + 0.0 * x
    behind = around_ear + (nape - around_ear) * smoothstep(-36.0, -58.0, z)
    blend = smoothstep(34.0, 44.0, z)
    forward = blend * front + (1 - blend) * np.minimum(temple, front)
    side = smoothstep(2.0, 12.0, z)
    line = side * forward + (1 - side) * behind
    return y - line


def face_parts(mesh: HeadMesh) -> Int[np.ndarray, " F"]:
    """Index into PARTS for each face."""
    centre = mesh.points[mesh.faces].mean(1)
    part = np.zeros(len(mesh.faces), np.int64)
    left = mesh.face_side > 0
    part[(mesh.face_patch != NECK) & (hairline(centre) > 0)] = PARTS.index("scalp")
    below = 105.0 - 0.35 * (centre[:, 2] - 20.0)
    part[(centre[:, 1] < -below) | (mesh.face_patch == NECK)] = PARTS.index("neck")
    part[(mesh.face_patch == EYE)] = PARTS.index("skin")
    for name, side in (("left", left), ("right", ~left)):
        part[(mesh.face_patch == EAR) & side] = PARTS.index(f"ear_{name}")
        part[(mesh.face_patch == EYE) & (mesh.face_ring >= EYEBALL_RING - 1) & side] = PARTS.index(f"eye_{name}")
    mouth, ring = mesh.face_patch == MOUTH, mesh.face_ring
    part[mouth] = PARTS.index("skin")
    part[mouth & (ring >= patches.MOUTH_BORDER_RING)] = PARTS.index("lips")
    part[mouth & (ring > patches.MOUTH_EDGE_RING)] = PARTS.index("mouth_inside")
    part[mouth & (ring == patches.TEETH_RINGS[0])] = PARTS.index("teeth")
    return part


def texel_importance(mesh: HeadMesh) -> Float[np.ndarray, " V"]:
    """How many texels per area a vertex's surroundings deserve, relative to the cheeks' 1."""
    _x, y, z = mesh.points.T
    face = smoothstep(15.0, 55.0, z) * smoothstep(95.0, 70.0, y) * smoothstep(-105.0, -92.0, y)
    importance = 0.32 + 0.68 * face
    importance[mesh.select(EAR)] = 0.36
    importance *= 1.0 - 0.4 * smoothstep(-90.0, -140.0, y)
    eye, mouth = mesh.select(EYE), mesh.select(MOUTH)
    importance[eye] = 1.9
    hidden = eye & (mesh.ring >= LID_INSIDE_RING) & (mesh.ring <= EYEBALL_RING + 1)
    importance[hidden] = 0.35
    importance[eye & (mesh.ring > EYEBALL_RING + 1)] = 2.4
    importance[mouth & (mesh.ring >= patches.MOUTH_BORDER_RING)] = 1.9
    importance[mouth & (mesh.ring > patches.MOUTH_EDGE_RING)] = 0.35
    importance[mouth & np.isin(mesh.ring, patches.TEETH_RINGS)] = 0.8
    return importance
