"""Where files and folders lie: a location is a plain path or a URL (``s3://``, ``memory://``, ``file://`` ...)."""

import os
from pathlib import Path

from spatialavatar.errors import SpatialAvatarError

Location = str | os.PathLike[str]


def is_local(location: Location) -> bool:
    """Whether it lies on this machine: a plain path or a ``file://`` URL."""
    text = os.fspath(location)
    return "://" not in text or text.startswith("file://")


def local_path(location: Location) -> Path:
    """The local path behind a plain path or a file:// URL.

    Raises SpatialAvatarError for any other URL: the caller needs a real file.
    """
    text = os.fspath(location)
    if not is_local(text):
        raise SpatialAvatarError(f"{text}: a local path is needed here; copy the file to this machine first")
    return Path(text.removeprefix("file://"))


def absolute(location: Location) -> str:
    """A location that means the same from any working folder, without a slash at its end."""
    if not is_local(location):
        return os.fspath(location).rstrip("/")
    return str(local_path(location).absolute()).rstrip("/") or "/"


def join(folder: Location, *parts: str) -> str:
    """What lies in a folder under these names, one inside the other."""
    return "/".join([os.fspath(folder).rstrip("/") or "/", *parts])


def relative(location: Location, folder: Location) -> str:
    """``location`` as seen from ``folder`` when both are local, else as it is."""
    if is_local(location) and is_local(folder):
        return os.path.relpath(local_path(location), local_path(folder))
    return os.fspath(location)
