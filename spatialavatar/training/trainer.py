"""One training step: forward, backward, clip, update (method.md section 3)."""

from collections.abc import Callable

import torch
from torch.nn.utils import clip_grad_norm_

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.optimization import build_optimizer, build_scheduler
from spatialavatar.training.step import Objective, TrainingModule


class NotFinite(SpatialAvatarError):
    """A loss or gradient that is no number; the weights are as they were before the step."""


class Trainer:
    """A module with its optimizer and schedule, driven batch by batch.

    ``all_agree`` takes whether a value is finite (a bool tensor) and says whether to go on: workers that train together
    must decide alike.
    """

    def __init__(
        self, module: TrainingModule, config: TrainConfig, all_agree: Callable[[torch.Tensor], bool] = bool
    ) -> None:
        self.module, self.config = module, config
        self.optimizer = build_optimizer(module, config.optimizer)
        self.scheduler = build_scheduler(self.optimizer, config.schedule, config.steps)
        self.step_number = 0
        self.learning_rate = 0.0  # of the last step, before the encoder side's decay
        self._all_agree = all_agree
        self._trained = [p for p in module.parameters() if p.requires_grad]

    def seek(self, step: int) -> None:
        """Stand before step number ``step``: the schedule is a function of it."""
        self.step_number = step
        self.scheduler.last_epoch = step
        for group, rate, factor in zip(self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas):
            group["lr"] = rate * factor(step)

    def step(self, batch: Batch) -> tuple[Objective, float]:
        """The objective before the update and the gradient's norm before clipping. Raises NotFinite."""
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        objective: Objective = self.module(batch)
        self._require_finite(objective.loss, "loss")
        objective.loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_(self._trained, self.config.optimizer.clip_norm)
        self._require_finite(norm, "gradient")
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.scheduler.step()
        self.step_number += 1
        return objective, float(norm)

    def _require_finite(self, value: torch.Tensor, what: str) -> None:
        finite = torch.isfinite(value.detach())
        if not self._all_agree(finite):
            found = f"{float(value.detach())}" if not finite else "not finite on another worker"
            raise NotFinite(f"{what} is {found} at step {self.step_number + 1}")
