"""Which frames make a training sample: its clip, its K sources and its target (method.md section 3; paper App. A.2).

Each draw is a function of (seed, sample number), see ``draws``. Phase 1 takes K sources and a target from one camera of
a clip, source[0] with preference for frames that differ from the target; Phase 2 takes them across cameras or across
time.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from spatialavatar.clip import FrameIndex
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.config import SamplerConfig
from spatialavatar.training.draws import Purpose, generator_for

VIEW_SHARE = 0.5  # of the difficulty score; expression has the rest
NOISE = 1e-6  # radians or code units: a mean difference below this is rounding and counts as zero


@dataclass(frozen=True)
class ClipFacts:
    """What the samplers know of a clip; T all its instants, C all its cameras."""

    view_direction: Float[np.ndarray, "T C 3"]  # viewing axis in the head's frame, unit
    expression: Float[np.ndarray, "T E"]
    instants: tuple[int, ...]  # usable for training
    cameras: tuple[int, ...]
    name: str = "the clip"  # for error messages


@dataclass(frozen=True)
class Draw:
    """The frames of one sample."""

    sources: tuple[FrameIndex, ...]
    target: FrameIndex


def visit_of(number: int, batch_size: int, draws_per_clip: int) -> int:
    """The visit to a clip that a sample belongs to.

    A visit serves one row of the batch in ``draws_per_clip`` steps in a row, so that a clip which is read once gives
    several samples and no batch holds two of them. With one draw it is the sample's number.
    """
    step, row = divmod(number, batch_size)
    return step // draws_per_clip * batch_size + row


def clip_of(visit: int, clips: int, seed: int) -> int:
    """The clip of a visit: every clip once an epoch of ``clips`` visits, in an order of that epoch's own."""
    epoch, position = divmod(visit, clips)
    return int(_order(seed, epoch, clips)[position])


@lru_cache(maxsize=4)  # of many thousand clips, and asked for sample by sample
def _order(seed: int, epoch: int, clips: int) -> np.ndarray:
    return generator_for(seed, Purpose.CLIP, epoch).permutation(clips)


def temperature_at(progress: float, config: SamplerConfig) -> float:
    """tau at a share of the training in [0, 1] (sample number / all samples): linear, then constant."""
    if progress >= config.temperature_share:
        return config.temperature_end
    done = progress / config.temperature_share
    return config.temperature_start + (config.temperature_end - config.temperature_start) * done


def difficulty(
    target_view: Float[np.ndarray, "3"],
    target_expression: Float[np.ndarray, " E"],
    views: Float[np.ndarray, "T 3"],
    expressions: Float[np.ndarray, "T E"],
) -> Float[np.ndarray, " T"]:
    """How much each of T candidates differs from the target; 1 on average, 0.5 or 0 if one part or both are zero.

    Half the angle between viewing axes, half the L2 distance of expression codes, each over its mean.
    """
    # the arc tangent, unlike the arc cosine, is exact for equal axes
    angle = np.arctan2(np.linalg.norm(np.cross(views, target_view), axis=-1), views @ target_view)
    distance = np.linalg.norm(expressions - target_expression, axis=-1)
    return VIEW_SHARE * _over_mean(angle) + (1 - VIEW_SHARE) * _over_mean(distance)


def softmax(scores: Float[np.ndarray, " T"], temperature: float) -> Float[np.ndarray, " T"]:
    """Probabilities; the lower the temperature, the more the highest score gets."""
    weights = np.exp((scores - scores.max()) / temperature)
    return weights / weights.sum()


def draw_monocular(facts: ClipFacts, number: int, seed: int, config: SamplerConfig, temperature: float) -> Draw:
    """Phase 1: K ~ U{1 .. max_sources} sources and one target, distinct instants of one camera.

    A clip with several cameras gives one of them at random to the sample. A clip with fewer than K + 1 usable instants
    lowers K. Raises SpatialAvatarError for a clip with fewer than two.
    """
    instants = np.asarray(facts.instants)
    if len(instants) < 2 or not facts.cameras:
        raise SpatialAvatarError(
            f"{facts.name}: {_usable(facts)}, but a training sample takes a source and another frame as target "
            "(at least 2 instants); track more frames or leave the clip out"
        )
    rng = generator_for(seed, Purpose.SOURCES, number)
    count = min(_source_count(rng, config), len(instants) - 1)
    camera = int(rng.choice(facts.cameras))
    order = rng.permutation(instants)
    target, others = order[0], order[1:]  # the order of the others is random: the rest of the sources come off its top
    scores = difficulty(
        facts.view_direction[target, camera].astype(np.float64),
        facts.expression[target].astype(np.float64),
        facts.view_direction[others, camera].astype(np.float64),
        facts.expression[others].astype(np.float64),
    )
    first = int(rng.choice(len(others), p=softmax(scores, temperature)))
    sources = [others[first], *np.delete(others, first)[: count - 1]]
    return Draw(tuple(FrameIndex(int(instant), camera) for instant in sources), FrameIndex(int(target), camera))


def draw_multi_view(facts: ClipFacts, number: int, seed: int, config: SamplerConfig) -> Draw:
    """Phase 2: across cameras (one instant, K + 1 distinct cameras) or, with probability ``cross_time``, across time.

    Across time: K + 1 distinct instants, cameras uniform and independent, but one camera for both frames if K = 1.
    K falls to what the clip has. A clip with one camera is always drawn across time, one with a single instant always
    across cameras. Raises SpatialAvatarError for a clip with neither two instants nor two cameras.
    """
    if not facts.instants or not facts.cameras or len(facts.instants) * len(facts.cameras) < 2:
        raise SpatialAvatarError(
            f"{facts.name}: {_usable(facts)}, but a multi-view sample takes at least 2 cameras or 2 instants; "
            "capture more of them or leave the clip out"
        )
    rng = generator_for(seed, Purpose.SOURCES, number)
    count = _source_count(rng, config)
    across_time = bool(rng.random() < config.cross_time)
    if len(facts.cameras) < 2 or len(facts.instants) < 2:
        across_time = len(facts.cameras) < 2
    if across_time:
        count = min(count, len(facts.instants) - 1)
        instants = rng.choice(facts.instants, count + 1, replace=False)
        cameras = rng.choice(facts.cameras, 1 if count == 1 else count + 1)
    else:
        count = min(count, len(facts.cameras) - 1)
        instants = rng.choice(facts.instants, 1)
        cameras = rng.choice(facts.cameras, count + 1, replace=False)
    target, *sources = (
        FrameIndex(int(instant), int(camera))
        for instant, camera in zip(*np.broadcast_arrays(instants, cameras), strict=True)
    )
    return Draw(tuple(sources), target)


def _source_count(rng: np.random.Generator, config: SamplerConfig) -> int:
    return int(rng.integers(1, config.max_sources + 1))


def _over_mean(values: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    mean = values.mean()
    return values / mean if mean > NOISE else np.zeros_like(values)


def _usable(facts: ClipFacts) -> str:
    return f"{len(facts.instants)} usable instant(s) from {len(facts.cameras)} camera(s)"
