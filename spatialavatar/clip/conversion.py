"""Clips at another size or with pictures of another kind; each frame is converted when it is read.

Smaller pictures are means over areas with the matte as weight (``TrackedClip.frame``), so compositing and resizing
commute. Cameras, boxes and landmarks follow the pictures.
"""

import dataclasses
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spatialavatar import files
from spatialavatar.clip.header import ClipHeader, FrameIndex, header_from_json
from spatialavatar.clip.pictures import EncodedFrame, decode, encode
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError

ImageFormat = Literal["jpg", "png"]


def resized(clip: TrackedClip, max_size: int, image_format: ImageFormat | None = None) -> TrackedClip:
    """The clip with its longer side at most ``max_size`` pixels, aspect kept; itself when it is no larger.

    Its smaller images are written as ``image_format``, by default as they were.
    Raises SpatialAvatarError when the shorter side gets too small for a clip; frames that cannot be decoded raise it
    when they are read.
    """
    if max(clip.width, clip.height) <= max_size:
        return clip
    width, height = clip.size_at(max_size)
    kind = image_format or clip.header.image_format
    header = _checked(dataclasses.replace(clip.header, width=width, height=height, image_format=kind), clip.location)
    scale = torch.tensor([width / clip.width, height / clip.height])

    def read(index: FrameIndex) -> EncodedFrame:
        frame = clip.frame(index, width, height)
        return EncodedFrame.from_arrays(
            _bytes(frame.image),
            _bytes(frame.matte) if header.matte == "alpha" else None,
            _bytes(frame.region) if header.region else None,
            kind,
        )

    return dataclasses.replace(
        clip,
        header=header,
        intrinsics=clip.intrinsics * torch.cat([scale, torch.ones(1)])[:, None],
        face_box=None if clip.face_box is None else clip.face_box * scale.repeat(2),
        landmarks=None if clip.landmarks is None else clip.landmarks * scale,
        read_frame=read,
    )


def with_image_format(clip: TrackedClip, image_format: ImageFormat) -> TrackedClip:
    """The clip with its images as JPEG (quality 95, 4:4:4) or PNG; itself when they are. Mattes and regions stay PNG.

    Frames that cannot be decoded raise SpatialAvatarError when they are read.
    """
    if clip.header.image_format == image_format:
        return clip
    header = _checked(dataclasses.replace(clip.header, image_format=image_format), clip.location)

    def read(index: FrameIndex) -> EncodedFrame:
        frame = clip.encoded(index)
        try:
            pixels = decode(frame.image, clip.width, clip.height, color=True)
        except ValueError as e:
            where = files.join(clip.location, clip.header.frame_file("images", index))
            raise SpatialAvatarError(f"{where}: {e}; restore the file or import the clip again") from None
        return dataclasses.replace(frame, image=encode(pixels, image_format))

    return dataclasses.replace(clip, header=header, read_frame=read)


def _checked(header: ClipHeader, location: str) -> ClipHeader:
    return header_from_json(header.to_json(), location)


def _bytes(pixels: Float[Tensor, "H W *C"]) -> UInt8[np.ndarray, "H W *C"]:
    return (pixels * 255).round().byte().numpy()
