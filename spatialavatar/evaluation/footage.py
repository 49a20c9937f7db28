"""The clips that an evaluation looks at, by name: those of a data set of shards, of several, or of folders."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch

from spatialavatar import files
from spatialavatar.clip import TrackedClip, open_clip
from spatialavatar.clip.header import HEADER_FILE, header_from_json, read_header_json
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.head import HeadModel, HeadReference
from spatialavatar.shards.file import FOLDER
from spatialavatar.shards.find import CLIP_FORMAT, SourceFolder, find_sources
from spatialavatar.shards.manifest import MANIFEST_FILE, ShardSet, open_shards
from spatialavatar.training.shard_pool import is_held_out

Part = Literal["all", "train", "held_out"]
HELD_OUT_SHARE = 0.02  # of the people, as a training's unless it was told otherwise
_READERS = 32  # requests at once, of a store that takes its time for each


@dataclass(frozen=True)
class Fault:
    """What cannot be measured, and why."""

    key: str
    reason: str


def reason_of(error: Exception) -> str:
    """Why something cannot be measured, in a line."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return "takes more memory than the GPU has; lower the resolution"
    return text if isinstance(error, (SpatialAvatarError, OSError)) else f"{type(error).__name__}: {text}"


@dataclass(frozen=True)
class ListedClip:
    key: str  # its path under the data, or its key in the shards; of several data sets NAME/KEY
    identity: str
    place: str | tuple[str, int]  # its folder, or a data set and its number there
    state: str  # another where the clip is another; of a folder clip.json alone is looked at
    head: HeadReference


@dataclass(frozen=True, eq=False)
class Footage:
    location: str
    sets: Mapping[str, ShardSet]  # by their folders
    clips: tuple[ListedClip, ...]  # by key
    faults: tuple[Fault, ...]  # folders that hold no sound clip

    def open(self, clip: ListedClip) -> TrackedClip:
        """Raises SpatialAvatarError for a damaged one."""
        if isinstance(clip.place, str):
            return open_clip(clip.place)
        where, number = clip.place
        return self.sets[where].clip(number)

    def place(self, clip: ListedClip) -> str:
        """Where it lies, for messages."""
        if isinstance(clip.place, str):
            return clip.place
        where, number = clip.place
        return f"{where}#{self.sets[where].entry(number).key}"

    def require(self, head: HeadModel) -> None:
        """Raises SpatialAvatarError where a data set is of another head; clips in folders are looked at one by one."""
        for where, shards in self.sets.items():
            shards.head.require(head, where)


def find_footage(data: files.Location, part: Part = "all", held_out_share: float = HELD_OUT_SHARE) -> Footage:
    """The clips of the people of a part, which is chosen by their names as in training.

    Raises SpatialAvatarError: neither shards nor clips there, an unfinished ingest, nobody in that part.
    """
    where = str(data).rstrip("/") or "/"
    if not files.is_folder(where):
        raise SpatialAvatarError(
            f"{where}: no such folder; name the folder of a data set of shards, one above several, or above clips"
        )
    faults: list[Fault] = []
    sets: dict[str, ShardSet] = {}
    if files.exists(files.join(where, MANIFEST_FILE)):
        sets = {where: open_shards(where)}
    else:
        listed = find_sources(where, CLIP_FORMAT)
        found, faults = _of_folders(listed.sources)
        faults += [Fault(rejected.key, rejected.reason) for rejected in listed.unreadable]
        if not listed.sources:
            # without any, this tells that there are none
            sets = {folder: open_shards(folder) for folder in _data_sets_below(where) or [where]}
    if sets:
        found = [_of_shards(where, shards, number) for shards in sets.values() for number in range(len(shards))]
    wanted = [c for c in found if part == "all" or is_held_out(c.identity, held_out_share) == (part == "held_out")]
    if not wanted and found:
        people = len({clip.identity for clip in found})
        raise SpatialAvatarError(
            f"{where}: nobody of its {people} people is in the part '{part}' (a share of {held_out_share:g} is held "
            "out); choose another with --part, or another --held-out-share"
        )
    ordered = sorted(wanted, key=lambda clip: clip.key)
    return Footage(where, sets, tuple(ordered), tuple(sorted(faults, key=lambda fault: fault.key)))


def _data_sets_below(where: str) -> list[str]:
    """Folders right under it that an ingest wrote into, finished or not."""
    folders = [files.join(where, name) for name in files.list_folders_and_files(where)[0]]
    with ThreadPoolExecutor(_READERS) as pool:
        names = list(pool.map(files.list_folder, folders))
    return [folder for folder, held in zip(folders, names) if {MANIFEST_FILE, FOLDER} & set(held)]


def _of_shards(where: str, shards: ShardSet, number: int) -> ListedClip:
    entry = shards.entry(number)
    state = _digest([entry.crc32, entry.pictures_crc32, entry.instants, entry.cameras])
    below = shards.location.removeprefix(where).strip("/")
    key = f"{below}/{entry.key}" if below else entry.key
    return ListedClip(key, entry.identity, (shards.location, number), state, shards.head)


def _of_folders(sources: Sequence[SourceFolder]) -> tuple[list[ListedClip], list[Fault]]:
    def read(source: SourceFolder) -> ListedClip | Fault:
        try:
            content = read_header_json(source.location)
            header = header_from_json(content, files.join(source.location, HEADER_FILE))
        except StoreError:
            raise
        except SpatialAvatarError as e:
            return Fault(source.key, str(e))
        return ListedClip(source.key, header.identity, source.location, _digest(content), header.head)

    with ThreadPoolExecutor(_READERS) as pool:
        read_ones = list(pool.map(read, sources))
    return [c for c in read_ones if isinstance(c, ListedClip)], [f for f in read_ones if isinstance(f, Fault)]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
