"""One training step's forward side: the objective of a batch (method.md section 3; paper eq. 2 and App. A.2).

``TrainingModule`` is what an optimizer, or an engine around it, drives: its forward takes a batch and returns the loss.
"""

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spatialavatar.generator.decoder import Decoded
from spatialavatar.generator.generator import Generator
from spatialavatar.losses.face_box import face_box_l1
from spatialavatar.losses.jacobian import jacobian_penalty, rademacher
from spatialavatar.losses.l1 import l1
from spatialavatar.losses.l2sp import l2_sp
from spatialavatar.losses.ms_ssim import ms_ssim
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.losses.photometric import composite_rendering
from spatialavatar.losses.residual_shrinkage import residual_shrinkage
from spatialavatar.losses.uv_smoothness import texel_pairs, total_variation
from spatialavatar.splat.binding import bind
from spatialavatar.splat.rasterize import rasterize
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import TrainConfig

Anchor = dict[str, Tensor]  # the Phase-1 weights that L2-SP holds on to, by parameter name; never trained


@dataclass(frozen=True)
class Objective:
    """The loss of a batch; gradients flow from ``loss`` alone."""

    loss: Tensor  # scalar
    terms: dict[str, Tensor]  # scalars before their weights, detached; those of weight 0 are left out


@dataclass(frozen=True)
class Pictures:
    """What the loss compares, over each sample's background."""

    prediction: Float[Tensor, "B H W 3"]
    target: Float[Tensor, "B H W 3"]


def render(generator: Generator, decoded: Decoded, batch: Batch) -> Pictures:
    """The Gaussians on the targets' meshes, seen by the targets' cameras, beside the targets."""
    head, target = generator.head, batch.target
    with torch.no_grad():
        vertices = head(target.params)
    local = replace(decoded.gaussians, color=decoded.gaussians.color[..., :3])  # nothing shows the other channels
    world = bind(local, vertices, head.faces, generator.layout.face_index)
    seen = rasterize(world, target.camera)
    return Pictures(
        composite_rendering(seen.features, seen.alpha, target.region, batch.background),
        target.over(batch.background),
    )


class TrainingModule(nn.Module):
    """The generator and its objective.

    Weights stay in float32 whatever the precision: under bf16 the forward pass of the generator runs in an autocast of
    its own, splatter and losses in float32. An engine around it must neither cast the weights nor add an autocast.

    ``lpips`` is needed where lambda_lp is not 0, ``anchor`` where lambda_sp is not 0. They are no part of the
    module's parameters.
    """

    _pairs: Int[Tensor, "P 2"]

    def __init__(
        self, generator: Generator, config: TrainConfig, lpips: Lpips | None = None, anchor: Anchor | None = None
    ) -> None:
        super().__init__()
        self.generator = generator
        self.config = config
        self._lpips = lpips
        self._anchor = anchor
        self.register_buffer("_pairs", texel_pairs(generator.layout), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._pairs.device

    def forward(self, batch: Batch) -> Objective:
        """The loss of a batch and its terms."""
        half = self.config.precision == "bf16"
        device = batch.background.device.type
        mixed: Any = torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()
        target = batch.target
        with mixed:
            decoded: Decoded = self.generator(
                batch.sources, target.params, target.camera, penalised=self.config.loss.lambda_jac > 0
            )
        pictures = render(self.generator, decoded, batch)
        weighted = self._terms(batch, decoded, pictures)
        loss = torch.stack([weight * value for weight, value in weighted.values()]).sum()
        terms = {name: value.detach() for name, (_, value) in weighted.items()}
        terms["mse"] = (pictures.prediction.detach() - pictures.target).square().mean()
        return Objective(loss, terms)

    def _terms(self, batch: Batch, decoded: Decoded, pictures: Pictures) -> dict[str, tuple[float, Tensor]]:
        """Weight and batch mean of each term that has a weight."""
        weights, target = self.config.loss, batch.target
        prediction, shown = pictures.prediction, pictures.target
        terms: dict[str, tuple[float, Tensor]] = {}

        def add(name: str, weight: float, value: Any) -> None:
            if weight > 0:
                terms[name] = weight, value().mean()

        add("l1", weights.lambda_1, lambda: l1(prediction, shown))
        add("ms", weights.lambda_ms, lambda: 1 - ms_ssim(prediction, shown))
        add("lp", weights.lambda_lp, lambda: self._perceptual(prediction, shown))
        add(
            "box",
            weights.lambda_box,
            lambda: face_box_l1(prediction, shown, target.face_box, weights.face_box_dilation),
        )
        add("ps", weights.lambda_ps, lambda: total_variation(decoded.position_offset, self._pairs))
        add("ss", weights.lambda_ss, lambda: total_variation(decoded.log_scale_offset, self._pairs))
        add("jac", weights.lambda_jac, lambda: self._jacobian(batch, decoded))
        if decoded.deltas:
            add("delta", weights.lambda_delta, lambda: residual_shrinkage(decoded.deltas, batch.background))
        add("sp", weights.lambda_sp, self._anchor_distance)
        return terms

    def _perceptual(self, prediction: Tensor, shown: Tensor) -> Tensor:
        if self._lpips is None:
            raise ValueError("lambda_lp is not 0, but there is no LPIPS network")
        return self._lpips(prediction, shown)

    def _jacobian(self, batch: Batch, decoded: Decoded) -> Tensor:
        assert decoded.jacobian is not None
        count, device = self.generator.layout.count, batch.background.device
        signs = rademacher(self.config.seed, batch.numbers.tolist(), count, device)
        position, log_scale = (sign.to(decoded.position_offset) for sign in signs)
        return jacobian_penalty(decoded.jacobian, position, log_scale)

    def _anchor_distance(self) -> Tensor:
        if self._anchor is None:
            raise ValueError("lambda_sp is not 0, but there is no anchor")
        trained = {name: p for name, p in self.generator.named_parameters() if p.requires_grad}
        return l2_sp(trained, self._anchor)
