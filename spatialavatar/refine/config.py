"""What a refinement can be told (method.md section 4); configs/refine.yaml explains each value.

Learning rates and tau, which the method leaves open, were chosen by the sweeps in benchmarks/results/refine_sweep_*.
"""

import math
from typing import Literal

from pydantic import Field

from spatialavatar.config import Config

Background = Literal["random", "white", "black"]


HARMLESS = ("checkpoint_every", "log_every", "frame_memory_gb")  # they change no avatar


class LearningRates(Config):
    """Adam's start values; one cosine decays them all to zero over the run."""

    position: float = Field(4e-4, ge=0)  # metres
    rotation: float = Field(5e-3, ge=0)  # quaternion components
    log_scale: float = Field(6e-2, ge=0)
    color: float = Field(1e-2, ge=0)  # logit of the colour
    opacity: float = Field(5e-2, ge=0)  # logit


class AntiSpike(Config):
    """The three parts that stand in for densification (paper section 3.3), each of which can be turned off."""

    scale_freeze_iterations: int = Field(500, ge=0)  # (a) scales do not move before this; 0 turns it off
    clamp: bool = True  # (b) hard bounds on the log-scales
    clamp_from: int = Field(500, ge=0)  # first iteration after which the clamp is applied (also at start and end)
    aspect_bound: float = Field(8.0, gt=1)  # (b) largest over smallest scale of a Gaussian
    scale_range: float = Field(10.0, gt=1)  # (b) a scale stays within its start value divided or multiplied by this
    aspect_weight: float = Field(0.5, ge=0)  # (c) weight of the screen-space aspect loss; 0 turns it off
    aspect_from: int = Field(500, ge=0)  # (c) first iteration with the aspect loss
    aspect_tau: float = Field(math.log(5.0), ge=0)  # (c) log aspect ratio on screen that is free


class RefineConfig(Config):
    """Everything that a refinement can be told."""

    iterations: int = Field(10_000, ge=0)
    resolution: int = Field(512, ge=16)  # pixels of the image's longer side
    uv_resolution: int = Field(256, ge=8)  # texels along the UV square; --init brings its own
    seed: int = Field(0, ge=0)
    l1_weight: float = Field(0.8, ge=0)
    ssim_weight: float = Field(0.2, ge=0)
    learning_rates: LearningRates = LearningRates()
    anti_spike: AntiSpike = AntiSpike()
    background: Background = "random"  # behind both images; random: anew each iteration
    checkpoint_every: int = Field(500, ge=1)  # iterations
    log_every: int = Field(50, ge=1)  # iterations between lines of refine.jsonl
    frame_memory_gb: float = Field(4.0, gt=0)  # decoded frames and posed meshes kept in memory; beyond, made anew
