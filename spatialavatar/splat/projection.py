"""EWA projection of 3D Gaussians to the screen, in plain torch (any dtype, differentiable).

The specification of the splatter's first half: Zwicker et al. 2002 as used by Kerbl et al. 2023, with the culling
rules of gsplat 1.5.3. ``splat/cpu/projection.py`` is its compiled twin.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spatialavatar.splat.binding import quaternion_to_rotation
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import WorldGaussians

EPS2D = 0.3  # px^2, low-pass added to every screen covariance
NEAR = 0.01  # m
FAR = 1e10  # m
ALPHA_MIN = 1 / 255  # contributions below are skipped


@dataclass(frozen=True)
class ProjectedGaussians:
    """Gaussians on the screen. Where ``visible`` is false every value is finite and without meaning."""

    means2d: Float[Tensor, "B N 2"]  # px, pixel centres at +0.5
    conics: Float[Tensor, "B N 3"]  # A B C of the inverse screen covariance [[A, B], [B, C]], px^-2
    depths: Float[Tensor, "B N"]  # m
    radii: Float[Tensor, "B N 2"]  # px, half size of the box outside which alpha < 1/255; whole numbers, 0 where culled
    visible: Bool[Tensor, "B N"]


def world_covariance(quats: Float[Tensor, "*B 4"], scales: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Sigma = R S S^T R^T (m^2)."""
    axes = quaternion_to_rotation(quats) * scales[..., None, :]
    return axes @ axes.mT


def screen_covariance(
    in_camera: Float[Tensor, "B N 3"], covariance: Float[Tensor, "B N 3 3"], camera: Camera
) -> Float[Tensor, "B N 2 2"]:
    """J W Sigma W^T J^T (px^2), without the low-pass.

    ``in_camera`` are the means in camera coordinates, in front of the camera; J is the projection's Jacobian there,
    evaluated no further outside the image than 15 % of its size (gsplat's and Inria's bound).
    """
    rotation = camera.world_to_camera[:, None, :3, :3]
    fx, fy = camera.intrinsics[:, 0, 0, None], camera.intrinsics[:, 1, 1, None]
    cx, cy = camera.intrinsics[:, 0, 2, None], camera.intrinsics[:, 1, 2, None]
    x, y, z = in_camera.unbind(-1)
    margin_x, margin_y = 0.15 * camera.width / fx, 0.15 * camera.height / fy
    slope_x = torch.minimum(torch.maximum(x / z, -cx / fx - margin_x), (camera.width - cx) / fx + margin_x)
    slope_y = torch.minimum(torch.maximum(y / z, -cy / fy - margin_y), (camera.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([fx / z, zero, -fx * slope_x / z], -1),
            torch.stack([zero, fy / z, -fy * slope_y / z], -1),
        ],
        -2,
    )
    axes = jacobian @ rotation
    return axes @ covariance @ axes.mT


def project(gaussians: WorldGaussians, camera: Camera) -> ProjectedGaussians:
    """Project B x N Gaussians with B cameras (skew is ignored).

    Culled are Gaussians not between the near and the far plane, with opacity below 1/255, wholly outside the image,
    with a zero quaternion, or with anything in them that is not finite. Culled Gaussians get zero gradients.
    """
    usable = _usable(gaussians)
    means = torch.where(usable[..., None], gaussians.means, torch.zeros_like(gaussians.means))
    unit_quaternion = torch.zeros_like(gaussians.quats)
    unit_quaternion[..., 0] = 1
    quats = torch.where(usable[..., None], gaussians.quats, unit_quaternion)
    scales = torch.where(usable[..., None], gaussians.scales, torch.zeros_like(gaussians.scales))
    opacities = torch.where(usable, gaussians.opacities, torch.zeros_like(gaussians.opacities)).detach()

    rotation, translation = camera.world_to_camera[:, :3, :3], camera.world_to_camera[:, :3, 3]
    in_camera = means @ rotation.mT + translation[:, None]
    depths = in_camera[..., 2]
    usable = usable & (depths > NEAR) & (depths < FAR) & (opacities >= ALPHA_MIN)
    in_camera = torch.where(usable[..., None], in_camera, torch.ones_like(in_camera))

    focal = torch.diagonal(camera.intrinsics, dim1=-2, dim2=-1)[:, None, :2]
    center = camera.intrinsics[:, None, :2, 2]
    means2d = focal * in_camera[..., :2] / in_camera[..., 2:] + center

    covariance = screen_covariance(in_camera, world_covariance(quats, scales), camera)
    xx, yy = covariance[..., 0, 0] + EPS2D, covariance[..., 1, 1] + EPS2D
    xy = (covariance[..., 0, 1] + covariance[..., 1, 0]) / 2
    determinant = (xx * yy - xy * xy).clamp(min=1e-10)
    conics = torch.stack([yy, -xy, xx], -1) / determinant[..., None]

    # alpha < 1/255 further out than this many standard deviations
    extent = (2 * (opacities.clamp(min=ALPHA_MIN) / ALPHA_MIN).log()).sqrt().clamp(max=3.33)
    radii = torch.ceil(extent[..., None] * torch.stack([xx, yy], -1).detach().sqrt())
    size = means2d.new_tensor([camera.width, camera.height])
    inside = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    visible = usable & inside
    return ProjectedGaussians(means2d, conics, depths, torch.where(visible[..., None], radii, 0.0), visible)


def _usable(gaussians: WorldGaussians) -> Bool[Tensor, "B N"]:
    """Finite in every attribute, and with a quaternion that can be normalised."""
    largest = 1e30  # beyond, float32 overflows further on
    finite = gaussians.opacities.abs() < largest
    for attribute in (gaussians.means, gaussians.quats, gaussians.scales, gaussians.colors):
        finite = finite & (attribute.abs() < largest).all(-1)
    squared = (gaussians.quats * gaussians.quats).sum(-1)
    return finite & (squared > 1e-30) & (squared < 1e30)
