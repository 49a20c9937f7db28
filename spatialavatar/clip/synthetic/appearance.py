"""What a synthetic person looks like: a painted texture, and hair volume that no tracked parameter knows of.

Every choice is drawn from the identity number alone. On the built-in head the paint follows its anatomy (lips, brows,
iris, teeth, hairline); other heads get plain colours by the names of their parts.
"""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int

from spatialavatar.clip.synthetic.mesh_renderer import Surface, vertex_normals, visible_vertices
from spatialavatar.clip.synthetic.noise import fractal_noise, value_noise
from spatialavatar.head.builtin import HEAD_ID, builtin_mesh, patches
from spatialavatar.head.builtin.anatomy import EYEBALL_RING, hairline
from spatialavatar.head.builtin.surface import EYE as EYE_CENTRE
from spatialavatar.head.builtin.surface import bump, smoothstep
from spatialavatar.head.builtin.tessellation import EAR, EYE, MOUTH
from spatialavatar.head.model import HeadModel
from spatialavatar.head.uv_layout import UVLayout, build_layout

_SKIN = np.array(
    [[0.93, 0.74, 0.65], [0.87, 0.66, 0.55], [0.76, 0.55, 0.42], [0.60, 0.40, 0.29], [0.42, 0.27, 0.19]], np.float32
)
_HAIR = np.array(
    [
        [0.06, 0.05, 0.05],
        [0.15, 0.09, 0.06],
        [0.30, 0.18, 0.10],
        [0.58, 0.43, 0.24],
        [0.42, 0.17, 0.08],
        [0.55, 0.54, 0.53],
    ],
    np.float32,
)
_IRIS = np.array(
    [[0.22, 0.12, 0.06], [0.34, 0.21, 0.10], [0.30, 0.36, 0.18], [0.28, 0.42, 0.54], [0.40, 0.46, 0.48]], np.float32
)


@dataclass(frozen=True)
class Person:
    """The draws that make a person; lengths in mm."""

    skin: Float[np.ndarray, " 3"]
    hair: Float[np.ndarray, " 3"]
    iris: Float[np.ndarray, " 3"]
    lips: float  # 0: like the skin, 1: red
    hair_style: str  # "bald", "buzz", "short", "full", "afro"
    hair_length: float
    hairline_shift: float  # towards the crown
    brow_thickness: float
    stubble: float  # 0..1
    freckles: float  # 0..1
    seed: int


def draw_person(identity: int) -> Person:
    rng = np.random.Generator(np.random.PCG64([identity, 11]))
    tone = rng.random() * 3.6
    low = int(tone)
    skin = _SKIN[low] + (tone - low) * (_SKIN[low + 1] - _SKIN[low])
    skin = skin * (1 + 0.012 * np.clip(rng.standard_normal(3), -2, 2).astype(np.float32))
    dark = tone > 2.2
    hair = _HAIR[int(rng.random() * (2.4 if dark else 6))] * np.float32(0.85 + 0.3 * rng.random())
    iris = _IRIS[int(rng.random() * (2 if dark else 5))] * np.float32(0.85 + 0.3 * rng.random())
    style = ("short", "full", "short", "buzz", "afro" if dark else "full", "bald")[int(rng.random() * 6)]
    length = {"bald": 0.0, "buzz": 2.0, "short": 9.0, "full": 17.0, "afro": 30.0}[style] * (0.85 + 0.3 * rng.random())
    return Person(
        skin=skin.astype(np.float32),
        hair=hair.astype(np.float32),
        iris=iris.astype(np.float32),
        lips=0.35 + 0.55 * rng.random(),
        hair_style=style,
        hair_length=length,
        hairline_shift=-3.0 + 12.0 * rng.random() ** 2,
        brow_thickness=0.75 + 0.5 * rng.random(),
        stubble=max(0.0, 1.7 * rng.random() - 0.8),
        freckles=max(0.0, 1.8 * rng.random() - 1.1) if tone < 1.6 else 0.0,
        seed=1000 + 37 * identity,
    )


def paint(head: HeadModel, person: Person, resolution: int) -> Surface:
    """The person's surface on this head: albedo, gloss and ambient light by UV, ``resolution`` texels square."""
    texture = np.zeros((resolution * resolution, 5), np.float32)
    texture[:, :3], texture[:, 3], texture[:, 4] = person.skin, 0.2, 1.0
    layout = _layout(head, resolution)
    if head.info.id == HEAD_ID:
        painted = _paint_builtin(person, _canvas(head, resolution))
    else:
        face = layout.face_index.numpy()
        painted = _paint_by_parts(head, person, face, _interpolate(head, layout, ambient_light(head)))
    texture[layout.texel.numpy()] = painted
    empty = np.ones(resolution * resolution, bool)
    empty[layout.texel.numpy()] = False
    texture = _grow(texture.reshape(resolution, resolution, 5), empty.reshape(resolution, resolution))
    return dataclasses.replace(_mesh(head), texture=np.ascontiguousarray(texture))


def hair_offset(head: HeadModel, person: Person) -> Float[np.ndarray, "V 3"]:
    """Displacement of the template's vertices by the hair, metres; zero on heads other than the built-in one."""
    offset = np.zeros((head.vertex_count, 3), np.float32)
    if head.info.id != HEAD_ID or person.hair_length == 0:
        return offset
    mesh = builtin_mesh()
    p = mesh.points
    # thick where the hair is well rooted, thinner at the sides and the nape unless it stands off all around
    inside = hairline(p) - person.hairline_shift * smoothstep(0.0, 30.0, p[:, 2])
    inside[(mesh.patch == EAR) | (mesh.patch == EYE) | (mesh.patch == MOUTH)] = -100.0
    rooted = smoothstep(3.0, 25.0, inside)
    top = smoothstep(20.0, 105.0, p[:, 1])
    even = {"afro": 0.9, "full": 0.5}.get(person.hair_style, 0.4)
    volume = person.hair_length * rooted * (even + (1 - even) * top)
    volume *= 1.0 + 0.22 * fractal_noise(p / 22.0, person.seed + 5, 2)
    if person.hair_style == "full":
        quiff = bump(p, (14.0 if person.seed % 2 else -14.0, 118.0, 52.0), (46.0, 26.0, 34.0))
        volume += 9.0 * rooted * quiff
    normals = vertex_normals(p, mesh.faces)
    return (1e-3 * volume[:, None] * normals).astype(np.float32)


@lru_cache(maxsize=2)
def _layout(head: HeadModel, resolution: int) -> UVLayout:
    return build_layout(head, resolution)


def _interpolate(head: HeadModel, layout: UVLayout, values: np.ndarray) -> np.ndarray:
    """Values of vertices at the texels."""
    v, weights = values.astype(np.float32), layout.barycentric.numpy()
    corners = head.faces.numpy()[layout.face_index.numpy()]
    return sum(v[corners[:, k]] * (weights[:, k] if v.ndim == 1 else weights[:, k, None]) for k in range(3))


@lru_cache(maxsize=2)
def _mesh(head: HeadModel) -> Surface:
    """The surface without its paint: everyone shares these arrays."""
    return Surface(
        faces=head.faces.numpy().astype(np.int64),
        uv=head.uv.numpy().astype(np.float64),
        uv_faces=head.uv_faces.numpy().astype(np.int64),
        texture=np.zeros((1, 1, 5), np.float32),
    )


@dataclass(frozen=True)
class _Canvas:
    """What the texels of the built-in head are, whoever is painted on them; N texels, lengths in mm."""

    points: Float[np.ndarray, "N 3"]
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


@lru_cache(maxsize=2)
def _canvas(head: HeadModel, resolution: int) -> _Canvas:
    mesh, layout = builtin_mesh(), _layout(head, resolution)
    p = _interpolate(head, layout, mesh.points)
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
    return _Canvas(
        points=p,
        patch=patch,
        ring=_interpolate(head, layout, mesh.ring.astype(float)),
        lower_share=_interpolate(head, layout, (mesh.column > patches.MOUTH_CORNER).astype(float)),
        ambient=_interpolate(head, layout, ambient_light(head)),
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


def _paint_builtin(person: Person, canvas: _Canvas) -> Float[np.ndarray, "N 5"]:
    p, patch, ring, lower_share, ambient = (
        canvas.points,
        canvas.patch,
        canvas.ring,
        canvas.lower_share,
        canvas.ambient,
    )
    x, y, z = p.T
    side = np.abs(x)
    folded = np.stack([side, y, z], -1)
    eye, mouth, ear = patch == EYE, patch == MOUTH, patch == EAR
    eyeball = eye & (ring >= EYEBALL_RING - 0.5)
    skin_texel = ~eyeball

    # skin: blotches, redder where blood is near, darker around the eyes
    albedo = np.repeat(person.skin[None], len(p), 0)
    blotch = fractal_noise(p / 13.0, person.seed, 3)
    albedo *= 1.0 + 0.035 * blotch[:, None]
    pores = value_noise(p / 1.3, person.seed + 1)
    albedo *= 1.0 + 0.02 * pores[:, None]
    red = canvas.red * ((1.0 + 0.5 * blotch) * (0.45 + 0.65 * person.skin[1]))
    albedo *= 1.0 - red[:, None] * np.array([0.02, 0.13, 0.12], np.float32)
    albedo *= 1.0 - canvas.under_eye[:, None]
    albedo *= 1.0 - canvas.eye_socket[:, None]
    if person.freckles:
        spots = value_noise(p / 1.9, person.seed + 2) + 0.4 * value_noise(p / 9.0, person.seed + 3)
        area = bump(folded, (24, -4, 84), (26, 18, 30)) * person.freckles
        albedo *= 1.0 - (area * smoothstep(0.62, 0.85, spots))[:, None] * np.array([0.22, 0.36, 0.42], np.float32)
    dots = 0.6 + 0.4 * value_noise(p / 0.9, person.seed + 4)
    shade = (0.42 * person.stubble * canvas.beard * dots)[:, None]
    albedo = albedo * (1 - shade) + shade * (0.5 * person.hair + 0.12)
    gloss = canvas.gloss + (canvas.oily - 0.10 * (0.5 + 0.5 * pores))
    albedo *= 1.0 - canvas.nostril

    # lips
    red_of_lips = np.where(mouth, smoothstep(2.75, 3.35, ring + 0.10 * pores), 0.0)
    wrinkle = value_noise(np.stack([x / 0.9, y / 6.0], -1), person.seed + 6)
    tint = person.skin * np.array([0.92, 0.66, 0.64], np.float32) * (1 - person.lips) + person.lips * (
        0.35 * person.skin + np.array([0.42, 0.14, 0.15], np.float32)
    )
    lip = tint * (1.0 + 0.07 * wrinkle[:, None]) * (1.0 - 0.45 * smoothstep(7.3, 8.4, ring))[:, None]
    lip *= np.where(lower_share > 0.5, 1.06, 0.94)[:, None]
    albedo += red_of_lips[:, None].astype(np.float32) * (lip - albedo)
    gloss += (red_of_lips * (0.42 - gloss)).astype(np.float32)

    ambient = np.where(red_of_lips > 0.5, np.maximum(ambient, 0.50), ambient)

    # inside of the mouth: gums, teeth, tongue
    inside = mouth & (ring > patches.MOUTH_EDGE_RING + 0.8)
    depth = smoothstep(9.0, 15.5, ring)[:, None]
    flesh = np.array([0.55, 0.22, 0.20], np.float32) * (1 - depth) + depth * np.array([0.16, 0.05, 0.05], np.float32)
    tongue = (inside & (ring > 13.2) & (lower_share > 0.5))[:, None]
    flesh = np.where(
        tongue, np.array([0.62, 0.30, 0.29], np.float32) * (1 - 0.6 * smoothstep(13.5, 16, ring))[:, None], flesh
    )
    first, last = patches.TEETH_RINGS
    edges = np.array([0.0, 8.2, 14.6, 21.0])
    gap = np.min(np.abs(side[:, None] - edges * np.where(lower_share > 0.5, 0.68, 1.0)[:, None]), 1)
    tooth = np.array([0.88, 0.84, 0.76], np.float32) * (1 - 0.55 * np.exp(-((gap / 0.45) ** 2)))[:, None]
    on_tooth = (
        inside & (ring > first + 0.12 + 0.16 * np.cos(side * np.pi / 7.4) ** 2) & (ring < last + 0.9) & (side < 18.0)
    )
    inner = np.where(on_tooth[:, None], tooth, flesh)
    albedo = np.where(inside[:, None], inner, albedo)
    gloss = np.where(inside, 0.5, gloss)
    ambient = np.where(inside, np.where(on_tooth, 0.62, 0.42 * (1 - 0.75 * smoothstep(12.0, 16.0, ring))), ambient)

    # brows: hairs along an arch
    t = np.clip((side - 8.0) / 42.0, 0.0, 1.0)
    arch = 40.2 + 6.2 * np.sin(np.pi * np.minimum(t * 0.78, 1.0)) - 4.6 * smoothstep(0.60, 1.1, t)
    thick = person.brow_thickness * (3.3 * (1 - t) ** 0.6 + 0.9) * smoothstep(0.0, 0.10, t + 0.03)
    strands = value_noise(
        np.stack([(side + 0.8 * (y - arch)) / 0.9, (y - arch - 0.3 * side) / 4.0], -1), person.seed + 7
    )
    brow = smoothstep(1.0, 0.45, np.abs(y - arch) / np.maximum(thick, 0.1) + 0.20 * strands) * smoothstep(
        50.5, 47.0, side
    )
    brow *= smoothstep(7.0, 11.0, side) * smoothstep(40.0, 55.0, z)
    brow = (0.88 * brow * (0.80 + 0.20 * strands))[:, None].astype(np.float32)
    albedo += brow * (0.65 * person.hair + 0.02 - albedo)
    gloss *= 1 - brow[:, 0]

    # lashes and the wet rim of the lids
    local = folded - EYE_CENTRE
    upper = local[:, 1] > 0.055 * local[:, 0]
    lash = np.where(eye, smoothstep(3.62, 3.95, ring) * smoothstep(5.0, 4.7, ring), 0.0) * np.where(upper, 0.9, 0.42)
    lash *= smoothstep(-13.6, -9.5, local[:, 0])
    albedo += lash[:, None].astype(np.float32) * (np.array([0.07, 0.05, 0.045], np.float32) - albedo)
    wet = eye & (ring > 4.75) & skin_texel
    albedo = np.where(wet[:, None], person.skin * np.array([0.95, 0.70, 0.66], np.float32), albedo)
    gloss = np.where(wet, 0.5, gloss)

    # eyeballs: white, iris with fibres and a dark rim, pupil
    ball_local = local[eyeball]
    radius = np.hypot(ball_local[:, 0], ball_local[:, 1])
    polar = np.degrees(np.arctan2(radius, ball_local[:, 2]))
    azimuth = np.arctan2(ball_local[:, 1], ball_local[:, 0])
    white = np.array([0.90, 0.875, 0.85], np.float32) * (1 - 0.22 * smoothstep(34, 62, polar))[:, None]
    veins = smoothstep(0.55, 0.9, value_noise(np.stack([azimuth * 9.0, polar / 9.0], -1), person.seed + 8))
    white = white * (1 - (veins * smoothstep(36, 60, polar))[:, None] * np.array([0.02, 0.20, 0.20], np.float32))
    fibre = value_noise(np.stack([azimuth * 14.0, polar / 14.0], -1), person.seed + 9)
    fine = value_noise(np.stack([azimuth * 31.0, polar / 9.0], -1), person.seed + 10)
    share = np.clip((polar - 9.0) / 16.5, 0.0, 1.0)
    iris = (
        person.iris * (1.25 + 0.28 * fibre + 0.16 * fine - 0.35 * share)[:, None]
        + 0.05 * np.exp(-((share / 0.3) ** 2))[:, None]
    )
    iris = iris * (1.0 - 0.72 * smoothstep(21.5, 25.5, polar))[:, None]
    ball = white + smoothstep(26.8, 25.2, polar)[:, None] * (iris - white)
    ball *= 1.0 - 0.97 * smoothstep(9.8, 8.6, polar)[:, None]
    albedo[eyeball] = ball
    gloss = np.where(eyeball, 0.95, gloss)
    # the upper lid shades the eyeball
    ambient = np.where(eyeball, 0.92 - 0.34 * smoothstep(1.5, 6.5, local[:, 1]), ambient)

    # hair
    ragged = 2.6 * fractal_noise(p / np.array([3.5, 9.0, 6.0]), person.seed + 11, 3)
    crown = np.stack([x, y - 118.0, z + 30.0], -1)
    around = np.arctan2(crown[:, 0], crown[:, 2])
    reach = np.linalg.norm(crown, axis=-1)
    strand = value_noise(np.stack([around * 52.0, reach / 30.0, y / 60.0], -1), person.seed + 12)
    strand += 0.6 * value_noise(np.stack([around * 120.0, reach / 16.0, y / 40.0], -1), person.seed + 13)
    strand += 0.5 * fractal_noise(p / 9.0, person.seed + 14, 2)
    edge = canvas.hairline - person.hairline_shift * smoothstep(0.0, 30.0, z) + ragged
    cover = {"bald": 0.16, "buzz": 0.72}.get(person.hair_style, 1.0) * smoothstep(-4.0, 4.5, edge)
    cover = np.where(ear | eye | mouth, 0.0, cover)[:, None].astype(np.float32)
    hair = person.hair * (1.0 + 0.42 * strand)[:, None] + 0.012
    albedo += cover * (hair - albedo)
    gloss += cover[:, 0] * (0.26 + 0.10 * np.clip(strand, -1, 1) - gloss)
    return np.concatenate([np.clip(albedo, 0.004, 0.98), np.clip(gloss, 0, 1)[:, None], ambient[:, None]], -1).astype(
        np.float32
    )


def _paint_by_parts(head: HeadModel, person: Person, face: np.ndarray, ambient: np.ndarray) -> Float[np.ndarray, "N 5"]:
    """Plain colours by words in the part names: a head that we did not design."""
    names = head.info.part_names or ["skin"]
    colours = []
    for name in names:
        word = name.lower()
        if "eye" in word and "lid" not in word and "lash" not in word:
            colours.append([0.88, 0.87, 0.85, 0.9])
        elif "teeth" in word or "tooth" in word:
            colours.append([0.88, 0.84, 0.76, 0.5])
        elif "lip" in word:
            colours.append([*(person.skin * [0.9, 0.6, 0.6]), 0.4])
        elif "mouth" in word or "gum" in word or "tongue" in word:
            colours.append([0.5, 0.2, 0.2, 0.4])
        elif "scalp" in word or "hair" in word or "lash" in word or "brow" in word:
            colours.append([*person.hair, 0.2])
        else:
            colours.append([*person.skin, 0.22])
    part = head.face_part.numpy()[face].clip(0, len(names) - 1)
    return np.concatenate([np.array(colours, np.float32)[part], ambient[:, None].astype(np.float32)], -1)


def _grow(texture: Float[np.ndarray, "R R 5"], empty: np.ndarray) -> Float[np.ndarray, "R R 5"]:
    """Fills texels beside a chart from their neighbours, so that bilinear sampling never meets an unpainted one."""
    empty = empty.copy()
    for _ in range(4):
        if not empty.any():
            break
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            source = np.roll(texture, step, axis)
            known = empty & ~np.roll(empty, step, axis)
            texture[known] = source[known]
            empty &= ~known
    return texture


def static_offset(head: HeadModel, person: Person) -> Float[torch.Tensor, "1 V 3"]:
    return torch.from_numpy(hair_offset(head, person))[None]
