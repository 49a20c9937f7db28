"""The CPU splatter as a differentiable torch function."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from spatialavatar.splat.camera import Camera
from spatialavatar.splat.cpu import binning, compositing, compositing_channels, projection
from spatialavatar.splat.cpu.binning import TileLists
from spatialavatar.splat.cpu.runtime import aligned_empty, kernel_guard, scratch
from spatialavatar.splat.gaussians import WorldGaussians


@dataclass(frozen=True)
class Forward:
    """What the backward pass of one picture needs from its forward pass."""

    camera: np.ndarray
    records: np.ndarray
    lists: TileLists
    colors: np.ndarray  # padded; not used with three channels
    transmittance: np.ndarray
    stop: np.ndarray


def project(attributes: list[np.ndarray], camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Records and tile columns of N Gaussians (means, quats, scales, colours, opacities).

    The columns are valid until the kernel guard is released.
    """
    count = attributes[0].shape[0]
    records, columns = aligned_empty((count, projection.RECORD)), scratch("columns", (count, 2), np.int32)
    projection.project(*attributes, camera, records, columns)
    return records, columns


def composite(
    colors: np.ndarray, camera: np.ndarray, records: np.ndarray, lists: TileLists, features: np.ndarray
) -> Forward:
    """Fill ``features`` [H, W, C]."""
    height, width, channels = features.shape
    transmittance, stop = np.empty((height, width), np.float32), np.empty(lists.first.shape[0] - 1, np.int32)
    work = (lists.first, lists.gaussian, lists.rows, lists.work, lists.work_count)
    if channels == 3:
        compositing.composite(records, *work, features, transmittance, stop)
    else:
        colors = compositing_channels.pad_colors(colors)
        compositing_channels.composite(records, colors, *work, features, transmittance, stop)
    return Forward(camera, records, lists, colors, transmittance, stop)


def composite_backward(
    forward: Forward, features: np.ndarray, v_features: np.ndarray, v_alpha: np.ndarray
) -> np.ndarray:
    """One row of gradients per intersection; valid until the kernel guard is released."""
    lists, channels = forward.lists, features.shape[-1]
    rows = scratch("intersections", (lists.gaussian.shape[0], compositing_channels.gradient_width(channels)))
    work = (lists.first, lists.gaussian, lists.rows, lists.work, lists.work_count)
    pictures = (features, forward.transmittance, forward.stop, v_features, v_alpha)
    if channels == 3:
        compositing.composite_backward(forward.records, *work, *pictures, rows)
    else:
        compositing_channels.composite_backward(forward.records, forward.colors, *work, *pictures, rows)
    return rows


def project_backward(
    attributes: list[np.ndarray], forward: Forward, rows: np.ndarray, gradients: list[np.ndarray]
) -> None:
    """Add the gradients of one picture to ``gradients`` (same order as the attributes)."""
    lists = forward.lists
    projection.project_backward(
        *attributes[:3], forward.camera, forward.records, lists.first_of_gaussian, lists.of_gaussian, rows, *gradients
    )


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, camera: Camera, *attributes: Tensor
    ) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W"]]:
        batch, colors = camera.batch, attributes[3]
        features = colors.new_empty(batch, camera.height, camera.width, colors.shape[-1])
        alpha = colors.new_empty(batch, camera.height, camera.width)
        arrays = [a.contiguous().numpy() for a in attributes]
        saved = []
        with kernel_guard():
            for b in range(batch):
                own = [a[min(b, a.shape[0] - 1)] for a in arrays]
                parameters = projection.camera_parameters(camera, b)
                records, columns = project(own, parameters)
                order = binning.depth_order(records, columns)
                lists = binning.tile_lists(order, records, columns, camera.width, camera.height)
                saved.append(composite(own[3], parameters, records, lists, features[b].numpy()))
                np.subtract(1, saved[b].transmittance, out=alpha[b].numpy())
        ctx.save_for_backward(features, *attributes)
        ctx.saved = saved
        return features, alpha

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_features: Tensor, v_alpha: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        features, *attributes = ctx.saved_tensors
        arrays = [a.contiguous().numpy() for a in attributes]
        gradients = [torch.zeros_like(a, memory_format=torch.contiguous_format) for a in attributes]
        v_features, v_alpha = v_features.contiguous(), v_alpha.contiguous()
        with kernel_guard():
            for b, saved in enumerate(ctx.saved):
                own = [a[min(b, a.shape[0] - 1)] for a in arrays]
                own_gradients = [g.numpy()[min(b, g.shape[0] - 1)] for g in gradients]
                rows = composite_backward(saved, features[b].numpy(), v_features[b].numpy(), v_alpha[b].numpy())
                project_backward(own, saved, rows, own_gradients)
        return None, *gradients


def rasterize(gaussians: WorldGaussians, camera: Camera) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W"]]:
    """Premultiplied features and alpha of float32 Gaussians on the CPU; one set of Gaussians serves all cameras."""
    return _Rasterize.apply(
        camera, gaussians.means, gaussians.quats, gaussians.scales, gaussians.colors, gaussians.opacities
    )
