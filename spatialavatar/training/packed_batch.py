"""Batches as they are put together and travel between processes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatialavatar.generator.sources import Sources
from spatialavatar.head import HeadParams
from spatialavatar.splat.camera import Camera
from spatialavatar.training.batch import Batch, Target
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.example import Example, make_example
from spatialavatar.training.pool import ClipPool

_DTYPES = {"U8": np.uint8, "BOOL": np.bool_, "I64": np.int64, "F32": np.float32}  # by safetensors' names
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


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
    """Samples as a batch, on the CPU."""
    return pack(examples).unpacked()


def make_batch(pool: ClipPool, step: int, config: TrainConfig) -> Batch:
    """The whole batch of one step."""
    first = step * config.batch_size
    return collate([make_example(pool, first + i, config) for i in range(config.batch_size)])


def _rows(name: str, part: PackedBatch, parts: Sequence[PackedBatch]) -> np.ndarray:
    """An array of a part; zeros where only other parts' heads have it, as a static offset."""
    if name in part.arrays:
        return part.arrays[name]
    like = next(other.arrays[name] for other in parts if name in other.arrays)
    rows = len(part.arrays[f"{name.partition('.')[0]}.image"])
    return np.zeros((rows, *like.shape[1:]), like.dtype)
