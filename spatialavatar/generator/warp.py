"""The barycentric UV warp: image features onto the texels that they show (paper A.1; no parameters)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from spatialavatar.splat.camera import Camera

FACING_CHANNELS = 4
NEAR = 0.01  # metres: what is nearer or behind the camera is not in the image


def warp(
    picture: Float[Tensor, "M C h w"], points: Float[Tensor, "M N 3"], camera: Camera
) -> tuple[Float[Tensor, "M N C"], Float[Tensor, "M N 1"]]:
    """Sample a picture of any size, which covers the camera's whole image, where the texels' surface points project.

    Bilinear, with pixel centres at +0.5; texels that project outside the image get zeros and validity 0. Whether
    something lies in front of a texel is not asked (paper A.1).
    """
    with torch.autocast(points.device.type, enabled=False):
        pixels, depth = camera.project(points)
        size = pixels.new_tensor([camera.width, camera.height])
        valid = ((pixels >= 0) & (pixels <= size)).all(-1) & (depth > NEAR)
        # grid_sample without aligned corners has -1 and 1 at the outer corners of the image
        where = torch.where(valid[..., None], 2 * pixels / size - 1, 0.0)
        sampled = grid_sample(
            picture.to(points.dtype), where[:, None], mode="bilinear", padding_mode="border", align_corners=False
        )
        seen = valid.to(points.dtype)[..., None]
        return sampled[:, :, 0].mT * seen, seen


def facing(corners: Float[Tensor, "M N 3 3"], points: Float[Tensor, "M N 3"], camera: Camera) -> Float[Tensor, "M N 1"]:
    """Cosine between each texel's normal and the direction to the camera; 0 for texels that face away.

    ``corners`` are those of the texels' parent triangles. The mesh as a whole may still hide a texel.
    """
    with torch.autocast(points.device.type, enabled=False):
        normal = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
        towards = normalize(camera.position[:, None] - points, dim=-1)
        return (normalize(normal, dim=-1) * towards).sum(-1, keepdim=True).clamp_min(0)
