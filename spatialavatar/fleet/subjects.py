"""Who is to be refined: the rows of a manifest, the clips under a folder, or those of a data set of shards."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from spatialavatar import files
from spatialavatar.clip import TrackedClip, open_clip
from spatialavatar.clip.header import (
    HEADER_FILE,
    header_from_json,
    is_identity,
    read_header_json,
    safe_identity,
)
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.manifest import MANIFESTS, Refused, read_manifest
from spatialavatar.head import HeadReference
from spatialavatar.shards.entry import ClipEntry
from spatialavatar.shards.find import CLIP_FORMAT, find_sources
from spatialavatar.shards.manifest import MANIFEST_FILE, ShardSet, open_shards

_DIGEST = 8  # characters that make a long or odd key a unique id


@dataclass(frozen=True, slots=True)
class FleetSubject:
    """A person to refine; ``id`` names all that is written of them."""

    id: str  # as an identity: letters, digits, '.', '_', '-'
    clip: str  # a clip's folder, or DATASET#KEY
    state: str = ""  # another where the clip is another, as far as that is known without reading it


@dataclass(frozen=True)
class Listing:
    subjects: tuple[FleetSubject, ...]  # in the source's order
    refused: tuple[Refused, ...]
    version: str  # another when the source has changed


def read_subjects(source: files.Location, allow: Sequence[str] = ()) -> Listing:
    """Raises SpatialAvatarError: nothing of that kind there, a table that cannot be read, no subject in it."""
    where = files.absolute(source)
    version = source_version(where)
    if where.endswith(MANIFESTS):
        places, refused = read_manifest(where, [files.absolute(folder) for folder in allow])
        subjects = [FleetSubject(id, clip) for id, clip in places.items()]
    elif files.exists(files.join(where, MANIFEST_FILE)):
        shards = open_shards(where)
        keys = shards.column("key").tolist()
        sums = zip(shards.column("crc32").tolist(), shards.column("pictures_crc32").tolist())
        subjects = [FleetSubject(id_of(k), f"{where}#{k}", f"{a:08x}{b:08x}") for k, (a, b) in zip(keys, sums)]
        refused = []
    else:
        found = find_sources(where, CLIP_FORMAT)
        subjects = [FleetSubject(id_of(source.key), source.location) for source in found.sources]
        refused = [Refused(rejected.key, rejected.reason) for rejected in found.unreadable]
    if not subjects:
        why = f" ({refused[0].id}: {refused[0].reason})" if refused else ""
        kinds = ", ".join(MANIFESTS)
        raise SpatialAvatarError(
            f"{where}: no subject there{why}; expected a manifest ({kinds}), a folder above clips, or a data set of "
            "shards"
        )
    return Listing(tuple(subjects), tuple(refused), version)


def source_version(source: files.Location) -> str:
    """Of a manifest or a data set, without reading the whole of it; of a folder always the same."""
    where = files.absolute(source)
    if not where.endswith(MANIFESTS):
        where = files.join(where, MANIFEST_FILE)
        if not files.exists(where):
            return ""
    return files.version(where)


def open_subject(subject: FleetSubject) -> TrackedClip:
    """Raises SpatialAvatarError for a clip that is not there or damaged."""
    if "#" not in subject.clip or files.exists(files.join(subject.clip, HEADER_FILE)):
        return open_clip(subject.clip)
    dataset, key = _in_shards(subject.clip)
    try:
        return _clip_in(_shards(dataset), key, subject.state)
    except SpatialAvatarError:  # the data set may have been written again since it was opened
        _shards.cache_clear()
        return _clip_in(_shards(dataset), key, subject.state)


def clip_head(subject: FleetSubject) -> tuple[HeadReference, str]:
    """The head that a clip was tracked with, and the folder beside whose files it may lie, without the pictures.

    Raises SpatialAvatarError as ``open_subject``.
    """
    if "#" in subject.clip and not files.exists(files.join(subject.clip, HEADER_FILE)):
        dataset, _ = _in_shards(subject.clip)
        return _shards(dataset).head, dataset
    header = header_from_json(read_header_json(subject.clip), files.join(subject.clip, HEADER_FILE))
    return header.head, subject.clip


def _in_shards(clip: str) -> tuple[str, str]:
    """Data set and key of DATASET#KEY; keys hold a '#' where a folder has several clips, and folders' names may."""
    parts = clip.split("#")
    for count in range(1, len(parts)):
        dataset = "#".join(parts[:count])
        if files.exists(files.join(dataset, MANIFEST_FILE)):
            return dataset, "#".join(parts[count:])
    return parts[0], "#".join(parts[1:])


def _clip_in(shards: ShardSet, key: str, state: str) -> TrackedClip:
    number = shards.find(key)
    if state and _state(shards.entry(number)) != state:
        raise SpatialAvatarError(f"{shards.location}#{key}: is another clip than when this run began; run it again")
    return shards.clip(number, whole=True)


def _state(entry: ClipEntry) -> str:
    return f"{entry.crc32:08x}{entry.pictures_crc32:08x}"


def id_of(key: str) -> str:
    """A key as an id: itself where it can be one, else with a part of its hash."""
    if is_identity(key):
        return key
    return f"{safe_identity(key)[: 99 - _DIGEST]}-{hashlib.sha256(key.encode()).hexdigest()[:_DIGEST]}"


@lru_cache(maxsize=4)
def _shards(dataset: str) -> ShardSet:
    return open_shards(dataset)
