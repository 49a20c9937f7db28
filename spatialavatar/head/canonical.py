"""The canonical form: rigid head motion lives in the camera (method.md section 1, "Canonical form").

Trackers keep the motion of the whole head in the parameters or in the camera. This is the only place that converts:
in the canonical form the world is the head's own frame. The neck stays a joint.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.head.rotation import axis_angle_to_matrix


def canonical(
    head: HeadModel, params: HeadParams, world_to_camera: Float[Tensor, "B *C 4 4"]
) -> tuple[HeadParams, Float[Tensor, "B *C 4 4"]]:
    """Move global rotation (about the root joint) and translation out of ``params`` into ``world_to_camera``.

    A posed vertex is x = R x_c + (joint - R joint + translation) with x_c the vertex posed without rigid motion, so
    world_to_camera times this motion sees x_c where world_to_camera saw x. Row b of the cameras, with any number of
    cameras each, belongs to row b of the parameters. Computed in float64; what is canonical already comes back
    unchanged to the bit.
    """
    root = head.rest_joints(params)[:, 0].double()
    rotation = axis_angle_to_matrix(params.global_rotation.double())
    shift = root - (rotation @ root[..., None]).squeeze(-1) + params.translation.double()
    bottom = shift.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(params.batch, 1, 4)
    motion = torch.cat([torch.cat([rotation, shift[..., None]], -1), bottom], -2)
    while motion.ndim < world_to_camera.ndim:
        motion = motion[:, None]
    moved = (world_to_camera.double() @ motion).to(world_to_camera.dtype)
    still = torch.zeros_like(params.translation)
    return replace(params, global_rotation=torch.zeros_like(params.global_rotation), translation=still), moved
