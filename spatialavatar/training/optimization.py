"""Parameter groups, optimizer and learning-rate schedule of a training run (method.md section 3; paper App. A.2).

Layer-wise learning-rate decay as BEiT's (Bao et al. 2022, A): a layer at depth d below the encoder side's output learns
at lr x gamma^d. The depth counts from the DPT head's output (1) through its four fusion stages (2 .. 5) and the blocks
of the vision transformer, the last one first (6 ..), to the embeddings; whatever comes after the encoder side (pool,
StyleUNet, decoders) has depth 0, the base rate. A layer's name decides, so that every way to run (one process, Ray
Train, ZeRO) finds the same groups.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.config import OptimizerConfig, ScheduleConfig

_OUTPUT, _STAGES = 1, 4  # depth of dpt.output; stages below it
_LAST_BLOCK = _OUTPUT + _STAGES + 1
_TOKENS = {"cls_token", "reg_token", "mask_token", "pos_embed"}
_BLOCK = re.compile(r"encoder\.backbone\.blocks\.(\d+)\.")
_STAGE = re.compile(r"dpt\.(?:fusion|reassemble)\.([0-3])\.")
_EMBEDDING = re.compile(rf"encoder\.backbone\.(?:patch_embed\.|norm_pre\.|(?:{'|'.join(sorted(_TOKENS))})$)")


def depth_from_output(name: str, blocks: int) -> int:
    """Layers between a generator's parameter and the encoder side's output; 0 after it.

    ``blocks``: of the vision transformer. Raises ValueError for a name of no known layer, rather than let it learn at
    the base rate unnoticed.
    """
    if name.startswith(("unet.", "decoder.", "pool.")):
        return 0
    if name.startswith("dpt.output."):
        return _OUTPUT
    if stage := _STAGE.match(name):
        return _OUTPUT + 1 + int(stage[1])
    if block := _BLOCK.match(name):
        if int(block[1]) < blocks:
            return _LAST_BLOCK + blocks - 1 - int(block[1])
    elif name.startswith(("encoder.backbone.norm.", "encoder.backbone.fc_norm.")):  # right after the last block
        return _LAST_BLOCK
    elif _EMBEDDING.match(name):
        return _LAST_BLOCK + blocks
    raise ValueError(f"parameter {name}: no known layer of the generator (encoder of {blocks} blocks); give it a depth")


def parameter_groups(module: nn.Module, lr: float, lr_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups of a Generator, or of a module with one as ``generator``: name, params, lr, weight_decay.

    Every parameter that requires a gradient is in exactly one group: one group for each depth, and within it one
    without weight decay for biases, norms, other vectors, and tokens. The groups depend on names and shapes only, not
    on the three numbers, so that an optimizer's state fits a run with other rates.
    """
    named = [(_layer_name(name), parameter) for name, parameter in module.named_parameters()]
    blocks = 1 + max((int(block[1]) for name, _ in named if (block := _BLOCK.match(name))), default=-1)
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            key = depth_from_output(name, blocks), not _decays(name, parameter)
            members.setdefault(key, []).append(parameter)
    return [
        {
            "name": ("base" if depth == 0 else f"encoder-{depth}") + ("-vectors" if undecayed else ""),
            "params": members[depth, undecayed],
            "lr": lr * lr_decay**depth,
            "weight_decay": 0.0 if undecayed else weight_decay,
        }
        for depth, undecayed in sorted(members)
    ]


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Adam or AdamW over ``parameter_groups``."""
    groups = parameter_groups(module, config.learning_rate, config.lr_decay, config.weight_decay)
    if not groups:
        raise SpatialAvatarError("every parameter of the generator is frozen: there is nothing to train")
    kind = {"adam": Adam, "adamw": AdamW}[config.kind]
    return kind(groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


def learning_rate_factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """The schedule's factor on every group's rate before step ``step`` of ``steps``, a function of these alone."""
    return _schedule(steps, config)(step)


def build_scheduler(optimizer: Optimizer, config: ScheduleConfig, steps: int) -> LambdaLR:
    """The schedule on all groups; ``step()`` once after each optimizer step, ``state_dict()`` holds the step."""
    return LambdaLR(optimizer, _schedule(steps, config))


def _schedule(steps: int, config: ScheduleConfig) -> Callable[[int], float]:
    decay_until = steps if config.decay_steps is None else config.decay_steps
    warmup = config.warmup_steps
    if warmup >= decay_until:
        raise SpatialAvatarError(
            f"schedule: warmup_steps is {warmup}, but the decay ends at step {decay_until}; make the warm-up shorter"
        )
    horizon = max(steps, decay_until)  # a run may stop before the decay has ended
    end = 1.0 if config.kind == "constant" else config.end
    decay: ParamScheduler = {
        "linear": LinearParamScheduler(1.0, end),
        "cosine": CosineParamScheduler(1.0, end),
        "constant": ConstantParamScheduler(1.0),
    }[config.kind]
    pieces = [
        (warmup, LinearParamScheduler(0.0, 1.0), "rescaled"),
        (decay_until - warmup, decay, "rescaled"),
        (horizon - decay_until, ConstantParamScheduler(end), "fixed"),
    ]
    lengths, schedulers, scaling = zip(*((n / horizon, one, kind) for n, one, kind in pieces if n), strict=True)
    schedule = CompositeParamScheduler(list(schedulers), list(lengths), list(scaling))
    last = math.nextafter(1.0, 0.0)  # fvcore takes [0, 1); LambdaLR asks for the step after the last one too

    def factor(step: int) -> float:
        return float(schedule(min(step / horizon, last)))

    return factor


def _layer_name(name: str) -> str:
    """Relative to the generator, without what torch.compile puts in."""
    return name.replace("_orig_mod.", "").removeprefix("generator.")


def _decays(name: str, parameter: nn.Parameter) -> bool:
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and last != "bias" and last not in _TOKENS
