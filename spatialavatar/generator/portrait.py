"""One frame of a tracked clip as the generator looks at it: canonical, a square, composited on black."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.square import square_intrinsics, square_picture
from spatialavatar.head import HeadModel, HeadParams
from spatialavatar.head.canonical import canonical
from spatialavatar.splat.camera import Camera


@dataclass(frozen=True)
class Portrait:
    """What the generator sees of a frame."""

    image: Float[Tensor, "3 S S"]  # RGB in [0, 1] on black; a picture that was no square has equal bars
    params: HeadParams  # one row, canonical
    camera: Camera  # one, canonical, at S x S pixels
    coverage: float  # mean of the matte over the square; what lies outside the picture counts as nothing


def portrait(clip: TrackedClip, index: FrameIndex, head: HeadModel, size: int) -> Portrait:
    """The frame in a square of ``size`` pixels. Raises SpatialAvatarError for one that cannot be read."""
    picture = square_picture(clip, index, size)
    image, matte = (torch.from_numpy(pixels).float() / 255 for pixels in (picture.image, picture.matte))
    coverage = matte * torch.from_numpy(picture.region)
    own = clip.camera(index)
    params, world_to_camera = canonical(head, clip.params_at(index), own.world_to_camera)
    intrinsics = square_intrinsics(own.intrinsics, clip.width, clip.height, size)
    return Portrait(
        image=(image * coverage[..., None]).movedim(-1, 0),
        params=params,
        camera=Camera(world_to_camera, intrinsics, size, size),
        coverage=float(coverage.mean()),
    )
