"""Random changes to a sample's pictures, as far as ``AugmentConfig`` asks for them; cameras and boxes follow.

Colours change alike in all frames of a sample, for sources and target must stay one person in one light. Only sources
are framed anew: how a portrait is cropped must not matter. Left and right are never swapped, for a mirrored face has
other parameters.
"""

from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Float

from spatialavatar.clip.square import SquarePicture
from spatialavatar.training.config import AugmentConfig
from spatialavatar.training.draws import Purpose, generator_for
from spatialavatar.training.pool import View


def augmented(
    sources: tuple[View, ...], target: View, number: int, seed: int, config: AugmentConfig
) -> tuple[tuple[View, ...], View]:
    """The frames of sample ``number``; a function of (seed, number) and of what is given."""
    if not (config.color or config.framing):
        return sources, target
    rng = generator_for(seed, Purpose.AUGMENT, number)
    gain, gamma = np.exp(config.color * rng.uniform(-1, 1, (2, 3)))
    zoom = np.exp(config.framing * rng.uniform(-1, 1, len(sources)))
    shift = config.framing / 2 * rng.uniform(-1, 1, (len(sources), 2))  # of the side
    if config.framing > 0:
        sources = tuple(_framed(view, z, s) for view, z, s in zip(sources, zoom, shift))
    if config.color > 0:
        table = color_table(gain, gamma)
        sources, target = tuple(_colored(view, table) for view in sources), _colored(target, table)
    return sources, target


def color_table(gain: Float[np.ndarray, "3"], gamma: Float[np.ndarray, "3"]) -> np.ndarray:
    """uint8 [1 256 3]: a byte v of each channel becomes gain * v ** gamma, with 255 as one."""
    levels = np.arange(256)[:, None] / 255
    return (np.clip(gain * levels**gamma, 0, 1) * 255).round().astype(np.uint8)[None]


def _colored(view: View, table: np.ndarray) -> View:
    picture = view.pixels
    return replace(view, pixels=replace(picture, image=cv2.LUT(picture.image, table)))


def _framed(view: View, zoom: float, shift: Float[np.ndarray, "2"]) -> View:
    """Zoomed about the middle of the square, then moved; what comes in from outside has matte and region 0."""
    picture, size = view.pixels, len(view.pixels.image)
    offset = size / 2 * (1 - zoom) + size * shift
    # pixel centres lie at +0.5, OpenCV's at whole numbers
    affine = np.array([[zoom, 0, offset[0]], [0, zoom, offset[1]]])
    affine[:, 2] += 0.5 * (zoom - 1)

    def warp(pixels: np.ndarray, how: int = cv2.INTER_LINEAR) -> np.ndarray:
        return cv2.warpAffine(pixels, affine, (size, size), flags=how, borderMode=cv2.BORDER_CONSTANT, borderValue=0)

    region = warp(picture.region.astype(np.uint8), cv2.INTER_NEAREST).astype(bool)
    move = torch.tensor(offset, dtype=torch.float32)
    intrinsics = view.camera.intrinsics.clone()
    intrinsics[:, :2] *= float(zoom)
    intrinsics[:, :2, 2] += move
    return replace(
        view,
        pixels=SquarePicture(warp(picture.image), warp(picture.matte), region),
        camera=replace(view.camera, intrinsics=intrinsics),
        face_box=view.face_box * float(zoom) + move.repeat(2),
    )
