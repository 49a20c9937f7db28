"""Finding what to ingest: the folders of trackers and our own clips under a source, by listings alone.

A folder is recognised by the names in it and then not looked into. Its key is its path under the source, which names
it in the data set: '%' and '#' are written as %25 and %23, so that '#' can stand between a folder and a clip in it.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from spatialavatar import files
from spatialavatar.clip.header import HEADER_FILE, UNFINISHED_FILE
from spatialavatar.clip.importers import FORMATS, recognise
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.shards.entry import Rejected

CLIP_FORMAT = "clip"  # our own folders, beside the importers' formats
LISTINGS = 16  # asked for at a time
DEEPEST = 32  # folders under the source
LONGEST_KEY = 800  # characters; a clip's name in a folder comes on top


@dataclass(frozen=True)
class SourceFolder:
    """A folder that one importer opens; it may hold several clips."""

    key: str
    location: str
    format: str


@dataclass(frozen=True)
class Found:
    """What a source holds."""

    sources: list[SourceFolder]  # by key
    unreadable: list[Rejected]  # folders that cannot be listed, and names that cannot be keys


def find_sources(source: files.Location, format: str = "auto", progress: Callable[[int], None] | None = None) -> Found:
    """Every folder of ``format`` under ``source``, which may itself be one; ``auto`` looks for all formats.

    A folder that cannot be listed is noted and passed over; hidden names are. ``progress`` gets the number found.
    Raises SpatialAvatarError: no such format, no such folder, a store that does not answer.
    """
    if format not in ("auto", CLIP_FORMAT, *FORMATS):
        raise SpatialAvatarError(
            f"no source format named '{format}'; there are auto, {CLIP_FORMAT}, {', '.join(FORMATS)}"
        )
    root = str(source).rstrip("/") or "/"
    if not files.is_folder(root):
        raise SpatialAvatarError(f"{root}: no such folder; name the folder that holds the trackers' folders or clips")
    found: list[SourceFolder] = []
    unreadable: list[Rejected] = []
    level: list[tuple[str, ...]] = [()]
    with ThreadPoolExecutor(LISTINGS) as listings:
        for _ in range(DEEPEST):
            below: list[tuple[str, ...]] = []
            for parts, listed in zip(level, listings.map(lambda parts: _listing(root, parts), level)):
                location = files.join(root, *parts)
                if isinstance(listed, str):
                    unreadable.append(Rejected(_key(root, parts)[:LONGEST_KEY], _printable(location), listed, 1))
                    continue
                folders, names = listed
                recognised = _recognised(frozenset(folders) | frozenset(names), format)
                if recognised is not None:
                    found.append(SourceFolder(_key(root, parts), location, recognised))
                    if progress is not None:
                        progress(len(found))
                    continue
                below += [(*parts, name) for name in folders if not name.startswith(".")]
            level = below
            if not level:
                break
    for parts in level:
        reason = f"lies more than {DEEPEST} folders below the source; name a source further down"
        location = files.join(root, *parts)
        unreadable.append(Rejected(_key(root, parts)[:LONGEST_KEY], _printable(location), reason, 1))
    return Found(sorted(found, key=lambda s: s.key), sorted(unreadable, key=lambda r: r.key))


def _listing(root: str, parts: tuple[str, ...]) -> tuple[list[str], list[str]] | str:
    """Names of folders and files, or why there are none."""
    location = files.join(root, *parts)
    if parts and not parts[-1].isprintable():
        return "its name holds characters that cannot be printed; rename the folder"
    if len(_key(root, parts)) > LONGEST_KEY:
        return f"its path under the source has more than {LONGEST_KEY} characters; name a source further down"
    if files.is_local(root) and _leads_back(location):
        return [], []
    try:
        return files.list_folders_and_files(location)
    except StoreError:
        raise
    except (SpatialAvatarError, OSError) as e:
        return f"cannot be listed: {e.strerror or e}" if isinstance(e, OSError) else str(e)


def _recognised(names: frozenset[str], format: str) -> str | None:
    if format in ("auto", CLIP_FORMAT) and names & {HEADER_FILE, UNFINISHED_FILE}:
        return CLIP_FORMAT
    return None if format == CLIP_FORMAT else recognise(names, format)


def _leads_back(location: str) -> bool:
    """Whether a folder is a link to one that holds it."""
    path = files.local_path(location)
    if not path.is_symlink():
        return False
    parent, target = os.path.realpath(path.parent), os.path.realpath(path)
    return os.path.commonpath([parent, target]) == target


def _key(root: str, parts: tuple[str, ...]) -> str:
    if not parts:
        parts = (files.local_path(root).resolve().name if files.is_local(root) else root.rsplit("/", 1)[-1],)
    text = _printable("/".join(parts)) or "source"
    return text.replace("%", "%25").replace("#", "%23")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
