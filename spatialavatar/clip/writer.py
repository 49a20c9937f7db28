"""Writing tracked clips, frame by frame.

``clip.json`` is written last: a folder without it is not a clip, so an interrupted write is never mistaken for one.
A clip that stood there before stays until the new one is whole (replacing.py).
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from spatialavatar import files
from spatialavatar.clip import replacing
from spatialavatar.clip.arrays import check_arrays, write_arrays
from spatialavatar.clip.header import (
    HEADER_FILE,
    ClipHeader,
    ClipSource,
    MatteKind,
    Picture,
    header_from_json,
)
from spatialavatar.clip.pictures import EncodedFrame, decode, encode, encoded_size
from spatialavatar.clip.tracked_clip import Progress, TrackedClip, open_clip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.head.reference import HeadReference

if TYPE_CHECKING:
    from spatialavatar.clip.synthetic import SyntheticCapture

Pixels = UInt8[np.ndarray, "H W *C"]
FrameContent = EncodedFrame | tuple[Pixels | None, ...]  # bytes, or arrays: image [H W 3], matte [H W], region [H W]


def write_clip(
    folder: files.Location,
    *,
    identity: str,
    head: HeadModel,
    params: HeadParams,  # T rows with equal shape and static_offset
    world_to_camera: Float[Tensor, "T C 4 4"],  # OpenCV, metres
    intrinsics: Float[Tensor, "T C 3 3"],  # pixels
    width: int,
    height: int,
    fps: float,
    frames: Callable[[int, int], FrameContent],  # (instant, camera), called once for each frame in order
    matte_kind: MatteKind = "alpha",
    has_region: bool = False,
    face_box: Float[Tensor, "T C 4"] | None = None,
    landmarks: Float[Tensor, "T C L 2"] | None = None,
    test_from: int | None = None,
    test_cameras: Sequence[int] = (),
    source: ClipSource | None = None,
    image_format: Literal["jpg", "png"] = "jpg",
    progress: Progress | None = None,
    force: bool = False,
) -> TrackedClip:
    """Write a clip and return it opened. Encoded frames that fit are stored byte for byte; arrays are encoded as
    JPEG (quality 95, 4:4:4) or PNG images and PNG mattes and regions. A complete clip in ``folder`` is replaced only
    with ``force``, and only once the new one is whole; on any failure it is as it was.

    Raises SpatialAvatarError: the folder holds a clip or something else (and not ``force``), parameters that do not fit
    the head or are not finite, frames of another size or without the matte or region announced.
    """
    if not head.content_hash:
        raise ValueError("the head has no content hash; read it with read_head so that the clip can name it")
    arrays = _arrays(params, world_to_camera, intrinsics, face_box, landmarks)
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
    target = os.fspath(folder).rstrip("/") or "/"
    header = header_from_json(value, target)
    faults = check_arrays(header, arrays)
    if params.static_offset is not None and arrays["static_offset"].shape[0] != head.vertex_count:
        raise SpatialAvatarError(
            f"{target}: static_offset has {len(arrays['static_offset'])} rows, "
            f"head '{head.info.id}' has {head.vertex_count} vertices"
        )
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise SpatialAvatarError(f"{target}: cannot write this clip: {faults[0]}{more}")

    written = replacing.begin(target, force)
    try:
        write_arrays(written, arrays)
        everything = header.frames()
        for done, index in enumerate(everything):
            pieces = _encoded(f"{target}: instant {index.instant}, camera {index.camera}", header, frames(*index))
            for picture, data in pieces.items():
                files.write_bytes(files.join(written, header.frame_file(picture, index)), data)
            if progress is not None:
                progress(done + 1, len(everything))
        files.write_json(files.join(written, HEADER_FILE), header.to_json())
        replacing.finish(written, target)
    except BaseException:
        replacing.abandon(written, target)
        raise
    return open_clip(target)


def write_synthetic(
    capture: "SyntheticCapture",
    head: HeadModel,
    folder: files.Location,
    *,
    test_from: int | None = None,
    test_cameras: Sequence[int] = (),
    image_format: Literal["jpg", "png"] = "jpg",
    progress: Progress | None = None,
    force: bool = False,
) -> TrackedClip:
    """Render a synthetic capture into a clip. ``test_from`` is the capture's own when not given.

    The pictures show the head model, so they carry its licence.
    """
    return write_clip(
        folder,
        identity=capture.identity,
        head=head,
        params=capture.params,
        world_to_camera=capture.world_to_camera,
        intrinsics=capture.intrinsics,
        width=capture.width,
        height=capture.height,
        fps=capture.fps,
        frames=capture.render,
        face_box=capture.face_box,
        test_from=capture.test_from if test_from is None else test_from,
        test_cameras=test_cameras,
        source=ClipSource("spatialavatar clip synthesize", "rendered from known parameters", head.info.licence),
        image_format=image_format,
        progress=progress,
        force=force,
    )


def _arrays(
    params: HeadParams,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    face_box: Tensor | None,
    landmarks: Tensor | None,
) -> dict[str, np.ndarray]:
    names = ("expression", "global_rotation", "neck", "jaw", "eyes", "translation")
    tensors = {name: getattr(params, name) for name in names}
    for name in ("shape", "static_offset"):
        per_instant = getattr(params, name)
        if per_instant is None:
            continue
        if not bool((per_instant == per_instant[:1]).all()):
            raise SpatialAvatarError(
                f"{name} changes from instant to instant, a clip has one; average it or track with it fixed"
            )
        tensors[name] = per_instant[0]
    tensors |= {"world_to_camera": world_to_camera, "intrinsics": intrinsics}
    tensors |= {k: v for k, v in {"face_box": face_box, "landmarks": landmarks}.items() if v is not None}
    return {name: np.array(t.detach().cpu().numpy(), np.float32) for name, t in tensors.items()}


def _encoded(where: str, header: ClipHeader, content: FrameContent) -> dict[Picture, bytes]:
    """The files of a frame, as the clip needs them; ``where`` is for messages."""
    if not isinstance(content, EncodedFrame):
        image, matte, region = (*content, None, None)[:3]
        assert image is not None
        content = EncodedFrame.from_arrays(image, matte, region, header.image_format)
    given: dict[Picture, bytes | None] = {"images": content.image, "masks": content.matte, "roi": content.region}
    pieces: dict[Picture, bytes] = {}
    for picture, data in given.items():
        if (data is not None) != (picture in header.pictures):
            said = "has none" if data is None else "was given one"
            kind = f"matte '{header.matte}', region {str(header.region).lower()}"
            raise SpatialAvatarError(f"{where}: {picture}: the clip is written with {kind}, but this frame {said}")
        if data is None:
            continue
        try:
            kind = encoded_size(data).kind
            wanted = header.image_format if picture == "images" else "png"
            if kind != wanted or encoded_size(data)[1:] != (header.width, header.height):
                pixels = decode(data, header.width, header.height, color=picture == "images")
                data = encode(pixels, wanted)
        except ValueError as e:
            raise SpatialAvatarError(f"{where}: {picture}: {e}") from None
        pieces[picture] = data
    return pieces
