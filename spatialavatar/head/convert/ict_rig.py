"""Joints and skinning weights for the ICT head, which has none of its own.

The jaw joint moves nothing: ICT opens the mouth by expressions, which also carry the lower teeth, gums and tongue.
Eyeballs hang on the eye joints; the neck fades into the root over an oblique height, so that the chin stays with the
head. Numbers are ICT centimetres where they say so.
"""

import numpy as np
from jaxtyping import Float, Int

METRES = 0.01
SCLERA_LEFT, SCLERA_RIGHT = np.arange(21451, 22221), np.arange(23021, 23791)
EYEBALL_LEFT, EYEBALL_RIGHT, INSIDE = 7, 8, 2  # parts; those from INSIDE on are in the head
FADE_FROM, FADE_OVER, FADE_SLOPE = -16.0, 9.0, 0.35  # centimetres; height gained for each centimetre forward


def joint_regressor(
    ict: Float[np.ndarray, "V 3"],  # neutral, ICT centimetres
    template: Float[np.ndarray, "V 3"],  # the same in metres, moved to our origin
    part: Int[np.ndarray, " V"],
) -> Float[np.ndarray, "5 V"]:
    """Each joint as weights on a ring of vertices round it: uniform, plus the smallest change that hits its place."""
    x, y, z = ict.T
    skin = part < INSIDE
    rings = [
        skin & (y > -15.5) & (y < -13.5) & (np.abs(x) < 8) & (z > -7),  # base of the neck
        skin & (y > -8) & (y < -4) & (z < 3) & (np.abs(x) < 8),  # nape
        skin & (np.abs(x) > 6) & (np.abs(y) < 2) & (z > 0.5) & (z < 4),  # jaw joints
    ]
    places = np.array([[0, -14.5, -1.0], [0, -6.0, -1.0], [0, 0.0, 2.0]]) * METRES + (template[0] - ict[0] * METRES)
    supports = [np.flatnonzero(ring) for ring in rings]
    targets = list(places)
    for sclera in (SCLERA_LEFT, SCLERA_RIGHT):
        # the bulge of the cornea would bias the sphere: only the back part counts
        back = sclera[template[sclera, 2] < np.percentile(template[sclera, 2], 70)]
        supports.append(back)
        targets.append(_sphere_centre(template[back]))
    regressor = np.zeros((len(supports), len(template)))
    for j, (support, target) in enumerate(zip(supports, targets)):
        uniform = np.full(len(support), 1 / len(support))
        conditions = np.concatenate([template[support], np.ones((len(support), 1))], 1).T
        residual = np.append(target, 1) - conditions @ uniform
        regressor[j, support] = uniform + np.linalg.lstsq(conditions, residual, rcond=None)[0]
    return regressor


def skinning_weights(ict: Float[np.ndarray, "V 3"], part: Int[np.ndarray, " V"]) -> Float[np.ndarray, "V 5"]:
    """Weights on root, neck, jaw, left eye, right eye."""
    height = ict[:, 1] + FADE_SLOPE * ict[:, 2]
    s = np.clip((height - FADE_FROM) / FADE_OVER, 0, 1)
    neck = np.where(part >= INSIDE, 1.0, s * s * (3 - 2 * s))
    weights = np.zeros((len(ict), 5))
    weights[:, 0], weights[:, 1] = 1 - neck, neck
    for eyeball, joint in ((EYEBALL_LEFT, 3), (EYEBALL_RIGHT, 4)):
        weights[part == eyeball] = np.eye(5)[joint]
    return weights


def _sphere_centre(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "3"]:
    """Centre of the sphere that fits best: |p|^2 = 2 p.c + (r^2 - |c|^2) is linear in c."""
    unknowns = np.concatenate([2 * points, np.ones((len(points), 1))], 1)
    return np.linalg.lstsq(unknowns, (points**2).sum(1), rcond=None)[0][:3]
