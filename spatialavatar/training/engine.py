"""What turns a loss into new weights: backward pass, clipping, optimizer, and the optimizer's state for a checkpoint.

``PlainEngine`` is plain PyTorch in one process. ``ray_jobs/deepspeed_engine.py`` has DeepSpeed's, for many.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from spatialavatar.generator.encoder import as_array
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.optimization import build_optimizer
from spatialavatar.training.step import Objective, TrainingModule


class Engine(Protocol):
    """What drives a TrainingModule."""

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
        return optimizer_state(dict(self.module.generator.named_parameters()), self.optimizer)

    def restore(self, moments: dict[str, np.ndarray]) -> None:
        restore_optimizer_state(dict(self.module.generator.named_parameters()), self.optimizer, moments)


COUNTER = "step"  # Adam's slot with the number of its steps: the one that is no array of the parameter's shape


def optimizer_state(parameters: Mapping[str, Parameter], optimizer: Optimizer) -> dict[str, np.ndarray]:
    """The state of an optimizer that holds these very parameters, as ``Engine.moments``."""
    return {
        f"{name}/{slot}": as_array(torch.as_tensor(value))
        for name, parameter in parameters.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer_state(
    parameters: Mapping[str, Parameter], optimizer: Optimizer, moments: Mapping[str, np.ndarray]
) -> None:
    """The inverse of ``optimizer_state``."""
    for name, slots in moments_by_parameter(moments).items():
        parameter = parameters[name]
        # Adam keeps its counter on the CPU
        optimizer.state[parameter] = {
            slot: value if slot == COUNTER else value.to(parameter.device) for slot, value in slots.items()
        }


def moments_by_parameter(moments: Mapping[str, np.ndarray]) -> dict[str, dict[str, Tensor]]:
    """``Engine.moments`` as tensors, by parameter and slot."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, array in moments.items():
        name, _, slot = key.rpartition("/")
        value = torch.from_numpy(array)
        found.setdefault(name, {})[slot] = value.reshape(()) if slot == COUNTER else value  # files hold no scalars
    return found
