"""Alpha out of RGBA pictures, and straight images from composites: against compositing written out here."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialavatar.clip.importers.mattes import has_alpha, split_alpha, uncomposited
from spatialavatar.clip.pictures import decode, encode

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (9, 12, 4), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """RGB(A) to PNG bytes by OpenCV, which counts blue, green, red."""
    order = [2, 1, 0, 3][: pixels.shape[2]]
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels[..., order]))
    assert done
    return data.tobytes()


def test_alpha_and_colours_come_apart() -> None:
    """Also under a matte of 0, where other programs forget the colour."""
    image, matte = split_alpha(png(RGBA))
    assert np.array_equal(decode(image, 12, 9, color=True), RGBA[..., :3])
    assert np.array_equal(decode(matte, 12, 9, color=False), RGBA[..., 3])


def test_sixteen_bits() -> None:
    image, matte = split_alpha(png(RGBA.astype(np.uint16) * 257))
    assert np.array_equal(decode(image, 12, 9, color=True), RGBA[..., :3])
    assert np.array_equal(decode(matte, 12, 9, color=False), RGBA[..., 3])


def test_pictures_without_alpha() -> None:
    rgb = RGBA[..., :3]
    for data in (encode(rgb, "png"), encode(rgb, "jpg"), encode(RGBA[..., 3], "png"), b"", b"\x89PNG\r\n\x1a\n"):
        assert not has_alpha(data)
        with pytest.raises(ValueError, match=r"no alpha|empty|truncated"):
            split_alpha(data)
    assert has_alpha(png(RGBA))


def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 6, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="60000 x 60000 pixels, at most 8192"):
        split_alpha(bomb)


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_compositing_is_undone(background: float) -> None:
    straight, matte = RGBA[..., :3].astype(np.float64), RGBA[..., 3].copy()
    matte[:2], matte[2:4] = 0, 255
    alpha = matte[..., None] / 255
    composite = (alpha * straight + (1 - alpha) * 255 * background).round().astype(np.uint8)
    recovered = uncomposited(composite, matte, background)
    assert np.array_equal(recovered[:2], composite[:2]), "nothing is known under a matte of 0"
    assert np.array_equal(recovered[2:4], straight[2:4])
    # half a level of rounding in the composite is 0.5 / alpha in the colour, and rounding it is another half
    error = np.abs(recovered.astype(float) - straight)[4:]
    assert (error <= (0.5 / np.maximum(alpha[4:], 1e-9) + 0.5 + 1e-3)).all()


@settings(max_examples=200, deadline=None)
@given(value=st.integers(0, 255), matte=st.integers(0, 255), background=st.sampled_from([0.0, 1.0]))
def test_composited_again_it_is_the_same(value: int, matte: int, background: float) -> None:
    """To one level, for every colour that a straight one in 0..255 can have given."""
    alpha = matte / 255
    composite = round(alpha * value + (1 - alpha) * 255 * background)
    image = np.full((1, 1, 3), composite, np.uint8)
    straight = float(uncomposited(image, np.full((1, 1), matte, np.uint8), background)[0, 0, 0])
    if matte:
        assert abs(alpha * straight + (1 - alpha) * 255 * background - composite) <= 1
