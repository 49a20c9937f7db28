"""DeepSpeed behind the library's ``Engine``: gradients averaged over the workers, ZeRO stage 0, 1 or 2.

The weights are float32 in every stage; bf16 is the training module's own autocast. ZeRO keeps a part of the optimizer's
state (1) and of the gradients (2) in each worker; a checkpoint holds all of it, put together, so that any number of
workers goes on from it, in any stage (DeepSpeed's own checkpoints demand the number that wrote them).
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.encoder import as_array
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.engine import (
    COUNTER,
    moments_by_parameter,
    optimizer_state,
    restore_optimizer_state,
)
from spatialavatar.training.optimization import build_optimizer
from spatialavatar.training.step import Objective, TrainingModule


class DeepSpeedEngine:
    """An ``Engine`` over torch.distributed's default process group, which has been initialised."""

    def __init__(self, module: TrainingModule, config: TrainConfig) -> None:
        deepspeed = import_deepspeed(next(module.parameters()).device)
        self.module = module
        self.optimizer = build_optimizer(module, config.optimizer)
        self._stage = config.distributed.zero_stage
        self._clip_norm = config.optimizer.clip_norm
        self._trained = {n: p for n, p in module.generator.named_parameters() if p.requires_grad}
        world = dist.get_world_size()
        settings: dict[str, Any] = {
            "train_batch_size": config.batch_size,
            "train_micro_batch_size_per_gpu": config.batch_size // world,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self._clip_norm if self._stage else 0.0,  # stage 0: here, where the norm is asked for
            "zero_optimization": {"stage": self._stage},
            "zero_allow_untested_optimizer": True,  # AdamW of torch
            "steps_per_print": 2**31,
        }
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self.optimizer, config=settings, dist_init_required=False
        )
        self._zero: Any = self._engine.optimizer if self._stage else None

    def forward(self, batch: Batch) -> Objective:
        objective: Objective = self._engine(batch)
        return objective

    def update(self, loss: Tensor) -> float:
        self._engine.backward(loss)
        if self._zero is None:
            norm = float(clip_grad_norm_(self._trained.values(), self._clip_norm))
            if np.isfinite(norm):
                self._engine.step()
            else:
                self._engine.zero_grad()
            return norm
        self._engine.step()
        return float("nan") if self._zero.overflow else float(self._engine.get_global_grad_norm())

    def moments(self) -> dict[str, np.ndarray]:
        if self._zero is None:
            return optimizer_state(self._trained, self.optimizer)
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        keep = dist.get_rank() == 0
        found: dict[str, np.ndarray] = {}
        for part, members in self._parts():
            state = self.optimizer.state[part]
            for name, parameter in members.items():
                for slot in sorted(state):  # in one order in all workers, who put the array together
                    whole = state[slot] if slot == COUNTER else safe_get_full_optimizer_state(parameter, slot)
                    if keep:
                        found[f"{name}/{slot}"] = as_array(whole)
        return found

    def restore(self, moments: dict[str, np.ndarray]) -> None:
        if self._zero is None:
            return restore_optimizer_state(self._trained, self.optimizer, moments)
        from deepspeed.utils import safe_set_full_optimizer_state

        slots = moments_by_parameter(moments)
        for part, members in self._parts():
            of_any: dict[str, Tensor] = next((slots[name] for name in members if name in slots), {})
            self.optimizer.state[part] = {
                slot: value if slot == COUNTER else torch.zeros_like(part) for slot, value in of_any.items()
            }
        self._link()
        for name, state in slots.items():
            parameter = self._trained[name]
            for slot, value in state.items():
                if slot != COUNTER:
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), slot)

    def _parts(self) -> Iterator[tuple[Tensor, dict[str, torch.nn.Parameter]]]:
        """Of each parameter group: this worker's flat part of its weights, and the whole parameters by name."""
        names = {parameter: name for name, parameter in self._trained.items()}
        for part, members in zip(self._zero.single_partition_of_fp32_groups, self._zero.bit16_groups, strict=True):
            yield part, {names[parameter]: parameter for parameter in members}

    def _link(self) -> None:
        """Tell each parameter where its state lies; DeepSpeed does it once, before most groups have any."""
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told which device it works on, without its chatter."""
    os.environ["DS_ACCELERATOR"] = "cuda" if device.type == "cuda" else "cpu"
    os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")  # builds no kernels: torch's own optimizers are used
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
    except ImportError:
        raise SpatialAvatarError(
            "DeepSpeed is not installed on this worker; install it with: pip install -e '.[ray]'"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # its import sets another
    return deepspeed
