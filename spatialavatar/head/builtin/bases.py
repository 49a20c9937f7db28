"""Shape and expression codes of the built-in head: named leading modes, then smooth harmonics, all orthogonal.

Every field is a displacement in mm at the template's vertices. Gram-Schmidt in order keeps the leading modes' meaning;
each mode is then scaled so that a coefficient of 1 does what its name says (expressions) or is one standard deviation
(shape).
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from spatialavatar.head.builtin import patches
from spatialavatar.head.builtin.anatomy import EYEBALL_RING, LID_INSIDE_RING
from spatialavatar.head.builtin.surface import EYE as EYE_CENTRE
from spatialavatar.head.builtin.surface import EYE_RADIUS, MOUTH_HALF_WIDTH, bump, smoothstep
from spatialavatar.head.builtin.tessellation import EAR, EYE, MOUTH, HeadMesh

SHAPE_CODES = 300
EXPRESSION_CODES = 100
Field = Float[np.ndarray, "V 3"]
_SUM_AND_DIFFERENCE = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2.0)

EXPRESSIONS = [
    "blink_left",
    "blink_right",
    "pucker",
    "smile_left",
    "smile_right",
    "mouth_open_lips",
    "brow_raise_left",
    "brow_raise_right",
    "brow_frown",
    "frown_left",
    "frown_right",
    "sneer_left",
    "sneer_right",
    "cheek_puff_left",
    "cheek_puff_right",
    "squint_left",
    "squint_right",
    "lips_press",
    "mouth_left",
    "upper_lip_raise",
    "brow_inner_raise",
    "chin_raise",
    "lip_stretch",
    "nostril_flare",
]
MOUTH_OPENING = ["mouth_open_lips"]
SHAPES = [
    "size",
    "face_width",
    "skull_depth",
    "skull_height",
    "jaw_width",
    "chin_length",
    "chin_forward",
    "nose_length",
    "nose_width",
    "nose_bridge",
    "eye_spacing",
    "brow_forward",
    "forehead_slope",
    "cheekbones",
    "cheek_fullness",
    "lip_fullness",
    "mouth_width",
    "mouth_height",
    "ear_size",
    "ear_stand",
    "neck_width",
    "nose_hook",
]


def expression_names() -> list[str]:
    return EXPRESSIONS + [f"mode_{i:03d}" for i in range(len(EXPRESSIONS) + 1, EXPRESSION_CODES + 1)]


def shape_basis(mesh: HeadMesh) -> Float[np.ndarray, "V 3 S"]:
    named = [_eyes_as_a_piece(mesh, f) for f in _named_shapes(mesh)]
    harmonics = _harmonics(mesh, np.ones(len(mesh.points)), SHAPE_CODES - len(named) + 12)
    return _orthogonal(mesh, named, [_eyes_as_a_piece(mesh, f) for f in harmonics], SHAPE_CODES, 0.55)


def expression_basis(mesh: HeadMesh) -> Float[np.ndarray, "V 3 E"]:
    named = _named_expressions(mesh)
    _x, y, z = mesh.points.T
    face = smoothstep(20.0, 60.0, z) * smoothstep(80.0, 50.0, y) * smoothstep(-100.0, -85.0, y)
    face *= 1.0 - _around_eyes(mesh)
    face[mesh.select(EAR)] = 0.0
    # teeth and the pocket behind them stay
    face[mesh.select(MOUTH) & (mesh.ring > patches.MOUTH_EDGE_RING + 1)] = 0.0
    pairs = [i for i, name in enumerate(EXPRESSIONS) if name.endswith("_left") and name != "mouth_left"]
    harmonics = _harmonics(mesh, face, EXPRESSION_CODES - len(named) + 12)
    return _orthogonal(mesh, named, harmonics, EXPRESSION_CODES, 0.35, pairs)


def _named_expressions(mesh: HeadMesh) -> list[Field]:
    p = mesh.points
    x, y, _z = p.T
    lower, upper, _corner = _lips(mesh)
    out: dict[str, Field] = {}
    for name, side in (("left", 1.0), ("right", -1.0)):
        q = p * np.array([side, 1.0, 1.0])  # as if on the left
        on_side = smoothstep(-14.0, 14.0, q[:, 0])
        away = np.array([side, 1.0, 1.0])
        out[f"blink_{name}"] = _blink(mesh, int(side))
        pull = _reach(q, (27.0, -45.0, 88.0), (20.0, 15.0, 26.0)) * on_side
        wide = _reach(q, (22.0, -45.0, 90.0), (27.0, 17.0, 30.0))
        outwards = np.clip(q[:, 0] / 26.0, 0.0, 1.15)
        cheek = bump(q, (40.0, -12.0, 70.0), (19.0, 16.0, 24.0))
        smile = wide[:, None] * np.stack([7.0 * outwards, 6.8 * outwards**2.4 - 0.8, -3.8 * outwards**1.7], -1)
        smile *= smoothstep(-6.0, 6.0, q[:, 0])[:, None]
        smile += cheek[:, None] * np.array([0.8, 3.4, 3.2])
        smile += 0.9 * bump(q, (15.0, -17.0, 92.0), (7.0, 8.0, 12.0))[:, None] * np.array([1.0, 0.8, 0.0])
        out[f"smile_{name}"] = smile * away
        out[f"frown_{name}"] = (pull[:, None] * np.array([1.0, -6.0, -0.8])) * away
        brow = _reach(q, (28.0, 46.0, 74.0), (30.0, 14.0, 34.0)) * smoothstep(-8.0, 12.0, q[:, 0])
        forehead = bump(q, (27.0, 68.0, 74.0), (28.0, 16.0, 40.0)) * smoothstep(-10.0, 12.0, q[:, 0])
        out[f"brow_raise_{name}"] = brow[:, None] * np.array([0.0, 6.5, 1.2]) * away + forehead[:, None] * np.array(
            [0.0, 3.0, 0.3]
        )
        wing = bump(q, (13.0, -13.0, 94.0), (9.0, 11.0, 14.0)) * smoothstep(-2.0, 8.0, q[:, 0])
        fold = bump(q, (19.0, -30.0, 90.0), (12.0, 9.0, 14.0)) * smoothstep(-2.0, 8.0, q[:, 0])
        out[f"sneer_{name}"] = (
            wing[:, None] * np.array([1.2, 3.6, 0.4]) + (fold * upper)[:, None] * np.array([1.0, 4.6, 0.6])
        ) * away
        puff = bump(q, (42.0, -40.0, 66.0), (18.0, 20.0, 26.0))
        out[f"cheek_puff_{name}"] = puff[:, None] * np.array([8.0, 0.0, 4.5]) * away
        below_eye = bump(q, (33.0, 9.0, 76.0), (20.0, 9.0, 24.0))
        beside = bump(q, (50.0, 22.0, 66.0), (10.0, 16.0, 20.0))
        squint = below_eye[:, None] * np.array([0.0, 3.4, 1.6]) + beside[:, None] * np.array([-1.4, 0.0, 0.0])
        out[f"squint_{name}"] = squint * away

    lip_line = patches.lip_line(np.minimum(np.abs(x), MOUTH_HALF_WIDTH))
    front = _reach(p, (0.0, -45.0, 95.0), (30.0, 20.0, 30.0))
    above = _reach(p, (0.0, -38.0, 98.0), (24.0, 16.0, 26.0)) * upper
    below = _reach(p, (0.0, -54.0, 96.0), (23.0, 15.0, 26.0)) * lower
    out["mouth_open_lips"] = above[:, None] * np.array([0.0, 3.2, 0.6]) - below[:, None] * np.array([0.0, 5.6, -0.3])
    inwards = np.stack([-0.36 * x, 0.10 * (y + 45.0), 5.0 + 0.0024 * x**2], -1)
    out["pucker"] = front[:, None] * inwards
    between = bump(p, (0.0, 42.0, 84.0), (17.0, 15.0, 26.0))
    inner_brow = bump(np.abs(p) * [1, 0, 0] + p * [0, 1, 1], (17.0, 43.0, 80.0), (15.0, 12.0, 22.0))
    down = np.stack(
        [-np.sign(x) * 3.2 * smoothstep(0.0, 10.0, np.abs(x)), np.full_like(x, -5.0), np.full_like(x, 1.2)], -1
    )
    out["brow_frown"] = inner_brow[:, None] * down + between[:, None] * np.array([0.0, -1.6, 0.5])
    out["lips_press"] = front[:, None] * np.stack(
        [0.0 * x, -0.22 * np.clip(y - lip_line, -9, 9), np.full_like(x, -2.0)], -1
    )
    out["mouth_left"] = front[:, None] * np.array([6.0, 0.0, 0.0])
    out["upper_lip_raise"] = above[:, None] * np.array([0.0, 4.0, 1.0])
    out["brow_inner_raise"] = inner_brow[:, None] * np.array([0.0, 6.0, 0.8])
    chin = bump(p, (0.0, -70.0, 92.0), (20.0, 15.0, 20.0)) + 0.6 * below
    out["chin_raise"] = chin[:, None] * np.array([0.0, 3.6, 1.4])
    corners = _reach(np.abs(p) * [1, 0, 0] + p * [0, 1, 1], (28.0, -46.0, 86.0), (16.0, 16.0, 24.0))
    out["lip_stretch"] = corners[:, None] * np.stack([np.clip(x / 6, -1, 1) * 5.0, 0.0 * x - 1.0, 0.0 * x - 2.4], -1)
    nostril = bump(np.abs(p) * [1, 0, 0] + p * [0, 1, 1], (13.0, -15.0, 95.0), (7.0, 8.0, 12.0))
    out["nostril_flare"] = nostril[:, None] * np.stack([np.clip(x / 6, -1, 1) * 2.4, 0.6 + 0 * x, 0.0 * x], -1)

    rigid_eyes = _eyeballs(mesh)
    lids = _lid_share(mesh)
    stays = mesh.select(MOUTH) & (mesh.ring > patches.MOUTH_EDGE_RING + 1)
    fields = []
    for name in EXPRESSIONS:
        field = out[name].copy()
        if not name.startswith("blink"):
            field[rigid_eyes] = 0.0
            field *= (1.0 - (0.75 if "squint" in name else 0.92) * lids)[:, None]
            field[stays] = 0.0
        fields.append(field)
    return fields


def _blink(mesh: HeadMesh, side: int) -> Field:
    """Lids turn about the eyeball's left-right axis until their margins meet, a little below the middle."""
    p = mesh.points * np.array([side, 1.0, 1.0]) - EYE_CENTRE
    lid = mesh.select(EYE, side) & (mesh.ring < EYEBALL_RING)
    field = np.zeros_like(mesh.points)
    elevation = np.arctan2(p[:, 1], np.maximum(p[:, 2], 0.5))
    margin = patches.lid_margin(patches.EYE_COLUMNS)
    column = mesh.column
    # the partner across the eye has the same x: columns i and n - i
    partner = (-column) % patches.EYE_COLUMNS
    radius = EYE_RADIUS + 1.5
    own, other = margin[column], margin[partner]

    def lift(m: np.ndarray) -> np.ndarray:
        return np.arctan2(m[:, 1], np.sqrt(np.maximum(radius**2 - (m**2).sum(-1), 9.0)))

    is_upper = own[:, 1] >= other[:, 1]
    high, low = np.where(is_upper, lift(own), lift(other)), np.where(is_upper, lift(other), lift(own))
    meet = low + 0.10 * (high - low)
    sweep = meet - lift(own)
    ring = mesh.ring
    last = patches.EYE_LID_RINGS - 1
    share = np.where(
        ring <= last,
        np.array([0.0, 0.05, 0.32, 0.68, 1.0])[np.minimum(ring, last)],
        np.where(ring == last + 1, 1.0, 0.0),
    )
    share = np.where(ring == last + 2, 0.75, share)
    share = np.where(ring == last + 3, 0.25, share)
    # above the crease the skin hardly follows
    share = share * np.where(is_upper, 1.0, 1.0)
    turn = sweep * share
    across = np.hypot(p[:, 1], p[:, 2])
    # the margins meet edge to edge, on the same shell
    shell = np.sqrt(np.maximum((EYE_RADIUS + 2.0) ** 2 - p[:, 0] ** 2, 16.0))
    out = np.maximum(across, np.where((ring >= 1) & (ring <= last), shell * np.minimum(share * 2, 1.0), 0.0))
    moved = np.stack([p[:, 0], np.sin(elevation + turn) * out, np.cos(elevation + turn) * out], -1)
    field[lid] = (moved - np.stack([p[:, 0], p[:, 1], p[:, 2]], -1))[lid]
    field[mesh.select(EYE, side) & (ring == 0)] = 0.0
    return field * np.array([side, 1.0, 1.0])


def _named_shapes(mesh: HeadMesh) -> list[Field]:
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

    fields = [
        0.028 * p,
        along(face, 0.055 * x, 0.0, 0.0),
        along(smoothstep(60.0, -40.0, z) * smoothstep(-80.0, -10.0, y), 0.0, 0.0, 0.05 * (z - 40.0)),
        along(skull, 0.0, 0.045 * (y - 10.0), 0.0),
        along(jaw, 0.065 * x, 0.0, 0.0),
        along(smoothstep(-48.0, -85.0, y) * smoothstep(20.0, 60.0, z), 0.0, -3.6, 0.0),
        along(chin, 0.0, 0.0, 3.6),
        along(tip, 0.0, -2.0, 3.2),
        along(bump(folded, (13.0, -14.0, 96.0), (11.0, 12.0, 18.0)), 2.4 * side, 0.0, 0.0),
        along(bump(p, (0.0, 14.0, 90.0), (11.0, 16.0, 20.0)), 0.0, 0.0, 2.8),
        along(eyes, 1.5 * side, 0.0, 0.0),
        along(brow, 0.0, -0.6, 2.4),
        along(forehead, 0.0, 0.0, 3.6),
        along(bones, 2.2 * side, 0.0, 1.2),
        along(cheeks, 3.4 * side, 0.0, 1.4),
        along(lips, 0.0, 0.16 * np.clip(y - lip_line, -12, 12), 1.6),
        along(corner, 2.6 * side, 0.0, -0.8),
        along(bump(p, (0.0, -46.0, 96.0), (36.0, 20.0, 30.0)), 0.0, 2.4, 0.0),
        along(ear, 0.0, 0.08 * (y - 3.0), 0.10 * (z + 8.0)),
        along(ear, 2.8 * np.sign(x), 0.0, 0.0) * np.clip((-z + 2.0) / 24.0, 0, 1)[:, None],
        along(neck, 0.07 * x, 0.0, 0.07 * (z + 38.0)),
        along(nose, 0.0, 0.0, 1.0) * np.cos((y + 2.0) / 12.0)[:, None] * 2.0,
    ]
    assert len(fields) == len(SHAPES)
    return fields


def _harmonics(mesh: HeadMesh, mask: Float[np.ndarray, " V"], count: int) -> list[Field]:
    """Products of cosines in x, y and z along each axis, from low to high frequency, under a mask."""
    p = mesh.points
    t = (p - np.array([0.0, 0.0, 0.0])) / np.array([95.0, 150.0, 120.0])  # about -1..1

    waves: list[tuple[float, int, tuple[int, int, int]]] = []
    for k in itertools.product(range(6), range(6), range(6)):
        for axis in range(3):
            # faces are mostly symmetric: what breaks the symmetry comes later
            odd_x = (k[0] % 2 == 1) != (axis == 0)
            waves.append((float(np.linalg.norm(k)) + (1.6 if odd_x else 0.0) + 0.01 * axis, axis, k))
    waves.sort()
    fields = []
    for _, axis, k in waves[1 : count + 1]:
        shape = np.ones(len(p))
        for d, frequency in enumerate(k):
            phase = 0.0 if frequency % 2 == 0 else np.pi / 2
            shape = shape * np.cos(np.pi / 2 * frequency * t[:, d] - phase)
        field = np.zeros_like(p)
        field[:, axis] = shape * mask
        fields.append(field)
    return fields


def _orthogonal(
    mesh: HeadMesh, named: list[Field], smooth: list[Field], count: int, rms: float, pairs: Sequence[int] = ()
) -> Float[np.ndarray, "V 3 K"]:
    """Named modes keep what the earlier ones leave of them; the smooth ones get falling amplitudes (first: rms mm).

    ``pairs`` are left modes followed by their right twins: they are treated alike, so faces stay symmetric.
    """
    columns = np.stack([f.ravel() for f in named + smooth], -1)
    for left in pairs:
        columns[:, [left, left + 1]] = columns[:, [left, left + 1]] @ _SUM_AND_DIFFERENCE
    norms = np.linalg.norm(columns, axis=0)
    q = columns / norms
    left_over = _orthonormalise(q, keep=len(named))
    chosen = np.flatnonzero(left_over > 1e-3)[:count]
    if len(chosen) < count:
        raise ValueError(f"only {len(chosen)} independent modes for {count} codes")
    q = np.ascontiguousarray(q[:, chosen])
    _orthonormalise(q, keep=count)  # once more, against rounding
    amplitude = np.empty(count)
    n = len(named)
    amplitude[:n] = (left_over * norms)[:n]
    for left in pairs:  # back from sum and difference: of equal length, so that left and right stay orthogonal
        q[:, [left, left + 1]] = q[:, [left, left + 1]] @ _SUM_AND_DIFFERENCE
        amplitude[[left, left + 1]] = np.sqrt((amplitude[[left, left + 1]] ** 2).mean())
    order = np.arange(count - n)
    amplitude[n:] = rms * np.sqrt(len(mesh.points)) / (1.0 + order / 12.0) ** 0.75
    return (q * amplitude).reshape(len(mesh.points), 3, count)


def _orthonormalise(columns: Float[np.ndarray, "N K"], keep: int) -> Float[np.ndarray, " K"]:
    """Gram-Schmidt in place, by the Cholesky factor of the Gram matrix (much faster than QR on tall matrices).

    Returns what was left of each unit column after the earlier ones were taken out; columns after the first ``keep``
    of which hardly anything is left become zero.
    """
    n = columns.shape[1]
    rest = columns.T @ columns
    factor = np.zeros((n, n))  # columns = q factor
    for k in range(n):
        pivot = np.sqrt(max(rest[k, k], 0.0))
        if k >= keep and pivot < 1e-3:
            continue
        factor[k] = rest[k] / pivot
        factor[k, :k] = 0.0
        rest -= np.outer(factor[k], factor[k])
    left_over = np.diag(factor).copy()
    good = left_over > 0
    columns[:, good] = np.linalg.solve(factor[np.ix_(good, good)].T, columns[:, good].T).T
    columns[:, ~good] = 0.0
    return left_over


def _lips(mesh: HeadMesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of lower and upper mouth (both 0.5 at the corners), and of the corners themselves."""
    below = patches.lip_line(np.minimum(np.abs(mesh.points[:, 0]), MOUTH_HALF_WIDTH)) - mesh.points[:, 1]
    mouth = mesh.select(MOUTH)
    sign = np.where(mouth, np.sign(mesh.column - patches.MOUTH_CORNER), np.sign(below))
    corner = smoothstep(MOUTH_HALF_WIDTH - 10.0, MOUTH_HALF_WIDTH, np.abs(mesh.points[:, 0]))
    gradual = np.clip(below / 12.0, -1.0, 1.0)
    lower = 0.5 + 0.5 * ((1 - corner) * sign + corner * np.where(mouth & (np.abs(below) < 1.0), 0.0, gradual))
    return lower, 1.0 - lower, corner


def _reach(p: np.ndarray, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """A flat-topped bell."""
    squared = (((p - np.array(centre)) / np.array(radii)) ** 2).sum(-1)
    return np.exp(-(squared**1.3) * 0.7)


def _eyeballs(mesh: HeadMesh) -> np.ndarray:
    return mesh.select(EYE) & (mesh.ring >= EYEBALL_RING - 1)


def _lid_share(mesh: HeadMesh) -> Float[np.ndarray, " V"]:
    """1 at the lids' margins and behind them, 0 away from the eye: expressions must not push lids into the eyeball."""
    share = np.zeros(len(mesh.points))
    eye = mesh.select(EYE)
    share[eye] = np.array([0.0, 0.25, 0.6, 0.9, 1.0])[np.minimum(mesh.ring[eye], 4)]
    return share


def _around_eyes(mesh: HeadMesh) -> Float[np.ndarray, " V"]:
    folded = mesh.points * np.where(mesh.points[:, :1] < 0, -1.0, 1.0) ** np.array([1, 0, 0])
    distance = np.linalg.norm(folded - EYE_CENTRE, axis=-1)
    around = smoothstep(2.3 * EYE_RADIUS, 1.35 * EYE_RADIUS, distance)
    around[mesh.select(EYE) & (mesh.ring >= LID_INSIDE_RING)] = 1.0
    return around


def _eyes_as_a_piece(mesh: HeadMesh, field: Field) -> Field:
    """Near an eye the field becomes the move of the eye as a whole, so that eyeball and lids keep fitting."""
    out = field.copy()
    around = _around_eyes(mesh)
    for side in (1, -1):
        eyeball = mesh.select(EYE, side) & (mesh.ring >= EYEBALL_RING)
        move = field[eyeball].mean(0)
        near = around * ((mesh.points[:, 0] * side) > 0)
        out += near[:, None] * (move - out)
    return out
