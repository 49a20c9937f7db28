"""What a person can tell every importer, and what the importers share in answering it."""

import dataclasses
import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar import files
from spatialavatar.clip.header import header_from_json, safe_identity
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError


@dataclass(frozen=True)
class ImportOptions:
    """What a person says about the source."""

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


def fitted_codes(values: Float[Tensor, "*B n"], width: int, what: str) -> Float[Tensor, "*B width"]:
    """Codes as long as the head's: zeros behind fewer; more only where the surplus is zero.

    ``what`` names file and field for the message. Raises SpatialAvatarError for codes that the head does not have.
    """
    count = values.shape[-1]
    if count <= width:
        return torch.cat([values, values.new_zeros(*values.shape[:-1], width - count)], -1)
    if values[..., width:].any():
        last = int(values[..., width:].ne(0).reshape(-1, count - width).any(0).nonzero().max()) + width
        raise SpatialAvatarError(
            f"{what} has {count} codes, the head has {width}, and code {last} is not zero; "
            "name the head that the clip was tracked with by --head"
        )
    return values[..., :width]


def safe_member(folder: files.Location, name: object, holder: files.Location) -> str:
    """The place of a file inside ``folder`` that ``holder``, a file of the tool's, names relative to the folder.

    Raises SpatialAvatarError for anything that could lie elsewhere, naming ``holder``.
    """
    parts = [part for part in name.split("/") if part != "."] if isinstance(name, str) and len(name) <= 1000 else []
    if not parts or ".." in parts or not all(map(_is_file_name, parts)):
        raise SpatialAvatarError(
            f"{holder}: names the file {ascii(name)[:100]}, expected a relative path inside its folder; "
            "such a file is not read"
        )
    return files.join(folder, *parts)


def _is_file_name(part: str) -> bool:
    """Whether every file system takes it as one name: no backslash or colon (drives, URLs), no lone surrogates."""
    unusual = re.search(r"[\x00-\x1f\x7f\\:\ud800-\udfff]", part)
    return not unusual and 0 < len(part.encode()) <= 255
