"""The named expressions of the built-in head: displacements of its vertices, in mm, at a coefficient of 1."""

import numpy as np
from jaxtyping import Float

from spatialavatar.head.builtin import patches
from spatialavatar.head.builtin.anatomy import EYEBALL_RING
from spatialavatar.head.builtin.surface import EYE as EYE_CENTRE
from spatialavatar.head.builtin.surface import EYE_RADIUS, MOUTH_HALF_WIDTH, bump, smoothstep
from spatialavatar.head.builtin.tessellation import EYE, MOUTH, HeadMesh

Field = Float[np.ndarray, "V 3"]

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


def named_expressions(mesh: HeadMesh) -> list[Field]:
    """In the order of EXPRESSIONS; eyeballs and teeth stay where they are, lids nearly so but in a blink."""
    out = _of_the_middle(mesh)
    for name, side in (("left", 1), ("right", -1)):
        out |= {f"{expression}_{name}": field for expression, field in _of_a_side(mesh, side).items()}
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


def _of_a_side(mesh: HeadMesh, side: int) -> dict[str, Field]:
    """``side`` is 1 for the left, -1 for the right."""
    _lower, upper = _lips(mesh)
    out: dict[str, Field] = {}
    away = np.array([float(side), 1.0, 1.0])
    q = mesh.points * away  # as if on the left
    on_side = smoothstep(-14.0, 14.0, q[:, 0])
    out["blink"] = _blink(mesh, side)
    pull = _reach(q, (27.0, -45.0, 88.0), (20.0, 15.0, 26.0)) * on_side
    wide = _reach(q, (22.0, -45.0, 90.0), (27.0, 17.0, 30.0))
    outwards = np.clip(q[:, 0] / 26.0, 0.0, 1.15)
    cheek = bump(q, (40.0, -12.0, 70.0), (19.0, 16.0, 24.0))
    smile = wide[:, None] * np.stack([7.0 * outwards, 6.8 * outwards**2.4 - 0.8, -3.8 * outwards**1.7], -1)
    smile *= smoothstep(-6.0, 6.0, q[:, 0])[:, None]
    smile += cheek[:, None] * np.array([0.8, 3.4, 3.2])
    smile += 0.9 * bump(q, (15.0, -17.0, 92.0), (7.0, 8.0, 12.0))[:, None] * np.array([1.0, 0.8, 0.0])
    out["smile"] = smile * away
    out["frown"] = (pull[:, None] * np.array([1.0, -6.0, -0.8])) * away
    brow = _reach(q, (28.0, 46.0, 74.0), (30.0, 14.0, 34.0)) * smoothstep(-8.0, 12.0, q[:, 0])
    forehead = bump(q, (27.0, 68.0, 74.0), (28.0, 16.0, 40.0)) * smoothstep(-10.0, 12.0, q[:, 0])
    out["brow_raise"] = brow[:, None] * np.array([0.0, 6.5, 1.2]) * away + forehead[:, None] * np.array([0.0, 3.0, 0.3])
    wing = bump(q, (13.0, -13.0, 94.0), (9.0, 11.0, 14.0)) * smoothstep(-2.0, 8.0, q[:, 0])
    fold = bump(q, (19.0, -30.0, 90.0), (12.0, 9.0, 14.0)) * smoothstep(-2.0, 8.0, q[:, 0])
    out["sneer"] = (
        wing[:, None] * np.array([1.2, 3.6, 0.4]) + (fold * upper)[:, None] * np.array([1.0, 4.6, 0.6])
    ) * away
    puff = bump(q, (42.0, -40.0, 66.0), (18.0, 20.0, 26.0))
    out["cheek_puff"] = puff[:, None] * np.array([8.0, 0.0, 4.5]) * away
    below_eye = bump(q, (33.0, 9.0, 76.0), (20.0, 9.0, 24.0))
    beside = bump(q, (50.0, 22.0, 66.0), (10.0, 16.0, 20.0))
    squint = below_eye[:, None] * np.array([0.0, 3.4, 1.6]) + beside[:, None] * np.array([-1.4, 0.0, 0.0])
    out["squint"] = squint * away
    return out


def _of_the_middle(mesh: HeadMesh) -> dict[str, Field]:
    p = mesh.points
    x, y, _z = p.T
    lower, upper = _lips(mesh)
    out: dict[str, Field] = {}
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
    return out


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
    turn = sweep * share
    across = np.hypot(p[:, 1], p[:, 2])
    # the margins meet edge to edge, on the same shell
    shell = np.sqrt(np.maximum((EYE_RADIUS + 2.0) ** 2 - p[:, 0] ** 2, 16.0))
    out = np.maximum(across, np.where((ring >= 1) & (ring <= last), shell * np.minimum(share * 2, 1.0), 0.0))
    moved = np.stack([p[:, 0], np.sin(elevation + turn) * out, np.cos(elevation + turn) * out], -1)
    field[lid] = (moved - np.stack([p[:, 0], p[:, 1], p[:, 2]], -1))[lid]
    field[mesh.select(EYE, side) & (ring == 0)] = 0.0
    return field * np.array([side, 1.0, 1.0])


def _lips(mesh: HeadMesh) -> tuple[Float[np.ndarray, " V"], Float[np.ndarray, " V"]]:
    """Shares of lower and upper mouth, both 0.5 at the corners."""
    below = patches.lip_line(np.minimum(np.abs(mesh.points[:, 0]), MOUTH_HALF_WIDTH)) - mesh.points[:, 1]
    mouth = mesh.select(MOUTH)
    sign = np.where(mouth, np.sign(mesh.column - patches.MOUTH_CORNER), np.sign(below))
    corner = smoothstep(MOUTH_HALF_WIDTH - 10.0, MOUTH_HALF_WIDTH, np.abs(mesh.points[:, 0]))
    gradual = np.clip(below / 12.0, -1.0, 1.0)
    lower = 0.5 + 0.5 * ((1 - corner) * sign + corner * np.where(mouth & (np.abs(below) < 1.0), 0.0, gradual))
    return lower, 1.0 - lower


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
