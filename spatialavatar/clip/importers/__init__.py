"""Importers: results of trackers and other tools to tracked clips."""

from collections.abc import Callable

from spatialavatar import files
from spatialavatar.clip.importers.npz import import_npz, is_npz_folder
from spatialavatar.clip.tracked_clip import Progress, TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel

__all__ = ["FORMATS", "import_clip", "import_npz"]

# name: does the folder look like it, the importer
FORMATS: dict[str, tuple[Callable[[files.Location], bool], Callable[..., TrackedClip]]] = {
    "npz": (is_npz_folder, import_npz),
}


def import_clip(
    source: files.Location,
    out: files.Location,
    head: HeadModel,
    format: str = "auto",
    test_last: int = 0,
    *,
    identity: str | None = None,
    licence: str | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> TrackedClip:
    """Import a tracker's result as a clip in ``out``; ``auto`` finds the format from the folder's files.

    ``test_last`` instants at the end become the test set. ``licence`` is a note on the pictures' licence.
    Raises SpatialAvatarError: unknown format, source that cannot be read, parameters that do not fit the head.
    """
    if format != "auto" and format not in FORMATS:
        raise SpatialAvatarError(f"no importer named '{format}'; there are auto, {', '.join(FORMATS)}")
    if not files.is_folder(source):
        raise SpatialAvatarError(f"{source}: no such folder; name the folder that the tracker wrote")
    names = [name for name in FORMATS if FORMATS[name][0](source)] if format == "auto" else [format]
    if not names:
        raise SpatialAvatarError(
            f"{source}: not recognised as any of {', '.join(FORMATS)} (npz: params.npz and images/); "
            "name the folder that holds these files, or say which with --format"
        )
    return FORMATS[names[0]][1](
        source, head, out, test_last=test_last, identity=identity, licence=licence, progress=progress, force=force
    )
