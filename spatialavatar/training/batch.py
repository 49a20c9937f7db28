"""What one training step looks at: sources, target and background of B samples."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from spatialavatar.generator.sources import Sources
from spatialavatar.head import HeadParams
from spatialavatar.losses.photometric import composite
from spatialavatar.splat.camera import Camera


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
    """B samples; on one device but for their numbers."""

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
