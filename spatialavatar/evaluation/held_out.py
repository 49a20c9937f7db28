"""How well a generator shows people it was not trained on (method.md section 5): fixed cases from a pool of clips.

A case is one subject, K source frames and one target frame. ``cases`` draws those of the protocol: the same targets for
every K, none of them a source. ``generator_report`` makes rows and means of them, one subject at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.clip import FrameIndex
from spatialavatar.evaluation.estimators import Estimators
from spatialavatar.evaluation.metrics import psnr, ssim
from spatialavatar.generator.decoder import Decoded
from spatialavatar.generator.generator import Generator
from spatialavatar.generator.sources import Sources
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.training.batch import Batch
from spatialavatar.training.draws import Purpose, generator_for
from spatialavatar.training.example import Example
from spatialavatar.training.packed_batch import collate
from spatialavatar.training.pool import ClipPool
from spatialavatar.training.step import Pictures, render

MOST_SOURCES = 4
BATCH = 8
WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    clip: int  # the subject that is shown
    sources: tuple[FrameIndex, ...]
    target: FrameIndex
    portrayed: int | None = None  # the clip that the sources come from, when it is another


def cases(pool: ClipPool, sources: int, targets: int, seed: int = 0) -> list[Case]:
    """``targets`` cases for each clip of the pool with K = ``sources``; clips give what frames they have.

    The frames are a function of (seed, clip). The first source shows the clip's first instant, of a take through a
    random camera. Three random frames are the other sources for any K, and other ones the targets: a single camera's
    clip differs between sources and target in time, a take in time and camera.
    """
    return [case for clip in range(len(pool)) for case in cases_of(pool, clip, sources, targets, seed, clip)]


def cases_of(pool: ClipPool, clip: int, sources: int, targets: int, seed: int, number: int) -> list[Case]:
    """The cases of one clip, whose frames are a function of (seed, ``number``)."""
    facts = pool.facts(clip)
    rng = generator_for(seed, Purpose.HELD_OUT, number)
    frames = [FrameIndex(t, c) for t in facts.instants for c in facts.cameras]
    order = [frames[i] for i in rng.permutation(len(frames))]
    first = next(frame for frame in order if frame.instant == facts.instants[0])
    order = [first, *(frame for frame in order if frame != first)]
    shown = order[MOST_SOURCES : MOST_SOURCES + targets]
    return [Case(clip, tuple(order[:sources]), target) for target in shown]


def batches_of(
    pool: ClipPool,
    listed: Sequence[Case],
    image_size: int,
    resolution: int,
    background: tuple[float, float, float] = WHITE,
) -> Iterator[Batch]:
    """The cases in batches, sources at the encoder's ``image_size``, targets at ``resolution``.

    A target without a matte cannot be put over a background, and has black.
    """
    for start in range(0, len(listed), BATCH):
        examples = []
        for i, case in enumerate(listed[start : start + BATCH]):
            portrayed = case.clip if case.portrayed is None else case.portrayed
            target = pool.view(case.clip, case.target, resolution)
            examples.append(
                Example(
                    number=start + i,
                    sources=tuple(pool.view(portrayed, frame, image_size) for frame in case.sources),
                    target=target,
                    background=torch.zeros(3) if target.black_only else torch.tensor(background),
                )
            )
        yield collate(examples)


Show = Callable[[Batch], Decoded]  # the Gaussians that some way of making avatars gives for a batch


@torch.no_grad()
def measure(
    show: Show,
    generator: Generator,
    batches: Iterable[Batch],
    lpips: Lpips | None = None,
    estimators: Estimators | None = None,
) -> dict[str, Float[Tensor, " cases"]]:
    """PSNR (dB), SSIM and LPIPS of each case, and what the estimators tell; LPIPS only with its network.

    NaN where an estimator found no face.
    """
    found: dict[str, list[Tensor]] = {}
    device = next(generator.parameters()).device
    for batch in batches:
        there = batch.to(device)
        pictures: Pictures = render(generator, show(there), there)
        values = {
            "psnr": psnr(pictures.prediction, pictures.target),
            "ssim": ssim(pictures.prediction, pictures.target),
        }
        if lpips is not None:
            values["lpips"] = lpips(pictures.prediction, pictures.target)
        if estimators is not None:
            compared = estimators.compare(pictures.prediction.clamp(0, 1), pictures.target)
            values |= {name: value for name, value in compared.items() if value is not None}
        for name, value in values.items():
            found.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def from_sources(generator: Generator) -> Show:
    """The generator itself."""
    return lambda batch: generator(batch.sources, batch.target.params, batch.target.camera)


def from_first_sources(generator: Generator) -> Show:
    """The same for batches of which every row has the same sources, which are looked at once."""

    def show(batch: Batch) -> Decoded:
        every, k = batch.sources, batch.sources.mask.shape[1]
        first = Sources(every.images[:1], every.params[:k], every.camera[:k], every.mask[:1])
        features = generator.encode(first).expand(len(batch), -1, -1)
        return generator.decode(features, batch.target.params, batch.target.camera)

    return show
