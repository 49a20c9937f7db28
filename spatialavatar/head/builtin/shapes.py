"""The named shapes of the built-in head: displacements of its vertices, in mm, of one standard deviation."""

import numpy as np
from jaxtyping import Float

from spatialavatar.head.builtin import patches
from spatialavatar.head.builtin.surface import MOUTH_HALF_WIDTH, bump, smoothstep
from spatialavatar.head.builtin.tessellation import EAR, HeadMesh

Field = Float[np.ndarray, "V 3"]


def named_shapes(mesh: HeadMesh) -> dict[str, Field]:
    """In the order of the codes."""
    p = mesh.points
    x, y, z = p.T
    folded = np.abs(p) * np.array([1.0, 0.0, 0.0]) + p * np.array([0.0, 1.0, 1.0])
    side = np.clip(x / 12.0, -1.0, 1.0)
    face = smoothstep(0.0, 50.0, z)
    skull = smoothstep(10.0, 70.0, y)
    jaw = smoothstep(-10.0, -55.0, y) * smoothstep(-115.0, -90.0, y) * smoothstep(-30.0, 5.0, z)
    nose = bump(p, (0.0, -2.0, 100.0), (17.0, 26.0, 20.0))
    tip = bump(p, (0.0, -12.0, 106.0), (15.0, 13.0, 16.0))
    eyes = bump(folded, (31.5, 25.0, 72.0), (20.0, 18.0, 24.0))
    brow = bump(folded, (24.0, 43.0, 78.0), (26.0, 11.0, 22.0))
    forehead = bump(p, (0.0, 80.0, 76.0), (55.0, 28.0, 40.0))
    bones = bump(folded, (56.0, -4.0, 48.0), (20.0, 16.0, 26.0))
    cheeks = bump(folded, (42.0, -36.0, 62.0), (20.0, 20.0, 26.0))
    chin = bump(p, (0.0, -78.0, 88.0), (26.0, 20.0, 30.0))
    lips = bump(p, (0.0, -46.0, 98.0), (30.0, 13.0, 22.0))
    neck = smoothstep(-70.0, -110.0, y) * smoothstep(60.0, 30.0, z)
    ear = bump(folded, (80.0, 3.0, -16.0), (16.0, 30.0, 22.0))
    ear[mesh.select(EAR)] = np.clip((mesh.ring[mesh.select(EAR)]) / 4.0, 0.0, 1.0)
    ear[~mesh.select(EAR)] = 0.0
    corner = bump(folded, (26.0, -45.0, 88.0), (15.0, 12.0, 22.0))
    lip_line = patches.lip_line(np.minimum(np.abs(x), MOUTH_HALF_WIDTH))

    def along(weight: np.ndarray, *direction: float | np.ndarray) -> Field:
        return np.stack([weight * d for d in direction], -1)

    return {
        "size": 0.028 * p,
        "face_width": along(face, 0.055 * x, 0.0, 0.0),
        "skull_depth": along(smoothstep(60.0, -40.0, z) * smoothstep(-80.0, -10.0, y), 0.0, 0.0, 0.05 * (z - 40.0)),
        "skull_height": along(skull, 0.0, 0.045 * (y - 10.0), 0.0),
        "jaw_width": along(jaw, 0.065 * x, 0.0, 0.0),
        "chin_length": along(smoothstep(-48.0, -85.0, y) * smoothstep(20.0, 60.0, z), 0.0, -3.6, 0.0),
        "chin_forward": along(chin, 0.0, 0.0, 3.6),
        "nose_length": along(tip, 0.0, -2.0, 3.2),
        "nose_width": along(bump(folded, (13.0, -14.0, 96.0), (11.0, 12.0, 18.0)), 2.4 * side, 0.0, 0.0),
        "nose_bridge": along(bump(p, (0.0, 14.0, 90.0), (11.0, 16.0, 20.0)), 0.0, 0.0, 2.8),
        "eye_spacing": along(eyes, 1.5 * side, 0.0, 0.0),
        "brow_forward": along(brow, 0.0, -0.6, 2.4),
        "forehead_slope": along(forehead, 0.0, 0.0, 3.6),
        "cheekbones": along(bones, 2.2 * side, 0.0, 1.2),
        "cheek_fullness": along(cheeks, 3.4 * side, 0.0, 1.4),
        "lip_fullness": along(lips, 0.0, 0.16 * np.clip(y - lip_line, -12, 12), 1.6),
        "mouth_width": along(corner, 2.6 * side, 0.0, -0.8),
        "mouth_height": along(bump(p, (0.0, -46.0, 96.0), (36.0, 20.0, 30.0)), 0.0, 2.4, 0.0),
        "ear_size": along(ear, 0.0, 0.08 * (y - 3.0), 0.10 * (z + 8.0)),
        "ear_stand": along(ear, 2.8 * np.sign(x), 0.0, 0.0) * np.clip((-z + 2.0) / 24.0, 0, 1)[:, None],
        "neck_width": along(neck, 0.07 * x, 0.0, 0.07 * (z + 38.0)),
        "nose_hook": along(nose, 0.0, 0.0, 1.0) * np.cos((y + 2.0) / 12.0)[:, None] * 2.0,
    }
