"""The CPU splatter as a differentiable torch function."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from spatialavatar.splat.camera import Camera
from spatialavatar.splat.cpu import binning, compositing, projection
from spatialavatar.splat.cpu.binning import TileLists
from spatialavatar.splat.cpu.runtime import aligned_empty, kernel_guard, scratch
from spatialavatar.splat.gaussians import WorldGaussians


@dataclass(frozen=True)
class _Saved:
    """What the backward pass of one picture needs from its forward pass."""

    camera: np.ndarray
    records: np.ndarray
    lists: TileLists
    transmittance: np.ndarray
    stop: np.ndarray


def render_forward(attributes: list[np.ndarray], camera: np.ndarray, features: np.ndarray) -> _Saved:
    means, quats, scales, colors, opacities = attributes
    height, width, _ = features.shape
    records = aligned_empty((means.shape[0], projection.RECORD))
    columns = np.empty((means.shape[0], 2), np.int32)
    projection.project(means, quats, scales, colors, opacities, camera, records, columns)
    lists = binning.tile_lists(binning.depth_order(records, columns), records, columns, width, height)
    transmittance = np.empty((height, width), np.float32)
    stop = np.empty(lists.first.shape[0] - 1, np.int32)
    compositing.composite(
        records, lists.first, lists.gaussian, lists.rows, lists.work, lists.work_count, features, transmittance, stop
    )
    return _Saved(camera, records, lists, transmittance, stop)


def render_backward(
    attributes: list[np.ndarray],
    saved: _Saved,
    features: np.ndarray,
    v_features: np.ndarray,
    v_alpha: np.ndarray,
    gradients: list[np.ndarray],
) -> None:
    """Add the gradients of one picture to ``gradients`` (same order as the attributes)."""
    means, quats, scales, _, _ = attributes
    g_means, g_quats, g_scales, g_colors, g_opacities = gradients
    lists = saved.lists
    rows = scratch("intersection gradients", (lists.gaussian.shape[0], compositing.GRADIENTS))
    compositing.composite_backward(
        saved.records, lists.first, lists.gaussian, lists.rows, lists.work, lists.work_count,
        features, saved.transmittance, saved.stop, v_features, v_alpha, rows,
    )  # fmt: skip
    projection.project_backward(
        means, quats, scales, saved.camera, saved.records, lists.first_of_gaussian, lists.of_gaussian, rows,
        g_means, g_quats, g_scales, g_colors, g_opacities,
    )  # fmt: skip


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, camera: Camera, *attributes: Tensor
    ) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W"]]:
        batch, channels = camera.batch, attributes[3].shape[-1]
        features = torch.empty(batch, camera.height, camera.width, channels)
        alpha = torch.empty(batch, camera.height, camera.width)
        arrays = [a.contiguous().numpy() for a in attributes]
        saved = []
        with kernel_guard():
            for b in range(batch):
                own = [a[min(b, a.shape[0] - 1)] for a in arrays]
                saved.append(render_forward(own, projection.camera_parameters(camera, b), features[b].numpy()))
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
                render_backward(
                    own, saved, features[b].numpy(), v_features[b].numpy(), v_alpha[b].numpy(), own_gradients
                )
        return None, *gradients


def rasterize(gaussians: WorldGaussians, camera: Camera) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W"]]:
    """Premultiplied features and alpha of float32 Gaussians on the CPU; one set of Gaussians serves all cameras."""
    return _Rasterize.apply(
        camera, gaussians.means, gaussians.quats, gaussians.scales, gaussians.colors, gaussians.opacities
    )
