"""One training step: forward, backward, clip, update (method.md section 3), in one process or in many."""

import math

import torch

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.engine import Engine, PlainEngine
from spatialavatar.training.group import Alone, Group
from spatialavatar.training.optimization import build_scheduler
from spatialavatar.training.step import Objective, TrainingModule


class NotFinite(SpatialAvatarError):
    """A loss or gradient that is no number; the weights are as they were before the step."""


class Trainer:
    """An engine with its schedule, driven batch by batch, in step with the other processes of the group."""

    def __init__(
        self, module: TrainingModule, config: TrainConfig, engine: Engine | None = None, group: Group | None = None
    ) -> None:
        self.module = module
        self.engine = engine or PlainEngine(module, config)
        self.optimizer = self.engine.optimizer
        self.scheduler = build_scheduler(self.optimizer, config.schedule, config.steps)
        self.step_number = 0
        self.learning_rate = 0.0  # of the last step, before the encoder side's decay
        self.failed_here = False  # whether this process' own loss was the one that is no number
        self.group = group or Alone()

    def seek(self, step: int) -> None:
        """Stand before step number ``step``: the schedule is a function of it."""
        self.step_number = step
        self.scheduler.last_epoch = step
        for group, rate, factor in zip(self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas):
            group["lr"] = rate * factor(step)

    def step(self, batch: Batch) -> tuple[Objective, float]:
        """The objective before the update and the gradient's norm before clipping, of all processes together.

        Raises NotFinite, in all of them.
        """
        self.module.train()
        try:
            objective = self.engine.forward(batch)
        except (SpatialAvatarError, OSError, torch.OutOfMemoryError):
            self.abstain()
            raise
        mean = self._mean(objective)
        try:
            norm = self.engine.update(objective.loss)
        except torch.OutOfMemoryError as e:
            if self.group.share.world == 1:
                raise
            # the others wait for this process' gradient: only its end can tell them
            raise RuntimeError(f"out of memory in the backward pass of step {self.step_number + 1}") from e
        self.failed_here = not math.isfinite(norm)  # nobody knows whose gradient it was
        if self.failed_here:
            raise NotFinite(f"gradient is {norm} at step {self.step_number + 1}")
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        self.step_number += 1
        return mean, norm

    def abstain(self) -> None:
        """In place of a step, for a process that can't do it: the others, who would wait, then stop with NotFinite."""
        self.group.mean([math.nan])

    def _mean(self, objective: Objective) -> Objective:
        own, *terms = torch.stack([objective.loss.detach(), *objective.terms.values()]).tolist()  # waits once
        (loss,) = self.group.mean([own])
        if not math.isfinite(loss):
            self.failed_here = not math.isfinite(own)
            found = f"{own}" if self.failed_here else "not finite on another worker"
            raise NotFinite(f"loss is {found} at step {self.step_number + 1}")
        means = (torch.tensor(value) for value in self.group.mean(terms))
        return Objective(torch.tensor(loss), dict(zip(objective.terms, means, strict=True)))
