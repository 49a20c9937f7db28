"""Training samples: which frames, at which size, over which background (method.md section 3).

A batch is a function of (config, pool, step) alone: sample ``step * batch_size + i`` is row i, and everything about
a sample is drawn from (seed, sample number). Who prepares it, and how far ahead, changes nothing (``stream``).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.training.augmentation import augmented
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.draws import Purpose, generator_for
from spatialavatar.training.pool import ClipPool, View
from spatialavatar.training.samplers import (
    ClipFacts,
    Draw,
    clip_of,
    draw_monocular,
    draw_multi_view,
    temperature_at,
    visit_of,
)


@dataclass(frozen=True)
class Example:
    """One sample: K portraits and the frame that they should explain."""

    number: int
    sources: tuple[View, ...]  # at the encoder's size
    target: View  # at the training's resolution
    background: Float[Tensor, "3"]  # RGB in [0, 1]


def make_example(pool: ClipPool, number: int, config: TrainConfig) -> Example:
    """Sample ``number`` of a training. Raises SpatialAvatarError for a frame that cannot be read."""
    clip = clip_of_sample(number, len(pool), config)
    draw = draw_of_sample(pool.facts(clip), number, config)
    sources = tuple(pool.view(clip, frame, config.generator.encoder.image_size) for frame in draw.sources)
    target = pool.view(clip, draw.target, config.resolution)
    sources, target = augmented(sources, target, number, config.seed, config.augment)
    color = generator_for(config.seed, Purpose.BACKGROUND, number).random(3, dtype=np.float32)
    return Example(
        number=number,
        sources=sources,
        target=target,
        background=torch.from_numpy(np.zeros_like(color) if target.black_only else color),
    )


def clip_of_sample(number: int, clips: int, config: TrainConfig) -> int:
    """The clip that sample ``number`` is drawn from, by its number in the pool."""
    return clip_of(visit_of(number, config.batch_size, config.sampler.draws_per_clip), clips, config.seed)


def draw_of_sample(facts: ClipFacts, number: int, config: TrainConfig) -> Draw:
    """The frames of sample ``number``, given what is known of its clip."""
    if config.phase == 1:
        progress = number / (config.steps * config.batch_size)
        temperature = temperature_at(progress, config.sampler)
        return draw_monocular(facts, number, config.seed, config.sampler, temperature)
    return draw_multi_view(facts, number, config.seed, config.sampler)
