"""Paint for the built-in head, layer over layer: skin, lips, mouth, brows, lids, eyeballs, hair; lengths in mm."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from spatialavatar.clip.synthetic.canvas import Canvas
from spatialavatar.clip.synthetic.noise import fractal_noise, value_noise
from spatialavatar.clip.synthetic.person import Person
from spatialavatar.head.builtin import patches
from spatialavatar.head.builtin.surface import EYE as EYE_CENTRE
from spatialavatar.head.builtin.surface import bump, smoothstep


class _Coat(NamedTuple):
    """What has been painted so far."""

    albedo: Float[np.ndarray, "N 3"]
    gloss: Float[np.ndarray, " N"]
    ambient: Float[np.ndarray, " N"]


def paint_builtin(person: Person, canvas: Canvas) -> Float[np.ndarray, "N 5"]:
    """Albedo, gloss and ambient light of every texel."""
    pores = value_noise(canvas.points / 1.3, person.seed + 1)
    coat = _lips(person, canvas, _skin(person, canvas, pores), pores)
    for layer in (_inside_of_mouth, _brows, _lids, _eyeballs, _hair):
        coat = layer(person, canvas, coat)
    albedo, gloss, ambient = coat
    return np.concatenate([np.clip(albedo, 0.004, 0.98), np.clip(gloss, 0, 1)[:, None], ambient[:, None]], -1).astype(
        np.float32
    )


def _skin(person: Person, canvas: Canvas, pores: Float[np.ndarray, " N"]) -> _Coat:
    """Blotches, redder where blood is near, darker around the eyes; freckles, stubble."""
    p, folded = canvas.points, canvas.folded
    albedo = np.repeat(person.skin[None], len(p), 0)
    blotch = fractal_noise(p / 13.0, person.seed, 3)
    albedo *= 1.0 + 0.035 * blotch[:, None]
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
    return _Coat(albedo, gloss, canvas.ambient)


def _lips(person: Person, canvas: Canvas, coat: _Coat, pores: Float[np.ndarray, " N"]) -> _Coat:
    """Tinted, with vertical wrinkles."""
    albedo, gloss, ambient = coat
    ring, lower_share = canvas.ring, canvas.lower_share
    x, y, _z = canvas.points.T
    red_of_lips = np.where(canvas.mouth, smoothstep(2.75, 3.35, ring + 0.10 * pores), 0.0)
    wrinkle = value_noise(np.stack([x / 0.9, y / 6.0], -1), person.seed + 6)
    tint = person.skin * np.array([0.92, 0.66, 0.64], np.float32) * (1 - person.lips) + person.lips * (
        0.35 * person.skin + np.array([0.42, 0.14, 0.15], np.float32)
    )
    lip = tint * (1.0 + 0.07 * wrinkle[:, None]) * (1.0 - 0.45 * smoothstep(7.3, 8.4, ring))[:, None]
    lip *= np.where(lower_share > 0.5, 1.06, 0.94)[:, None]
    albedo += red_of_lips[:, None].astype(np.float32) * (lip - albedo)
    gloss += (red_of_lips * (0.42 - gloss)).astype(np.float32)
    ambient = np.where(red_of_lips > 0.5, np.maximum(ambient, 0.50), ambient)
    return _Coat(albedo, gloss, ambient)


def _inside_of_mouth(person: Person, canvas: Canvas, coat: _Coat) -> _Coat:
    """Gums, teeth, tongue."""
    albedo, gloss, ambient = coat
    ring, lower_share, side = canvas.ring, canvas.lower_share, canvas.folded[:, 0]
    inside = canvas.mouth & (ring > patches.MOUTH_EDGE_RING + 0.8)
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
    return _Coat(albedo, gloss, ambient)


def _brows(person: Person, canvas: Canvas, coat: _Coat) -> _Coat:
    """Hairs along an arch."""
    albedo, gloss, ambient = coat
    side, y, z = canvas.folded.T
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
    return _Coat(albedo, gloss, ambient)


def _lids(person: Person, canvas: Canvas, coat: _Coat) -> _Coat:
    """Lashes, and the wet rim."""
    albedo, gloss, ambient = coat
    ring = canvas.ring
    local = canvas.folded - EYE_CENTRE
    upper = local[:, 1] > 0.055 * local[:, 0]
    lash = np.where(canvas.eye, smoothstep(3.62, 3.95, ring) * smoothstep(5.0, 4.7, ring), 0.0) * np.where(
        upper, 0.9, 0.42
    )
    lash *= smoothstep(-13.6, -9.5, local[:, 0])
    albedo += lash[:, None].astype(np.float32) * (np.array([0.07, 0.05, 0.045], np.float32) - albedo)
    wet = canvas.eye & (ring > 4.75) & ~canvas.eyeball
    albedo = np.where(wet[:, None], person.skin * np.array([0.95, 0.70, 0.66], np.float32), albedo)
    gloss = np.where(wet, 0.5, gloss)
    return _Coat(albedo, gloss, ambient)


def _eyeballs(person: Person, canvas: Canvas, coat: _Coat) -> _Coat:
    """White, iris with fibres and a dark rim, pupil; the upper lid shades them."""
    albedo, gloss, ambient = coat
    eyeball, local = canvas.eyeball, canvas.folded - EYE_CENTRE
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
    ambient = np.where(eyeball, 0.92 - 0.34 * smoothstep(1.5, 6.5, local[:, 1]), ambient)
    return _Coat(albedo, gloss, ambient)


def _hair(person: Person, canvas: Canvas, coat: _Coat) -> _Coat:
    """Strands that fall from the crown, with a ragged edge."""
    albedo, gloss, ambient = coat
    p = canvas.points
    x, y, z = p.T
    ragged = 2.6 * fractal_noise(p / np.array([3.5, 9.0, 6.0]), person.seed + 11, 3)
    crown = np.stack([x, y - 118.0, z + 30.0], -1)
    around = np.arctan2(crown[:, 0], crown[:, 2])
    reach = np.linalg.norm(crown, axis=-1)
    strand = value_noise(np.stack([around * 52.0, reach / 30.0, y / 60.0], -1), person.seed + 12)
    strand += 0.6 * value_noise(np.stack([around * 120.0, reach / 16.0, y / 40.0], -1), person.seed + 13)
    strand += 0.5 * fractal_noise(p / 9.0, person.seed + 14, 2)
    edge = canvas.hairline - person.hairline_shift * smoothstep(0.0, 30.0, z) + ragged
    cover = {"bald": 0.16, "buzz": 0.72}.get(person.hair_style, 1.0) * smoothstep(-4.0, 4.5, edge)
    cover = np.where(canvas.ear | canvas.eye | canvas.mouth, 0.0, cover)[:, None].astype(np.float32)
    hair = person.hair * (1.0 + 0.42 * strand)[:, None] + 0.012
    albedo += cover * (hair - albedo)
    gloss += cover[:, 0] * (0.26 + 0.10 * np.clip(strand, -1, 1) - gloss)
    return _Coat(albedo, gloss, ambient)
