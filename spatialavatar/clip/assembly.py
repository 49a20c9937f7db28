"""A tracked clip from its parts: what importers, synthetic captures and tests have in their hands.

Nothing is written. The parts are checked once, here, and the pictures when they are read: they come out of the clip in
the kind and size that its header says.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from spatialavatar.clip.arrays import check_arrays, clip_arrays
from spatialavatar.clip.header import ClipHeader, ClipSource, FrameIndex, MatteKind, header_from_json, in_a_line
from spatialavatar.clip.pictures import EncodedFrame, decode, encode, encoded_size
from spatialavatar.clip.tracked_clip import TrackedClip, clip_from_arrays
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.head.reference import HeadReference

Pixels = UInt8[np.ndarray, "H W *C"]
FrameContent = EncodedFrame | tuple[Pixels | None, ...]  # bytes, or arrays: image [H W 3], matte [H W], region [H W]


def assemble_clip(
    location: str,  # where the parts come from or go to, for messages
    *,
    identity: str,
    head: HeadModel,
    params: HeadParams,  # T rows with equal shape and static_offset
    world_to_camera: Float[Tensor, "T C 4 4"],  # OpenCV, metres
    intrinsics: Float[Tensor, "T C 3 3"],  # pixels
    width: int,
    height: int,
    fps: float,
    frames: Callable[[int, int], FrameContent],  # (instant, camera)
    matte_kind: MatteKind = "alpha",
    has_region: bool = False,
    face_box: Float[Tensor, "T C 4"] | None = None,
    landmarks: Float[Tensor, "T C L 2"] | None = None,
    test_from: int | None = None,
    test_cameras: Sequence[int] = (),
    source: ClipSource | None = None,
    image_format: Literal["jpg", "png"] = "jpg",
) -> TrackedClip:
    """Encoded frames that fit are handed on byte for byte; arrays, and pictures of the other kind, are encoded when
    read, as JPEG (quality 95, 4:4:4) or PNG images and PNG mattes and regions.

    Raises SpatialAvatarError: parameters that do not fit the head or are not finite, faulty cameras; and from
    ``read_frame``: frames of another size or without the matte or region announced.
    """
    if not head.content_hash:
        raise ValueError("the head has no content hash; read it with read_head so that the clip can name it")
    arrays = clip_arrays(params, world_to_camera, intrinsics, face_box, landmarks)
    value = ClipHeader(
        identity=identity,
        instants=len(arrays["expression"]),
        cameras=arrays["world_to_camera"].shape[1],
        width=int(width),
        height=int(height),
        fps=float(fps),
        image_format=image_format,
        matte=matte_kind,
        region=has_region,
        test_from=test_from,
        test_cameras=sorted(test_cameras),
        shape_codes=head.shape_codes,
        expression_codes=head.expression_codes,
        head=HeadReference.of(head),
        source=source or ClipSource("spatialavatar"),
    ).to_json()
    header = header_from_json(value, location)
    faults = check_arrays(header, arrays)
    if params.static_offset is not None and arrays["static_offset"].shape[0] != head.vertex_count:
        raise SpatialAvatarError(
            f"{location}: static_offset has {len(arrays['static_offset'])} rows, "
            f"head '{head.info.id}' has {head.vertex_count} vertices"
        )
    if faults:
        raise SpatialAvatarError(f"{location}: not a usable clip: {in_a_line(faults)}")

    def read(index: FrameIndex) -> EncodedFrame:
        where = f"{location}: instant {index.instant}, camera {index.camera}"
        return _fitting(where, header, frames(*index))

    return clip_from_arrays(location, header, arrays, read)


def _fitting(where: str, header: ClipHeader, content: FrameContent) -> EncodedFrame:
    """The frame in the kind and size of the header; ``where`` is for messages."""
    if not isinstance(content, EncodedFrame):
        image, matte, region = (*content, None, None)[:3]
        assert image is not None
        content = EncodedFrame.from_arrays(image, matte, region, header.image_format)
    pieces: dict[str, bytes | None] = {"images": content.image, "masks": content.matte, "roi": content.region}
    for picture, data in pieces.items():
        if (data is not None) != (picture in header.pictures):
            said = "has none" if data is None else "was given one"
            kind = f"matte '{header.matte}', region {str(header.region).lower()}"
            raise SpatialAvatarError(f"{where}: {picture}: the clip is written with {kind}, but this frame {said}")
        if data is None:
            continue
        wanted = header.image_format if picture == "images" else "png"
        try:
            size = encoded_size(data)
            if size.kind != wanted or size[1:] != (header.width, header.height):
                pieces[picture] = encode(decode(data, header.width, header.height, color=picture == "images"), wanted)
        except ValueError as e:
            raise SpatialAvatarError(f"{where}: {picture}: {e}") from None
    encoded = pieces["images"]
    assert encoded is not None
    return EncodedFrame(encoded, pieces["masks"], pieces["roi"])
