"""Hair volume, which no tracked parameter knows of: refinement has to find it by itself."""

import numpy as np
import torch
from jaxtyping import Float

from spatialavatar.clip.synthetic.mesh_renderer import vertex_normals
from spatialavatar.clip.synthetic.noise import fractal_noise
from spatialavatar.clip.synthetic.person import Person
from spatialavatar.head.builtin import HEAD_ID, builtin_mesh
from spatialavatar.head.builtin.anatomy import hairline
from spatialavatar.head.builtin.surface import bump, smoothstep
from spatialavatar.head.builtin.tessellation import EAR, EYE, MOUTH
from spatialavatar.head.model import HeadModel


def static_offset(head: HeadModel, person: Person) -> Float[torch.Tensor, "1 V 3"]:
    """``hair_offset`` as HeadParams has it."""
    return torch.from_numpy(hair_offset(head, person))[None]


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
