"""The template skin: the attributes that every avatar starts from (method.md section 1, "initial attributes")."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spatialavatar.splat.binding import triangle_frames
from spatialavatar.splat.gaussians import LocalGaussians

TANGENTIAL = 0.7  # standard deviation along the surface, in texel spacings
NORMAL = 0.3  # standard deviation along the normal (local y), as a share of the tangential one
OPACITY = 0.9
COLOR = 0.5


def template_skin(
    template: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    face_index: Int[Tensor, " N"],
    barycentric: Float[Tensor, "N 3"],
    spacing: Float[Tensor, " N"],  # metres between neighbouring texels (head.texel_spacing)
    channels: int = 3,
) -> LocalGaussians:
    """One flat, opaque, grey Gaussian for each texel, at its point of the rest mesh; one subject (B = 1)."""
    frames = triangle_frames(template, faces[face_index])
    points = (template[faces[face_index]] * barycentric[..., None]).sum(-2)
    position = (frames.rotation.mT @ (points - frames.centroid)[..., None]).squeeze(-1) / frames.scale[:, None]
    tangential = TANGENTIAL * spacing / frames.scale
    log_scale = torch.stack([tangential, NORMAL * tangential, tangential], -1).log()
    identity = torch.zeros_like(barycentric[:, :1]).expand(-1, 4).clone()
    identity[:, 0] = 1
    color = template.new_full((len(face_index), channels), COLOR)
    opacity_logit = template.new_full((len(face_index),), math.log(OPACITY / (1 - OPACITY)))
    return LocalGaussians(position[None], identity[None], log_scale[None], color[None], opacity_logit[None])


def rest_scale(
    template: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], face_index: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Scale s of each Gaussian's parent triangle on the rest mesh, metres."""
    return triangle_frames(template, faces[face_index]).scale
