"""Mattes of the neighbouring tools: alpha inside the image, or an image that was composited and a mask beside it.

A clip of ours holds straight images (not multiplied by the matte) and the matte beside them.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

from spatialavatar.clip.importers.foreign_pictures import LARGEST_SIDE
from spatialavatar.clip.pictures import encode, encoded_size


def has_alpha(png: bytes) -> bool:
    """Whether a PNG says in its header that it holds alpha; False for everything that is no PNG."""
    return png.startswith(b"\x89PNG\r\n\x1a\n") and png[12:16] == b"IHDR" and png[25:26] in (b"\x04", b"\x06")


def split_alpha(png: bytes) -> tuple[bytes, bytes]:
    """Image and matte, both as PNG, of a PNG with alpha (which PNG stores straight).

    Raises ValueError: no whole PNG, too large, or without alpha.
    """
    rgba = decode_rgba(png)
    return encode(rgba[..., :3], "png"), encode(np.ascontiguousarray(rgba[..., 3]), "png")


def decode_rgba(png: bytes) -> UInt8[np.ndarray, "H W 4"]:
    """Raises ValueError: no whole PNG, too large, or without alpha."""
    size = encoded_size(png)
    if size.kind != "png" or not has_alpha(png):
        raise ValueError("holds no alpha, a PNG with alpha was expected")
    if max(size.width, size.height) > LARGEST_SIDE:
        raise ValueError(f"is {size.width} x {size.height} pixels, at most {LARGEST_SIDE} a side are read")
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape != (size.height, size.width, 4):
        raise ValueError("the picture is damaged and cannot be decoded")
    if pixels.dtype != np.uint8:  # 16 bits a channel
        pixels = (pixels // 257).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., [2, 1, 0, 3]])


def uncomposited(
    image: UInt8[np.ndarray, "H W 3"], matte: UInt8[np.ndarray, "H W"], background: float
) -> UInt8[np.ndarray, "H W 3"]:
    """The straight image under ``image`` = matte * straight + (1 - matte) * background; 0 is black, 1 white.

    As it is where the matte is 0 (nothing is known there) or 255. Composited again, it is ``image`` to half a level;
    what a thin matte left of the colour in 8 bits is coarse, and clipped to 0..255.
    """
    alpha = matte[..., None].astype(np.float32) / 255
    ground = np.float32(255 * background)
    straight = (image - (1 - alpha) * ground) / np.where(alpha > 0, alpha, 1)
    known = (matte > 0) & (matte < 255)
    return np.where(known[..., None], straight.round().clip(0, 255), image).astype(np.uint8)
