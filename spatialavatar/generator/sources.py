"""What the generator looks at: K portraits of each of B subjects."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from spatialavatar.head.params import HeadParams
from spatialavatar.splat.camera import Camera


@dataclass(frozen=True)
class Sources:
    """Tracked portraits in the canonical form (the world is the head's own frame).

    Row b * K + k of ``params`` and ``camera`` belongs to portrait k of subject b. ``mask`` says which portraits there
    are, so that a batch mixes K = 1..4; what it leaves out is never looked at.
    """

    images: Float[Tensor, "B K 3 H W"]  # RGB in [0, 1], composited on black
    params: HeadParams  # B * K rows
    camera: Camera  # B * K rows, at W x H pixels
    mask: Bool[Tensor, "B K"]

    @property
    def batch(self) -> int:
        return self.images.shape[0]

    def to(self, *args: Any, **kwargs: Any) -> "Sources":
        """To a device and, for all but the mask, a dtype."""
        images = self.images.to(*args, **kwargs)
        return Sources(
            images, self.params.to(*args, **kwargs), self.camera.to(*args, **kwargs), self.mask.to(images.device)
        )
