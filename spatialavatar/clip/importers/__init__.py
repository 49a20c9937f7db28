"""Importers: results of trackers and other tools to tracked clips.

Each importer is one file with two functions: ``is_...(names)`` recognises a folder by the names in it, ``open_...``
gives its clips with their pictures still in the tool's own files (``TrackedClip``), to be written as a folder
(``save_clip``) or into a shard.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from spatialavatar import files
from spatialavatar.clip.header import HEADER_FILE, safe_identity
from spatialavatar.clip.importers.gagavatar_track import is_gagavatar_track, open_gagavatar_track
from spatialavatar.clip.importers.imavatar import is_imavatar, open_imavatar
from spatialavatar.clip.importers.nersemble import is_bare_sequence, is_nersemble, open_nersemble
from spatialavatar.clip.importers.npz import is_npz, open_npz
from spatialavatar.clip.importers.options import ImportOptions
from spatialavatar.clip.importers.vhap import is_vhap, open_vhap
from spatialavatar.clip.replacing import refuse_existing_clip
from spatialavatar.clip.tracked_clip import Progress, TrackedClip
from spatialavatar.clip.writer import save_clip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel

__all__ = ["FORMATS", "ImportOptions", "Importer", "import_clips", "open_source", "recognise"]


class Importer(NamedTuple):
    """One format: how its folders are recognised, and how they are opened."""

    recognises: Callable[[frozenset[str]], bool]  # the names in a folder
    open: Callable[[str, HeadModel, ImportOptions], list[TrackedClip]]
    marks: str  # what the tool's folders hold, for messages
    accepts: Callable[[frozenset[str]], bool] | None = (
        None  # also these, of a folder that a person says is of this format
    )


FORMATS: dict[str, Importer] = {
    "npz": Importer(is_npz, open_npz, "params.npz and images/"),
    "gagavatar-track": Importer(is_gagavatar_track, open_gagavatar_track, "img_lmdb/ beside optim.pkl or smoothed.pkl"),
    "imavatar": Importer(is_imavatar, open_imavatar, "flame_params.json beside image/ or images/"),
    "vhap": Importer(is_vhap, open_vhap, "transforms*.json and flame_param/ or canonical_flame_param.npz"),
    "nersemble": Importer(
        is_nersemble,
        open_nersemble,
        "calibration/ and sequences/, or a sequence's images/ with vhap/ or --tracking",
        accepts=is_bare_sequence,
    ),
}


def recognise(names: frozenset[str], format: str = "auto") -> str | None:
    """The format of a folder with these names in it; None when it is none of those asked for.

    Raises SpatialAvatarError: no importer of that name.
    """
    if format != "auto" and format not in FORMATS:
        raise SpatialAvatarError(f"no importer named '{format}'; there are auto, {', '.join(FORMATS)}")
    if format == "auto":
        return next((name for name in FORMATS if FORMATS[name].recognises(names)), None)
    asked = FORMATS[format]
    return format if asked.recognises(names) or (asked.accepts is not None and asked.accepts(names)) else None


def open_source(
    source: files.Location, head: HeadModel, format: str = "auto", options: ImportOptions | None = None
) -> list[TrackedClip]:
    """The clips in a tracker's folder, at least one; ``auto`` finds the format from the names in it.

    Raises SpatialAvatarError: unknown format, source that cannot be read, parameters that do not fit the head.
    """
    options = options or ImportOptions()
    if options.tracking is not None and format == "auto":
        format = "nersemble"  # nothing else has it
    folder = str(source).rstrip("/") or "/"
    names = frozenset(files.list_folder(folder))
    found = recognise(names, format)
    if not names:
        raise SpatialAvatarError(f"{folder}: no such folder; name the folder that the tracker wrote")
    if found is None and HEADER_FILE in names:
        raise SpatialAvatarError(f"{folder}: is a tracked clip already; use it as it is")
    if found is None:
        known = "; ".join(f"{name}: {FORMATS[name].marks}" for name in ([format] if format in FORMATS else FORMATS))
        raise SpatialAvatarError(f"{folder}: not recognised ({known}); name the folder that holds these files")
    return FORMATS[found].open(folder, head, options)


def import_clips(
    source: files.Location,
    out: files.Location,
    head: HeadModel,
    format: str = "auto",
    options: ImportOptions | None = None,
    *,
    progress: Progress | None = None,
    force: bool = False,
) -> list[TrackedClip]:
    """Write the clips of a tracker's folder: a single one as ``out``, several into ``out`` (``clip_names``).

    Raises SpatialAvatarError as ``open_source`` and ``save_clip``; of several clips none is written where one of them
    may not be.
    """
    if _same_folder(source, out):
        raise SpatialAvatarError(f"{out}: is the source folder; name another output folder")
    clips = open_source(source, head, format, options)
    places = [files.join(out, name) for name in clip_names(clips)] if len(clips) > 1 else [out]
    for place in places:
        refuse_existing_clip(place, force)
    frames = [clip.instants * clip.cameras for clip in clips]
    written = []
    for number, (clip, place) in enumerate(zip(clips, places)):
        before = sum(frames[:number])

        def step(done: int, of: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, sum(frames))

        written.append(save_clip(clip, place, progress=step, force=force))
    return written


def clip_names(clips: Sequence[TrackedClip]) -> list[str]:
    """Names of folders for several clips of one source: their identities, followed where these recur by the clips' own
    names, and where even these recur as folders' names by numbers."""
    names = [clip.identity for clip in clips]
    if len(set(names)) < len(names):  # several videos or sequences of one person
        names = [f"{clip.identity}_{safe_identity(re.split('[/#]', clip.location)[-1])}" for clip in clips]
    if len(set(names)) < len(names):
        names = [f"{clip.identity}_{number:03d}" for number, clip in enumerate(clips)]
    return names


def _same_folder(source: files.Location, out: files.Location) -> bool:
    both_local = files.is_local(source) and files.is_local(out)
    return both_local and files.local_path(source).resolve() == files.local_path(out).resolve()
