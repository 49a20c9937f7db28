"""How a person names a frame of a clip: ``clips/anna#12``, or ``clips/anna#12,3`` for camera 3 of several.

Instants and cameras count from 0. ``clips/anna/clip.json#12`` names the same frame; without ``#`` the whole clip is
meant.
"""

import re

from spatialavatar import files
from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.header import HEADER_FILE
from spatialavatar.clip.tracked_clip import clip_folder
from spatialavatar.errors import SpatialAvatarError

_FRAME = re.compile(r"(?P<clip>.+)#(?P<instant>[0-9]{1,9})(?:,(?P<camera>[0-9]{1,9}))?", re.DOTALL)


def parse_frame_name(text: str) -> tuple[str, FrameIndex | None]:
    """The clip's location and the frame, None for the whole clip.

    A folder whose name ends like a frame is a whole clip when there is one in it. Raises SpatialAvatarError when what
    follows ``#`` is no frame.
    """
    if "#" not in text or files.exists(files.join(clip_folder(text), HEADER_FILE)):
        return text, None
    match = _FRAME.fullmatch(text)
    if match is None:
        raise SpatialAvatarError(f"{text}: expected CLIP#12 for instant 12, or CLIP#12,3 for its camera 3")
    return match["clip"], FrameIndex(int(match["instant"]), int(match["camera"] or 0))


def parse_one_frame(text: str, option: str) -> tuple[str, FrameIndex]:
    """Raises SpatialAvatarError for a whole clip, too."""
    clip, index = parse_frame_name(text)
    if index is None:
        raise SpatialAvatarError(f"{option} {text}: names a whole clip; name a frame of it, as {text}#0")
    return clip, index


def frame_name(clip: TrackedClip, index: FrameIndex) -> str:
    """What ``parse_frame_name`` takes."""
    camera = f",{index.camera}" if clip.cameras > 1 else ""
    return f"{clip.location}#{index.instant}{camera}"
