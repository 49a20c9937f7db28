"""Encoded pictures of a clip: JPEG or PNG bytes to arrays and back.

Size and completeness are read from the bytes before anything is decoded: a file that claims a huge size is refused
before it takes memory, and a truncated one is refused although OpenCV would fill the rest with grey. Orientation tags
are ignored: the pixel grid as stored is the picture.
"""

import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

JPEG_QUALITY = 95  # with full colour resolution (4:4:4)


@dataclass(frozen=True)
class EncodedFrame:
    """The files of one frame as bytes: JPEG or PNG image, PNG matte (8-bit alpha), PNG region (255 counts)."""

    image: bytes
    matte: bytes | None = None
    region: bytes | None = None

    @staticmethod
    def from_arrays(
        image: UInt8[np.ndarray, "H W 3"],
        matte: UInt8[np.ndarray, "H W"] | None = None,
        region: UInt8[np.ndarray, "H W"] | None = None,
        image_format: Literal["jpg", "png"] = "jpg",
    ) -> "EncodedFrame":
        return EncodedFrame(
            encode(image, image_format),
            None if matte is None else encode(matte, "png"),
            None if region is None else encode(region, "png"),
        )


class EncodedSize(NamedTuple):
    """What the bytes of a picture say of themselves; in pixels."""

    kind: Literal["jpg", "png"]
    width: int
    height: int


def encode(pixels: UInt8[np.ndarray, "H W *C"], kind: Literal["jpg", "png"]) -> bytes:
    """RGB or grey bytes of a JPEG (quality 95, 4:4:4) or PNG file."""
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels are {pixels.dtype}, expected uint8")
    options: list[int] = []
    if kind == "jpg":
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    elif pixels.ndim == 2 and hasattr(cv2, "IMWRITE_PNG_FILTER"):
        # mattes: without row filters they are as small and decode in a third of the time
        options = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_STRATEGY, 0]
        options += [cv2.IMWRITE_PNG_COMPRESSION, 6]
    bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    done, data = cv2.imencode(f".{kind}", np.ascontiguousarray(bgr), options)
    if not done:
        raise ValueError(f"OpenCV could not encode a {kind}")
    return data.tobytes()


def decode(data: bytes, width: int, height: int, color: bool) -> UInt8[np.ndarray, "H W *C"]:
    """RGB [H W 3] or grey [H W]. Raises ValueError when the bytes are not a whole picture of that size."""
    size = encoded_size(data)
    if (size.width, size.height) != (width, height):
        raise ValueError(f"is {size.width} x {size.height} pixels, expected {width} x {height}")
    flags = (cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or pixels.shape[:2] != (height, width):
        raise ValueError("the picture is damaged and cannot be decoded")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels) if color else pixels


def encoded_size(data: bytes) -> EncodedSize:
    """Kind and size from the bytes alone. Raises ValueError: neither JPEG nor PNG, or not whole."""
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_size(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    raise ValueError("neither a JPEG nor a PNG picture")


def _png_size(data: bytes) -> EncodedSize:
    """Walks the chunks up to IEND (PNG specification, section 5) and checks each one's sum."""
    at, size = 8, None
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"the PNG is damaged in its {kind.decode('latin-1')} chunk")
        if kind == b"IHDR" and length >= 8:
            size = EncodedSize("png", *(int.from_bytes(data[at + 8 + i : at + 12 + i], "big") for i in (0, 4)))
        if kind == b"IEND" and size is not None:
            return size
        at = end
    raise ValueError("the PNG is truncated")


def _jpeg_size(data: bytes) -> EncodedSize:
    """Walks the segments up to the first scan (ITU-T T.81, annex B); the end marker must follow it."""
    at, size = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        is_frame_header = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame_header and at + 9 <= len(data):
            height, width = (int.from_bytes(data[at + 5 + i : at + 7 + i], "big") for i in (0, 2))
            size = EncodedSize("jpg", width, height)
        at += 2 + length
        if marker == 0xDA:  # start of scan
            if size is None or data.rfind(b"\xff\xd9", at) < 0:
                break
            return size
    raise ValueError("the JPEG is truncated or damaged")
