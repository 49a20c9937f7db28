"""The screen-space aspect loss against needle-shaped Gaussians (method.md section 4 (c)).

Laspect = mean over the visible Gaussians of ReLU(0.5 log(l_max / l_min) - tau), where l_max and l_min are the
eigenvalues of the projected covariance J W Sigma W^T J^T: 0.5 log(l_max / l_min) is the log of the ratio between
the long and the short axis of the splat on the image. The torch functions here are the specification;
``aspect_cpu.py`` is the fused twin for float32 on the CPU.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spatialavatar.splat.binding import quaternion_to_rotation
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import WorldGaussians
from spatialavatar.splat.projection import EPS2D, FAR, NEAR

FOOTPRINT = 3.33  # standard deviations: gsplat's bound for an opaque splat
JACOBIAN_MARGIN = 0.15  # J is taken at most this share of the image's size outside it, as in splat/projection.py
LEAST_QUATERNION = 1e-30  # squared length

# Floors, all relative to the mean eigenvalue, so that the loss does not depend on the splat's size.
LEAST_MEAN = 1e-16  # pixels^2
LEAST_DISCRIMINANT = 1e-12  # under the root: a round splat has a finite gradient (of zero)
LEAST_DETERMINANT = 1e-24  # axis ratios beyond 2e12 count as that


def aspect_loss(gaussians: WorldGaussians, camera: Camera, tau: float) -> Float[Tensor, " B"]:
    """Mean excess of the log axis ratio over ``tau`` among the visible Gaussians; 0 where none is visible.

    Visible: between the near and the far plane, and the footprint's box, 3.33 standard deviations of the splat with
    its low-pass of 0.3 pixels^2 rounded up to whole pixels as in the splatter, overlaps the image. Occlusion and
    opacity are ignored. As in the splatter, a Gaussian that is not finite or has a zero quaternion is not visible.
    Which Gaussians are visible carries no gradient. Differentiable in means, quats and scales, and off the CPU's
    float32 in the camera, too.
    """
    inputs = (gaussians.means, gaussians.quats, gaussians.scales)
    fixed = (camera.world_to_camera, camera.intrinsics)
    if all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (*inputs, *fixed)) and not any(
        t.requires_grad for t in fixed
    ):
        from spatialavatar.losses.aspect_cpu import aspect_loss_cpu  # here, because numba takes a second to import

        return aspect_loss_cpu(*inputs, *fixed, camera.width, camera.height, tau)
    return aspect_loss_torch(gaussians, camera, tau)


def aspect_loss_torch(gaussians: WorldGaussians, camera: Camera, tau: float) -> Float[Tensor, " B"]:
    """The twin of the fused kernel, for any device and precision."""
    usable = _usable(gaussians)
    gaussians = _replace_unusable(gaussians, usable)
    position = _in_camera(gaussians, camera)
    spread = projected_spread(gaussians, camera)
    excess = torch.relu(log_axis_ratio(spread) - tau)
    visible = usable & _visible(position.detach(), spread.detach(), camera)
    return torch.where(visible, excess, torch.zeros_like(excess)).sum(-1) / visible.sum(-1).clamp(min=1)


def projected_spread(gaussians: WorldGaussians, camera: Camera) -> Float[Tensor, "B N 2 3"]:
    """U = J W R S in pixels: U U^T is the projected covariance without the low-pass.

    J is the Jacobian of the projection at the Gaussian's centre, moved into the field of view widened by
    ``JACOBIAN_MARGIN`` as in the splatter (gsplat's ``persp_proj``).
    """
    x, y, z = _in_camera(gaussians, camera).unbind(-1)
    z = torch.where(z < NEAR, torch.full_like(z, NEAR), z)
    fx, fy, cx, cy = (camera.intrinsics[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    margin_x = JACOBIAN_MARGIN * camera.width / fx
    margin_y = JACOBIAN_MARGIN * camera.height / fy
    u = torch.clamp(x / z, -cx / fx - margin_x, (camera.width - cx) / fx + margin_x)
    v = torch.clamp(y / z, -cy / fy - margin_y, (camera.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    row_x = torch.stack([fx / z, zero, -fx * u / z], -1)
    row_y = torch.stack([zero, fy / z, -fy * v / z], -1)
    jacobian = torch.stack([row_x, row_y], -2)
    to_camera = camera.world_to_camera[:, None, :3, :3]
    return jacobian @ to_camera @ (quaternion_to_rotation(gaussians.quats) * gaussians.scales[..., None, :])


def log_axis_ratio(spread: Float[Tensor, "B N 2 3"]) -> Float[Tensor, "B N"]:
    """0.5 log(l_max / l_min) of the covariance U U^T, with l_min = det / l_max.

    In units of the mean eigenvalue m: l_max = 1 + sqrt(d), d the discriminant, and det = |U_0 x U_1|^2 (Lagrange's
    identity), which unlike a c - b^2 keeps its digits on thin splats.
    """
    u0, u1 = spread.unbind(-2)
    a, b, c = (u0 * u0).sum(-1), (u0 * u1).sum(-1), (u1 * u1).sum(-1)
    mean = ((a + c) / 2).clamp(min=LEAST_MEAN)
    discriminant = ((((a - c) / 2) / mean) ** 2 + (b / mean) ** 2).clamp(min=LEAST_DISCRIMINANT)
    normal = torch.linalg.cross(u0, u1) / mean[..., None]
    determinant = (normal * normal).sum(-1).clamp(min=LEAST_DETERMINANT)
    return torch.log1p(discriminant.sqrt()) - 0.5 * determinant.log()


def _usable(gaussians: WorldGaussians) -> Bool[Tensor, "B N"]:
    finite = (gaussians.quats * gaussians.quats).sum(-1) > LEAST_QUATERNION
    for attribute in (gaussians.means, gaussians.quats, gaussians.scales):
        finite = finite & attribute.isfinite().all(-1)
    return finite


def _replace_unusable(gaussians: WorldGaussians, usable: Bool[Tensor, "B N"]) -> WorldGaussians:
    """Harmless values where there is something that would make gradients NaN."""
    keep = usable[..., None]
    return replace(
        gaussians,
        means=torch.where(keep, gaussians.means, 0.0),
        quats=torch.where(keep, gaussians.quats, gaussians.quats.new_tensor([1.0, 0.0, 0.0, 0.0])),
        scales=torch.where(keep, gaussians.scales, 1.0),
    )


def _in_camera(gaussians: WorldGaussians, camera: Camera) -> Float[Tensor, "B N 3"]:
    rotation, translation = camera.world_to_camera[:, :3, :3], camera.world_to_camera[:, :3, 3]
    return gaussians.means @ rotation.mT + translation[:, None]


def _visible(position: Float[Tensor, "B N 3"], spread: Float[Tensor, "B N 2 3"], camera: Camera) -> Bool[Tensor, "B N"]:
    x, y, z = position.unbind(-1)
    safe = z.clamp(min=NEAR)
    intrinsics = camera.intrinsics[..., None]
    column = intrinsics[:, 0, 0] * x / safe + intrinsics[:, 0, 2]
    row = intrinsics[:, 1, 1] * y / safe + intrinsics[:, 1, 2]
    radius = torch.ceil(FOOTPRINT * torch.sqrt((spread * spread).sum(-1) + EPS2D))
    radius_x, radius_y = radius.unbind(-1)
    across = (column + radius_x > 0) & (column - radius_x < camera.width)
    down = (row + radius_y > 0) & (row - radius_y < camera.height)
    return (z > NEAR) & (z < FAR) & across & down
