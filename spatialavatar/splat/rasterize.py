"""Gaussians and a camera to a picture: one function, three backends (method.md section 1, "Splatter")."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import WorldGaussians

Backend = Literal["auto", "gsplat", "cpu", "reference"]


@dataclass(frozen=True)
class Rendering:
    """Pictures without a background."""

    features: Float[Tensor, "B H W C"]  # premultiplied by alpha
    alpha: Float[Tensor, "B H W"]

    def over(self, background: Float[Tensor, "B C"] | Float[Tensor, " C"]) -> Float[Tensor, "B H W C"]:
        """The pictures over one colour for all or one each: features + (1 - alpha) b."""
        return self.features + (1 - self.alpha)[..., None] * background[..., None, None, :]


def rasterize(gaussians: WorldGaussians, camera: Camera, *, backend: Backend = "auto") -> Rendering:
    """Splat B sets of Gaussians, each with its own camera; one set (B = 1) is seen by all cameras.

    Differentiable w.r.t. all five tensors of the Gaussians, for any number of channels; opacities lie in [0, 1].

    - ``cpu``: compiled kernels in float32 (16-bit floats are widened); bit-identical from run to run and for any number
      of threads; Gaussians that hold a NaN, an infinity or a zero quaternion are skipped with zero gradients.
    - ``gsplat``: CUDA, float32 likewise. Does not look for NaN.
    - ``reference``: plain torch, any dtype and device, slow; the only one on the CPU with gradients for the camera.
    - ``auto``: gsplat for CUDA tensors, cpu for others.

    Raises SpatialAvatarError where shapes, devices or dtypes do not fit the backend, or the cpu backend runs in a
    forked process.
    """
    _check(gaussians, camera)
    device = gaussians.means.device
    if backend == "auto":
        backend = "gsplat" if device.type == "cuda" else "cpu"
    if backend == "gsplat":
        if device.type != "cuda":
            raise SpatialAvatarError(f"the gsplat backend needs CUDA tensors, got {device}; use backend='cpu'")
        from spatialavatar.splat import gsplat_backend

        return Rendering(*gsplat_backend.rasterize(_single_precision(gaussians, backend), camera.to(torch.float32)))
    if backend == "cpu":
        from spatialavatar.splat.cpu import backend as cpu_backend

        if device.type != "cpu":
            raise SpatialAvatarError(f"the cpu backend needs CPU tensors, got {device}; use backend='gsplat'")
        wants_camera = camera.world_to_camera.requires_grad or camera.intrinsics.requires_grad
        if wants_camera and torch.is_grad_enabled():
            raise SpatialAvatarError(
                "the cpu backend has no gradients for cameras: detach the camera or use backend='reference'"
            )
        return Rendering(*cpu_backend.rasterize(_single_precision(gaussians, backend), camera))
    if backend == "reference":
        from spatialavatar.splat.compositing import composite
        from spatialavatar.splat.projection import project

        projected = project(gaussians, camera)
        return Rendering(*composite(projected, gaussians.colors, gaussians.opacities, camera.width, camera.height))
    raise SpatialAvatarError(f"unknown splatter backend {backend!r}: expected auto, gsplat, cpu or reference")


def _check(gaussians: WorldGaussians, camera: Camera) -> None:
    if gaussians.opacities.dim() != 2:
        raise SpatialAvatarError(f"Gaussians: opacities has shape {tuple(gaussians.opacities.shape)}, expected (B, N)")
    batch, count = gaussians.opacities.shape
    channels = gaussians.colors.shape[-1]
    expected = {"means": (3,), "quats": (4,), "scales": (3,), "colors": (channels,), "opacities": ()}
    for name, tail in expected.items():
        shape = tuple(getattr(gaussians, name).shape)
        if shape != (batch, count, *tail):
            raise SpatialAvatarError(f"Gaussians: {name} has shape {shape}, expected {(batch, count, *tail)}")
    if channels < 1:
        raise SpatialAvatarError("Gaussians: colors has no channels, expected at least one")
    if batch not in (1, camera.batch):
        raise SpatialAvatarError(f"{batch} sets of Gaussians with {camera.batch} cameras: expected one camera for each")
    if camera.width < 1 or camera.height < 1:
        raise SpatialAvatarError(f"camera: image size {camera.width} x {camera.height} must be at least 1 x 1")
    device = gaussians.means.device
    if camera.world_to_camera.device != device:
        raise SpatialAvatarError(
            f"Gaussians are on {device}, the camera on {camera.world_to_camera.device}: use .to(device)"
        )
    for name in expected:
        if getattr(gaussians, name).device != device:
            raise SpatialAvatarError(f"Gaussians: means are on {device}, {name} on {getattr(gaussians, name).device}")


def _single_precision(gaussians: WorldGaussians, backend: str) -> WorldGaussians:
    """The Gaussians in float32; 16-bit floats (autocast) are widened, wider ones refused."""
    for field in fields(gaussians):
        dtype = getattr(gaussians, field.name).dtype
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise SpatialAvatarError(
                f"the {backend} backend computes in float32, {field.name} is {dtype}: use .float(), or "
                "backend='reference'"
            )
    return gaussians.to(torch.float32)
