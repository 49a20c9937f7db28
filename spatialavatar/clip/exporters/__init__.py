"""Exporters: tracked clips to folders in other programs' own layouts.

Each exporter is one file with ``export_...(clip, head, out, progress)``, which writes into an empty folder and says
what the format could not hold. Here that folder becomes the one asked for, whole or, on local disks, not at all.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from spatialavatar import files
from spatialavatar.clip.exporters.gagavatar_track import export_gagavatar_track
from spatialavatar.clip.exporters.report import ExportReport
from spatialavatar.clip.exporters.vhap import export_vhap
from spatialavatar.clip.header import beside
from spatialavatar.clip.tracked_clip import Progress, TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel

__all__ = ["FORMATS", "ExportReport", "export_clip", "refuse_export"]

Exporter = Callable[[TrackedClip, HeadModel, str, Progress | None], ExportReport]
FORMATS: dict[str, Exporter] = {
    "vhap": export_vhap,
    "gagavatar-track": export_gagavatar_track,
}


def export_clip(
    clip: TrackedClip,
    format: str,
    out: files.Location,
    head: HeadModel,
    *,
    progress: Progress | None = None,
    force: bool = False,
) -> ExportReport:
    """Write ``clip`` as a folder of another tool's; ``head`` is the one that it was tracked with.

    On a local disk the folder appears when it is whole. With ``force`` it may hold files already: what the export
    writes replaces them by name, the others stay. Raises SpatialAvatarError: unknown format, another head, a folder
    that holds something (and not ``force``), a clip that the format cannot hold.
    """
    refuse_export(format, out, force)
    clip.require_head(head)
    target = os.fspath(out).rstrip("/") or "/"
    if files.is_local(target) and files.is_local(clip.location):
        here, there = files.local_path(clip.location).resolve(), files.local_path(target).resolve()
        if there == here or there in here.parents:
            raise SpatialAvatarError(f"{out}: holds the clip itself; name another output folder")
    if not files.is_local(target):
        return FORMATS[format](clip, head, target, progress)
    path = files.local_path(target).resolve()
    staging = Path(beside(target, "new"))
    shutil.rmtree(staging, ignore_errors=True)  # of an export that was killed
    written = staging / path.name  # under its own name, which a format may write into its files
    written.mkdir(parents=True)
    try:
        report = FORMATS[format](clip, head, str(written), progress)
        _move_in(written, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def refuse_export(format: str, out: files.Location, force: bool = False) -> None:
    """Raises SpatialAvatarError where ``export_clip`` would not begin; changes nothing."""
    if format not in FORMATS:
        raise SpatialAvatarError(f"no exporter named '{format}'; there are {', '.join(FORMATS)}")
    names = files.list_folder(out)
    if names and not force:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise SpatialAvatarError(f"{out}: holds {shown}; name an empty folder or add --force to write into it")
    if not names and files.exists(out) and not files.is_folder(out):
        raise SpatialAvatarError(f"{out}: is a file, a folder was expected")


def _move_in(written: Path, path: Path) -> None:
    if not path.exists():
        os.replace(written, path)
        return
    for new in sorted(written.iterdir()):
        old = path / new.name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)  # pictures of a longer clip would remain
        else:
            old.unlink(missing_ok=True)
        shutil.move(new, old)
