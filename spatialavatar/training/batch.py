"""Training samples and batches: which frames, at which size, over which background (method.md section 3).

A batch is a function of (config, pool, step) alone: sample ``step * batch_size + i`` is row i, and everything about
a sample is drawn from (seed, sample number). Preparing batches ahead changes nothing.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spatialavatar.generator.sources import Sources
from spatialavatar.head import HeadParams
from spatialavatar.losses.photometric import composite
from spatialavatar.splat.camera import Camera
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.draws import Stream, generator_for
from spatialavatar.training.pool import ClipPool, View
from spatialavatar.training.samplers import clip_of, draw_monocular, draw_multi_view, temperature_at

AHEAD = 2  # batches that are prepared while a step runs


@dataclass(frozen=True)
class Example:
    """One sample: K portraits and the frame that they should explain."""

    number: int
    sources: tuple[View, ...]  # at the encoder's size
    target: View  # at the training's resolution
    background: Float[Tensor, "3"]  # RGB in [0, 1]


@dataclass(frozen=True)
class Target:
    """What the rendering of B subjects is compared with; canonical form."""

    image: Float[Tensor, "B H W 3"]  # in [0, 1], straight (not multiplied by the matte)
    matte: Float[Tensor, "B H W"]
    region: Float[Tensor, "B H W"]  # 1 where losses count; 0 elsewhere, as on the bars beside a picture
    face_box: Float[Tensor, "B 4"]  # x0 y0 x1 y1 in pixels; NaN when unknown
    params: HeadParams
    camera: Camera

    def over(self, background: Float[Tensor, "B 3"]) -> Float[Tensor, "B H W 3"]:
        """The image over a background; outside the region the background alone."""
        return composite(self.image, self.matte * self.region, background)

    def to(self, device: Any) -> "Target":
        return Target(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class Batch:
    numbers: Int[Tensor, " B"]  # of the samples; stays on the CPU
    sources: Sources
    target: Target
    background: Float[Tensor, "B 3"]  # one for each sample, under target and rendering alike

    def __len__(self) -> int:
        return len(self.numbers)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, for a file."""
        tensors = {"numbers": self.numbers, "background": self.background, "sources.mask": self.sources.mask}
        tensors |= {"sources.images": self.sources.images}
        for side, of in (("sources", self.sources), ("target", self.target)):
            for value in (of.params, of.camera):
                parts = {f.name: getattr(value, f.name) for f in fields(value)}
                tensors |= {f"{side}.{name}": part for name, part in parts.items() if isinstance(part, Tensor)}
        tensors |= {f"target.{n}": getattr(self.target, n) for n in ("image", "matte", "region", "face_box")}
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    def to(self, device: Any) -> "Batch":
        return Batch(self.numbers, self.sources.to(device), self.target.to(device), self.background.to(device))


def make_example(pool: ClipPool, number: int, config: TrainConfig) -> Example:
    """Sample ``number`` of a training. Raises SpatialAvatarError for a frame that cannot be read."""
    clip = clip_of(number, len(pool), config.seed)
    facts = pool.facts(clip)
    if config.phase == 1:
        progress = number / (config.steps * config.batch_size)
        temperature = temperature_at(progress, config.sampler)
        draw = draw_monocular(facts, number, config.seed, config.sampler, temperature)
    else:
        draw = draw_multi_view(facts, number, config.seed, config.sampler)
    target = pool.view(clip, draw.target, config.resolution)
    color = generator_for(config.seed, Stream.BACKGROUND, number).random(3, dtype=np.float32)
    return Example(
        number=number,
        sources=tuple(pool.view(clip, frame, config.generator.encoder.image_size) for frame in draw.sources),
        target=target,
        background=torch.from_numpy(np.zeros_like(color) if target.black_only else color),
    )


def collate(examples: Sequence[Example]) -> Batch:
    """Samples as one batch, their sources padded to the largest K (``Sources``).

    What pads is a black image with the parameters and the camera of the sample's first source.
    """
    most = max(len(example.sources) for example in examples)
    padded = [[*e.sources, *[e.sources[0]] * (most - len(e.sources))] for e in examples]
    mask = torch.tensor([[k < len(e.sources) for k in range(most)] for e in examples])
    rows = [view for sources in padded for view in sources]
    targets = [example.target for example in examples]
    return Batch(
        numbers=torch.tensor([example.number for example in examples]),
        sources=Sources(_on_black(rows, mask), _params(rows), _cameras(rows), mask),
        target=Target(
            image=_unit([view.pixels.image for view in targets]),
            matte=_unit([view.pixels.matte for view in targets]),
            region=torch.from_numpy(np.stack([view.pixels.region for view in targets])).float(),
            face_box=torch.stack([view.face_box for view in targets]),
            params=_params(targets),
            camera=_cameras(targets),
        ),
        background=torch.stack([example.background for example in examples]),
    )


def make_batch(pool: ClipPool, step: int, config: TrainConfig) -> Batch:
    first = step * config.batch_size
    return collate([make_example(pool, first + i, config) for i in range(config.batch_size)])


def batches(pool: ClipPool, config: TrainConfig, first_step: int = 0) -> Generator[Batch, None, None]:
    """The batches of steps ``first_step`` .. ``config.steps - 1``, prepared in one thread up to AHEAD in advance.

    An error in the thread is raised here, at its batch. Closing the iterator (or dropping it) ends the thread.
    """
    steps = iter(range(first_step, config.steps))
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        ahead: deque[Future[Batch]] = deque(
            thread.submit(make_batch, pool, step, config) for step in islice(steps, AHEAD)
        )
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(thread.submit(make_batch, pool, step, config) for step in islice(steps, 1))
            yield batch
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


def _unit(pictures: list[np.ndarray]) -> Float[Tensor, "B H W *C"]:
    return torch.from_numpy(np.stack(pictures)).float() / 255


def _on_black(views: list[View], mask: Bool[Tensor, "B K"]) -> Float[Tensor, "B K 3 H W"]:
    coverage = _unit([view.pixels.matte for view in views])
    coverage *= torch.from_numpy(np.stack([view.pixels.region for view in views])) * mask.flatten()[:, None, None]
    images = _unit([view.pixels.image for view in views]) * coverage[..., None]
    return images.permute(0, 3, 1, 2).unflatten(0, tuple(mask.shape)).contiguous()


def _cameras(views: list[View]) -> Camera:
    return Camera.cat([view.camera for view in views])


def _params(views: list[View]) -> HeadParams:
    return HeadParams.cat([view.params for view in views])
