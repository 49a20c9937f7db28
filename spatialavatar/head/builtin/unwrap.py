"""One UV chart over the whole unit square, with the neck's ring as the square's border.

A Tutte embedding (positive weights, convex border: no triangle overlaps another) is the start; then scalable locally
injective mapping (Rabinovich et al. 2017) with the symmetric Dirichlet energy evens it out without ever turning a
triangle over. Texels are spread by surface area times an importance. Only the left half is solved, and mirrored.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

ITERATIONS = 22
GRID = 2.0**-18  # UV is rounded to this: differences in the last bit between machines do not reach the layout


def unwrap_half(
    points: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    middle: Int[np.ndarray, " M"],  # vertices of the middle plane: they get u = 0.5
    rim: Int[np.ndarray, " B"],  # the border's vertices from the front middle to the back middle
    importance: Float[np.ndarray, " F"],  # wanted texels per area, relative
) -> Float[np.ndarray, "V 2"]:
    """UV of the head's left half, in u >= 0.5; faces must be counter-clockwise from outside."""
    n = len(points)
    uv = np.zeros((n, 2))
    uv[middle, 0] = 0.5
    uv[rim] = _border(points[rim])
    free = np.ones((n, 2), bool)
    free[middle, 0] = False
    free[rim] = False
    uv = _tutte(uv, faces, free)

    corners = points[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1) / 2
    scale = np.sqrt(importance * 0.5 / (area * importance).sum())
    shape = _gradients(corners, scale)  # [F, 3, 2]: J = uv of the corners^T shape
    area = area * scale**2
    for _ in range(ITERATIONS):
        target = _proxy_minimum(uv, faces, shape, area, free)
        uv = _line_search(uv, target - uv, faces, shape, area)
    return np.round(uv / GRID) * GRID


def _border(rim: Float[np.ndarray, "B 3"]) -> Float[np.ndarray, "B 2"]:
    """Half the square's border by arc length: (0.5, 0), (1, 0), (1, 1), (0.5, 1)."""
    s = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(rim, axis=0), axis=-1))])
    s = 2.0 * s / s[-1]
    for corner in (0.5, 1.5):  # a vertex in each corner
        s[np.argmin(np.abs(s - corner))] = corner
    u = np.where(s <= 0.5, 0.5 + s, np.where(s <= 1.5, 1.0, 2.5 - s))
    return np.stack([u, np.clip(s - 0.5, 0.0, 1.0)], -1)


def _tutte(uv: np.ndarray, faces: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Every free coordinate at the mean of its neighbours'; edges of the middle plane count half."""
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    weight = np.full(len(pairs), 0.5)  # an inner edge comes twice, an edge of the middle plane once
    out = uv.copy()
    for d in range(2):
        out[:, d] = _solve_laplace(uv[:, d], pairs, weight, free[:, d])
    return out


def _solve_laplace(value: np.ndarray, pairs: np.ndarray, weight: np.ndarray, free: np.ndarray) -> np.ndarray:
    n = len(value)
    a, b = pairs.T
    rows, columns = np.concatenate([a, b, a, b]), np.concatenate([a, b, b, a])
    matrix = csc_matrix((np.concatenate([weight, weight, -weight, -weight]), (rows, columns)), (n, n))
    inner = np.flatnonzero(free)
    out = value.copy()
    known = np.where(free, 0.0, value)
    out[inner] = splu(matrix[inner][:, inner].tocsc()).solve(-(matrix @ known)[inner])
    return out


def _gradients(corners: Float[np.ndarray, "F 3 3"], scale: Float[np.ndarray, " F"]) -> Float[np.ndarray, "F 3 2"]:
    """Gradients of the corners' hat functions in each triangle's own plane, the triangle scaled."""
    e1, e2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    x = np.linalg.norm(e1, axis=-1)
    axis = e1 / x[:, None]
    px = (e2 * axis).sum(-1)
    py = np.linalg.norm(e2 - px[:, None] * axis, axis=-1)
    x, px, py = x * scale, px * scale, np.maximum(py, 1e-3) * scale
    second = np.stack([1 / x, -px / (x * py)], -1)
    third = np.stack([np.zeros_like(x), 1 / py], -1)
    return np.stack([-second - third, second, third], 1)


def _proxy_minimum(
    uv: np.ndarray, faces: np.ndarray, shape: np.ndarray, area: np.ndarray, free: np.ndarray
) -> Float[np.ndarray, "V 2"]:
    """Minimum of the quadratic proxy sum area |W (J - R)|^2 of the energy at ``uv``."""
    jacobian = np.einsum("fki,fkj->fij", uv[faces], shape)
    u, sigma, vt = np.linalg.svd(jacobian)
    rotation = u @ vt
    away = np.where(np.abs(sigma - 1) < 1e-4, 1.0, sigma - 1)
    squared = np.where(np.abs(sigma - 1) < 1e-4, 4.0, (sigma - sigma**-3) / away)
    metric = area[:, None, None] * np.einsum("fik,fk,fjk->fij", u, squared, u)  # W^T W
    # stiffness between coordinate d of corner k and coordinate e of corner l: metric[d, e] (shape[k] . shape[l])
    inner = np.einsum("fki,fli->fkl", shape, shape)
    block = np.einsum("fde,fkl->fkdle", metric, inner)
    index = faces[:, :, None] * 2 + np.arange(2)  # [F, 3, 2]
    rows = np.broadcast_to(index[:, :, :, None, None], block.shape).ravel()
    columns = np.broadcast_to(index[:, None, None, :, :], block.shape).ravel()
    n = 2 * len(uv)
    matrix = csc_matrix((block.ravel(), (rows, columns)), (n, n))
    force = np.einsum("fde,fej,fkj->fkd", metric, rotation, shape)
    right = np.zeros(n)
    np.add.at(right, index.ravel(), force.ravel())
    chosen = free.ravel()
    inner_index = np.flatnonzero(chosen)
    known = np.where(chosen, 0.0, uv.ravel())
    out = uv.ravel().copy()
    system = matrix[inner_index][:, inner_index].tocsc()
    out[inner_index] = splu(system, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(
        (right - matrix @ known)[inner_index]
    )
    return out.reshape(uv.shape)


def _line_search(
    uv: np.ndarray, step: np.ndarray, faces: np.ndarray, shape: np.ndarray, area: np.ndarray
) -> Float[np.ndarray, "V 2"]:
    """Along ``step`` as far as no triangle turns over and the energy falls."""
    c, s = uv[faces], step[faces]
    d1, d2, s1, s2 = c[:, 1] - c[:, 0], c[:, 2] - c[:, 0], s[:, 1] - s[:, 0], s[:, 2] - s[:, 0]
    # area along the step: q2 t^2 + q1 t + q0
    q0, q2 = _cross(d1, d2), _cross(s1, s2)
    q1 = _cross(d1, s2) + _cross(s1, d2)
    with np.errstate(all="ignore"):
        root = np.sqrt(q1 * q1 - 4 * q2 * q0)
        both = np.stack([2 * q0 / (-q1 + root), 2 * q0 / (-q1 - root)])
    both = np.where(np.isfinite(both) & (both > 0), both, np.inf)
    t = min(1.0, 0.8 * float(both.min()))
    start = _energy(uv, faces, shape, area)
    for _ in range(20):
        moved = uv + t * step
        if _energy(moved, faces, shape, area) < start:
            return moved
        t *= 0.6
    return uv


def _energy(uv: np.ndarray, faces: np.ndarray, shape: np.ndarray, area: np.ndarray) -> float:
    jacobian = np.einsum("fki,fkj->fij", uv[faces], shape)
    determinant = _cross(jacobian[:, :, 0], jacobian[:, :, 1])
    if (determinant <= 0).any():
        return np.inf
    squared = (jacobian**2).sum((1, 2))
    return float((area * squared * (1 + determinant**-2)).sum())


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
