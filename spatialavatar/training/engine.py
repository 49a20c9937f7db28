"""What turns a loss into new weights: backward pass, clipping, optimizer, and the optimizer's state for a checkpoint.

``PlainEngine`` is plain PyTorch in one process. ``ray_jobs/deepspeed_engine.py`` has DeepSpeed's, for many.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from spatialavatar.generator.encoder import as_array
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.optimization import build_optimizer
from spatialavatar.training.step import Objective, TrainingModule


class Engine(Protocol):
    module: TrainingModule
    optimizer: Optimizer  # whose groups' rates hold

    def forward(self, batch: Batch) -> Objective: ...

    def update(self, loss: torch.Tensor) -> float:
        """Backward pass, clipping at the whole gradient's norm, optimizer step; returns the norm before clipping.

        The gradient is the mean over all processes. Where its norm is not finite, the weights stay as they were.
        """
        ...

    def moments(self) -> dict[str, np.ndarray]:
        """The optimizer's state by ``<parameter of the generator>/<slot>``, whole, of all processes together.

        Collective; every process calls it, the first one has the result.
        """
        ...

    def restore(self, moments: dict[str, np.ndarray]) -> None:
        """The inverse of ``moments``, whatever number of processes wrote them."""
        ...


MakeEngine = Callable[[TrainingModule, TrainConfig], Engine]


class PlainEngine:
    """One process, PyTorch alone."""

    def __init__(self, module: TrainingModule, config: TrainConfig) -> None:
        self.module = module
        self.optimizer = build_optimizer(module, config.optimizer)
        self._clip_norm = config.optimizer.clip_norm
        self._trained = [p for p in module.parameters() if p.requires_grad]

    def forward(self, batch: Batch) -> Objective:
        self.optimizer.zero_grad(set_to_none=True)  # not later: the forward pass needs the memory
        objective: Objective = self.module(batch)
        return objective

    def update(self, loss: torch.Tensor) -> float:
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_(self._trained, self._clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        return float(norm)

    def moments(self) -> dict[str, np.ndarray]:
        return {
            f"{name}/{slot}": as_array(torch.as_tensor(value))
            for name, parameter in self.module.generator.named_parameters()
            for slot, value in self.optimizer.state.get(parameter, {}).items()
        }

    def restore(self, moments: dict[str, np.ndarray]) -> None:
        parameters = dict(self.module.generator.named_parameters())
        for key, array in moments.items():
            name, _, slot = key.rpartition("/")
            parameter = parameters[name]
            value = torch.from_numpy(array)
            # Adam keeps its step counter on the CPU
            self.optimizer.state[parameter][slot] = value if value.ndim == 0 else value.to(parameter.device)
