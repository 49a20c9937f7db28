"""Pictures to look at: target | avatar | error by frames, and what a generator made of its sources."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spatialavatar.avatar import AvatarRenderer
from spatialavatar.avatar.animate import orbit_camera, still
from spatialavatar.evaluation.metrics import psnr
from spatialavatar.evaluation.self_reenactment import Comparison
from spatialavatar.generator.sources import Sources
from spatialavatar.sheets import stacked, titled, to_bytes

ERROR_GAIN = 4.0  # the error column shows the mean absolute difference times this, through a heat map
OTHER_VIEWS = (0, 1, 2, 6)  # eighths of the orbit that a preview shows: front, three quarters, either side


def contact_sheet(
    comparisons: Sequence[Comparison],
    label: str = "",
    name: str = "avatar",
    others: Mapping[str, Sequence[Comparison]] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """One row per comparison, with its frame number and PSNR above; ``others`` show the same frames, by their names."""
    rows = []
    for row, c in enumerate(comparisons):
        where = f"{label}frame {c.index.instant}" + (f" camera {c.index.camera}" if c.index.camera else "")
        error = (c.render - c.target).abs().mean(-1)
        cells = [
            titled(to_bytes(c.target), f"target, {where}"),
            *(_shown(listed[row], other) for other, listed in (others or {}).items()),
            _shown(c, name),
            titled(_heat(error), f"error x {ERROR_GAIN:g}"),
        ]
        rows.append(np.concatenate(cells, 1))
    return np.concatenate(rows, 0)


def preview_sheet(renderer: AvatarRenderer, sources: Sources) -> UInt8[np.ndarray, "H W 3"]:
    """Three rows on black: one person's sources as the generator saw them, the avatar from there and from elsewhere."""
    black = torch.zeros(3)
    own = renderer.avatar
    rest = renderer.head(renderer.head.neutral().with_identity(own.shape, own.static_offset))[0]
    orbit = orbit_camera(rest, 8, sources.camera.width)
    seen = [titled(to_bytes(image.movedim(0, -1)), f"source {i + 1}") for i, image in enumerate(sources.images[0])]
    again = [
        titled(to_bytes(renderer.image(sources.params[i], sources.camera[i], black)[0]), f"avatar at source {i + 1}")
        for i in range(len(seen))
    ]
    posed = still(own.reference_params)
    around = [titled(to_bytes(renderer.image(posed, orbit[i], black)[0]), "another view") for i in OTHER_VIEWS]
    return stacked([np.concatenate(cells, 1) for cells in (seen, again, around)])


def thumbnail(c: Comparison, renderer: AvatarRenderer) -> UInt8[np.ndarray, "H W 3"]:
    """An avatar in one row: a frame, what the avatar shows there, the error, and the avatar from the side."""
    own, height = renderer.avatar, c.target.shape[0]
    rest = renderer.head(renderer.head.neutral().with_identity(own.shape, own.static_offset))[0]
    side = orbit_camera(rest, 8, height)[OTHER_VIEWS[2]]
    beside = renderer.image(still(own.reference_params), side, c.target[0, 0] * 0)[0]
    error = (c.render - c.target).abs().mean(-1)
    return np.concatenate([to_bytes(c.target), to_bytes(c.render), _heat(error), to_bytes(beside)], 1)


def _shown(c: Comparison, name: str) -> UInt8[np.ndarray, "H W 3"]:
    return titled(to_bytes(c.render), f"{name}, {float(psnr(c.render[None], c.target[None])):.1f} dB")


def _heat(error: Float[Tensor, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    grey = (error * ERROR_GAIN).clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return np.asarray(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO))[..., ::-1]
