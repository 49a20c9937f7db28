"""Activations kept for the backward pass, or computed again there ("gradient checkpointing", Chen et al. 2016)."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def through(block: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """``block(*inputs)``; with ``recompute`` it keeps its inputs alone, the backward pass computes the rest anew."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
    return block(*inputs)
