"""Training samples and batches: which frames, at which size, over which background (method.md section 3).

A batch is a function of (config, pool, step) alone: sample ``step * batch_size + i`` is row i, and everything about
a sample is drawn from (seed, sample number). Who prepares it, and how far ahead, changes nothing (``stream``).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spatialavatar.generator.sources import Sources
from spatialavatar.head import HeadParams
from spatialavatar.losses.photometric import composite
from spatialavatar.splat.camera import Camera
from spatialavatar.training.augmentation import augmented
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.draws import Stream, generator_for
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

_DTYPES = {"U8": np.uint8, "BOOL": np.bool_, "I64": np.int64, "F32": np.float32}  # by safetensors' names
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


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


@dataclass(frozen=True)
class PackedBatch:
    """A batch, or some rows of one, as it travels between processes: pictures in 8 bits, sources without padding.

    B rows with R sources in all; ``sources.count`` says how many each row has.
    """

    arrays: dict[str, np.ndarray]  # by the names of Batch

    def __len__(self) -> int:
        return len(self.arrays["numbers"])

    def to_bytes(self) -> memoryview:
        """In safetensors' layout; written here, for the library copies every picture twice."""
        header: dict[str, dict[str, Any]] = {}
        end = 0
        for name in sorted(self.arrays, key=lambda name: (-self.arrays[name].itemsize, name)):  # keeps all aligned
            array = self.arrays[name]
            offsets = [end, end := end + array.nbytes]
            header[name] = {"dtype": _NAMES[array.dtype], "shape": array.shape, "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        content = np.empty(8 + len(text) + end, np.uint8)
        content[:8] = np.frombuffer(len(text).to_bytes(8, "little"), np.uint8)
        content[8 : 8 + len(text)] = np.frombuffer(text, np.uint8)
        for name, said in header.items():
            first, last = said["data_offsets"]
            content[8 + len(text) + first :][: last - first] = self.arrays[name].reshape(-1).view(np.uint8)
        return content.data

    @staticmethod
    def from_bytes(data: Any) -> "PackedBatch":
        """From the bytes of ``to_bytes`` or a buffer of them, which its arrays then look into."""
        view = memoryview(data)
        begin = 8 + int.from_bytes(view[:8], "little")  # safetensors: size of the header, header, arrays
        arrays = {}
        for name, value in json.loads(bytes(view[8:begin])).items():
            first, last = value["data_offsets"]
            array: np.ndarray = np.frombuffer(view[begin + first : begin + last], _DTYPES[value["dtype"]])
            arrays[name] = array.reshape(value["shape"])
        return PackedBatch(arrays)

    @staticmethod
    def cat(parts: "Sequence[PackedBatch]") -> "PackedBatch":
        """Parts of a batch, in the order of their rows; a copy."""
        names = dict.fromkeys(name for part in parts for name in part.arrays)
        return PackedBatch({name: np.concatenate([_rows(name, part, parts) for part in parts]) for name in names})

    def unpacked(self, device: Any = "cpu") -> Batch:
        """The batch on a device, its sources padded to the largest K (``Sources``).

        What pads is a black image with the parameters and the camera of the row's first source.
        """
        tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        numbers, count = tensors.pop("numbers"), tensors.pop("sources.count")
        there = {name: tensor.to(device) for name, tensor in tensors.items()}
        slot = torch.arange(int(count.max()))
        mask = slot < count[:, None]
        row = ((count.cumsum(0) - count)[:, None] + slot * mask).flatten().to(device)  # of each slot's source
        mask = mask.to(device)

        def params(side: str, rows: Tensor | slice) -> HeadParams:
            names = [f.name for f in fields(HeadParams)]
            parts = {name: there[f"{side}.{name}"][rows] for name in names if f"{side}.{name}" in there}
            return HeadParams(**parts)

        def camera(side: str, rows: Tensor | slice, image: Tensor) -> Camera:
            height, width = image.shape[1:3]
            return Camera(
                there[f"{side}.world_to_camera"][rows], there[f"{side}.intrinsics"][rows], int(width), int(height)
            )

        coverage = there["sources.matte"][row].float() / 255 * mask.flatten()[:, None, None]
        portraits = there["sources.image"][row].float() / 255 * coverage[..., None]
        images = portraits.permute(0, 3, 1, 2).unflatten(0, tuple(mask.shape)).contiguous()
        everything = slice(None)
        return Batch(
            numbers=numbers,
            sources=Sources(images, params("sources", row), camera("sources", row, there["sources.image"]), mask),
            target=Target(
                image=there["target.image"].float() / 255,
                matte=there["target.matte"].float() / 255,
                region=there["target.region"].float(),
                face_box=there["target.face_box"],
                params=params("target", everything),
                camera=camera("target", everything, there["target.image"]),
            ),
            background=there["background"],
        )


def _rows(name: str, part: PackedBatch, parts: Sequence[PackedBatch]) -> np.ndarray:
    """An array of a part; zeros where only other parts' heads have it, as a static offset."""
    if name in part.arrays:
        return part.arrays[name]
    like = next(other.arrays[name] for other in parts if name in other.arrays)
    rows = len(part.arrays[f"{name.partition('.')[0]}.image"])
    return np.zeros((rows, *like.shape[1:]), like.dtype)


def clip_of_sample(number: int, clips: int, config: TrainConfig) -> int:
    return clip_of(visit_of(number, config.batch_size, config.sampler.draws_per_clip), clips, config.seed)


def draw_of_sample(facts: ClipFacts, number: int, config: TrainConfig) -> Draw:
    """The frames of sample ``number``, given what is known of its clip."""
    if config.phase == 1:
        progress = number / (config.steps * config.batch_size)
        temperature = temperature_at(progress, config.sampler)
        return draw_monocular(facts, number, config.seed, config.sampler, temperature)
    return draw_multi_view(facts, number, config.seed, config.sampler)


def make_example(pool: ClipPool, number: int, config: TrainConfig) -> Example:
    """Sample ``number`` of a training. Raises SpatialAvatarError for a frame that cannot be read."""
    clip = clip_of_sample(number, len(pool), config)
    draw = draw_of_sample(pool.facts(clip), number, config)
    sources = tuple(pool.view(clip, frame, config.generator.encoder.image_size) for frame in draw.sources)
    target = pool.view(clip, draw.target, config.resolution)
    sources, target = augmented(sources, target, number, config.seed, config.augment)
    color = generator_for(config.seed, Stream.BACKGROUND, number).random(3, dtype=np.float32)
    return Example(
        number=number,
        sources=sources,
        target=target,
        background=torch.from_numpy(np.zeros_like(color) if target.black_only else color),
    )


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Samples as rows of a batch."""
    sources = [view for example in examples for view in example.sources]
    targets = [example.target for example in examples]
    arrays = {
        "numbers": np.array([example.number for example in examples]),
        "background": np.stack([example.background.numpy() for example in examples]),
        "sources.count": np.array([len(example.sources) for example in examples]),
        "sources.image": np.stack([view.pixels.image for view in sources]),
        "sources.matte": np.stack([view.pixels.matte * view.pixels.region for view in sources]),  # they lie on black
        "target.image": np.stack([view.pixels.image for view in targets]),
        "target.matte": np.stack([view.pixels.matte for view in targets]),
        "target.region": np.stack([view.pixels.region for view in targets]),
        "target.face_box": np.stack([view.face_box.numpy() for view in targets]),
    }
    for side, views in (("sources", sources), ("target", targets)):
        params, camera = HeadParams.cat([v.params for v in views]), Camera.cat([v.camera for v in views])
        for value in (params, camera):
            parts = {f.name: getattr(value, f.name) for f in fields(value)}
            arrays |= {f"{side}.{n}": part.numpy() for n, part in parts.items() if isinstance(part, Tensor)}
    return PackedBatch({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def collate(examples: Sequence[Example]) -> Batch:
    return pack(examples).unpacked()


def make_batch(pool: ClipPool, step: int, config: TrainConfig) -> Batch:
    first = step * config.batch_size
    return collate([make_example(pool, first + i, config) for i in range(config.batch_size)])
