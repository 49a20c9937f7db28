"""The painted surface of a synthetic person.

On the built-in head the paint follows its anatomy (builtin_paint.py); other heads get plain colours by the names of
their parts.
"""

import dataclasses
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from spatialavatar.clip.synthetic.builtin_paint import paint_builtin
from spatialavatar.clip.synthetic.canvas import ambient_light, at_texels, builtin_canvas, texel_layout
from spatialavatar.clip.synthetic.mesh_renderer import Surface
from spatialavatar.clip.synthetic.person import Person
from spatialavatar.head.builtin import HEAD_ID
from spatialavatar.head.model import HeadModel


def paint(head: HeadModel, person: Person, resolution: int) -> Surface:
    """The person's surface on this head: albedo, gloss and ambient light by UV, ``resolution`` texels square."""
    texture = np.zeros((resolution * resolution, 5), np.float32)
    texture[:, :3], texture[:, 3], texture[:, 4] = person.skin, 0.2, 1.0
    layout = texel_layout(head, resolution)
    if head.info.id == HEAD_ID:
        painted = paint_builtin(person, builtin_canvas(head, resolution))
    else:
        face = layout.face_index.numpy()
        painted = _paint_by_parts(head, person, face, at_texels(head, layout, ambient_light(head)))
    texture[layout.texel.numpy()] = painted
    empty = np.ones(resolution * resolution, bool)
    empty[layout.texel.numpy()] = False
    texture = _grow(texture.reshape(resolution, resolution, 5), empty.reshape(resolution, resolution))
    return dataclasses.replace(_mesh(head), texture=np.ascontiguousarray(texture))


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


@lru_cache(maxsize=2)
def _mesh(head: HeadModel) -> Surface:
    """The surface without its paint: everyone shares these arrays."""
    return Surface(
        faces=head.faces.numpy().astype(np.int64),
        uv=head.uv.numpy().astype(np.float64),
        uv_faces=head.uv_faces.numpy().astype(np.int64),
        texture=np.zeros((1, 1, 5), np.float32),
    )


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
