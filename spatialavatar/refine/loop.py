"""The layout-preserving refinement (method.md section 4; paper section 3.3 and appendix A.4).

A random training frame -> pose the mesh -> bind (eq. 1) -> splat -> loss -> Adam step -> clamp. Mesh, binding, count and
order of the Gaussians never change: no densification, no pruning. Several subjects of one layout are one optimisation
along the batch axis; no term mixes them, so a subject's result does not depend on what it is batched with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, UVLayout
from spatialavatar.losses.aspect import aspect_loss
from spatialavatar.losses.photometric import photometric_loss
from spatialavatar.refine.anti_spike import clamp_log_scale, max_aspect_ratio
from spatialavatar.refine.config import RefineConfig
from spatialavatar.refine.parameters import NAMES, Parameters, to_gaussians, to_parameters
from spatialavatar.refine.subject import Subject, TrainingView
from spatialavatar.splat import LocalGaussians, WorldGaussians, bind, rasterize, rest_scale
from spatialavatar.splat.camera import Camera


@dataclass(frozen=True)
class StepTerms:
    """Loss terms of one iteration, one value per subject, detached."""

    total: Tensor  # [B]
    l1: Tensor  # [B]
    ssim: Tensor  # [B]
    aspect: Tensor  # [B], zero before aspect_from

    def stacked(self) -> Tensor:
        return torch.stack([self.total, self.l1, self.ssim, self.aspect])


TERM_NAMES = ("loss", "l1", "ssim", "aspect")


class Refinement:
    """The state of one optimisation: parameters, Adam moments, iteration.

    All subjects share the head, the layout and the image size. ``start`` has one row per subject; with the clamp on,
    its scales are clamped before the first iteration.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        head: HeadModel,
        layout: UVLayout,
        start: LocalGaussians,
        config: RefineConfig,
    ) -> None:
        sizes = {(s.width, s.height) for s in subjects}
        if len(sizes) != 1:
            raise SpatialAvatarError(f"subjects of one batch must have one image size, found {sorted(sizes)}")
        if start.batch != len(subjects) or start.count != layout.count:
            raise SpatialAvatarError(
                f"start has {start.batch} x {start.count} Gaussians, expected {len(subjects)} x {layout.count}"
            )
        self.subjects, self.config, self.iteration = list(subjects), config, 0
        self._faces, self._face_index = head.faces, layout.face_index
        self._rest_scale = rest_scale(head.template, head.faces, layout.face_index)
        self.parameters = to_parameters(start, self._rest_scale)
        self.initial_log_scale = start.log_scale.detach().clone()
        self._clamp()
        groups = [
            {"params": [self.parameters[name]], "name": name, "lr": getattr(config.learning_rates, name)}
            for name in NAMES
        ]
        self.optimizer = torch.optim.Adam(groups, eps=1e-15, fused=True)

    def gaussians(self) -> LocalGaussians:
        """The current Gaussians, detached."""
        with torch.no_grad():
            return to_gaussians(self.parameters, self._rest_scale)

    def max_aspect_ratio(self) -> float:
        return max_aspect_ratio(self.parameters["log_scale"].detach())

    def step(self) -> StepTerms:
        """One iteration."""
        config, spikes, t = self.config, self.config.anti_spike, self.iteration
        views = [s.view(s.row_at(config.seed, t)) for s in self.subjects]
        background = torch.cat([self._background(s, t) for s in self.subjects])
        world = self._world(views)
        camera = Camera.cat([v.camera for v in views])
        photometric = photometric_loss(
            rasterize(world, camera),
            torch.cat([v.target(b[None]) for v, b in zip(views, background)]),
            torch.cat([v.region for v in views]),
            background,
            l1_weight=config.l1_weight,
            ssim_weight=config.ssim_weight,
        )
        total, aspect = photometric.total, torch.zeros_like(photometric.total)
        if spikes.aspect_weight and t >= spikes.aspect_from:
            aspect = aspect_loss(world, camera, spikes.aspect_tau)
            total = total + spikes.aspect_weight * aspect
        self.optimizer.zero_grad(set_to_none=True)
        total.sum().backward()  # a sum, so that no subject's gradient depends on the batch
        self._adam_step()
        self.iteration = t + 1
        if t >= spikes.clamp_from or self.iteration == config.iterations:
            self._clamp()
        return StepTerms(*(x.detach() for x in (total, photometric.l1, photometric.ssim, aspect)))

    def run(self, after_step: Callable[[StepTerms], None]) -> None:
        """Step until the configured number of iterations."""
        while self.iteration < self.config.iterations:
            after_step(self.step())

    def state(self) -> dict[str, Tensor]:
        """Everything that going on needs beside config and input, as flat tensors with a leading batch axis."""
        tensors = {"initial_log_scale": self.initial_log_scale}
        for name in NAMES:
            parameter = self.parameters[name]
            tensors[name] = parameter.detach()
            moments = self.optimizer.state.get(parameter)
            if moments:
                tensors[f"{name}.exp_avg"] = moments["exp_avg"]
                tensors[f"{name}.exp_avg_sq"] = moments["exp_avg_sq"]
                tensors[f"{name}.step"] = moments["step"].reshape(1)
        return tensors

    def load_state(self, tensors: dict[str, Tensor], iteration: int) -> None:
        device = self.parameters["position"].device
        self.iteration = iteration
        self.initial_log_scale = tensors["initial_log_scale"].to(device)
        with torch.no_grad():
            for name in NAMES:
                parameter = self.parameters[name]
                parameter.copy_(tensors[name])
                if f"{name}.step" in tensors:
                    self.optimizer.state[parameter] = {
                        "exp_avg": tensors[f"{name}.exp_avg"].to(device),
                        "exp_avg_sq": tensors[f"{name}.exp_avg_sq"].to(device),
                        "step": tensors[f"{name}.step"].reshape(()).to(device),
                    }

    def _world(self, views: Sequence[TrainingView]) -> WorldGaussians:
        local = to_gaussians(self.parameters, self._rest_scale)
        return bind(local, torch.cat([v.vertices for v in views]), self._faces, self._face_index)

    def _background(self, subject: Subject, iteration: int) -> Tensor:
        kind = self.config.background if subject.supervises_alpha else "black"
        if kind == "random":
            return subject.background_at(self.config.seed, iteration)
        return torch.full((1, 3), 1.0 if kind == "white" else 0.0, device=subject.device)

    def _adam_step(self) -> None:
        decay = 0.5 * (1 + math.cos(math.pi * self.iteration / self.config.iterations))
        for group in self.optimizer.param_groups:
            group["lr"] = getattr(self.config.learning_rates, group["name"]) * decay
        if self.iteration < self.config.anti_spike.scale_freeze_iterations:
            self.parameters["log_scale"].grad = None
        self.optimizer.step()

    def _clamp(self) -> None:
        spikes = self.config.anti_spike
        if spikes.clamp:
            with torch.no_grad():
                log_scale = self.parameters["log_scale"]
                log_scale.copy_(
                    clamp_log_scale(log_scale, self.initial_log_scale, spikes.aspect_bound, spikes.scale_range)
                )


def is_finite(parameters: Parameters) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in parameters.values())
