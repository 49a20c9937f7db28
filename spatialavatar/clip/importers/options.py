"""What a person can tell every importer, and what the importers share in answering it."""

import dataclasses
from dataclasses import dataclass

from spatialavatar import files
from spatialavatar.clip.header import header_from_json, safe_identity
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError


@dataclass(frozen=True)
class ImportOptions:
    identity: str | None = None  # who is seen; from the tool's own names when not given
    licence: str | None = None  # of the pictures, as a note
    fps: float | None = None  # when the tool's files do not say (25), or say it wrongly
    test_last: int = 0  # instants at the end that become the test set
    keep_split: bool = False  # hold out what the tool's own files hold out
    tracking: files.Location | None = None  # NeRSemble: the folder that VHAP exported
    drop_dynamic_offsets: bool = False  # VHAP: import without the offsets of every frame


def chosen_identity(options: ImportOptions, name: str) -> str:
    """``name`` is the tool's own for the person or clip."""
    return options.identity or safe_identity(name)


def with_test_last(clip: TrackedClip, count: int) -> TrackedClip:
    """The clip with its last ``count`` instants held out. Raises SpatialAvatarError when none are left to train on."""
    if not count:
        return clip
    if not 0 < count < clip.instants:
        raise SpatialAvatarError(
            f"{clip.location}: --test-last {count} does not fit, expected 1..{clip.instants - 1}: "
            f"{clip.instants} instants"
        )
    header = dataclasses.replace(clip.header, test_from=clip.instants - count)
    return dataclasses.replace(clip, header=header_from_json(header.to_json(), clip.location))
