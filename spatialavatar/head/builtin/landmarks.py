"""The 68 landmarks of the iBUG scheme (Sagonas et al. 2013) on the built-in head: left and right as a viewer sees
them, so the first jaw point is on the subject's right."""

import numpy as np
from jaxtyping import Float, Int

from spatialavatar.head.builtin import patches
from spatialavatar.head.builtin.surface import EYE as EYE_CENTRE
from spatialavatar.head.builtin.tessellation import EYE, MOUTH, SKIN, HeadMesh

# left half, front view or 3D in mm; the right half is their mirror image
_JAW = [  # from the ear to the chin
    (69.0, 2.0, 8.0),
    (67.0, -14.0, 12.0),
    (63.0, -30.0, 16.0),
    (59.0, -45.0, 20.0),
    (53.0, -58.0, 30.0),
    (44.0, -69.0, 45.0),
    (33.0, -78.0, 60.0),
    (18.0, -86.0, 74.0),
]
_CHIN = (0.0, -89.0, 84.0)
_BROW = [(10.0, 38.5, 84.0), (18.5, 42.0, 82.0), (28.0, 44.0, 79.0), (38.0, 42.5, 72.0), (47.0, 37.0, 63.0)]
_BRIDGE = [(0.0, 26.0, 88.0), (0.0, 16.0, 92.0), (0.0, 5.0, 99.0), (0.0, -8.0, 112.0)]
_NOSE_BASE = [(14.0, -20.0, 92.0), (7.5, -22.5, 97.0)]
_NOSE_MIDDLE = (0.0, -23.0, 98.0)


def landmarks(mesh: HeadMesh) -> tuple[Int[np.ndarray, " 68"], Float[np.ndarray, "68 3"]]:
    """Face and barycentric weights of each landmark."""
    skin = np.flatnonzero(
        (mesh.patch == SKIN) | ((mesh.patch == MOUTH) & (mesh.ring < 3)) | ((mesh.patch == EYE) & (mesh.ring < 3))
    )

    def on_skin(target: tuple[float, float, float]) -> int:
        return int(skin[((mesh.points[skin] - np.array(target)) ** 2).sum(-1).argmin()])

    def right(vertices: list[int]) -> list[int]:
        return [int(mesh.mirror[v]) for v in vertices]

    jaw = [on_skin(t) for t in _JAW]
    brow = [on_skin(t) for t in _BROW]
    nose = [on_skin(t) for t in _NOSE_BASE]
    eye = _eye(mesh)
    upper_left, lower_left = _lip(mesh, patches.MOUTH_BORDER_RING)
    inner_upper, inner_lower = _lip(mesh, patches.MOUTH_EDGE_RING)
    corner, middle_top, top = upper_left
    bottom, lower_side = lower_left
    inner_corner, inner_side, inner_top = inner_upper
    inner_bottom, inner_lower_side = inner_lower
    out = [*right(jaw), on_skin(_CHIN), *jaw[::-1]]
    out += right(brow)[::-1] + brow
    out += [on_skin(t) for t in _BRIDGE]
    out += [*right(nose), on_skin(_NOSE_MIDDLE), *nose[::-1]]
    # right eye from its outer corner over the upper lid; left eye from its inner corner over the upper lid
    outer, upper_outer, upper_inner, inner, lower_inner, lower_outer = eye
    out += right([outer, upper_outer, upper_inner, inner, lower_inner, lower_outer])
    out += [inner, upper_inner, upper_outer, outer, lower_outer, lower_inner]
    peak, side = top[1], middle_top
    out += [*right([corner, side, peak]), top[0], peak, side, corner]
    out += [lower_side[0], lower_side[1], bottom, *right([lower_side[1], lower_side[0]])]
    out += [*right([inner_corner, inner_side]), inner_top[0], inner_side, inner_corner]
    out += [inner_lower_side[0], inner_bottom, *right([inner_lower_side[0]])]
    assert len(out) == 68
    return _as_barycentric(mesh, out)


def _eye(mesh: HeadMesh) -> tuple[int, int, int, int, int, int]:
    margin = mesh.select(EYE, 1) & (mesh.ring == patches.EYE_LID_RINGS - 1)
    candidates = np.flatnonzero(margin)
    angle = 2 * np.pi * mesh.column[candidates] / patches.EYE_COLUMNS
    offset = mesh.points[candidates] - EYE_CENTRE

    def at(x: float, upper: bool | None) -> int:
        cost = np.abs(offset[:, 0] - x)
        if upper is not None:
            cost = cost + np.where((np.sin(angle) > 0) == upper, 0.0, 100.0)
        return int(candidates[cost.argmin()])

    return at(14.0, None), at(5.0, True), at(-5.0, True), at(-14.0, None), at(-5.0, False), at(5.0, False)


def _lip(mesh: HeadMesh, ring: int) -> tuple[tuple[int, int, tuple[int, int]], tuple[int, tuple[int, int]]]:
    """(corner, side, (middle, peak)) of the upper lip and (middle, two points from the corner) of the lower one."""
    n = patches.MOUTH_COLUMNS
    grid = np.full(n, -1)
    chosen = mesh.select(MOUTH) & (mesh.ring == ring) & (mesh.side >= 0)
    grid[mesh.column[chosen]] = np.flatnonzero(chosen)
    corner = patches.MOUTH_CORNER

    def nearest(columns: range, x: float) -> int:
        vertices = grid[list(columns)]
        return int(vertices[np.abs(mesh.points[vertices, 0] - x).argmin()])

    above, below = range(0, corner), range(corner + 1, n)
    upper = (int(grid[corner]), nearest(above, 14.0), (int(grid[0]), nearest(above, 5.0)))
    lower = (int(grid[n - 1]), (nearest(below, 17.0), nearest(below, 8.0)))
    return upper, lower


def _as_barycentric(mesh: HeadMesh, vertices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    face = np.empty(len(vertices), np.int64)
    weights = np.zeros((len(vertices), 3))
    for i, vertex in enumerate(vertices):
        face[i], corner = np.argwhere(mesh.faces == vertex)[0]
        weights[i, corner] = 1.0
    return face, weights
