"""TrackedClip: tracked head video with its pictures read lazily (docs/formats.md).

A clip may be a folder of ours (``open_clip``), a row of a shard, a tracker's folder (importers), or made in memory
(assembly.py): what differs is only where the bytes of a frame come from. Pictures are read and decoded when asked for.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spatialavatar import files
from spatialavatar.clip.arrays import check_arrays, clip_arrays, params_from_arrays, read_arrays
from spatialavatar.clip.header import (
    HEADER_FILE,
    ClipHeader,
    ClipSource,
    FrameIndex,
    MatteKind,
    Picture,
    header_from_json,
    in_a_line,
    read_header_json,
)
from spatialavatar.clip.pictures import EncodedFrame, decode
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.head.reference import HeadReference
from spatialavatar.splat.camera import Camera

Split = Literal["train", "test", "view", "all"]
Frames = FrameIndex | Sequence[FrameIndex]
Progress = Callable[[int, int], None]  # frames done, frames in all


class FramePixels(NamedTuple):
    """One frame as it is stored. The image is straight (not multiplied by the matte)."""

    image: UInt8[np.ndarray, "H W 3"]
    matte: UInt8[np.ndarray, "H W"] | None  # alpha
    region: UInt8[np.ndarray, "H W"] | None  # 255 where losses and metrics count


@dataclass(frozen=True)
class Frame:
    """One decoded frame. The image is straight (not multiplied by the matte)."""

    image: Float[Tensor, "H W 3"]  # sRGB in [0, 1]
    matte: Float[Tensor, "H W"]  # alpha in [0, 1]; ones when the clip has none
    region: Float[Tensor, "H W"]  # 1 where losses and metrics count, else 0; ones when the clip has none


@dataclass(frozen=True, eq=False)
class TrackedClip:
    """T instants seen by C cameras, of one identity.

    Values are as stored: the rigid head motion may be in ``params`` or in ``world_to_camera``.
    """

    location: str  # its folder, or in messages whatever else holds it
    header: ClipHeader
    params: HeadParams  # T rows; shape and static_offset are one per clip, expanded
    world_to_camera: Float[Tensor, "T C 4 4"]  # OpenCV, metres
    intrinsics: Float[Tensor, "T C 3 3"]  # pixels, centres at +0.5
    face_box: Float[Tensor, "T C 4"] | None  # pixels, x0 y0 x1 y1
    landmarks: Float[Tensor, "T C L 2"] | None  # pixels; NaN where a point was not found
    read_frame: Callable[[FrameIndex], EncodedFrame]  # the bytes of a frame; SpatialAvatarError when there are none

    @property
    def identity(self) -> str:
        return self.header.identity

    @property
    def instants(self) -> int:
        return self.header.instants

    @property
    def cameras(self) -> int:
        return self.header.cameras

    @property
    def width(self) -> int:
        return self.header.width

    @property
    def height(self) -> int:
        return self.header.height

    @property
    def fps(self) -> float:
        return self.header.fps

    @property
    def test_from(self) -> int | None:
        """First instant of the test set; None when every instant trains."""
        return self.header.test_from

    @property
    def test_cameras(self) -> list[int]:
        return self.header.test_cameras

    @property
    def matte_kind(self) -> MatteKind:
        return self.header.matte

    @property
    def has_region(self) -> bool:
        return self.header.region

    @property
    def head(self) -> HeadReference:
        return self.header.head

    @property
    def source(self) -> ClipSource:
        return self.header.source

    @cached_property
    def _train_cameras(self) -> list[int]:
        return [c for c in range(self.cameras) if c not in self.test_cameras]

    def split(self, name: Split) -> list[FrameIndex]:
        """Frames by instant, then camera.

        ``train``: training cameras before ``test_from``; ``test``: training cameras from there on; ``view``: every
        instant of the test cameras; ``all``: everything.
        """
        limit = self.instants if self.test_from is None else self.test_from
        ranges: dict[str, tuple[range, list[int]]] = {
            "train": (range(limit), self._train_cameras),
            "test": (range(limit, self.instants), self._train_cameras),
            "view": (range(self.instants), self.test_cameras),
            "all": (range(self.instants), list(range(self.cameras))),
        }
        if name not in ranges:
            raise ValueError(f"no split named {name!r}; there are {', '.join(ranges)}")
        instants, cameras = ranges[name]
        return [FrameIndex(t, c) for t in instants for c in cameras]

    def camera(self, frames: Frames) -> Camera:
        """The cameras of some frames as one batch, at the clip's own size."""
        instants, cameras = self._indices(frames)
        return Camera(
            self.world_to_camera[instants, cameras], self.intrinsics[instants, cameras], self.width, self.height
        )

    def params_at(self, frames: Frames) -> HeadParams:
        """Head parameters of some frames as one batch."""
        return self.params[self._indices(frames)[0]]

    def size_at(self, resolution: int) -> tuple[int, int]:
        """Width and height with the longer side at ``resolution`` pixels, aspect kept."""
        longer = max(self.width, self.height)
        return max(1, round(self.width * resolution / longer)), max(1, round(self.height * resolution / longer))

    def encoded(self, index: FrameIndex) -> EncodedFrame:
        """The frame's pictures as they are stored, not decoded."""
        self._indices(index)
        return self.read_frame(index)

    def arrays(self) -> dict[str, np.ndarray]:
        """What ``params.safetensors`` holds, by its names."""
        return clip_arrays(self.params, self.world_to_camera, self.intrinsics, self.face_box, self.landmarks)

    def frame(self, index: FrameIndex, width: int | None = None, height: int | None = None) -> Frame:
        """Read and decode one frame, at the clip's size or at another (use ``camera(...).resized`` with it).

        Smaller pictures are means over areas. The image is averaged with the matte as weight, so that compositing and
        resizing commute: matte * image + (1 - matte) * background is the area mean of the full-size composite, for any
        background. Where the matte is 0 the image is its plain mean. The region counts where half of the area does.

        Raises SpatialAvatarError naming the file that is missing, damaged or of another size than clip.json says.
        """
        image, matte, region = (
            None if pixels is None else pixels.astype(np.float32) / 255 for pixels in self.pixels(index)
        )
        assert image is not None
        size = (self.width if width is None else width, self.height if height is None else height)
        if matte is None:
            matte = np.ones(size[::-1], np.float32)
            image = _resize(image, size)
        else:
            full = matte
            matte = _resize(full, size)
            if matte is not full:
                weighted, plain = _resize(image * full[..., None], size), _resize(image, size)
                visible = matte[..., None] > 1e-6
                image = np.where(visible, weighted / np.where(visible, matte[..., None], 1), plain).clip(0, 1)
        counts = np.ones(size[::-1], bool) if region is None else _resize(region, size) >= 0.5
        return Frame(torch.from_numpy(image), torch.from_numpy(matte), torch.from_numpy(counts.astype(np.float32)))

    def pixels(self, index: FrameIndex) -> FramePixels:
        """Read and decode one frame as it is stored.

        Raises SpatialAvatarError naming the file that is missing, damaged or of another size than clip.json says.
        """
        encoded = self.encoded(index)

        def decoded(picture: Picture, data: bytes | None) -> np.ndarray | None:
            if data is None:
                return None
            try:
                return decode(data, self.width, self.height, color=picture == "images")
            except ValueError as e:
                location = files.join(self.location, self.header.frame_file(picture, index))
                raise SpatialAvatarError(
                    f"{location}: {e}; restore the file or import the clip again ('clip validate' lists every fault)"
                ) from None

        image = decoded("images", encoded.image)
        assert image is not None
        return FramePixels(image, decoded("masks", encoded.matte), decoded("roi", encoded.region))

    def require_head(self, head: HeadModel) -> None:
        """Raises SpatialAvatarError when the clip was tracked with another head model than ``head``."""
        codes = (self.header.shape_codes, self.header.expression_codes)
        if codes != (head.shape_codes, head.expression_codes):
            raise SpatialAvatarError(
                f"{self.location}: clip has {codes[0]} shape and {codes[1]} expression codes, head '{head.info.id}' "
                f"has {head.shape_codes} and {head.expression_codes}; give the head that the clip was tracked with "
                f"('{self.head.id}')"
            )
        self.head.require(head, self.location)

    def _indices(self, frames: Frames) -> tuple[list[int], list[int]]:
        listed = [frames] if isinstance(frames, FrameIndex) else list(frames)
        for t, c in listed:
            if not (0 <= t < self.instants and 0 <= c < self.cameras):
                raise SpatialAvatarError(
                    f"{self.location}: no frame at instant {t}, camera {c}; "
                    f"the clip has instants 0..{self.instants - 1} and cameras 0..{self.cameras - 1}"
                )
        return [t for t, _ in listed], [c for _, c in listed]


def open_clip(folder: files.Location) -> TrackedClip:
    """Open a clip by its folder or its ``clip.json``; no picture is read.

    Raises SpatialAvatarError: no clip there, interrupted writing, fields or arrays that are wrong (the first of them;
    ``validate_clip`` lists all).
    """
    text = clip_folder(folder)
    header = header_from_json(read_header_json(text), files.join(text, HEADER_FILE))
    arrays = read_arrays(text)
    faults = check_arrays(header, arrays)
    if faults:
        told = in_a_line(faults, "; 'spatialavatar clip validate' lists them")
        raise SpatialAvatarError(f"{text}: {told}")

    def read(index: FrameIndex) -> EncodedFrame:
        def picture(kind: Picture) -> bytes | None:
            if kind not in header.pictures:
                return None
            return files.read_bytes(files.join(text, header.frame_file(kind, index)))

        image = picture("images")
        assert image is not None
        return EncodedFrame(image, picture("masks"), picture("roi"))

    return clip_from_arrays(text, header, arrays, read)


def clip_from_arrays(
    location: str,
    header: ClipHeader,
    arrays: dict[str, np.ndarray],  # checked
    read_frame: Callable[[FrameIndex], EncodedFrame],
) -> TrackedClip:
    """A clip whose frames ``read_frame`` gives."""

    def optional(name: str) -> Tensor | None:
        return torch.from_numpy(arrays[name]) if name in arrays else None

    return TrackedClip(
        location=location,
        header=header,
        params=params_from_arrays(arrays, header.instants),
        world_to_camera=torch.from_numpy(arrays["world_to_camera"]),
        intrinsics=torch.from_numpy(arrays["intrinsics"]),
        face_box=optional("face_box"),
        landmarks=optional("landmarks"),
        read_frame=read_frame,
    )


def clip_folder(location: files.Location) -> str:
    """The clip's folder, given that or its ``clip.json``."""
    text = os.fspath(location)
    if text.rsplit("/", 1)[-1] == HEADER_FILE and not files.is_folder(text):
        text = text.rpartition("/")[0] or "."
    return text.rstrip("/") or "/"


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``pixels`` itself when it has that (width, height) already."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    shrinks = size[0] <= width and size[1] <= height
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
