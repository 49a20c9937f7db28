"""What is known of a clip without reading it, and the record of a complete shard (``shards/NAME.json``).

The record is written after its shard, so a shard without one is unfinished and counts for nothing. Everything in it
is checked when it is read: it says which bytes of which file are asked for.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from spatialavatar.clip.header import ClipHeader
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.reference import HeadReference

FORMAT = "spatialavatar-shard"
VERSION = 1
LARGEST_FILE = 1 << 46  # bytes
MOST_CLIPS = 10_000_000  # of a data set; far fewer in a shard

_LINE = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*"  # one line of text
_TEXT = r"[^\ud800-\udfff]*"  # what UTF-8 can write
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_HASH = r"[0-9a-f]{64}"


class Number(NamedTuple):
    """What a field may hold: a number in ``low`` .. ``high``."""

    low: int
    high: int
    whole: bool = True

    def refuses(self, value: Any) -> str | None:
        fits = type(value) is int or (not self.whole and type(value) is float and math.isfinite(value))
        if fits and self.low <= value <= self.high:
            return None
        return f"expected a {'whole ' if self.whole else ''}number in {self.low}..{self.high}"


class Text(NamedTuple):
    """What a field may hold: a text of at most ``longest`` characters that the pattern describes."""

    longest: int
    pattern: str = _LINE
    wanted: str = "one line of text"

    def refuses(self, value: Any) -> str | None:
        if isinstance(value, str) and len(value) <= self.longest and re.fullmatch(self.pattern, value):
            return None
        return f"expected {self.wanted} of at most {self.longest} characters"


class Flag(NamedTuple):
    """What a field may hold: true or false."""

    def refuses(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "expected true or false"


Rule = Number | Text | Flag
_KEY = Text(1000, r"(?!$)" + _LINE, "a key: one line")
_SHARD = Text(200, _NAME, "the name of a shard: letters, digits, '.', '_' and '-'")

ENTRY_RULES: dict[str, Rule] = {
    "key": _KEY,
    "identity": Text(100, _NAME, "an identity: letters, digits, '.', '_' and '-'"),
    "shard": _SHARD,
    "row_group": Number(0, MOST_CLIPS),
    "start": Number(4, LARGEST_FILE),
    "pictures": Number(5, LARGEST_FILE),
    "end": Number(6, LARGEST_FILE),
    "crc32": Number(0, 2**32 - 1),
    "pictures_crc32": Number(0, 2**32 - 1),
    "instants": Number(1, 999_999),
    "cameras": Number(1, 100),
    "width": Number(8, 8192),
    "height": Number(8, 8192),
    "fps": Number(0, 10_000, whole=False),
    "matte": Text(20, "alpha|burnt_black|none", "alpha, burnt_black or none,"),
    "region": Flag(),
    "bad_frames": Number(0, 99_999_900),
    "train_instants": Number(1, 999_999),
    "train_cameras": Number(1, 100),
    "shape_codes": Number(0, 10_000),
    "expression_codes": Number(0, 10_000),
    "head_hash": Text(64, _HASH, "a hash: 64 hexadecimal digits"),
    "tool": Text(1000, _TEXT, "a text"),
    "licence": Text(10_000, _TEXT, "a text"),
}
FACT_RULES: dict[str, Rule] = {
    "bytes": Number(0, LARGEST_FILE),
    "footer_start": Number(0, LARGEST_FILE),
    "footer_crc32": Number(0, 2**32 - 1),
}
_REJECTED_RULES: dict[str, Rule] = {
    "key": _KEY,
    "location": Text(10_000, _TEXT, "a text"),
    "reason": Text(10_000, _TEXT, "a text"),
    "attempts": Number(1, 1_000_000),
}
_HEAD_RULES: dict[str, Rule] = {
    "id": Text(1000, _TEXT, "a text"),
    "hash": Text(64, _HASH, "a hash: 64 hexadecimal digits"),
    "licence": Text(10_000, _TEXT, "a text"),
    "attribution": Text(10_000, _TEXT, "a text"),
}
_RECORD_FIELDS = {"format", "version", "shard", "head", "entries", "rejected", "settings", *FACT_RULES}


class Place(NamedTuple):
    """Where a row lies in its file (``ClipEntry``)."""

    start: int
    pictures: int
    end: int
    crc32: int
    pictures_crc32: int


@dataclass(frozen=True)
class ClipEntry:
    """What manifest and record say of a clip."""

    key: str  # unique in a data set: the path of its folder, see clip_key
    identity: str
    shard: str  # its file is shards/SHARD.parquet
    row_group: int
    start: int  # bytes of the row in the file
    pictures: int  # where its pictures begin
    end: int
    crc32: int  # of the bytes before the pictures
    pictures_crc32: int  # of the others
    instants: int
    cameras: int
    width: int
    height: int
    fps: float
    matte: str
    region: bool
    bad_frames: int  # whose tracking misses the face, as far as the ingest tolerates that
    train_instants: int  # before the test set
    train_cameras: int  # not kept for testing
    shape_codes: int
    expression_codes: int
    head_hash: str
    tool: str
    licence: str

    @staticmethod
    def of(key: str, header: ClipHeader, shard: str, row_group: int, place: Place, bad_frames: int = 0) -> "ClipEntry":
        """From a clip's header and the place of its row."""
        return ClipEntry(
            key=key,
            identity=header.identity,
            shard=shard,
            row_group=row_group,
            **place._asdict(),
            instants=header.instants,
            cameras=header.cameras,
            width=header.width,
            height=header.height,
            fps=header.fps,
            matte=header.matte,
            region=header.region,
            bad_frames=bad_frames,
            train_instants=header.instants if header.test_from is None else header.test_from,
            train_cameras=header.cameras - len(header.test_cameras),
            shape_codes=header.shape_codes,
            expression_codes=header.expression_codes,
            head_hash=header.head.hash,
            tool=header.source.tool,
            licence=header.source.licence,
        )


def clip_key(folder_key: str, number: int, of: int) -> str:
    """The key of a clip; ``number`` from 1 tells the clips of one folder apart."""
    return folder_key if of == 1 else f"{folder_key}#{number}-of-{of}"


def folder_key(key: str) -> str:
    """The key of the folder that a clip comes from."""
    return key.partition("#")[0]


@dataclass(frozen=True)
class Rejected:
    """A source that did not become a clip."""

    key: str
    location: str
    reason: str
    attempts: int

    @staticmethod
    def from_json(value: Any, name: str) -> "Rejected":
        """Raises SpatialAvatarError; ``name`` of the file is for messages."""
        return Rejected(**checked(value, _REJECTED_RULES, name))


class ShardFacts(NamedTuple):
    """What must be known of a shard's file to check it; a clip is read without."""

    bytes: int
    footer_start: int  # the footer goes to the file's end
    footer_crc32: int


@dataclass(frozen=True)
class ShardRecord:
    """What became of a group of sources: the shard that holds its clips, and what was rejected."""

    shard: str
    bytes: int  # 0, and no file, when there are no clips
    footer_start: int
    footer_crc32: int
    head: HeadReference
    entries: tuple[ClipEntry, ...]
    rejected: tuple[Rejected, ...]
    settings: str  # hash of the settings that the clips were made with

    @property
    def facts(self) -> ShardFacts:
        """Of the shard's file."""
        return ShardFacts(self.bytes, self.footer_start, self.footer_crc32)

    def to_json(self) -> dict[str, Any]:
        """What the record's file holds."""
        value = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return value | {name: list(value[name]) for name in ("entries", "rejected")}

    @staticmethod
    def from_json(value: Any, name: str) -> "ShardRecord":
        """Raises SpatialAvatarError with the first fault; ``name`` of the file is for messages."""
        if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
            raise SpatialAvatarError(
                f'{name}: not the record of a shard, expected "format": "{FORMAT}", "version": {VERSION}; '
                "remove the file and run the ingest again"
            )
        _same_fields(value, _RECORD_FIELDS, name)
        own = {key: value[key] for key in ("shard", "settings", *FACT_RULES)}
        own = checked(own, {"shard": _SHARD, "settings": Text(200), **FACT_RULES}, name)
        head = head_from_json(value["head"], name)
        entries = tuple(
            ClipEntry(**checked(entry, ENTRY_RULES, f"{name}: entries[{i}]"))
            for i, entry in enumerate(_listed(value["entries"], f"{name}: entries"))
        )
        rejected = tuple(
            Rejected.from_json(item, f"{name}: rejected[{i}]")
            for i, item in enumerate(_listed(value["rejected"], f"{name}: rejected"))
        )
        record = ShardRecord(head=head, entries=entries, rejected=rejected, **own)
        for i, entry in enumerate(entries):
            problem = _entry_problem(entry, i, record)
            if problem:
                raise SpatialAvatarError(f"{name}: entries[{i}]: {problem}; remove the file and run the ingest again")
        if len({entry.key for entry in entries}) < len(entries):
            raise SpatialAvatarError(f"{name}: entries: a key is there twice; remove the file and run the ingest again")
        return record


def head_from_json(value: Any, name: str) -> HeadReference:
    """Raises SpatialAvatarError; ``name`` of the file is for messages."""
    return HeadReference(**checked(value, _HEAD_RULES, f"{name}: head"))


def checked(value: Any, rules: dict[str, Rule], where: str) -> dict[str, Any]:
    """The fields as they are. Raises SpatialAvatarError for unknown and missing ones and for what a rule refuses."""
    if not isinstance(value, dict):
        raise SpatialAvatarError(f"{where}: is {_shown(value)}, expected fields by name")
    _same_fields(value, set(rules), where)
    for field, rule in rules.items():
        problem = rule.refuses(value[field])
        if problem:
            raise SpatialAvatarError(f"{where}: {field} is {_shown(value[field])}, {problem}")
    return {field: float(value[field]) if field == "fps" else value[field] for field in rules}


def _entry_problem(entry: ClipEntry, row_group: int, record: ShardRecord) -> str | None:
    if (entry.shard, entry.row_group, entry.head_hash) != (record.shard, row_group, record.head.hash):
        return f"is not row group {row_group} of shard '{record.shard}' with the head {record.head.hash[:12]}"
    if not entry.start < entry.pictures < entry.end <= record.footer_start < record.bytes:
        return f"bytes {entry.start}..{entry.end} do not lie in the file, whose footer begins at {record.footer_start}"
    if entry.train_instants > entry.instants or entry.train_cameras > entry.cameras:
        return "has more frames to train on than frames"
    if entry.bad_frames > entry.instants * entry.cameras:
        return "has more bad frames than frames"
    return None


def _same_fields(value: dict[str, Any], expected: set[str], where: str) -> None:
    for said, fields in (("lacks", expected - set(value)), ("holds unknown fields:", set(value) - expected)):
        if fields:
            shown = ", ".join(_shown(field) for field in sorted(fields)[:5])
            raise SpatialAvatarError(f"{where}: {said} {shown}; restore the file or run the ingest again")


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SpatialAvatarError(f"{where}: is {_shown(value)}, expected a list")
    return value


def _shown(value: Any) -> str:
    """A value as one short line. Whole numbers of thousands of digits cannot be written at all."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a huge number"
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 60 else text[:60] + "..."
