"""Who is to be refined: the rows of a manifest, the clips under a folder, or those of a data set of shards.

A manifest is a table (.parquet, .csv with a header line, .jsonl) with the columns ``id`` and ``clip``; others are
passed over. ``clip`` is a clip's folder, or DATASET#KEY for a clip in shards. It is relative to the manifest's folder
and cannot lead out of it; other places must lie under one of the folders that the operator allows.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from spatialavatar import files
from spatialavatar.clip import TrackedClip, open_clip
from spatialavatar.clip.header import (
    HEADER_FILE,
    IDENTITY_RULE,
    header_from_json,
    is_identity,
    read_header_json,
    safe_identity,
)
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.config import holds_credentials
from spatialavatar.head import HeadReference
from spatialavatar.shards.entry import ClipEntry
from spatialavatar.shards.find import CLIP_FORMAT, find_sources
from spatialavatar.shards.manifest import MANIFEST_FILE, ShardSet, open_shards

MANIFESTS = (".parquet", ".csv", ".jsonl")
COLUMNS = ("id", "clip")
LARGEST_MANIFEST = 4 << 30  # bytes
_DIGEST = 8  # characters that make a long or odd key a unique id
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class FleetSubject:
    """A person to refine; ``id`` names all that is written of them."""

    id: str  # as an identity: letters, digits, '.', '_', '-'
    clip: str  # a clip's folder, or DATASET#KEY
    state: str = ""  # another where the clip is another, as far as that is known without reading it


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that is no subject, and why."""

    id: str  # as far as it has one; fit to be printed
    reason: str


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
        subjects, refused = _checked(_rows(where), where, [files.absolute(folder) for folder in allow])
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


def _rows(where: str) -> Iterator[dict[str, Any]]:
    data = files.read_bytes(where, LARGEST_MANIFEST)
    try:
        if where.endswith(".parquet"):
            schema = pq.read_schema(pa.BufferReader(data))
            _require_columns(where, schema.names)
            table = pq.read_table(pa.BufferReader(data), columns=list(COLUMNS))
            for batch in table.to_batches(max_chunksize=10_000):
                yield from batch.to_pylist()
        elif where.endswith(".csv"):
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
            _require_columns(where, reader.fieldnames or ())
            yield from reader
        else:
            for number, line in enumerate(data.decode("utf-8-sig").split("\n"), 1):
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise ValueError(f"line {number} is no object")
                    yield value
    except SpatialAvatarError:
        raise
    except Exception as e:  # Arrow's errors are of many kinds
        reason = ascii(" ".join(str(e).split()))[1:-1][:200]
        raise SpatialAvatarError(f"{where}: not a readable manifest ({reason}); restore the file") from None


def _require_columns(where: str, names: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        there = ", ".join(str(name) for name in names[:10]) or "none"
        raise SpatialAvatarError(f"{where}: lacks the column(s) {', '.join(missing)}; there are {there}")


def _checked(
    rows: Iterator[dict[str, Any]], where: str, allowed: Sequence[str]
) -> tuple[list[FleetSubject], list[Refused]]:
    folder = where.rpartition("/")[0] or "/"
    seen: dict[str, int] = {}
    subjects, refused = [], []
    for number, row in enumerate(rows, 1):
        name, clip = row.get("id"), row.get("clip")
        name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
        shown = ascii(name)[1:-1][:100] if isinstance(name, str) else f"row {number}"
        if not isinstance(name, str) or not is_identity(name):
            refused.append(Refused(shown, f"row {number}: id is {ascii(name)[:60]}, expected {IDENTITY_RULE}"))
        elif name in seen:
            refused.append(Refused(shown, f"row {number}: the id is that of row {seen[name]}, too; the first is taken"))
        elif not isinstance(clip, str) or not clip:
            refused.append(Refused(shown, f"row {number}: clip is {ascii(clip)[:60]}, expected a place"))
        else:
            try:
                subjects.append(FleetSubject(name, place_of(clip, folder, allowed)))
                seen[name] = number
            except ValueError as e:
                refused.append(Refused(shown, f"row {number}: {e}"))
    return subjects, refused


def place_of(clip: str, folder: str, allowed: Sequence[str]) -> str:
    """Where a manifest's clip lies: under the manifest's ``folder``, or under one of the ``allowed``.

    Raises ValueError, without the text when it holds a password.
    """
    if holds_credentials(clip):
        raise ValueError("clip holds a user or password; credentials come from the environment or the AWS config")
    text = clip.rstrip("/")
    said = f"clip is {ascii(clip)[:120]}"
    protocol, scheme, path = text.rpartition("://")
    if not text or _CONTROL.search(text) or "::" in text or "://" in protocol:
        raise ValueError(f"{said}, expected a plain path or URL")
    if any(part in ("..", ".") for part in [*path.split("/"), *unquote(path).split("/")]):  # servers read %2e as a dot
        raise ValueError(f"{said}, which leads out of its folder")
    if scheme or text.startswith(("/", "~")):
        place = files.absolute(text)
        if not any(place.startswith(f"{root.rstrip('/')}/") for root in (folder, *allowed)):
            raise ValueError(f"{said}, outside the manifest's folder; its folder can be allowed by 'allow' (--allow)")
        return place
    return files.join(folder, text)
