"""Pictures of a textured triangle mesh: a z-buffer rasterizer that shares nothing with the Gaussian splatter.

It is the ground truth of the synthetic captures, so it is independent on purpose: perspective-correct interpolation,
bilinear texture, smooth normals, soft light fixed in the world, supersampling, and an anti-aliased matte.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from spatialavatar.clip.synthetic.serial_kernel import serial_kernel

NEAR = 0.01  # metres


@dataclass(frozen=True)
class Lights:
    """Directions point from the surface to the light, in the world's frame; strengths multiply the albedo."""

    key: tuple[float, float, float] = (-0.45, 0.55, 0.75)
    key_strength: float = 0.62
    fill: tuple[float, float, float] = (0.85, 0.1, 0.55)
    fill_strength: float = 0.22
    sky: float = 0.46  # ambient from above
    ground: float = 0.30  # ambient from below
    key_color: tuple[float, float, float] = (1.0, 1.0, 1.0)  # multiplies the strength
    fill_color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ambient_color: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of sky and ground


@dataclass(frozen=True)
class Surface:
    """What a mesh looks like: faces, UV and a texture of albedo, gloss and occlusion."""

    faces: Int[np.ndarray, "F 3"]
    uv: Float[np.ndarray, "U 2"]
    uv_faces: Int[np.ndarray, "F 3"]  # -1: the face takes the texture's first texel
    texture: Float[np.ndarray, "R R 5"]  # row 0 is v = 1; albedo in [0, 1], gloss in [0, 1], ambient light in [0, 1]


def render_mesh(
    vertices: Float[np.ndarray, "V 3"],
    surface: Surface,
    world_to_camera: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    width: int,
    height: int,
    *,
    lights: Lights | None = None,
    supersampling: int = 2,
) -> tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W"]]:
    """Colour premultiplied by coverage, and coverage, both in [0, 1].

    Vertices in metres in the world's frame, OpenCV camera, pixel centres at +0.5. Faces seen from behind are drawn too
    (with their normal turned to the camera), so an open mesh has no holes.
    """
    lights = lights or Lights()
    rotation = np.ascontiguousarray(world_to_camera[:3, :3], np.float64)
    translation = np.ascontiguousarray(world_to_camera[:3, 3], np.float64)
    world = np.ascontiguousarray(vertices, np.float64)
    normals = vertex_normals(world, surface.faces)
    k = np.asarray(intrinsics, np.float64)
    face_id, weights = rasterize_faces(
        world @ rotation.T + translation,
        surface.faces,
        np.array([k[0, 0] * supersampling, k[1, 1] * supersampling, k[0, 2] * supersampling, k[1, 2] * supersampling]),
        width * supersampling,
        height * supersampling,
    )
    light = np.array([_unit(lights.key), _unit(lights.fill)])
    strength = np.array(
        [
            lights.key_strength * np.array(lights.key_color),
            lights.fill_strength * np.array(lights.fill_color),
            lights.sky * np.array(lights.ambient_color),
            lights.ground * np.array(lights.ambient_color),
        ]
    )
    return _shade(
        face_id,
        weights,
        world,
        normals,
        surface.faces,
        surface.uv,
        surface.uv_faces,
        surface.texture,
        -rotation.T @ translation,
        light,
        strength,
        supersampling,
    )


def visible_vertices(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], direction: Float[np.ndarray, " 3"], size: int
) -> Float[np.ndarray, " V"]:
    """1 for vertices that parallel light from ``direction`` reaches, 0 for those in shadow, between at the edge."""
    axis = direction / np.linalg.norm(direction)
    side = np.cross(axis, [0.3, 0.2, 0.9] if abs(axis[1]) > 0.9 else [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(axis, side), -axis])
    seen = (vertices - vertices.mean(0)) @ frame.T
    reach = np.abs(seen).max() * 1.02
    far = 1e4 * reach  # so far away that the perspective is parallel
    shifted = seen + np.array([0.0, 0.0, far])
    focal = far / reach * size / 2
    face_id, weights = rasterize_faces(
        shifted, faces, np.array([focal, focal, size / 2, size / 2], np.float64), size, size
    )
    depth = np.where(face_id >= 0, (seen[faces[face_id], 2] * weights).sum(-1), np.inf)
    at = np.clip(((seen[:, :2] / reach + 1) * size / 2), 0, size - 1).astype(np.int64)
    nearest = depth[at[:, 1], at[:, 0]]
    return np.clip(1.0 - (seen[:, 2] - nearest - 0.0022) / 0.002, 0.0, 1.0)


def vertex_normals(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V 3"]:
    """Unit normals, each face weighted by its area."""
    return _vertex_normals(vertices, faces)


@serial_kernel
def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    normals = np.zeros_like(vertices)
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        vx, vy, vz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for v in (a, b, c):
            normals[v, 0] += nx
            normals[v, 1] += ny
            normals[v, 2] += nz
    for v in range(vertices.shape[0]):
        length = np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2)
        if length > 0:
            normals[v] /= length
    return normals


def rasterize_faces(
    camera_points: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    focal: Float[np.ndarray, " 4"],  # fx, fy, cx, cy in pixels
    width: int,
    height: int,
) -> tuple[Int[np.ndarray, "H W"], Float[np.ndarray, "H W 3"]]:
    """Nearest face at each pixel centre (-1: none) and its perspective-correct barycentric weights."""
    return _rasterize(camera_points, faces, focal, width, height)


@serial_kernel
def _rasterize(
    camera_points: np.ndarray, faces: np.ndarray, focal: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    inverse = np.zeros((height, width))  # 1 / depth, which is linear on the screen
    face_id = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 3), np.float32)
    n = camera_points.shape[0]
    sx, sy, sz = np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        z = camera_points[i, 2]
        sz[i] = 1.0 / z if z > NEAR else -1.0
        sx[i] = camera_points[i, 0] * sz[i] * focal[0] + focal[2]
        sy[i] = camera_points[i, 1] * sz[i] * focal[1] + focal[3]
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        if sz[a] < 0 or sz[b] < 0 or sz[c] < 0:
            continue
        xa, ya, xb, yb, xc, yc = sx[a], sy[a], sx[b], sy[b], sx[c], sy[c]
        area = (xb - xa) * (yc - ya) - (yb - ya) * (xc - xa)
        if area == 0.0:
            continue
        left = max(0, int(np.ceil(min(xa, xb, xc) - 0.5)))
        right = min(width - 1, int(np.floor(max(xa, xb, xc) - 0.5)))
        top = max(0, int(np.ceil(min(ya, yb, yc) - 0.5)))
        bottom = min(height - 1, int(np.floor(max(ya, yb, yc) - 0.5)))
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                wa = ((xb - x) * (yc - y) - (yb - y) * (xc - x)) / area
                wb = ((xc - x) * (ya - y) - (yc - y) * (xa - x)) / area
                wc = 1.0 - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                z = wa * sz[a] + wb * sz[b] + wc * sz[c]
                if z > inverse[row, column]:
                    inverse[row, column] = z
                    face_id[row, column] = f
                    weights[row, column, 0] = wa * sz[a] / z
                    weights[row, column, 1] = wb * sz[b] / z
                    weights[row, column, 2] = wc * sz[c] / z
    return face_id, weights


@serial_kernel
def _shade(
    face_id: np.ndarray,
    weights: np.ndarray,
    vertices: np.ndarray,
    normals: np.ndarray,
    faces: np.ndarray,
    uv: np.ndarray,
    uv_faces: np.ndarray,
    texture: np.ndarray,
    eye: np.ndarray,
    light: np.ndarray,
    strength: np.ndarray,  # key, fill, sky, ground by RGB
    supersampling: int,
) -> tuple[np.ndarray, np.ndarray]:
    height, width = face_id.shape[0] // supersampling, face_id.shape[1] // supersampling
    image = np.zeros((height, width, 3), np.float32)
    alpha = np.zeros((height, width), np.float32)
    share = 1.0 / (supersampling * supersampling)
    resolution = texture.shape[0]
    sample = np.zeros(texture.shape[2])
    normal = np.zeros(3)
    view = np.zeros(3)
    diffuse = np.zeros(3)
    shine = np.zeros(3)
    wrap = (0.30, 0.18, 0.14)
    for row in range(height * supersampling):
        for column in range(width * supersampling):
            f = face_id[row, column]
            if f < 0:
                continue
            u, v = 0.0, 1.0
            normal[:] = 0.0
            view[:] = eye
            for k in range(3):
                w = weights[row, column, k]
                vertex = faces[f, k]
                for d in range(3):
                    normal[d] += w * normals[vertex, d]
                    view[d] -= w * vertices[vertex, d]
                if uv_faces[f, 0] >= 0:
                    u += w * uv[uv_faces[f, k], 0]
                    v += w * (uv[uv_faces[f, k], 1] - 1.0)
            length = np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + 1e-12
            distance = np.sqrt(view[0] ** 2 + view[1] ** 2 + view[2] ** 2) + 1e-12
            facing = 0.0
            for d in range(3):
                normal[d] /= length
                view[d] /= distance
                facing += normal[d] * view[d]
            x = min(max(u * resolution - 0.5, 0.0), resolution - 1.0)
            y = min(max((1.0 - v) * resolution - 0.5, 0.0), resolution - 1.0)
            x0, y0 = int(x), int(y)
            x1, y1 = min(x0 + 1, resolution - 1), min(y0 + 1, resolution - 1)
            fx, fy = x - x0, y - y0
            for c in range(sample.shape[0]):
                sample[c] = (1 - fy) * ((1 - fx) * texture[y0, x0, c] + fx * texture[y0, x1, c]) + fy * (
                    (1 - fx) * texture[y1, x0, c] + fx * texture[y1, x1, c]
                )
            gloss, ambient = sample[3], sample[4]
            upward = 0.5 + 0.5 * normal[1]
            for c in range(3):
                diffuse[c] = (strength[3, c] + (strength[2, c] - strength[3, c]) * upward) * ambient
                shine[c] = 0.0
            for i in range(2):
                cosine = normal[0] * light[i, 0] + normal[1] * light[i, 1] + normal[2] * light[i, 2]
                # light wraps around skin, red further than blue; deep places get less of it
                for c in range(3):
                    shadow = strength[i, c] * (0.25 + 0.75 * ambient)
                    diffuse[c] += shadow * max(0.0, (cosine + wrap[c]) / (1.0 + wrap[c]))
                hx, hy, hz = light[i, 0] + view[0], light[i, 1] + view[1], light[i, 2] + view[2]
                h = np.sqrt(hx * hx + hy * hy + hz * hz) + 1e-12
                half = (normal[0] * hx + normal[1] * hy + normal[2] * hz) / h
                if half > 0 and cosine > 0:
                    power = 14.0 + 160.0 * gloss * gloss
                    highlight = half**power
                    for c in range(3):
                        shine[c] += strength[i, c] * ambient * gloss * (0.12 + 0.9 * gloss) * highlight
            rim = (1.0 - max(facing, 0.0)) ** 3 * 0.06 * ambient
            out_row, out_column = row // supersampling, column // supersampling
            for c in range(3):
                image[out_row, out_column, c] += share * min(1.0, sample[c] * diffuse[c] + shine[c] + rim)
            alpha[out_row, out_column] += share
    return image, alpha


def _unit(vector: tuple[float, float, float]) -> np.ndarray:
    v = np.array(vector)
    return v / np.linalg.norm(v)
