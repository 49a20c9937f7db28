"""What an ingest can be told, and the part of it that a data set is made with (``ingest.json``).

The settings decide what the clips of a data set look like; a second run with others would mix two data sets in one
folder and is refused.
"""

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import Field

from spatialavatar import files
from spatialavatar.config import Config
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel

FORMAT = "spatialavatar-ingest"
VERSION = 1
SETTINGS_FILE = "ingest.json"


class IngestConfig(Config):
    """Everything that an ingest can be told."""

    source: str  # folder or URL that holds the trackers' folders or clips, at any depth
    output: str  # folder or URL of the data set
    format: str = "auto"  # of the source's folders
    head: str | None = None  # head file; the built-in head when absent
    licence: str | None = None  # of the pictures, kept as a note
    identity_pattern: str | None = None  # regular expression; its first group, found in a key, is the identity
    fps: float | None = Field(None, gt=0, le=1000)  # when the tools' files do not say, or say it wrongly
    test_last: int = Field(0, ge=0)  # instants at the end of each clip that become the test set
    keep_split: bool = False  # hold out what the tools' own files hold out
    drop_dynamic_offsets: bool = False  # VHAP: without the offsets of every frame
    tracking: str | None = None  # NeRSemble: the folder that VHAP exported
    image_format: Literal["keep", "jpg"] = "keep"
    max_size: int | None = Field(None, ge=8, le=8192)  # pixels of the longer side; larger pictures are reduced
    max_bad_frames: float = Field(0.05, ge=0, le=1)  # share of a clip's: trackers lose the face for moments
    clips_per_shard: int = Field(16, ge=1, le=10_000)  # what one process converts at a time
    limit: int | None = Field(None, ge=1)  # only so many sources, for a trial

    def settings(self, head: HeadModel) -> dict[str, Any]:
        """What the clips of the data set are made with."""
        free = ("source", "output", "head", "clips_per_shard", "limit")
        values = {name: value for name, value in self.model_dump().items() if name not in free}
        return {**values, "head": head.info.id, "head_hash": head.content_hash}


def settings_hash(settings: dict[str, Any]) -> str:
    """SHA-256 of what the clips of a data set are made with."""
    text = json.dumps([VERSION, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_config(config: IngestConfig) -> None:
    """Raises SpatialAvatarError: an identity pattern that is none, an output that is the source."""
    if config.identity_pattern is not None:
        try:
            groups = re.compile(config.identity_pattern).groups
        except re.error as e:
            raise SpatialAvatarError(f"--identity-pattern {config.identity_pattern!r}: {e}") from None
        if not groups:
            raise SpatialAvatarError(
                f"--identity-pattern {config.identity_pattern!r}: has no group; put what names the person into "
                "parentheses, e.g. '^([^/]+)/'"
            )
    if files.absolute(config.source) == files.absolute(config.output):
        raise SpatialAvatarError(f"{config.output}: is the source, too; name another --output")


def claim_output(config: IngestConfig, settings: dict[str, Any]) -> None:
    """Make ``output`` this ingest's own, or go on with it.

    Raises SpatialAvatarError: it holds something else, or a data set that was made from another source or with other
    settings.
    """
    location = files.join(config.output, SETTINGS_FILE)
    wanted = {"format": FORMAT, "version": VERSION, "source": files.absolute(config.source), "settings": settings}
    if not files.exists(location):
        names = [name for name in files.list_folder(config.output) if not name.startswith(".")]
        # another ingest may have begun at this moment
        if names and not files.exists(location):
            raise SpatialAvatarError(
                f"{config.output}: holds something else ({', '.join(names[:3])}); name an empty folder as --output"
            )
        files.write_json(location, wanted)
    found = files.read_json(location)
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise SpatialAvatarError(f"{location}: is no record of an ingest of this version; name another --output")
    if found.get("source") != wanted["source"]:
        raise SpatialAvatarError(
            f"{config.output}: was made from {found.get('source')}, not from {wanted['source']}; name another --output "
            f"(or, when the source has moved, correct it in {location})"
        )
    before = found.get("settings")
    before = before if isinstance(before, dict) else {}
    for name in sorted(set(before) | set(settings)):
        if before.get(name) != settings.get(name):
            raise SpatialAvatarError(
                f"{config.output}: was made with {name} {_shown(before.get(name))}, not {_shown(settings.get(name))}; "
                "use the same settings to go on, or name another --output"
            )


def _shown(value: Any) -> str:
    return ascii(value)[:200]
