"""The UV layout: one Gaussian for each valid texel of an R x R grid (method.md section 1, "UV layout").

Order is row-major over texels and never changes; the fingerprint names it in every artefact.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel

LAYOUT_VERSION = 1


@dataclass(frozen=True)
class UVLayout:
    """Which texels carry a Gaussian, and where on the mesh each lies."""

    face_index: Int[Tensor, " N"]  # parent face
    barycentric: Float[Tensor, "N 3"]  # of the texel's centre in its UV triangle
    texel: Int[Tensor, " N"]  # row * resolution + column, rising
    chart: Int[Tensor, " N"]
    resolution: int
    fingerprint: str

    @property
    def count(self) -> int:
        return self.face_index.shape[0]

    def to(self, device: torch.device | str) -> "UVLayout":
        return UVLayout(
            self.face_index.to(device),
            self.barycentric.to(device),
            self.texel.to(device),
            self.chart.to(device),
            self.resolution,
            self.fingerprint,
        )

    def to_map(self, values: Float[Tensor, "*B N C"], fill: float = 0.0) -> Float[Tensor, "*B C R R"]:
        """Spread per-Gaussian values over the UV square; texels without a Gaussian hold ``fill``."""
        r = self.resolution
        grid = values.new_full((*values.shape[:-2], r * r, values.shape[-1]), fill)
        grid = grid.index_copy(-2, self.texel, values)
        return grid.unflatten(-2, (r, r)).movedim(-1, -3)

    def from_map(self, grid: Float[Tensor, "*B C R R"]) -> Float[Tensor, "*B N C"]:
        """The inverse of ``to_map``: values at the texels that carry a Gaussian."""
        return grid.flatten(-2).movedim(-2, -1)[..., self.texel, :]

    def points(self, vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "B N 3"]:
        """Surface point of each texel on a posed mesh, metres."""
        return (vertices[:, faces[self.face_index]] * self.barycentric[..., None]).sum(-2)

    def require(self, fingerprint: str, what: str) -> None:
        """Raises SpatialAvatarError when an artefact was made for another layout."""
        if fingerprint != self.fingerprint:
            raise SpatialAvatarError(
                f"{what}: made for UV layout {fingerprint[:12]}, but this head at UV resolution {self.resolution} "
                f"has layout {self.fingerprint[:12]}; use the head and the UV resolution that it was made with"
            )


def build_layout(head: HeadModel, resolution: int) -> UVLayout:
    """Assign texels to faces, in float64: a texel belongs to the lowest face whose UV triangle holds its centre.

    Row r, column c has centre u = (c + 0.5) / R, v = 1 - (r + 0.5) / R. Edges count as inside; triangles of no area
    hold nothing.
    """
    if resolution < 1:
        raise SpatialAvatarError(f"UV resolution {resolution}: must be at least 1")
    faces = head.faces.cpu().numpy().astype(np.int32)
    uv = head.uv.cpu().numpy().astype(np.float32)
    uv_faces = head.uv_faces.cpu().numpy().astype(np.int32)

    with_uv = np.flatnonzero((uv_faces >= 0).all(1))
    corners = uv[uv_faces[with_uv]].astype(np.float64)
    # continuous texel coordinates: texel (row, column) has its centre at whole numbers
    x = corners[..., 0] * resolution - 0.5
    y = (1 - corners[..., 1]) * resolution - 0.5
    face, column, row = _candidates(x, y, resolution)
    weights = _barycentric(x[face], y[face], column, row)
    inside = (weights >= 0).all(1)
    face, texel, weights = face[inside], (row * resolution + column)[inside], weights[inside]
    # the first of each texel is the lowest face, because candidates come in face order and the sort is stable
    texel, first = np.unique(texel, return_index=True)
    face, weights = with_uv[face[first]], weights[first]

    face_map = np.full(resolution * resolution, -1, np.int32)
    face_map[texel] = face
    digest = hashlib.sha256(f"spatialavatar-layout {LAYOUT_VERSION} {resolution}".encode())
    for array in (faces, uv, uv_faces, face_map):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return UVLayout(
        face_index=torch.from_numpy(face.astype(np.int64)),
        barycentric=torch.from_numpy(weights.astype(np.float32)),
        texel=torch.from_numpy(texel.astype(np.int64)),
        chart=head.face_chart.cpu()[torch.from_numpy(face)].long(),
        resolution=resolution,
        fingerprint=digest.hexdigest(),
    )


def texel_spacing(head: HeadModel, layout: UVLayout) -> Float[Tensor, " N"]:
    """Distance between neighbouring texels on the template in metres: the root of the surface area per texel."""
    corners = head.template[head.faces].double()
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2
    uv = head.uv.double()[head.uv_faces.clamp_min(0)]
    e1, e2 = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    uv_area = (e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]).abs() / 2
    per_face = (area / uv_area.clamp_min(1e-300)).sqrt() / layout.resolution
    return per_face[layout.face_index.to(per_face.device)].to(head.template.dtype)


def _candidates(x: np.ndarray, y: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All (face, column, row) with the texel's centre in the face's bounding box, in face order."""
    left, right = np.ceil(x.min(1)).clip(0), np.floor(x.max(1)).clip(max=resolution - 1)
    top, bottom = np.ceil(y.min(1)).clip(0), np.floor(y.max(1)).clip(max=resolution - 1)
    width = (right - left + 1).clip(0).astype(np.int64)
    height = (bottom - top + 1).clip(0).astype(np.int64)
    count = width * height
    face = np.repeat(np.arange(len(x)), count)
    within = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    column = left.astype(np.int64)[face] + within % width[face]
    row = top.astype(np.int64)[face] + within // width[face]
    return face, column, row


def _barycentric(x: np.ndarray, y: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    def cross(ax: np.ndarray, ay: np.ndarray, bx: np.ndarray, by: np.ndarray) -> np.ndarray:
        return ax * by - ay * bx

    (x0, x1, x2), (y0, y1, y2) = x.T, y.T
    area = cross(x1 - x0, y1 - y0, x2 - x0, y2 - y0)
    w0 = cross(x1 - column, y1 - row, x2 - column, y2 - row)
    w1 = cross(x2 - column, y2 - row, x0 - column, y0 - row)
    w2 = cross(x0 - column, y0 - row, x1 - column, y1 - row)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.stack([w0, w1, w2], 1) / area[:, None]
    return np.where(area[:, None] == 0, -1.0, weights)
