"""Shape and expression codes of the built-in head: named leading modes (shapes.py, expressions.py), then smooth
harmonics, all orthogonal.

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
from spatialavatar.head.builtin.expressions import EXPRESSIONS, named_expressions
from spatialavatar.head.builtin.shapes import named_shapes
from spatialavatar.head.builtin.surface import EYE as EYE_CENTRE
from spatialavatar.head.builtin.surface import EYE_RADIUS, smoothstep
from spatialavatar.head.builtin.tessellation import EAR, EYE, MOUTH, HeadMesh

SHAPE_CODES = 300
EXPRESSION_CODES = 100
Field = Float[np.ndarray, "V 3"]
_SUM_AND_DIFFERENCE = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2.0)


def expression_names() -> list[str]:
    """Of all codes."""
    return EXPRESSIONS + [f"mode_{i:03d}" for i in range(len(EXPRESSIONS) + 1, EXPRESSION_CODES + 1)]


def shape_basis(mesh: HeadMesh) -> Float[np.ndarray, "V 3 S"]:
    named = [_eyes_as_a_piece(mesh, f) for f in named_shapes(mesh).values()]
    harmonics = _harmonics(mesh, np.ones(len(mesh.points)), SHAPE_CODES - len(named) + 12)
    return _orthogonal(mesh, named, [_eyes_as_a_piece(mesh, f) for f in harmonics], SHAPE_CODES, 0.55)


def expression_basis(mesh: HeadMesh) -> Float[np.ndarray, "V 3 E"]:
    named = named_expressions(mesh)
    _x, y, z = mesh.points.T
    face = smoothstep(20.0, 60.0, z) * smoothstep(80.0, 50.0, y) * smoothstep(-100.0, -85.0, y)
    face *= 1.0 - _around_eyes(mesh)
    face[mesh.select(EAR)] = 0.0
    # teeth and the pocket behind them stay
    face[mesh.select(MOUTH) & (mesh.ring > patches.MOUTH_EDGE_RING + 1)] = 0.0
    pairs = [i for i, name in enumerate(EXPRESSIONS) if name.endswith("_left") and name != "mouth_left"]
    harmonics = _harmonics(mesh, face, EXPRESSION_CODES - len(named) + 12)
    return _orthogonal(mesh, named, harmonics, EXPRESSION_CODES, 0.35, pairs)


def _harmonics(mesh: HeadMesh, mask: Float[np.ndarray, " V"], count: int) -> list[Field]:
    """Products of cosines in x, y and z along each axis, from low to high frequency, under a mask."""
    p = mesh.points
    t = p / np.array([95.0, 150.0, 120.0])  # about -1..1

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
