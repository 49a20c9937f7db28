"""Structured pieces of the built-in head's mesh: eyes, mouth and ears as concentric rings, in millimetres.

Each piece is a grid of points, rings x columns, whose first ring lies on the skin surface and is shared with the free
triangulation around it. Only the subject's left half is made; ``tessellation`` mirrors it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from spatialavatar.head.builtin.surface import (
    EYE,
    EYE_RADIUS,
    MOUTH_HALF_WIDTH,
    MOUTH_Y,
    onto_front,
    onto_side,
    smoothstep,
)

EYE_COLUMNS = 32
EYE_LID_RINGS = 5  # rings on the skin, the last one the outer edge of the lids
EYEBALL_ANGLES = (97.0, 82.0, 66.0, 52.0, 40.0, 32.0, 26.5, 24.5, 17.0, 9.5, 7.5)  # degrees from the axis of gaze
MOUTH_COLUMNS = 31  # from the middle of the upper lip by the corner to the middle of the lower lip
MOUTH_CORNER = MOUTH_COLUMNS // 2
MOUTH_BORDER_RING = 3  # edge of the red of the lips
MOUTH_EDGE_RING = 8  # where the closed lips meet
TEETH_RINGS = (11, 12)
EAR_COLUMNS = 28


@dataclass(frozen=True)
class Patch:
    points: Float[np.ndarray, "R C 3"]
    closed: bool  # the last column joins the first
    pole: Float[np.ndarray, " 3"] | None = None  # a last single point inside the last ring

    def faces(self, index: Int[np.ndarray, "R C"], pole: int | None = None) -> Int[np.ndarray, "F 3"]:
        """Triangles over the patch; ``index`` gives each grid point's vertex."""
        near, far = index[:-1], index[1:]
        if self.closed:
            a, b, c, d = near, np.roll(near, -1, 1), np.roll(far, -1, 1), far
        else:
            a, b, c, d = near[:, :-1], near[:, 1:], far[:, 1:], far[:, :-1]
        out = [np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)]
        if pole is not None:
            last = index[-1]
            out.append(np.stack([last, np.roll(last, -1), np.full_like(last, pole)], -1))
        return np.concatenate(out)


def lid_margin(count: int) -> Float[np.ndarray, "C 2"]:
    """Outline of the open eye about the eyeball's centre, counter-clockwise seen from the front, from the outer
    corner; x away from the nose."""
    angle = 2 * np.pi * np.arange(count) / count
    x = 14.0 * np.cos(angle)
    s = x / 14.0
    skew = 1.0 - 0.10 * s  # highest a little towards the nose
    upper = 5.1 * np.abs(np.sin(angle)) ** 1.15 * skew
    lower = 4.6 * np.abs(np.sin(angle)) ** 1.35 * (1.0 + 0.12 * s)
    tilt = 0.9 * s  # the outer corner is the higher one
    return np.stack([x, np.where(np.sin(angle) >= 0, upper, -lower) + tilt], -1)


def eye_patch() -> Patch:
    """Lids, their margin, the fold behind them, and the eyeball."""
    n = EYE_COLUMNS
    angle = 2 * np.pi * np.arange(n) / n
    margin = lid_margin(n)
    rim = np.stack([20.5 * np.cos(angle), np.where(np.sin(angle) >= 0, 14.0, 12.5) * np.sin(angle)], -1)
    rings = []
    for share in (0.0, 0.35, 0.62, 0.84):
        rings.append(onto_front(EYE[:2] + rim * (1 - share) + margin * share))
    outward = margin / np.linalg.norm(margin, axis=-1, keepdims=True)
    rings.append(_on_sphere(margin + 0.25 * outward, EYE_RADIUS + 1.75))
    rings.append(_on_sphere(margin - 0.45 * outward, EYE_RADIUS + 1.15))
    # behind the lid, along its inner side, then onto the eyeball
    polar = np.arcsin(np.minimum(np.linalg.norm(margin, axis=-1) / (EYE_RADIUS + 1.15), 0.94))
    azimuth = np.unwrap(np.arctan2(margin[:, 1], margin[:, 0]))
    for share, radius in ((0.25, 0.55), (0.7, 0.5)):
        rings.append(
            _spherical(polar + share * (np.radians(92) - polar), azimuth * (1 - share) + angle * share, radius)
        )
    for degrees in EYEBALL_ANGLES:
        rings.append(_spherical(np.full(n, np.radians(degrees)), angle, 0.0))
    return Patch(np.stack(rings), closed=True, pole=EYE + np.array([0.0, 0.0, EYE_RADIUS]))


def lip_line(x: np.ndarray) -> np.ndarray:
    """Height of the closed mouth's line."""
    s = np.abs(x) / MOUTH_HALF_WIDTH
    return MOUTH_Y + 0.9 * np.exp(-(((s - 0.30) / 0.16) ** 2)) - 0.6 * np.exp(-((s / 0.14) ** 2)) + 0.4 * s**2


def lip_height(x: np.ndarray, upper: bool) -> np.ndarray:
    """Height of the red of one lip above or below the lip line."""
    s = np.clip(np.abs(x) / MOUTH_HALF_WIDTH, 0.0, 1.0)
    taper = np.sqrt(np.clip(1 - s**2, 0.0, 1.0))
    if upper:
        bow = 1.0 + 0.16 * np.exp(-(((s - 0.17) / 0.10) ** 2)) - 0.16 * np.exp(-((s / 0.09) ** 2))
        return 7.0 * taper ** (1.35) * bow * (1 - 0.12 * s)
    return 8.6 * taper**1.25


def mouth_patch() -> Patch:
    """Left half of the mouth: skin around the lips, lips, and the pocket behind them with the rows of teeth."""
    n = MOUTH_COLUMNS
    angle = np.pi / 2 - np.pi * np.arange(n) / (n - 1)  # +90 upper middle, 0 corner, -90 lower middle
    sign = np.where(np.arange(n) < MOUTH_CORNER, 1.0, -1.0)
    sign[MOUTH_CORNER] = 0.0
    cosine = np.cos(angle)
    cosine[0] = cosine[-1] = 0.0
    # columns a little closer together towards the corner
    along = 1.0 - np.abs(np.arange(n) - MOUTH_CORNER) / MOUTH_CORNER
    x = MOUTH_HALF_WIDTH * (0.35 * np.sin(np.pi / 2 * along) + 0.65 * along)
    line = lip_line(x)
    red = np.where(sign > 0, lip_height(x, True), lip_height(x, False)) * np.abs(sign)
    border = np.stack([x, line + sign * red], -1)
    outer = np.stack([38.0 * cosine, MOUTH_Y + np.where(angle > 0, 17.0, 20.5) * np.sin(angle)], -1)

    rings = [onto_front(outer)]
    for share in (0.42, 0.80):
        rings.append(onto_front(outer * (1 - share) + border * share))
    for tau in (1.0, 0.78, 0.54, 0.30, 0.12, 0.0):
        flat = np.stack([x, line + sign * np.maximum(red * tau, 0.03)], -1)
        skin = onto_front(flat)
        skin[:, 2] += _lip_profile(x, tau, sign > 0)
        rings.append(skin)
    # the pocket: (mm behind the lips' edge, mm above or below the lip line, narrowing)
    edge = rings[-1]
    fullness = np.sqrt(np.clip(1 - (x / MOUTH_HALF_WIDTH) ** 2, 0.0, 1.0))
    upper_and_lower = (
        ((4.0, 2.2, 0.99), (4.0, 2.2, 0.99)),
        ((5.5, 8.5, 0.97), (5.5, 9.0, 0.97)),
        ((5.8, 8.3, 0.90), (6.6, 8.5, 0.90)),  # gum line
        ((5.8, -1.2, 0.87), (7.6, 1.8, 0.87)),  # edge of the teeth
        ((8.8, -0.8, 0.80), (10.4, 2.1, 0.80)),
        ((12.0, 9.0, 0.76), (13.5, 9.0, 0.76)),
        ((32.0, 12.0, 0.70), (32.0, 9.0, 0.70)),
        ((46.0, 4.0, 0.60), (46.0, 4.0, 0.60)),
    )
    teeth = [top for top, _ in upper_and_lower[3:5]]
    for top, bottom in upper_and_lower:
        back, high, narrow = (np.where(sign >= 0, t, b) for t, b in zip(top, bottom, strict=True))
        ring = edge.copy()
        ring[:, 0] *= narrow
        # teeth end level, and before the corner of the mouth
        flat = fullness**0.35 * smoothstep(1.0, 0.8, x / MOUTH_HALF_WIDTH) if top in teeth else fullness
        ring[:, 1] = (MOUTH_Y if top in teeth else line) + sign * high * flat
        ring[:, 2] -= back * (0.35 + 0.65 * fullness)
        rings.append(ring)
    points = np.stack(rings)
    points[:, [0, -1], 0] = 0.0
    return Patch(points, closed=False)


def mouth_back_faces(last: Int[np.ndarray, " C"]) -> Int[np.ndarray, "F 3"]:
    """Closes the pocket: joins the upper and the lower half of its last ring."""
    faces = []
    for i in range(MOUTH_CORNER):
        a, b = last[i], last[i + 1]
        c, d = last[-1 - i], last[-2 - i]
        if b == d:
            faces.append((a, b, c))
        else:
            faces += [(a, b, d), (a, d, c)]
    return np.array(faces)


def ear_patch() -> Patch:
    """The ear: attachment, back, helix, scapha, antihelix, bowl."""
    n = EAR_COLUMNS
    angle = 2 * np.pi * np.arange(n) / n
    back, up = np.cos(angle), np.sin(angle)
    attachment = np.stack([1.0 + 11.0 * back, -1.0 + 26.0 * up], -1)  # (backwards, upwards) from the ear's centre
    low = smoothstep(0.1, -0.9, up)
    outline = np.stack(
        [
            np.where(back > 0, 21.0 * (1 - 0.38 * low), 11.0 * (1 - 0.25 * low)) * back + 2.0 * up,
            np.where(up > 0, 31.0, 29.0) * up,
        ],
        -1,
    )
    side = onto_side(_ear_plane(attachment))
    # the head's side as a plane under the whole ear
    design = np.concatenate([attachment, np.ones((n, 1))], 1)
    plane = np.linalg.solve(design.T @ design, design.T @ side[:, 0])

    bowl = np.array([-3.5, -3.0])  # where the bowl lies about the ear's centre
    behind = smoothstep(-0.7, 0.5, back)  # 0 at the front edge, which stays on the head
    lobe = smoothstep(-0.45, -0.85, up)
    rim = (1 - lobe) * (0.35 + 0.65 * np.maximum(behind, smoothstep(0.2, 0.8, up)))
    tragus = np.exp(-(((back + 1.0) / 0.25) ** 2) - ((up + 0.12) / 0.30) ** 2)
    stand = 2.5 + 13.5 * np.clip((outline[:, 0] + 11.0) / 33.0, 0, 1)
    # ring by ring: where between attachment (0) and outline (1), or scale of the outline; mm off the head
    rings = [side]
    rows = (
        ("a", 0.18, 0.16 * stand),
        ("a", 0.60, 0.55 * stand),
        ("a", 0.93, 0.86 * stand - 0.8),
        ("a", 1.00, stand + 0.8),
        ("o", 0.955, stand + 2.6 * (0.4 + 0.6 * rim)),
        ("o", 0.89, stand + 2.9 * rim + 1.0 * (1 - rim) + 2.5 * tragus),
        ("o", 0.82, stand + 0.6 * rim + 1.0 * (1 - rim) + 4.5 * tragus),
        ("o", 0.73, stand - 2.6 * rim + 0.6 * (1 - rim) + 5.0 * tragus),
        ("o", 0.60, stand - 1.0 * rim + 0.2 * (1 - rim) + 2.5 * tragus),
        ("o", 0.50, stand + 0.4 * rim - 0.6 * (1 - rim)),
        ("o", 0.38, 0.62 * stand - 0.6),
        ("o", 0.24, 0.30 * stand - 0.5),
        ("o", 0.11, 0.10 * stand - 1.2),
    )
    for kind, amount, height in rows:
        if kind == "a":
            at = attachment * (1 - amount) + outline * amount
        else:
            at = outline * amount + bowl * (1 - amount) ** 1.2
        base = np.concatenate([at, np.ones((n, 1))], 1) @ plane
        zy = _ear_plane(at)
        rings.append(np.stack([base + height, zy[:, 1], zy[:, 0]], -1))
    pole_zy = _ear_plane(bowl[None])[0]
    pole = np.array([np.append(bowl, 1.0) @ plane - 2.0, pole_zy[1], pole_zy[0]])
    return Patch(np.stack(rings), closed=True, pole=pole)


def _lip_profile(x: np.ndarray, tau: float, upper: np.ndarray) -> np.ndarray:
    """Forward displacement of the lips in mm: full in the middle of the red, drawn in where the lips meet."""
    s = np.clip(np.abs(x) / MOUTH_HALF_WIDTH, 0.0, 1.0)
    full = np.where(upper, 2.5 + 0.5 * np.exp(-((s / 0.12) ** 2)), 3.4) * np.clip(1 - s**2, 0, 1) ** 0.7
    return full * np.sin(np.pi * tau**0.75) - (2.0 * np.sqrt(np.clip(1 - s**2, 0, 1)) + 0.5) * (1 - tau) ** 3


def _on_sphere(offset: Float[np.ndarray, "N 2"], radius: float) -> Float[np.ndarray, "N 3"]:
    depth = np.sqrt(np.maximum(radius**2 - (offset**2).sum(-1), 9.0))
    return EYE + np.concatenate([offset, depth[:, None]], 1)


def _spherical(polar: np.ndarray, azimuth: np.ndarray, clearance: float) -> Float[np.ndarray, "N 3"]:
    radius = EYE_RADIUS + clearance
    return EYE + radius * np.stack(
        [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1
    )


def _ear_plane(at: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
    """(backwards, upwards) about the ear's centre -> (z, y); the ear leans back."""
    lean = np.radians(11.0)
    b, a = at[:, 0], at[:, 1]
    return np.stack([-13.0 - b * np.cos(lean) - a * np.sin(lean), 3.0 + a * np.cos(lean) - b * np.sin(lean)], -1)
