"""Pictures of VHAP's exports: composited on white with masks beside them, or, of other programs, straight or RGBA."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from spatialavatar import files
from spatialavatar.clip.importers.foreign_pictures import read_picture
from spatialavatar.clip.importers.mattes import decode_rgba, has_alpha, uncomposited
from spatialavatar.clip.importers.vhap_listing import VhapSequence
from spatialavatar.clip.pictures import EncodedFrame, decode, encode, encoded_size
from spatialavatar.errors import SpatialAvatarError

Pixels = UInt8[np.ndarray, "H W 3"]
Alpha = UInt8[np.ndarray, "H W"]


@dataclass(frozen=True)
class VhapPictures:
    """The export's pictures as straight images with their mattes."""

    sequence: VhapSequence
    kind: Literal["jpg", "png"]  # of the first image
    alpha: bool  # the images are RGBA and no masks stand beside them
    on_white: bool  # the images are composited on white: undone with the matte

    @property
    def has_mattes(self) -> bool:
        """Whether frames come with a matte."""
        return self.alpha or self.sequence.mattes is not None

    def encoded(self, instant: int, camera: int) -> EncodedFrame:
        """Bytes as they are in the export where nothing has to be undone."""
        image, matte = self._read(instant, camera)
        if not (self.alpha or self.on_white or has_alpha(image)):
            return EncodedFrame(image, matte)
        straight, alpha = self._straight(instant, camera, image, matte)
        if matte is None and alpha is not None:
            matte = encode(alpha, "png")
        return EncodedFrame(encode(straight, "png"), matte)

    def decoded(self, instant: int, camera: int) -> tuple[Pixels, Alpha | None]:
        """Straight image and matte."""
        return self._straight(instant, camera, *self._read(instant, camera))

    def matte(self, instant: int, camera: int) -> Alpha | None:
        """The matte alone, where there is one."""
        mattes = self.sequence.mattes
        if mattes is None:
            return self.decoded(instant, camera)[1]
        location = mattes[instant][camera]
        return self._pixels(location, read_picture(location), color=False)

    def _read(self, instant: int, camera: int) -> tuple[bytes, bytes | None]:
        mattes = self.sequence.mattes
        matte = None if mattes is None else read_picture(mattes[instant][camera])
        return read_picture(self.sequence.images[instant][camera]), matte

    def _straight(self, instant: int, camera: int, image: bytes, matte: bytes | None) -> tuple[Pixels, Alpha | None]:
        location, mattes = self.sequence.images[instant][camera], self.sequence.mattes
        if self.alpha:
            rgba = self._pixels(location, image, color=True, alpha=True)
            return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
        pixels = self._pixels(location, image, color=True)
        if mattes is None or matte is None:
            return pixels, None
        alpha = self._pixels(mattes[instant][camera], matte, color=False)
        return uncomposited(pixels, alpha, 1.0) if self.on_white else pixels, alpha

    def _pixels(self, location: str, data: bytes, *, color: bool, alpha: bool = False) -> UInt8[np.ndarray, "H W *C"]:
        width, height = self.sequence.width, self.sequence.height
        try:
            if not alpha:
                return decode(data, width, height, color)
            size = encoded_size(data)
            if (size.width, size.height) != (width, height):
                raise ValueError(f"is {size.width} x {size.height} pixels, expected {width} x {height}")
            return decode_rgba(data)
        except ValueError as e:
            raise SpatialAvatarError(f"{location}: {e}") from None


def open_pictures(sequence: VhapSequence) -> VhapPictures:
    """Looks at the first picture of each camera, until one shows what is behind the head, for the way they are stored.

    Raises SpatialAvatarError: the first picture is missing or damaged.
    """
    start = files.read_start(sequence.images[0][0], 64)
    kind: Literal["jpg", "png"] = "jpg" if start.startswith(b"\xff\xd8") else "png"
    if sequence.mattes is None:
        return VhapPictures(sequence, kind, alpha=has_alpha(start), on_white=False)
    plain = VhapPictures(sequence, kind, alpha=False, on_white=False)
    for camera in range(len(sequence.cameras)):
        image, matte = plain.decoded(0, camera)
        assert matte is not None
        if (matte == 0).any():
            white = image[matte == 0].min(-1) >= 250  # VHAP cuts decimals off more than once
            on_white = bool(white.mean() > 0.99)
            return VhapPictures(sequence, "png" if on_white else kind, alpha=False, on_white=on_white)
    return plain
