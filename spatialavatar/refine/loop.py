"""The layout-preserving refinement (method.md section 4; paper section 3.3 and appendix A.4).

A random training frame -> pose the mesh -> bind (eq. 1) -> splat -> loss -> Adam step -> clamp. Mesh, binding, count
and order of the Gaussians never change: no densification, no pruning. Several subjects of one layout are one
optimisation along the batch axis; no term mixes them, so a subject's result does not depend on what it is batched with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialavatar.avatar.rendering import in_rgb
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, UVLayout
from spatialavatar.losses.aspect import aspect_loss
from spatialavatar.losses.photometric import photometric_loss
from spatialavatar.refine.anti_spike import clamp_log_scale, max_aspect_ratio
from spatialavatar.refine.config import RefineConfig
from spatialavatar.refine.parameters import NAMES, to_gaussians, to_parameters
from spatialavatar.refine.subject import Subject, TrainingView
from spatialavatar.splat.binding import bind
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import LocalGaussians, WorldGaussians
from spatialavatar.splat.rasterize import rasterize
from spatialavatar.splat.template_skin import rest_scale


@dataclass(frozen=True)
class StepTerms:
    """Loss terms of one iteration, one value per subject, detached."""

    total: Tensor  # [B]
    l1: Tensor  # [B]
    ssim: Tensor  # [B]
    aspect: Tensor  # [B], zero before aspect_from

    def stacked(self) -> Tensor:
        """[4, B], in the order of TERM_NAMES."""
        return torch.stack([self.total, self.l1, self.ssim, self.aspect])


TERM_NAMES = ("loss", "l1", "ssim", "aspect")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of Adam, by torch's names
ADAM_EPS = 1e-15  # as 3DGS: the gradients of a mean over pixels are far below Adam's usual 1e-8


class SubjectError(Exception):
    """A training frame of one subject of a batch cannot be had; nothing was stepped. Raised from what is wrong."""

    def __init__(self, row: int) -> None:
        super().__init__(f"subject {row} of the batch")
        self.row = row


class Refinement:
    """The state of one optimisation: of each subject its parameters, Adam moments and iteration.

    All subjects share the head, the layout and the image size. ``start`` has one row per subject; with the clamp on,
    its scales are clamped before the first iteration. Each subject has parameter tensors and an optimizer of its own,
    which meet only along the batch axis of the splatter, so that its rounding is the same in any batch; subjects may
    stand at different iterations, and leave (``remove``).
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
        self.subjects, self.config = list(subjects), config
        self.iterations = [0] * len(subjects)
        self._faces, self._face_index = head.faces, layout.face_index
        self._rest_scale = rest_scale(head.template, head.faces, layout.face_index)
        self.parameters = [to_parameters(start[i], self._rest_scale) for i in range(len(subjects))]
        self.initial_log_scale = [p["log_scale"].detach().clone() for p in self.parameters]
        for row in range(len(subjects)):
            self._clamp(row)
        self.optimizers = [
            torch.optim.Adam([{"params": [p[name]], "name": name} for name in NAMES], eps=ADAM_EPS, fused=True)
            for p in self.parameters
        ]

    @property
    def device(self) -> torch.device:
        return self._rest_scale.device

    @property
    def iteration(self) -> int:
        """Of the subject that has done the fewest."""
        return min(self.iterations)

    def gaussians(self) -> LocalGaussians:
        """The current Gaussians, detached."""
        detached = [{name: tensor.detach() for name, tensor in p.items()} for p in self.parameters]
        return LocalGaussians.cat([to_gaussians(p, self._rest_scale) for p in detached])

    def max_aspect_ratio(self, row: int = 0) -> float:
        """Largest over smallest scale, of the worst Gaussian of a subject."""
        return max_aspect_ratio(self.parameters[row]["log_scale"].detach())

    def remove(self, row: int) -> None:
        """A subject leaves; those after it move up by one row."""
        for listed in (self.subjects, self.iterations, self.parameters, self.initial_log_scale, self.optimizers):
            del listed[row]  # type: ignore[attr-defined]

    def step(self) -> StepTerms:
        """One iteration of every subject. Raises SubjectError, with all as they were."""
        config, spikes = self.config, self.config.anti_spike
        views = [self._view(row) for row in range(len(self.subjects))]
        background = torch.cat([self._background(s, t) for s, t in zip(self.subjects, self.iterations)])
        world, camera = self._world(views), Camera.cat([v.camera for v in views])
        photometric = photometric_loss(
            rasterize(world, camera),
            torch.cat([v.target(b[None]) for v, b in zip(views, background)]),
            torch.cat([v.region for v in views]),
            background,
            l1_weight=config.l1_weight,
            ssim_weight=config.ssim_weight,
        )
        total, aspect = photometric.total, torch.zeros_like(photometric.total)
        late = [row for row, t in enumerate(self.iterations) if t >= spikes.aspect_from]
        if spikes.aspect_weight and late:
            if len(late) == len(self.subjects):
                aspect = aspect_loss(world, camera, spikes.aspect_tau)
            else:
                rows = torch.tensor(late, device=self.device)
                aspect = aspect.index_copy(0, rows, aspect_loss(world[rows], camera[rows], spikes.aspect_tau))
            total = total + spikes.aspect_weight * aspect
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total.sum().backward()  # a sum, so that no subject's gradient depends on the batch
        for row in range(len(self.subjects)):
            self._adam_step(row)
            self.iterations[row] += 1
            if self.iterations[row] > spikes.clamp_from or self.iterations[row] == config.iterations:
                self._clamp(row)
        return StepTerms(*(x.detach() for x in (total, photometric.l1, photometric.ssim, aspect)))

    def run(self, after_step: Callable[[StepTerms], None]) -> None:
        """Step until the configured number of iterations, of subjects that stand at the same one."""
        while self.iteration < self.config.iterations:
            after_step(self.step())

    def state(self, row: int = 0) -> dict[str, Tensor]:
        """Everything that going on with a subject needs beside its config and input, as flat tensors."""
        tensors = {"initial_log_scale": self.initial_log_scale[row]}
        for name, parameter in self.parameters[row].items():
            tensors[name] = parameter.detach()
            for key, value in self.optimizers[row].state.get(parameter, {}).items():
                tensors[f"{name}.{key}"] = value.reshape(1) if key == "step" else value
        return tensors

    def load_state(self, tensors: dict[str, Tensor], iteration: int, row: int = 0) -> None:
        """Raises ValueError, with all as it was, when these are not the tensors of such a subject."""
        shapes = {"initial_log_scale": self.initial_log_scale[row].shape}
        for name, parameter in self.parameters[row].items():
            shapes[name] = parameter.shape
            if any(f"{name}.{moment}" in tensors for moment in MOMENTS):  # none yet of what was frozen so far
                shapes |= {f"{name}.{moment}": parameter.shape for moment in MOMENTS if moment != "step"}
                shapes[f"{name}.step"] = torch.Size([1])
        for key, shape in shapes.items():
            if key not in tensors or tensors[key].shape != shape:
                raise ValueError(f"{key} is missing or of another shape than {list(shape)}")
        self.iterations[row] = iteration
        self.initial_log_scale[row] = tensors["initial_log_scale"].to(self.device)
        with torch.no_grad():
            for name, parameter in self.parameters[row].items():
                parameter.copy_(tensors[name])
                stored = {key: tensors.get(f"{name}.{key}") for key in MOMENTS}
                moments = {key: value.to(self.device) for key, value in stored.items() if value is not None}
                if moments:
                    self.optimizers[row].state[parameter] = {**moments, "step": moments["step"].reshape(())}

    def is_finite(self, row: int = 0) -> bool:
        """Whether a subject's parameters are all numbers."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.parameters[row].values())

    def _view(self, row: int) -> TrainingView:
        subject = self.subjects[row]
        try:
            return subject.view(subject.row_at(self.config.seed, self.iterations[row]))
        except (SpatialAvatarError, OSError) as e:
            raise SubjectError(row) from e

    def _world(self, views: Sequence[TrainingView]) -> WorldGaussians:
        """What the loss sees: channels beyond RGB take no part."""
        local = LocalGaussians.cat([in_rgb(to_gaussians(p, self._rest_scale)) for p in self.parameters])
        return bind(local, torch.cat([v.vertices for v in views]), self._faces, self._face_index)

    def _background(self, subject: Subject, iteration: int) -> Tensor:
        kind = subject.background_kind(self.config.background)
        if kind == "random":
            return subject.background_at(self.config.seed, iteration)
        return torch.full((1, 3), 1.0 if kind == "white" else 0.0, device=subject.device)

    def _adam_step(self, row: int) -> None:
        iteration = self.iterations[row]
        decay = 0.5 * (1 + math.cos(math.pi * iteration / self.config.iterations))
        for group in self.optimizers[row].param_groups:
            group["lr"] = getattr(self.config.learning_rates, group["name"]) * decay
        if iteration < self.config.anti_spike.scale_freeze_iterations:
            self.parameters[row]["log_scale"].grad = None
        self.optimizers[row].step()

    @torch.no_grad()
    def _clamp(self, row: int) -> None:
        spikes = self.config.anti_spike
        if spikes.clamp:
            log_scale, initial = self.parameters[row]["log_scale"], self.initial_log_scale[row]
            log_scale.copy_(clamp_log_scale(log_scale, initial, spikes.aspect_bound, spikes.scale_range))
