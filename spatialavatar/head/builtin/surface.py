"""The skin of the built-in head as an implicit surface: smooth unions of ellipsoids and round cones, in millimetres.

Frame: origin in the middle between the ears, +x the subject's left, +y up, +z out of the face. The measures follow
adult anthropometry (head breadth 150, length 195, sellion to menton 120, pupils 63 apart). Everything is symmetric in
x. Ears, lids' margins, lips' edges and the mouth are not here: ``patches`` lays them over this surface.
"""

import numpy as np
from jaxtyping import Float

EYE = np.array([31.5, 25.0, 65.5])  # centre of the left eyeball
EYE_RADIUS = 13.5
MOUTH_Y = -45.0  # height of the closed lip line
MOUTH_HALF_WIDTH = 26.0
NECK_Y = -150.0  # height of the neck's lower ring

Points = Float[np.ndarray, "N 3"]
Values = Float[np.ndarray, " N"]


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below low, 1 above high, smooth between (low > high: falling)."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def bump(points: Points, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Values:
    """A Gaussian bell in space."""
    return np.exp(-(((points - np.array(centre)) / np.array(radii)) ** 2).sum(-1))


def skin_distance(points: Points) -> Values:
    """Approximate signed distance to the skin in mm, negative inside."""
    p = np.stack([np.abs(points[:, 0]), points[:, 1], points[:, 2]], -1)

    # skull
    d = _ellipsoid(p, (0, 44, -8), (73, 86, 94))
    d = _join(d, _ellipsoid(p, (0, 55, 18), (60, 50, 69)), 22)
    d = _join(d, _ellipsoid(p, (0, 20, -48), (58, 60, 50)), 20)
    # middle and lower face
    d = _join(d, _ellipsoid(p, (0, -6, 28), (58, 58, 54)), 24)
    d = _join(d, _ellipsoid(p, (0, -42, 36), (47, 44, 46)), 22)
    d = _join(d, _ellipsoid(p, (0, -44, 62), (30, 25, 34)), 18)
    d = _join(d, _cone(p, (55, -4, 0), (44, -48, 8), 9, 10), 24)
    d = _join(d, _cone(p, (44, -48, 8), (15, -77, 68), 10, 11), 24)
    d = _join(d, _cone(p, (46, -10, 34), (40, -48, 24), 13, 13), 20)
    d = _join(d, _ellipsoid(p, (0, -77, 75), (18, 14, 16)), 14)
    d = _join(d, _ellipsoid(p, (7, -79, 77), (11, 10, 12)), 8)
    d = _join(d, _cone(p, (0, -72, 58), (0, -84, 0), 14, 22), 14)
    d = _join(d, _ellipsoid(p, (48, -3, 44), (15, 13, 22)), 22)
    # brow, eye sockets, lids
    d = _join(d, _cone(p, (10, 39, 79), (40, 42, 64), 8, 8), 16)
    d = _carve(d, _ellipsoid(p, (29, 24, 93), (18, 12, 17)), 12)
    d = _carve(d, _ellipsoid(p, (16, 25, 88), (6, 9, 9)), 8)
    d = _join(d, np.linalg.norm(p - EYE, axis=-1) - (EYE_RADIUS + 1.7), 5)
    # nose
    d = _join(d, _cone(p, (0, 30, 80), (0, -5, 98), 6.0, 7.5), 12)
    d = _join(d, _ellipsoid(p, (0, -9, 103), (9.5, 8.5, 9.0)), 9)
    d = _join(d, _ellipsoid(p, (11.5, -15.0, 95), (6.0, 6.5, 8.5)), 6)
    d = _carve(d, _ellipsoid(p, (6.2, -22.5, 98.5), (3.6, 5.0, 6.0)), 2.5)
    # neck
    d = _join(d, _cone(p, (0, -40, -28), (0, -190, -44), 46, 52), 18)
    d = _join(d, _cone(p, (40, -20, -28), (12, -165, 12), 9, 9), 16)
    d = _join(d, _ellipsoid(p, (0, -112, 18), (8, 14, 12)), 12)
    return d - _relief(p)


def along_rays(origins: Points, directions: Points, start: float, steps: int = 60) -> Points:
    """Outermost point of the skin on rays ``origin + t direction``, coming in from t = ``start`` (mm)."""
    t = np.full(len(origins), float(start))
    for _ in range(steps):
        t -= np.clip(0.75 * skin_distance(origins + t[:, None] * directions), -1.0, 40.0)
    return origins + t[:, None] * directions


def onto_front(xy: Float[np.ndarray, "N 2"]) -> Points:
    """The skin seen from the front: the point with these x and y."""
    origins = np.concatenate([xy, np.zeros((len(xy), 1))], 1)
    return along_rays(origins, np.broadcast_to(np.array([0.0, 0.0, 1.0]), origins.shape), 150.0)


def onto_side(zy: Float[np.ndarray, "N 2"]) -> Points:
    """The skin seen from the subject's left: the point with these z and y."""
    origins = np.stack([np.zeros(len(zy)), zy[:, 1], zy[:, 0]], 1)
    return along_rays(origins, np.broadcast_to(np.array([1.0, 0.0, 0.0]), origins.shape), 120.0)


def _relief(p: Points) -> Values:
    """Small features, as outward displacement in mm."""
    x, y, z = p.T
    front = smoothstep(40.0, 70.0, z)
    # philtrum: a groove between two ridges, from the nose to the upper lip
    between = smoothstep(-24.0, -28.0, y) * smoothstep(-42.0, -36.0, y)
    out = front * between * (0.9 * np.exp(-(((x - 4.6) / 2.4) ** 2)) - 0.9 * np.exp(-((x / 2.6) ** 2)))
    # from the wing of the nose past the corner of the mouth
    fold = x - (19.0 + (-17.0 - y) * 0.48)
    out += (
        front
        * 1.0
        * smoothstep(-12.0, -24.0, y)
        * smoothstep(-58.0, -40.0, y)
        * np.tanh(fold / 4.0)
        * np.exp(-((fold / 11.0) ** 2))
    )
    out += -1.2 * front * np.exp(-(((y + 64.0) / 6.0) ** 2) - ((x / 18.0) ** 2))  # under the lower lip
    out += 1.6 * bump(p, (34.0, -22.0, 74.0), (16.0, 14.0, 20.0))  # cheek
    out += -3.0 * bump(p, (62.0, 38.0, 44.0), (16.0, 20.0, 18.0))  # temple
    out += 1.2 * bump(p, (48.0, -36.0, 48.0), (14.0, 16.0, 24.0))  # below the cheekbone
    # crease of the upper lid
    dx, dy = x - EYE[0], y - EYE[1]
    crease = 9.2 - 0.022 * dx**2
    out += -1.0 * front * np.exp(-(((dy - crease) / 1.7) ** 2)) * smoothstep(17.0, 9.0, np.abs(dx))
    return out


def _ellipsoid(p: Points, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Values:
    q = p - np.array(centre, float)
    r = np.array(radii, float)
    k0 = np.linalg.norm(q / r, axis=-1)
    k1 = np.linalg.norm(q / r**2, axis=-1)
    return k0 * (k0 - 1.0) / np.maximum(k1, 1e-9)


def _cone(
    p: Points, start: tuple[float, float, float], end: tuple[float, float, float], r0: float, r1: float
) -> Values:
    """A capsule whose radius goes from r0 to r1."""
    a, b = np.array(start, float), np.array(end, float)
    axis = b - a
    t = np.clip((p - a) @ axis / (axis @ axis), 0.0, 1.0)
    return np.linalg.norm(p - a - t[:, None] * axis, axis=-1) - (r0 + (r1 - r0) * t)


def _join(a: Values, b: Values, k: float) -> Values:
    """Union with a fillet of about k mm."""
    h = np.maximum(k - np.abs(a - b), 0.0) / k
    return np.minimum(a, b) - h * h * k / 4.0


def _carve(a: Values, b: Values, k: float) -> Values:
    """a without b, with a rounded edge of about k mm."""
    return -_join(-a, b, k)
