"""How an artefact names the head model that it was made with, and how that head is found again."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from spatialavatar import files, tensor_files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.file import SUFFIX, head_from_arrays, read_head
from spatialavatar.head.model import HeadModel

SEARCH_VARIABLE = "SPATIALAVATAR_HEADS"  # folders with head files, separated as in PATH


@dataclass(frozen=True)
class HeadReference:
    """Every clip and avatar carries this."""

    id: str
    hash: str
    licence: str
    attribution: str

    @staticmethod
    def of(head: HeadModel) -> "HeadReference":
        """Of a head in memory."""
        return HeadReference(head.info.id, head.content_hash, head.info.licence, head.info.attribution)

    def require(self, head: HeadModel, what: str) -> None:
        """Raises SpatialAvatarError when ``what`` was made with another head."""
        if head.content_hash != self.hash:
            raise SpatialAvatarError(
                f"{what}: made with head {self.id} ({self.hash[:12]}), but the given head is "
                f"{head.info.id} ({head.content_hash[:12]}); name that head's file with --head"
            )


@cache
def builtin_head() -> HeadModel:
    """The procedural stand-in, which needs no file; made once in a process."""
    from spatialavatar.head.builtin import generate_head

    return head_from_arrays(*generate_head())


class FoundHead(NamedTuple):
    """A head, and where it was found."""

    head: HeadModel
    file: str | None  # where it lies; None for the built-in one, which needs no file


def find_head(reference: HeadReference, what: str, places: Iterable[files.Location] = ()) -> HeadModel:
    """``locate_head``, without where."""
    return locate_head(reference, what, places).head


def locate_head(reference: HeadReference, what: str, places: Iterable[files.Location] = ()) -> FoundHead:
    """The head that ``what`` was made with, recognised by its hash.

    Looks at ``places`` (head files, or folders that hold some), then in the folders of SPATIALAVATAR_HEADS, then at
    the built-in head. Raises SpatialAvatarError that says where it looked, and which files there could not be read.
    """
    searched = [os.fspath(place) for place in places]
    searched += [folder for folder in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if folder]
    damaged = []
    for place in searched:
        candidates = [place] if place.endswith(SUFFIX) else [files.join(place, n) for n in files.list_folder(place)]
        for candidate in candidates:
            if not candidate.endswith(SUFFIX) or not files.exists(candidate):
                continue
            try:
                if tensor_files.read_tensor_metadata(candidate).get("hash") == reference.hash:
                    return FoundHead(read_head(candidate), candidate)
            except SpatialAvatarError:
                damaged.append(candidate)
    if reference.id.startswith("builtin"):
        head = builtin_head()
        if head.content_hash == reference.hash:
            return FoundHead(head, None)
    looked = ", ".join(searched) or "no folder"
    if damaged:
        looked += f"; passed over, not readable: {', '.join(damaged)}"
    raise SpatialAvatarError(
        f"{what}: needs head {reference.id} ({reference.hash[:12]}), not found (looked in {looked}); "
        f"name its file with --head or its folder in {SEARCH_VARIABLE}"
    )
