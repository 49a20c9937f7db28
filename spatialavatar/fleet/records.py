"""What is kept of each subject: the record of a finished one, and of one that failed.

The file's name says what it is a record of: ``ID.DIGEST.json``, where the digest is of the record's version, head and
layout, settings and clip. So a listing of the folder tells what is done, and no record need be read for it. A record is
written after everything that it names.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.fleet.subjects import FleetSubject

RECORD_FORMAT, FAILURE_FORMAT = "spatialavatar-fleet-record", "spatialavatar-fleet-failure"
VERSION = 1
RECORDS, FAILURES, AVATARS, UNFINISHED = "records", "failures", "avatars", "unfinished"  # folders
THUMBNAIL = "thumbnail.jpg"  # beside an avatar
READERS = 32  # requests at once, of a store that takes its time for each
_DIGEST = 12  # hexadecimal digits
_SUFFIX = ".json"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("id", "digest", "clip", "avatar", "worker"), str),
    **{"metrics": dict, "review": list, "seconds": (int, float), "attempts": int, "iterations": int},
}

Record = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What every avatar of a run is made with."""

    config_hash: str
    layout_fingerprint: str

    def digest(self, subject: FleetSubject) -> str:
        """Equal where refining the subject again would give the same avatar."""
        value = [VERSION, self.config_hash, self.layout_fingerprint, subject.id, subject.clip, subject.state]
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_DIGEST]

    def name(self, subject: FleetSubject) -> str:
        return f"{subject.id}.{self.digest(subject)}"


@dataclass(frozen=True)
class Failure:
    """One try of a subject that did not end well."""

    kind: str  # error, crash or store; those of a store are not kept in files
    reason: str
    worker: str
    time: str  # UTC, ISO 8601


def listed(out: files.Location, folder: str) -> set[str]:
    """Names ID.DIGEST of the records in ``records`` or ``failures``, by a listing alone."""
    names = files.list_folder(files.join(out, folder))
    return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX) and not name.startswith(".")}


def write_record(out: files.Location, name: str, record: Record) -> None:
    """Say that a subject is finished; all that the record names must be in its place."""
    files.write_json(files.join(out, RECORDS, name + _SUFFIX), record)


def read_record(out: files.Location, name: str) -> Record:
    """Raises SpatialAvatarError: no such record, damaged, or one of another version or name."""
    where = files.join(out, RECORDS, name + _SUFFIX)
    value = files.read_json(where)
    if not isinstance(value, dict) or value.get("format") != RECORD_FORMAT or value.get("version") != VERSION:
        raise SpatialAvatarError(f"{where}: not a record of version {VERSION}; remove it, and run again")
    fields = all(isinstance(value.get(key), kind) for key, kind in _FIELDS.items())
    if not fields or not _fits_a_table(value) or f"{value['id']}.{value['digest']}" != name:
        raise SpatialAvatarError(f"{where}: has not the fields or the name of a record; remove it, and run again")
    return value


def _fits_a_table(record: Record) -> bool:
    """Metrics are finite numbers, all but the name of the split; reasons and the time are text."""
    numbers = [content for key, content in record["metrics"].items() if key != "split" and content is not None]
    texts = [*record["review"], record.get("finished", ""), record["metrics"].get("split") or ""]
    finite = all(isinstance(n, (int, float)) and abs(n) < 1e300 for n in numbers)
    whole = isinstance(record["metrics"].get("frames", 0), (int, type(None)))
    return finite and whole and all(isinstance(text, str) for text in texts)


def write_records(out: files.Location, records: Mapping[str, Record]) -> None:
    """Many at once, by name. Raises StoreError."""
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(lambda item: write_record(out, *item), records.items()):
            pass


def read_records(out: files.Location, names: Iterable[str]) -> Iterator[tuple[str, Record | SpatialAvatarError]]:
    """Each record or what is wrong with it, many at once, by name. Raises StoreError."""
    for name, record in try_records(out, names):
        if isinstance(record, StoreError):
            raise record
        yield name, record


def try_records(out: files.Location, names: Iterable[str]) -> Iterator[tuple[str, Record | SpatialAvatarError]]:
    """The same, where a StoreError is what is wrong with a record; after some of them the store is asked no more."""
    silent: list[StoreError] = []

    def read(name: str) -> Record | SpatialAvatarError:
        if len(silent) >= READERS:
            return silent[-1]
        try:
            return read_record(out, name)
        except StoreError as e:
            silent.append(e)
            return e
        except SpatialAvatarError as e:
            return e
        except OSError as e:  # of a local disk
            silent.append(StoreError(f"{out}: {name} cannot be read ({e.strerror or e})"))
            return silent[-1]

    ordered = sorted(names)
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(ordered, pool.map(read, ordered))


def write_failure(
    out: files.Location, name: str, subject: FleetSubject, failures: list[Failure], given_up: bool
) -> None:
    value = {
        "format": FAILURE_FORMAT,
        "version": VERSION,
        "id": subject.id,
        "clip": subject.clip,
        "given_up": given_up,
        "failures": [asdict(failure) for failure in failures],
    }
    files.write_json(files.join(out, FAILURES, name + _SUFFIX), value)


def read_failures(out: files.Location, names: Iterable[str]) -> dict[str, tuple[list[Failure], bool]]:
    """The tries of each name and whether it was given up; a damaged file counts as none."""

    def read(name: str) -> tuple[list[Failure], bool] | None:
        try:
            value = files.read_json(files.join(out, FAILURES, name + _SUFFIX))
            failures = [Failure(**failure) for failure in value["failures"]]
            sound = all(isinstance(text, str) for failure in failures for text in asdict(failure).values())
            return (failures, bool(value["given_up"])) if sound else None
        except StoreError:
            raise
        except (SpatialAvatarError, KeyError, TypeError):
            return None

    ordered = sorted(names)
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(read, ordered))
    return {name: failure for name, failure in zip(ordered, found) if failure is not None}


def remove(out: files.Location, folder: str, names: Iterable[str]) -> None:
    """Remove records, or folders under ``avatars`` or ``unfinished``."""
    suffix = _SUFFIX if folder in (RECORDS, FAILURES) else ""
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(lambda name: files.remove(files.join(out, folder, name + suffix)), names):
            pass


def id_in(name: str) -> str:
    """The ID of ID.DIGEST or ID.HASH."""
    return name.rpartition(".")[0]
