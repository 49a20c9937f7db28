"""Wavefront OBJ: vertices, texture coordinates, polygons and their materials."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError


@dataclass(frozen=True)
class ObjMesh:
    """What an OBJ file holds."""

    vertices: Float[np.ndarray, "V 3"]  # in the file's unit
    uv: Float[np.ndarray, "U 2"]  # v up
    polygons: list[list[tuple[int, int]]]  # corners (vertex, uv), from zero; uv -1 where the corner has none
    materials: list[str]  # of each polygon, "" before the first usemtl

    def triangles(self, location: files.Location) -> tuple[np.ndarray, np.ndarray]:
        """(faces [F, 3], uv_faces [F, 3]) of a mesh of triangles; a face without UV at any corner has -1 at all."""
        for number, polygon in enumerate(self.polygons):
            if len(polygon) != 3:
                raise SpatialAvatarError(
                    f"{location}: face {number} has {len(polygon)} corners, triangles are expected"
                )
        corners = np.array(self.polygons, np.int64).reshape(-1, 3, 2)
        uv_faces = corners[..., 1].copy()
        uv_faces[(uv_faces < 0).any(1)] = -1
        return corners[..., 0], uv_faces


def read_obj(location: files.Location) -> ObjMesh:
    """Raises SpatialAvatarError: no such file, a line that cannot be read, an index of something that is not there."""
    vertices: list[list[float]] = []
    uv: list[list[float]] = []
    polygons: list[list[tuple[int, int]]] = []
    materials: list[str] = []
    material = ""
    text = files.read_bytes(location).decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        kind, _, rest = line.partition(" ")
        try:
            if kind == "v":
                vertices.append([float(x) for x in rest.split()[:3]])
            elif kind == "vt":
                uv.append([float(x) for x in rest.split()[:2]])
            elif kind == "f":
                polygons.append([_corner(corner, len(vertices), len(uv)) for corner in rest.split()])
                materials.append(material)
            elif kind == "usemtl":
                material = rest.strip()
        except ValueError:
            raise SpatialAvatarError(
                f"{location}: line {number} is not readable as OBJ; the file is damaged or no OBJ"
            ) from None
    try:
        return ObjMesh(np.array(vertices).reshape(-1, 3), np.array(uv).reshape(-1, 2), polygons, materials)
    except ValueError:
        raise SpatialAvatarError(
            f"{location}: not all vertices have three numbers and texture coordinates two; the file is damaged"
        ) from None


def read_obj_vertices(location: files.Location) -> Float[np.ndarray, "V 3"]:
    """The vertices alone, fast: a blendshape has the faces of its neutral mesh."""
    lines = [line[2:] for line in files.read_bytes(location).split(b"\n") if line.startswith(b"v ")]
    try:
        return np.array(b" ".join(lines).split(), np.float64).reshape(len(lines), 3)
    except ValueError:
        raise SpatialAvatarError(f"{location}: its vertices are not readable; the file is damaged") from None


def _corner(text: str, vertices: int, uv: int) -> tuple[int, int]:
    """ "7/3/1" -> (6, 2); negative numbers count from the end, as OBJ has it."""
    parts = text.split("/")
    return _index(parts[0], vertices), _index(parts[1], uv) if len(parts) > 1 and parts[1] else -1


def _index(text: str, count: int) -> int:
    number = int(text)
    index = number - 1 if number > 0 else count + number
    if number == 0 or not 0 <= index < count:
        raise ValueError(text)
    return index
