"""An avatar for GaussianAvatars (Qian et al. 2024) and its viewers: point_cloud.ply beside flame_param.npz.

The PLY holds Gaussians in the frame of their triangle, with the face in ``binding_0``; the npz holds the motion. The
triangle frames are the same as ours, so the values go over unchanged. GaussianAvatars poses FLAME (2023) with a teeth
patch itself: 5143 vertices, 10144 faces, of which FLAME's own 5023 and 9976 come first.
"""

from collections.abc import Sequence

import numpy as np
import torch

from spatialavatar import files, npz_files
from spatialavatar.avatar.export.ply import write_splats
from spatialavatar.avatar.folder import MOTION, SPLATS
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import flame
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.head.uv_layout import UVLayout
from spatialavatar.splat.gaussians import LocalGaussians

VERTICES_WITH_TEETH = flame.VERTICES + flame.TEETH_VERTICES
TOPOLOGIES = (  # vertices and faces, without and with the teeth patch
    (flame.VERTICES, flame.FACES),
    (VERTICES_WITH_TEETH, flame.FACES + flame.TEETH_FACES),
)


def write_gaussian_avatars(
    folder: files.Location,
    head: HeadModel,
    layout: UVLayout,
    local: LocalGaussians,  # B = 1
    params: HeadParams,  # B = T, the motion that plays; one subject
    comments: Sequence[str] = (),
) -> None:
    """Write ``point_cloud.ply`` and ``flame_param.npz`` into ``folder``.

    Raises SpatialAvatarError when the head is not FLAME's mesh with its 300 and 100 codes, or when shape or static
    offset change over time.
    """
    require_flame(head)
    if local.batch != 1:
        raise ValueError(f"an avatar is one subject, got a batch of {local.batch}; pass one row of it")
    if local.count != layout.count:
        raise ValueError(f"{local.count} Gaussians for a layout of {layout.count}")
    shape = _constant(params.shape, "shape")
    offset = torch.zeros(head.vertex_count, 3)
    if params.static_offset is not None:
        offset = _constant(params.static_offset, "static_offset")
    t = params.batch
    motion = {
        "shape": _array(shape),
        "expr": _array(params.expression),
        "rotation": _array(params.global_rotation),
        "neck_pose": _array(params.neck),
        "jaw_pose": _array(params.jaw),
        "eyes_pose": _array(params.eyes),
        "translation": _array(params.translation),
        "static_offset": _with_teeth(_array(offset))[None],
        "dynamic_offset": np.zeros((t, VERTICES_WITH_TEETH, 3), np.float32),  # asked for by the viewers
    }
    write_splats(
        files.join(folder, SPLATS),
        position=_array(local.position[0]),
        color=_array(local.color[0]),
        opacity_logit=_array(local.opacity_logit[0]),
        log_scale=_array(local.log_scale[0]),
        rotation=_array(local.rotation[0]),
        binding=layout.face_index.cpu().numpy(),
        comments=comments,
    )
    npz_files.write_npz(files.join(folder, MOTION), motion, compressed=True)


def require_flame(head: HeadModel) -> None:
    """Raises SpatialAvatarError unless GaussianAvatars can pose this head."""
    topology = (head.vertex_count, head.faces.shape[0])
    codes = (head.shape_codes, head.expression_codes)
    if topology not in TOPOLOGIES or codes != (flame.SHAPE_CODES, flame.EXPRESSION_CODES):
        raise SpatialAvatarError(
            f"head {head.info.id} has {topology[0]} vertices, {topology[1]} faces, {codes[0]} shape and {codes[1]} "
            "expression codes; GaussianAvatars takes FLAME only (5023 vertices, 9976 faces, 300 and 100 codes, or "
            "with the teeth patch 5143 and 10144); export a plain PLY, which takes any head"
        )
    if (head.uv_faces[flame.FACES :] >= 0).any() or head.faces[: flame.FACES].max() >= TOPOLOGIES[0][0]:
        raise SpatialAvatarError(
            f"head {head.info.id}: the teeth patch must be its last 168 faces and carry no UV, as GaussianAvatars has "
            "it; convert the head again"
        )


def _constant(values: torch.Tensor, name: str) -> torch.Tensor:
    if (values - values[:1]).abs().max() > 1e-6:
        raise SpatialAvatarError(
            f"params.{name} changes over time, GaussianAvatars takes one for all; average it over the clip first"
        )
    return values[0]


def _with_teeth(offset: np.ndarray) -> np.ndarray:
    """The teeth patch does not move along with offsets of the face."""
    padded = np.zeros((VERTICES_WITH_TEETH, 3), np.float32)
    padded[: len(offset)] = offset
    return padded


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float32)
