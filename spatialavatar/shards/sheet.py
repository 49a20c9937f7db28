"""What a data set of shards looks like: some of its clips, a few frames of each."""

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from spatialavatar.clip.header import FrameIndex
from spatialavatar.clip.inspect import tracking_over
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.shards.manifest import ShardSet
from spatialavatar.sheets import stacked, titled, to_bytes

CELL = 224  # pixels of the longer side of a frame in a sheet
FRAMES = 4  # of a clip in a sheet
GREY = 0.5  # behind mattes


def sample_sheet(
    shards: ShardSet, head: HeadModel | None = None, count: int = 12, seed: int = 0
) -> UInt8[np.ndarray, "H W 3"]:
    """Some clips, drawn by ``seed``: a few frames of each side by side, on grey where there is a matte.

    With ``head``, the posed mesh and landmarks lie over every frame. Raises SpatialAvatarError: no clips, damaged ones,
    another head.
    """
    if not len(shards):
        raise SpatialAvatarError(f"{shards.location}: holds no clips, so there is nothing to show")
    chosen = np.random.default_rng(seed).permutation(len(shards))[:count]
    blocks = [_block(shards, int(i), head) for i in sorted(chosen)]
    across = 1 if len(blocks) < 4 else 2
    rows = []
    for first in range(0, len(blocks), across):
        row = blocks[first : first + across]
        height = max(block.shape[0] for block in row)
        padded = [np.pad(b, ((0, height - b.shape[0]), (0, 8), (0, 0)), constant_values=255) for b in row]
        rows.append(np.concatenate(padded, 1))
    return stacked(rows)


def _block(shards: ShardSet, index: int, head: HeadModel | None) -> UInt8[np.ndarray, "H W 3"]:
    """Frames of a clip side by side under its name, each from the next camera."""
    clip = shards.clip(index)
    if head is not None:
        clip.require_head(head)
    width, height = clip.size_at(CELL)
    instants = sorted({round(i) for i in np.linspace(0, clip.instants - 1, FRAMES)})
    cells = []
    for number, instant in enumerate(instants):
        frame = FrameIndex(instant, number * clip.cameras // len(instants))
        picture = _cell(clip, frame, head, width, height)
        label = f"{instant}" + (f" camera {frame.camera}" if clip.cameras > 1 else "")
        cv2.putText(picture, label, (5, height - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(picture, label, (5, height - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        cells.append(np.pad(picture, ((0, 4), (0, 4), (0, 0)), constant_values=255))
    blank = np.full_like(cells[0], 255)
    row = np.concatenate(cells + [blank] * (FRAMES - len(cells)), 1)
    name = shards.entry(index).key
    about = f"{clip.identity}   {name if len(name) <= 50 else '...' + name[-47:]}   {clip.instants}"
    about += f" x {clip.cameras} cameras" if clip.cameras > 1 else " frames"
    return titled(row, f"{about}, {clip.width} x {clip.height}")


def _cell(
    clip: TrackedClip, index: FrameIndex, head: HeadModel | None, width: int, height: int
) -> UInt8[np.ndarray, "H W 3"]:
    if head is not None:
        return tracking_over(clip, head, index, width, height)
    frame = clip.frame(index, width, height)
    if clip.matte_kind != "alpha":
        return to_bytes(frame.image)
    matte = frame.matte[..., None]
    return to_bytes(torch.lerp(torch.full_like(frame.image, GREY), frame.image, matte))
