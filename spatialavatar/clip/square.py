"""A frame as a square picture: the generator and its training see nothing else.

A picture that is no square is scaled to fit, aspect kept, and gets equal bars, where matte and region are 0.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from spatialavatar.clip.header import FrameIndex
from spatialavatar.clip.tracked_clip import TrackedClip


@dataclass(frozen=True)
class SquarePicture:
    """One frame, in 8 bits."""

    image: UInt8[np.ndarray, "S S 3"]  # straight, not multiplied by the matte
    matte: UInt8[np.ndarray, "S S"]
    region: Bool[np.ndarray, "S S"]  # where losses count

    @property
    def bytes(self) -> int:
        """What its own arrays take in memory."""
        return sum(a.nbytes for a in (self.image, self.matte, self.region) if a.base is None)


def fitted(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Where a picture lies in a square of ``size`` pixels: left, top, width, height."""
    longer = max(width, height)
    w, h = max(1, round(width * size / longer)), max(1, round(height * size / longer))
    return (size - w) // 2, (size - h) // 2, w, h


def square_picture(clip: TrackedClip, index: FrameIndex, size: int) -> SquarePicture:
    """A frame of a clip, in 8 bits as on disk. Raises SpatialAvatarError for one that cannot be read."""
    left, top, width, height = fitted(clip.width, clip.height, size)
    if (width, height) == (clip.width, clip.height):
        image, alpha, counts = clip.pixels(index)
        matte = np.full((height, width), 255, np.uint8) if alpha is None else alpha
        region = np.ones((height, width), np.uint8) if counts is None else (counts >= 128).view(np.uint8)
    else:
        frame = clip.frame(index, width, height)
        image = (frame.image * 255).round().byte().numpy()
        matte = (frame.matte * 255).round().byte().numpy()
        region = frame.region.byte().numpy()
    if width == height:
        return SquarePicture(image, matte, region.view(bool))
    bars = (top, size - height - top, left, size - width - left)
    square = [cv2.copyMakeBorder(a, *bars, cv2.BORDER_CONSTANT, value=0) for a in (image, matte, region)]
    return SquarePicture(square[0], square[1], square[2].astype(bool))


def on_square(pixels: Float[Tensor, "*B D"], width: int, height: int, size: int) -> Float[Tensor, "*B D"]:
    """Pixel positions (x y, or x y x y of boxes) of a width x height picture, in its square."""
    left, top, w, h = fitted(width, height, size)
    pairs = pixels.shape[-1] // 2
    scale, shift = pixels.new_tensor([w / width, h / height]), pixels.new_tensor([left, top])
    return pixels * scale.repeat(pairs) + shift.repeat(pairs)


def square_intrinsics(intrinsics: Float[Tensor, "B 3 3"], width: int, height: int, size: int) -> Float[Tensor, "B 3 3"]:
    """Intrinsics of a width x height picture, for its square."""
    left, top, w, h = fitted(width, height, size)
    out = intrinsics * intrinsics.new_tensor([w / width, h / height, 1.0])[:, None]
    out[:, :2, 2] += intrinsics.new_tensor([left, top])
    return out
