"""Camera conventions of the neighbouring tools to and from ours: OpenCV, x_c = R x_w + t, x right, y down, z forward.

- PyTorch3D (the GAGAvatar tracker): row vectors x_v = x_w R + T, +x left, +y up, +z forward: ours is D R^T, D T with
  D = diag(-1, -1, 1).
- OpenGL (IMavatar as world-to-camera, VHAP as camera-to-world): x right, y up, looks along -z: ours is D' R, D' t with
  D' = diag(1, -1, -1).

Conversions that need an inverse are computed in float64; the results have the inputs' type. Distances keep their unit:
a tracker that scales its head (x5, x4) scales its cameras' translations alike.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_PYTORCH3D = (-1.0, -1.0, 1.0)
_OPENGL = (1.0, -1.0, -1.0)


def from_pytorch3d(rotation: Float[Tensor, "*B 3 3"], translation: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4 4"]:
    """World-to-camera from PyTorch3D's R and T (of row vectors)."""
    signs = rotation.new_tensor(_PYTORCH3D)
    return _rigid(signs[:, None] * rotation.mT, signs * translation)


def to_pytorch3d(
    world_to_camera: Float[Tensor, "*B 4 4"],
) -> tuple[Float[Tensor, "*B 3 3"], Float[Tensor, "*B 3"]]:
    """R and T, the inverse of ``from_pytorch3d``."""
    signs = world_to_camera.new_tensor(_PYTORCH3D)
    return (signs[:, None] * world_to_camera[..., :3, :3]).mT, signs * world_to_camera[..., :3, 3]


def from_opengl(
    world_to_camera_gl: Float[Tensor, "*B 4 4"] | Float[Tensor, "*B 3 4"],
) -> Float[Tensor, "*B 4 4"]:
    """World-to-camera from that of an OpenGL camera, with or without its last row."""
    signs = world_to_camera_gl.new_tensor(_OPENGL)
    return _rigid(signs[:, None] * world_to_camera_gl[..., :3, :3], signs * world_to_camera_gl[..., :3, 3])


def to_opengl(world_to_camera: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 4 4"]:
    """World-to-camera of an OpenGL camera."""
    return from_opengl(world_to_camera)  # turning axes over twice changes nothing


def from_opengl_camera_to_world(camera_to_world: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 4 4"]:
    """World-to-camera from an OpenGL camera's pose, the ``transform_matrix`` of NeRF data sets."""
    return from_opengl(_inverse(camera_to_world))


def to_opengl_camera_to_world(world_to_camera: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 4 4"]:
    """The pose of an OpenGL camera, the inverse of ``from_opengl_camera_to_world``."""
    return _inverse(to_opengl(world_to_camera))


def intrinsics_matrix(
    fx: Float[Tensor, "*B"], fy: Float[Tensor, "*B"], cx: Float[Tensor, "*B"], cy: Float[Tensor, "*B"]
) -> Float[Tensor, "*B 3 3"]:
    """All in pixels, with the outer corner of the first pixel at (0, 0)."""
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [[fx, zero, cx], [zero, fy, cy], [zero, zero, one]]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def ndc_focal_to_pixels(focal: float, size: int) -> float:
    """PyTorch3D's NDC spans -1..1 over the image's shorter side ``size``."""
    return focal * size / 2


def pixels_to_ndc_focal(focal: float, size: int) -> float:
    """The inverse of ``ndc_focal_to_pixels``."""
    return focal * 2 / size


def _rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    matrix = torch.zeros(*rotation.shape[:-2], 4, 4, dtype=rotation.dtype, device=rotation.device)
    matrix[..., :3, :3], matrix[..., :3, 3], matrix[..., 3, 3] = rotation, translation, 1
    return matrix


def _inverse(matrix: Tensor) -> Tensor:
    """Of a rigid motion, in float64; what is none gives what is none (and a clip refuses it), never an exception."""
    wide = matrix.double()
    rotation = wide[..., :3, :3].mT
    return _rigid(rotation, -(rotation @ wide[..., :3, 3, None]).squeeze(-1)).to(matrix.dtype)
