"""The tensors that the refinement optimises, and their map to local Gaussians and back.

Each is chosen so that one learning rate means the same on any head: positions in metres on the rest mesh, colours as
logits. Rotation, log-scale and opacity logit are optimised as they are.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.splat.gaussians import LocalGaussians

COLOR_MARGIN = 0.01  # colours are optimised as the logit of their value clamped to [margin, 1 - margin]
NAMES = ("position", "rotation", "log_scale", "color", "opacity")

Parameters = dict[str, Tensor]


def to_parameters(gaussians: LocalGaussians, rest_scale: Float[Tensor, " N"]) -> Parameters:
    """Leaf tensors that require gradients, by the names of the learning rates."""
    rgb, further = gaussians.color[..., :3], gaussians.color[..., 3:]
    logit = torch.logit(rgb.clamp(COLOR_MARGIN, 1 - COLOR_MARGIN))
    values = {
        "position": gaussians.position * rest_scale[:, None],
        "rotation": torch.nn.functional.normalize(gaussians.rotation, dim=-1),
        "log_scale": gaussians.log_scale,
        "color": torch.cat([logit, further], -1),
        "opacity": gaussians.opacity_logit,
    }
    return {name: value.detach().clone().contiguous().requires_grad_() for name, value in values.items()}


def to_gaussians(parameters: Parameters, rest_scale: Float[Tensor, " N"]) -> LocalGaussians:
    """The inverse of ``to_parameters``, differentiable."""
    color = parameters["color"]
    rgb = torch.sigmoid(color[..., :3])
    if color.shape[-1] > 3:
        rgb = torch.cat([rgb, color[..., 3:]], -1)
    return LocalGaussians(
        position=parameters["position"] / rest_scale[:, None],
        rotation=parameters["rotation"],
        log_scale=parameters["log_scale"],
        color=rgb,
        opacity_logit=parameters["opacity"],
    )
