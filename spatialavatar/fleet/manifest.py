"""A fleet's manifest: a table whose rows name people and where their clips lie, written by whoever may.

It is a .parquet, a .csv with a header line, or .jsonl, with the columns ``id`` and ``clip``; others are passed over.
``clip`` is a clip's folder, or DATASET#KEY for a clip in shards. It is relative to the manifest's folder and cannot
lead out of it; other places must lie under one of the folders that the operator allows.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from spatialavatar import files
from spatialavatar.clip.header import IDENTITY_RULE, is_identity
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.fleet.config import holds_credentials

MANIFESTS = (".parquet", ".csv", ".jsonl")
COLUMNS = ("id", "clip")
LARGEST_MANIFEST = 4 << 30  # bytes
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that is no subject, and why."""

    id: str  # as far as it has one; fit to be printed
    reason: str


def read_manifest(where: str, allowed: Sequence[str]) -> tuple[dict[str, str], list[Refused]]:
    """The places of clips by id, in the manifest's order, and the rows that name none; ``allowed`` are absolute.

    Raises SpatialAvatarError: a table that cannot be read.
    """
    folder = where.rpartition("/")[0] or "/"
    seen: dict[str, int] = {}
    places: dict[str, str] = {}
    refused = []
    for number, row in enumerate(_rows(where), 1):
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
                places[name] = place_of(clip, folder, allowed)
                seen[name] = number
            except ValueError as e:
                refused.append(Refused(shown, f"row {number}: {e}"))
    return places, refused


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
        reason = in_short(e, plain=True)
        raise SpatialAvatarError(f"{where}: not a readable manifest ({reason}); restore the file") from None


def _require_columns(where: str, names: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        there = ", ".join(str(name) for name in names[:10]) or "none"
        raise SpatialAvatarError(f"{where}: lacks the column(s) {', '.join(missing)}; there are {there}")
