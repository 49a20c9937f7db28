"""What a head offers to paint on: its texels, where they lie and how much light reaches them, whoever is painted."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from spatialavatar.clip.synthetic.mesh_renderer import vertex_normals, visible_vertices
from spatialavatar.head.builtin import builtin_mesh, patches
from spatialavatar.head.builtin.anatomy import EYEBALL_RING, hairline
from spatialavatar.head.builtin.surface import bump, smoothstep
from spatialavatar.head.builtin.tessellation import EAR, EYE, MOUTH
from spatialavatar.head.model import HeadModel
from spatialavatar.head.uv_layout import UVLayout, build_layout


@dataclass(frozen=True)
class Canvas:
    """What the texels of the built-in head are, whoever is painted on them; N texels, lengths in mm."""

    points: Float[np.ndarray, "N 3"]
    folded: Float[np.ndarray, "N 3"]  # the same with the right half on the left
    patch: Int[np.ndarray, " N"]
    ring: Float[np.ndarray, " N"]  # of the patch, fractional
    lower_share: Float[np.ndarray, " N"]  # of the mouth's lower half
    ambient: Float[np.ndarray, " N"]
    hairline: Float[np.ndarray, " N"]
    red: Float[np.ndarray, " N"]  # where blood is near
    under_eye: Float[np.ndarray, " N"]
    eye_socket: Float[np.ndarray, " N"]
    beard: Float[np.ndarray, " N"]
    gloss: Float[np.ndarray, " N"]
    oily: Float[np.ndarray, " N"]
    nostril: Float[np.ndarray, "N 1"]

    @property
    def eye(self) -> Bool[np.ndarray, " N"]:
        return self.patch == EYE

    @property
    def mouth(self) -> Bool[np.ndarray, " N"]:
        return self.patch == MOUTH

    @property
    def ear(self) -> Bool[np.ndarray, " N"]:
        return self.patch == EAR

    @property
    def eyeball(self) -> Bool[np.ndarray, " N"]:
        return self.eye & (self.ring >= EYEBALL_RING - 0.5)


@lru_cache(maxsize=2)
def builtin_canvas(head: HeadModel, resolution: int) -> Canvas:
    """Of the built-in head at a texture size."""
    mesh, layout = builtin_mesh(), texel_layout(head, resolution)
    p = at_texels(head, layout, mesh.points)
    _, y, z = p.T
    folded = np.stack([np.abs(p[:, 0]), y, z], -1)
    patch = mesh.face_patch[layout.face_index.numpy()]
    hair_from = hairline(p)
    red = 0.9 * bump(folded, (38.0, -14.0, 76.0), (17.0, 15.0, 24.0)) + 0.8 * bump(p, (0, -10, 108), (13, 11, 12))
    red += (
        0.35 * bump(p, (0, -80, 88), (18, 12, 20))
        + 0.7 * (patch == EAR)
        + 0.3 * bump(folded, (30, 14, 76), (18, 6, 20))
    )
    beard = smoothstep(-22, -34, y) * smoothstep(-112, -92, y) * smoothstep(0, 22, z) * smoothstep(0.0, -8.0, hair_from)
    beard *= 1.0 - 0.9 * bump(folded, (34, -28, 80), (14, 16, 22))
    nostril = bump(folded, (6.0, -21.0, 97.0), (3.0, 3.2, 4.2))
    return Canvas(
        points=p,
        folded=folded,
        patch=patch,
        ring=at_texels(head, layout, mesh.ring.astype(float)),
        lower_share=at_texels(head, layout, (mesh.column > patches.MOUTH_CORNER).astype(float)),
        ambient=at_texels(head, layout, ambient_light(head)),
        hairline=hair_from,
        red=red,
        under_eye=0.10 * bump(folded, (27, 13, 78), (13, 4.5, 16)),
        eye_socket=0.08 * bump(folded, (27, 33, 80), (17, 6, 16)),
        beard=beard,
        gloss=np.full(len(p), 0.22, np.float32) + 0.14 * bump(p, (0, 0, 100), (16, 50, 22)).astype(np.float32),
        oily=(0.06 * bump(p, (0, 70, 84), (40, 26, 26))).astype(np.float32),
        nostril=0.75 * smoothstep(0.35, 0.75, nostril)[:, None],
    )


@lru_cache(maxsize=2)
def ambient_light(head: HeadModel) -> Float[np.ndarray, " V"]:
    """Share of the sky that each vertex of the template sees, from shadow maps of 48 directions."""
    vertices = head.template.numpy().astype(np.float64)
    faces = head.faces.numpy().astype(np.int64)
    normals = vertex_normals(vertices, faces)
    count = 48
    i = np.arange(count)
    height = 1 - 2 * (i + 0.5) / count
    azimuth = i * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - height**2)
    light, total = np.zeros(len(vertices)), np.zeros(len(vertices))
    for direction in np.stack([ring * np.cos(azimuth), height, ring * np.sin(azimuth)], -1):
        cosine = np.maximum(normals @ direction, 0.0)
        light += cosine * visible_vertices(vertices, faces, direction, 320)
        total += cosine
    return np.clip(light / np.maximum(total, 1e-6), 0.0, 1.0)


@lru_cache(maxsize=2)
def texel_layout(head: HeadModel, resolution: int) -> UVLayout:
    """``build_layout``, of the latest two."""
    return build_layout(head, resolution)


def at_texels(head: HeadModel, layout: UVLayout, values: np.ndarray) -> np.ndarray:
    """Values of vertices at the texels."""
    v, weights = values.astype(np.float32), layout.barycentric.numpy()
    corners = head.faces.numpy()[layout.face_index.numpy()]
    return sum(v[corners[:, k]] * (weights[:, k] if v.ndim == 1 else weights[:, k, None]) for k in range(3))
