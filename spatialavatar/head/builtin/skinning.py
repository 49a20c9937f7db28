"""Joints of the built-in head, the regressor that finds them on any shape, and the skinning weights."""

import numpy as np
from jaxtyping import Float

from spatialavatar.head.builtin import patches
from spatialavatar.head.builtin.anatomy import EYEBALL_RING
from spatialavatar.head.builtin.surface import EYE as EYE_CENTRE
from spatialavatar.head.builtin.surface import MOUTH_HALF_WIDTH, smoothstep
from spatialavatar.head.builtin.tessellation import EYE, MOUTH, HeadMesh

JOINTS = np.array(
    [
        [0.0, -132.0, -38.0],  # root
        [0.0, -92.0, -32.0],  # neck
        [0.0, -8.0, 2.0],  # jaw
        EYE_CENTRE,
        EYE_CENTRE * np.array([-1.0, 1.0, 1.0]),
    ]
)


def joint_regressor(mesh: HeadMesh) -> Float[np.ndarray, "J V"]:
    """For each joint the smallest weights, on vertices around it, that sum to 1 and meet it on the template.

    The eyes' weights lie on the eyeballs alone, which every shape code moves and scales as a piece: they stay exact.
    """
    x, y, z = mesh.points.T
    below_hair = (mesh.patch != EYE) & (mesh.patch != MOUTH)
    support = [
        (y < -120.0),
        (y < -88.0) & (y > -118.0) & (z < 40.0) & below_hair,
        (np.abs(y + 8.0) < 16.0) & (z > 8.0) & (z < 40.0) & (np.abs(x) > 50.0),
        mesh.select(EYE, 1) & (mesh.ring >= EYEBALL_RING),
        mesh.select(EYE, -1) & (mesh.ring >= EYEBALL_RING),
    ]
    out = np.zeros((len(JOINTS), len(mesh.points)))
    for j, chosen in enumerate(support):
        design = np.concatenate([mesh.points[chosen], np.full((chosen.sum(), 1), 100.0)], 1)
        target = np.append(JOINTS[j], 100.0)
        out[j, chosen] = design @ np.linalg.solve(design.T @ design, target)
    return out


def skinning_weights(mesh: HeadMesh) -> Float[np.ndarray, "V J"]:
    y = mesh.points[:, 1]
    out = np.zeros((len(mesh.points), len(JOINTS)))
    out[:, 0] = smoothstep(-100.0, -146.0, y)
    out[:, 2] = jaw_weight(mesh) * (1 - out[:, 0])
    for j, side in ((3, 1), (4, -1)):
        eyeball = mesh.select(EYE, side)
        out[eyeball & (mesh.ring > EYEBALL_RING), j] = 1.0
        out[eyeball & (mesh.ring == EYEBALL_RING), j] = 0.5
    out[:, 1] = 1.0 - out[:, [0, 2, 3, 4]].sum(1)
    return out


def jaw_weight(mesh: HeadMesh) -> Float[np.ndarray, " V"]:
    """How much of the jaw's rotation each vertex takes."""
    x, y, z = np.abs(mesh.points[:, 0]), mesh.points[:, 1], mesh.points[:, 2]
    below = patches.lip_line(np.minimum(x, MOUTH_HALF_WIDTH)) - y  # mm below the lip line
    # the line goes on from the corner of the mouth to the joint in front of the ear
    beyond = np.maximum(x - MOUTH_HALF_WIDTH, 0.0)
    depth = np.clip((78.0 - z) / 70.0, 0.0, 1.0)
    below = below + 26.0 * depth * smoothstep(18.0, 44.0, x)
    band = 5.0 + 0.55 * beyond + 16.0 * depth
    gradual = 0.5 + 0.5 * np.clip(below / band, -1.0, 1.0) * (1.5 - 0.5 * np.clip(below / band, -1.0, 1.0) ** 2)
    apart = np.where(below > 0, 1.0, 0.0)
    open_share = np.clip(1.0 - (x / (1.01 * MOUTH_HALF_WIDTH)) ** 2.2, 0.0, 1.0) ** 0.62
    weight = (1 - open_share) * gradual + open_share * apart

    # inside the mouth patch upper and lower are known, whatever the height
    mouth = mesh.select(MOUTH)
    lower = mouth & (mesh.column > patches.MOUTH_CORNER)
    upper = mouth & (mesh.column < patches.MOUTH_CORNER)
    lips = mouth & (mesh.ring >= patches.MOUTH_BORDER_RING)
    # the opening is an ellipse: at the corners upper and lower lip move alike
    share = np.clip(1.0 - (x / (1.01 * MOUTH_HALF_WIDTH)) ** 2.2, 0.0, 1.0) ** 0.62
    share[mesh.select(MOUTH) & (mesh.column == patches.MOUTH_CORNER)] = 0.0
    inner = np.where(lower, 0.5 + 0.5 * share, np.where(upper, 0.5 - 0.5 * share, 0.5))
    blend = np.where(lips, 1.0, np.where(mouth, np.clip(mesh.ring / patches.MOUTH_BORDER_RING, 0, 1), 0.0))
    weight = blend * inner + (1 - blend) * weight

    # behind: nothing follows behind the joint, the throat follows less and less
    weight *= smoothstep(-4.0, 26.0, z)
    weight *= 1.0 - smoothstep(-88.0, -112.0, y) * smoothstep(75.0, 40.0, z)
    weight *= 1.0 - 0.85 * smoothstep(48.0, 18.0, z) * smoothstep(-74.0, -96.0, y)
    deep = mouth & (mesh.ring > patches.TEETH_RINGS[1] + 1)
    rings = mesh.ring.max(initial=1, where=mouth)
    fade = np.clip((rings - mesh.ring) / 3.0, 0.0, 1.0)
    weight = np.where(deep, fade * inner + (1 - fade) * 0.4, weight)
    weight[mouth & ~deep & lips] = inner[mouth & ~deep & lips]
    return weight
