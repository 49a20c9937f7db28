"""How a new clip takes the place of an old one, without a moment at which neither is whole.

A complete clip is replaced only when that is asked for, and only by a complete one. On a local disk the new clip is
written into a hidden folder beside the old; then the old is renamed away, the new renamed in, and the old deleted.
Whoever is killed in between leaves the old clip at its place or, between the two renames, under
``beside(folder, "old")``: the next write brings it back, and opening the clip says where it is.

Object stores cannot rename. There the new clip is written into a folder inside the old one and copied over it once it
is whole. Bad input costs nothing; a copy that is killed leaves the whole new clip, and the next write completes it. The
old one is lost from the first copied file on.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

from spatialavatar import files
from spatialavatar.clip.header import HEADER_FILE, PARAMS_FILE, PICTURES, UNFINISHED_FILE, beside
from spatialavatar.errors import SpatialAvatarError

PICTURE_NAME = re.compile(r"[0-9]{6}(_[0-9]{2})?\.(jpg|png)")
_OWN = (HEADER_FILE, PARAMS_FILE, UNFINISHED_FILE, *PICTURES)


def refuse_existing_clip(folder: files.Location, force: bool = False) -> None:
    """Raises SpatialAvatarError where a new clip may not be written; changes nothing.

    It may be written into a folder that is absent, empty, or holds an unfinished clip; with ``force`` also in place of
    a complete clip, and beside other files, but not over pictures and parameters that belong to no clip.
    """
    names = files.list_folder(folder)
    if HEADER_FILE in names:
        if not force:
            raise SpatialAvatarError(f"{folder}: holds a clip; name another folder or replace the clip with --force")
        if files.is_local(folder):
            here, path = Path.cwd().resolve(), files.local_path(folder).resolve()
            if path in (here, *here.parents):
                raise SpatialAvatarError(f"{folder}: the working folder lies in this clip; replace it from outside")
    elif UNFINISHED_FILE not in names:
        taken = [name for name in names if name in _OWN]
        if force and taken:
            raise SpatialAvatarError(
                f"{folder}: holds {', '.join(taken)}, which belong to no clip and would be overwritten; "
                "name another folder or move them away"
            )


def begin(target: str, force: bool) -> str:
    """The folder to write the new clip into: ``target``, or another one when a complete clip stands there.

    That folder then holds ``clip.unfinished``. Raises SpatialAvatarError as ``refuse_existing_clip``.
    """
    _settle(target)
    refuse_existing_clip(target, force)
    files.remove(beside(target, "new"))
    if files.exists(files.join(target, HEADER_FILE)):
        written = beside(target, "new")
    else:
        written = target
        names = files.list_folder(target)
        files.claim_output_folder(target, UNFINISHED_FILE, force)
        if UNFINISHED_FILE in names:
            _remove_pictures(target)
    files.write_bytes(files.join(written, UNFINISHED_FILE), b"")
    return written


def finish(written: str, target: str) -> None:
    """Put the whole clip in ``written`` (its ``clip.json`` included) in the place of ``target``'s."""
    if written != target and not files.is_local(target):
        _copy_over(written, target)
        return
    if written != target:
        path, old = files.local_path(target).resolve(), Path(beside(target, "old"))
        _swap(Path(written), path, old)
        _discard(old, path)
    files.remove(files.join(target, UNFINISHED_FILE))


def abandon(written: str, target: str) -> None:
    """After a failure: nothing is left beside a clip that stays; an unfinished clip at its own place stays."""
    if written != target and files.exists(files.join(target, HEADER_FILE)):
        with contextlib.suppress(OSError):  # the failure itself is what the user needs to hear of
            files.remove(written)


def _settle(target: str) -> None:
    """Complete or undo a replacement that was interrupted."""
    if not files.is_local(target):
        staged = beside(target, "new")
        begun = not files.exists(files.join(target, HEADER_FILE)) and files.exists(files.join(target, UNFINISHED_FILE))
        if begun and files.exists(files.join(staged, HEADER_FILE)):
            _copy_over(staged, target)
        return
    old, path = Path(beside(target, "old")), files.local_path(target).resolve()
    if not old.is_dir():
        return
    if (path / HEADER_FILE).exists():
        _discard(old, path)
    elif not path.exists() or (path.is_dir() and not any(path.iterdir())):
        os.replace(old, path)
    else:
        raise SpatialAvatarError(
            f"{old}: a clip that was to be replaced, but the replacement was interrupted; move it where you want it"
        )


def _swap(new: Path, path: Path, old: Path) -> None:
    try:
        os.replace(path, old)
    except OSError as e:  # a mount point, for one
        raise SpatialAvatarError(
            f"{path}: cannot be replaced, for it cannot be renamed ({e.strerror}); name another folder"
        ) from None
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise


def _discard(old: Path, path: Path) -> None:
    """Delete a replaced clip; files in it that are not a clip's move to its successor."""
    for folder in (old, *(old / name for name in PICTURES)):
        if not folder.is_dir() or folder.is_symlink():
            continue
        for file in sorted(folder.iterdir()):
            own = file.name in _OWN if folder == old else PICTURE_NAME.fullmatch(file.name)
            half_written = file.name.startswith(".") and file.name.endswith(files.TEMPORARY)
            kept = path / file.relative_to(old)
            if not own and not half_written and not os.path.lexists(kept):
                kept.parent.mkdir(exist_ok=True)
                os.replace(file, kept)
    (old / HEADER_FILE).unlink(missing_ok=True)  # half deleted, it must not pass for a clip
    shutil.rmtree(old)


def _copy_over(staged: str, target: str) -> None:
    files.write_bytes(files.join(target, UNFINISHED_FILE), b"")
    files.remove(files.join(target, HEADER_FILE))
    _remove_pictures(target)
    copied = [f"{folder}/{name}" for folder in PICTURES for name in files.list_folder(files.join(staged, folder))]
    for name in (*copied, PARAMS_FILE, HEADER_FILE):
        files.write_bytes(files.join(target, name), files.read_bytes(files.join(staged, name)))
    files.remove(files.join(target, UNFINISHED_FILE))
    files.remove(staged)


def _remove_pictures(folder: str) -> None:
    for picture in PICTURES:
        for name in files.list_folder(files.join(folder, picture)):
            if PICTURE_NAME.fullmatch(name):
                files.remove(files.join(folder, picture, name))
