"""The built-in head's mesh: structured patches joined by a graded Delaunay triangulation of the skin between them.

Skin points live in a plane: the stereographic picture of ray directions seen from inside the head, with the neck as
its rim. The left half is triangulated and mirrored, so the mesh is exactly symmetric. Point coordinates are rounded
before every Delaunay call: last-bit differences between machines must not change the triangles.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import Delaunay

from spatialavatar.head.builtin import patches
from spatialavatar.head.builtin.surface import NECK_Y, along_rays, bump, skin_distance, smoothstep

SKIN, EYE, MOUTH, EAR, NECK = range(5)  # HeadMesh.patch and .face_patch
NECK_COLUMNS = 27  # of the left half, both middles included
NECK_ROWS = 2
_CENTRE = np.array([0.0, 0.0, -14.0])  # every skin point is visible from here
_LOOK_UP = np.array([0.0, 0.987, 0.158]) / np.hypot(0.987, 0.158)  # middle of the plane: away from the neck
_BACKWARD = np.cross(_LOOK_UP, np.array([1.0, 0.0, 0.0]))


@dataclass(frozen=True)
class HeadMesh:
    """Millimetres. ``ring`` and ``column`` say where in its patch a vertex or (ring only) a face lies."""

    points: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    mirror: Int[np.ndarray, " V"]  # the vertex on the other side
    side: Int[np.ndarray, " V"]  # +1 the subject's left, 0 middle, -1 right
    patch: Int[np.ndarray, " V"]
    ring: Int[np.ndarray, " V"]
    column: Int[np.ndarray, " V"]
    face_side: Int[np.ndarray, " F"]
    face_patch: Int[np.ndarray, " F"]
    face_ring: Int[np.ndarray, " F"]

    def select(self, patch: int, side: int | None = None) -> np.ndarray:
        chosen = self.patch == patch
        return chosen if side is None else chosen & (self.side == side)


def tessellate() -> HeadMesh:
    builder = _Builder()
    eye, mouth, ear = patches.eye_patch(), patches.mouth_patch(), patches.ear_patch()
    neck = patches.Patch(_neck_rows(), closed=False)
    eye_index = builder.add_patch(eye, EYE)
    mouth_index = builder.add_patch(mouth, MOUTH)
    ear_index = builder.add_patch(ear, EAR)
    neck_index = builder.add_patch(neck, NECK)
    builder.add_faces(patches.mouth_back_faces(mouth_index[-1]), MOUTH, len(mouth_index) - 1)

    contours = [to_plane(builder.points(index[0])) for index in (eye_index, mouth_index, ear_index)]
    rim = to_plane(builder.points(neck_index[-1]))
    contours[1][[0, -1], 0] = rim[[0, -1], 0] = 0.0
    fixed_index = np.concatenate([eye_index[0], mouth_index[0], ear_index[0], neck_index[-1]])
    fixed = np.concatenate([*contours, rim])
    free, triangles = _fill(fixed, contours, rim)
    plane_index = np.concatenate([fixed_index, builder.add_points(from_plane(free), free[:, 0] == 0.0)])
    builder.add_faces(plane_index[triangles], SKIN, 0)
    return builder.mirrored()


def from_plane(w: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 3"]:
    """The skin point that a point of the plane stands for: the outermost one on its ray."""
    squared = (w**2).sum(-1, keepdims=True)
    direction = (2 * w[:, :1] * np.array([1.0, 0, 0]) + 2 * w[:, 1:] * _BACKWARD + (1 - squared) * _LOOK_UP) / (
        1 + squared
    )
    outside = np.full(len(w), 230.0)
    inside = outside.copy()
    searching = np.ones(len(w), bool)
    for t in np.arange(227.0, 30.0, -3.0):
        solid = skin_distance(_CENTRE + direction[searching] * t) < 0
        index = np.flatnonzero(searching)
        inside[index] = t
        outside[index[~solid]] = t
        searching[index[solid]] = False
        if not searching.any():
            break
    for _ in range(26):
        middle = (inside + outside) / 2
        solid = skin_distance(_CENTRE + direction * middle[:, None]) < 0
        inside = np.where(solid, middle, inside)
        outside = np.where(solid, outside, middle)
    return _CENTRE + direction * outside[:, None]


def to_plane(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 2"]:
    direction = points - _CENTRE
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return np.stack([direction[:, 0], direction @ _BACKWARD], -1) / (1 + direction @ _LOOK_UP)[:, None]


def edge_length(p: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, " N"]:
    """Wanted length of the skin's edges, mm."""
    side = np.abs(p) * np.array([1.0, 0, 0]) + p * np.array([0, 1.0, 1.0])
    face = smoothstep(10.0, 60.0, p[:, 2]) * smoothstep(105.0, 60.0, p[:, 1]) * smoothstep(-110.0, -85.0, p[:, 1])
    length = 10.0 - 4.6 * face
    length -= 2.4 * face * bump(side, (0.0, 0.0, 100.0), (24.0, 34.0, 40.0))
    length -= 1.2 * face * bump(side, (8.0, -16.0, 98.0), (14.0, 14.0, 20.0))
    length -= 1.6 * face * bump(side, (31.0, 30.0, 70.0), (28.0, 24.0, 40.0))
    length -= 3.0 * bump(side, (70.0, 3.0, -13.0), (20.0, 40.0, 28.0)) * (1 - face)
    return np.maximum(length, 1.9)


class _Builder:
    """Collects the left half's vertices and faces."""

    def __init__(self) -> None:
        self._points: list[np.ndarray] = []
        self._tags: list[np.ndarray] = []  # middle, patch, ring, column
        self._faces: list[np.ndarray] = []
        self._face_tags: list[np.ndarray] = []
        self._count = 0

    def points(self, index: np.ndarray) -> Float[np.ndarray, "N 3"]:
        return np.concatenate(self._points)[index]

    def add_points(
        self, points: np.ndarray, middle: np.ndarray, patch: int = SKIN, ring: np.ndarray | int = 0, column: int = 0
    ) -> Int[np.ndarray, " N"]:
        n = len(points)
        self._points.append(points)
        self._tags.append(np.stack([np.broadcast_to(a, n).astype(np.int64) for a in (middle, patch, ring, column)], -1))
        self._count += n
        return np.arange(self._count - n, self._count)

    def add_patch(self, patch: patches.Patch, kind: int) -> Int[np.ndarray, "R C"]:
        rings, columns, _ = patch.points.shape
        index = np.empty((rings, columns), np.int64)
        for r in range(rings):
            for c in range(columns):
                # an open patch has its first and last column in the middle of the head
                middle = np.array([not patch.closed and c in (0, columns - 1)])
                index[r, c] = self.add_points(patch.points[r, c][None], middle, kind, r, c)[0]
        pole = None
        if patch.pole is not None:
            pole = int(self.add_points(patch.pole[None], np.array([False]), kind, rings, 0)[0])
        faces = patch.faces(index, pole)
        vertex_ring = np.concatenate(self._tags)[:, 2]
        self.add_faces(faces, kind, vertex_ring[faces].min(1))
        return index

    def add_faces(self, faces: np.ndarray, patch: int, ring: np.ndarray | int) -> None:
        n = len(faces)
        self._faces.append(faces)
        self._face_tags.append(np.stack([np.broadcast_to(a, n).astype(np.int64) for a in (patch, ring)], -1))

    def mirrored(self) -> HeadMesh:
        points, tags = np.concatenate(self._points), np.concatenate(self._tags)
        faces, face_tags = np.concatenate(self._faces), np.concatenate(self._face_tags)
        points, faces = points.copy(), _outward(points, faces)
        middle = tags[:, 0] == 1
        points[middle, 0] = 0.0
        other = np.where(middle, np.arange(len(points)), -1)
        other[~middle] = len(points) + np.arange((~middle).sum())
        mirror = np.concatenate([other, np.flatnonzero(~middle)])
        both = np.concatenate([points, points[~middle] * np.array([-1.0, 1.0, 1.0])])
        tags = np.concatenate([tags, tags[~middle]])
        side = np.where(middle, 0, 1)
        return HeadMesh(
            points=np.round(both, 5),
            faces=np.concatenate([faces, mirror[faces][:, [0, 2, 1]]]),
            mirror=mirror,
            side=np.concatenate([side, np.full((~middle).sum(), -1)]),
            patch=tags[:, 1],
            ring=tags[:, 2],
            column=tags[:, 3],
            face_side=np.repeat([1, -1], len(faces)),
            face_patch=np.tile(face_tags[:, 0], 2),
            face_ring=np.tile(face_tags[:, 1], 2),
        )


def _outward(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The same faces, counter-clockwise from outside: orientation spreads over shared edges from the first face."""
    faces = faces.copy()
    owners: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for f, (a, b, c) in enumerate(faces.tolist()):
        for s, t in ((a, b), (b, c), (c, a)):
            owners.setdefault((min(s, t), max(s, t)), []).append((f, s < t))
    near: list[list[tuple[int, bool]]] = [[] for _ in faces]
    for pair in owners.values():
        if len(pair) == 2:
            (f, forward), (g, backward) = pair
            near[f].append((g, forward == backward))
            near[g].append((f, forward == backward))
    turned = np.full(len(faces), -1)
    turned[0] = 0
    queue = [0]
    while queue:
        f = queue.pop()
        for g, opposite in near[f]:
            if turned[g] < 0:
                turned[g] = turned[f] ^ int(opposite)
                queue.append(g)
    assert (turned >= 0).all(), "the half mesh must be in one piece"
    faces[turned == 1] = faces[turned == 1][:, [0, 2, 1]]
    p = points[faces]
    # signed volume about a point of the middle plane, which closes the half
    volume = np.einsum("fi,fi->f", p[:, 0], np.cross(p[:, 1], p[:, 2])).sum()
    return faces if volume > 0 else faces[:, [0, 2, 1]]


def _neck_rows() -> Float[np.ndarray, "R C 3"]:
    angle = np.pi / 2 - np.pi * np.arange(NECK_COLUMNS) / (NECK_COLUMNS - 1)  # front, left, back
    rows = []
    for r in range(NECK_ROWS):
        origin = np.broadcast_to(np.array([0.0, NECK_Y + 9.0 * r, -38.0]), (NECK_COLUMNS, 3))
        direction = np.stack([np.cos(angle), np.zeros_like(angle), np.sin(angle)], -1)
        direction[[0, -1], 0] = 0.0
        rows.append(along_rays(origin, direction, 120.0))
    return np.stack(rows)


def _fill(
    fixed: Float[np.ndarray, "N 2"], contours: list[np.ndarray], rim: Float[np.ndarray, "C 2"]
) -> tuple[Float[np.ndarray, "K 2"], Int[np.ndarray, "T 3"]]:
    """Free points of the left half plane and the triangles over fixed and free points, the contours left open."""
    spacing = _spacing(rim)
    mouth = contours[1]
    middle = np.concatenate(
        [
            _march(rim[-1, 1], mouth[0, 1], spacing),  # nape, crown, forehead, nose
            _march(mouth[-1, 1], rim[0, 1], spacing),  # chin, throat
        ]
    )
    middle_points = np.stack([np.zeros_like(middle), middle], -1)
    obstacles = np.concatenate([fixed, middle_points])
    closed_mouth = np.concatenate([mouth, [[-1.0, mouth[-1, 1]], [-1.0, mouth[0, 1]]]])
    holes = [contours[0], closed_mouth, contours[2]]
    border = np.concatenate([rim, [[-1.0, rim[-1, 1]], [-1.0, rim[0, 1]]]])

    # greedy fill, tightest places first in effect: a low-discrepancy sequence, each point keeps its distance
    n = np.arange(1, 60001)
    low, high = np.array([0.0, rim[:, 1].min()]), rim.max(0)
    candidates = low + (high - low) * np.stack([(0.7548776662466927 * n) % 1.0, (0.5698402909980532 * n) % 1.0], -1)
    keep = _inside(border, candidates) & ~np.any([_inside(h, candidates) for h in holes], 0)
    candidates = candidates[keep]
    radius = spacing(candidates)
    taken = np.empty((8000, 2))
    taken[: len(obstacles)] = obstacles
    count = len(obstacles)
    for point, r in zip(candidates, radius, strict=True):
        difference = taken[:count] - point
        if (difference * difference).sum(-1).min() > (0.74 * r) ** 2:
            taken[count] = point
            count += 1
    points = np.round(taken[:count], 6)
    free = np.arange(len(fixed) + len(middle), count)

    for _ in range(25):
        triangles = _triangles(points, border, holes)
        corners = points[triangles]
        centroid = corners.mean(1)
        weight = np.abs(_cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])) / spacing(centroid) ** 2
        total = np.zeros(count)
        moment = np.zeros((count, 2))
        for k in range(3):
            np.add.at(total, triangles[:, k], weight)
            np.add.at(moment, triangles[:, k], weight[:, None] * centroid)
        points[free] = np.round(moment[free] / total[free, None], 6)
    return points[len(fixed) :], _triangles(points, border, holes)


def _triangles(points: np.ndarray, border: np.ndarray, holes: list[np.ndarray]) -> Int[np.ndarray, "T 3"]:
    triangles = Delaunay(points).simplices.astype(np.int64)
    corners = points[triangles]
    centroid = corners.mean(1)
    area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    keep = _inside(border, centroid) & ~np.any([_inside(h, centroid) for h in holes], 0) & (np.abs(area) > 1e-9)
    return triangles[keep]


def _spacing(rim: np.ndarray) -> RegularGridInterpolator:
    """Wanted distance between points in the plane."""
    xs, ys = np.linspace(0.0, rim[:, 0].max() + 0.05, 56), np.linspace(rim[:, 1].min(), rim[:, 1].max(), 110)
    grid = np.stack(np.meshgrid(xs, ys, indexing="ij"), -1)
    skin = from_plane(grid.reshape(-1, 2)).reshape(*grid.shape[:2], 3)
    du, dv = np.gradient(skin, xs, ys, axis=(0, 1))
    scale = np.sqrt(np.linalg.norm(np.cross(du, dv), axis=-1))  # mm per unit of the plane
    wanted = edge_length(skin.reshape(-1, 3)).reshape(scale.shape) / np.clip(scale, 8.0, None)
    return RegularGridInterpolator((xs, ys), wanted, bounds_error=False, fill_value=None)


def _march(start: float, end: float, spacing: RegularGridInterpolator) -> Float[np.ndarray, " K"]:
    """Points strictly between two ends of the middle line, at the wanted distances."""
    t = np.linspace(start, end, 2001)
    density = 1.0 / spacing(np.stack([np.zeros_like(t), t], -1))
    length = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.abs(np.diff(t)))])
    steps = max(2, round(float(length[-1])))
    return np.interp(np.arange(1, steps) / steps * length[-1], length, t)


def _inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Even-odd rule."""
    inside = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        crosses = (y0 > points[:, 1]) != (y1 > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            x = x0 + (points[:, 1] - y0) * (x1 - x0) / (y1 - y0)
        inside ^= crosses & (points[:, 0] < x)
    return inside


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
