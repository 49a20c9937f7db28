"""One frame of a tracked clip as the generator looks at it: canonical, a square, composited on black."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.head import HeadModel, HeadParams
from spatialavatar.head.canonical import canonical
from spatialavatar.splat.camera import Camera


@dataclass(frozen=True)
class Portrait:
    image: Float[Tensor, "3 S S"]  # RGB in [0, 1] on black; a picture that was no square has equal bars
    params: HeadParams  # one row, canonical
    camera: Camera  # one, canonical, at S x S pixels
    coverage: float  # mean of the matte over the picture


def portrait(clip: TrackedClip, index: FrameIndex, head: HeadModel, size: int) -> Portrait:
    """The frame in a square of ``size`` pixels, its colours and matte of 8 bits as on disk."""
    left, top, width, height = fitted(clip.width, clip.height, size)
    frame = clip.frame(index, width, height)
    image, matte = ((x * 255).round() / 255 for x in (frame.image, frame.matte))
    coverage = matte * frame.region
    bars = (left, size - width - left, top, size - height - top)
    own = clip.camera(index)
    params, world_to_camera = canonical(head, clip.params_at(index), own.world_to_camera)
    intrinsics = own.resized(width, height).intrinsics.clone()
    intrinsics[:, :2, 2] += torch.tensor([left, top])
    return Portrait(
        image=pad((image * coverage[..., None]).movedim(-1, 0), bars),
        params=params,
        camera=Camera(world_to_camera, intrinsics, size, size),
        coverage=float(matte.mean()),
    )


def fitted(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Where a picture lies in a square that it just fits: left, top, width, height."""
    longer = max(width, height)
    w, h = max(1, round(width * size / longer)), max(1, round(height * size / longer))
    return (size - w) // 2, (size - h) // 2, w, h
