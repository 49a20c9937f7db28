"""``clip.json``: what a tracked clip says of itself, checked against ``clip.schema.json``.

The header holds no file names. They follow from instant and camera (``frame_file``), so nothing in a clip can point
outside its folder.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import jsonschema

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.reference import HeadReference

FORMAT = "spatialavatar-clip"
VERSION = 1
HEADER_FILE = "clip.json"
PARAMS_FILE = "params.safetensors"
UNFINISHED_FILE = "clip.unfinished"  # stands in the folder while a clip is being written
MatteKind = Literal["alpha", "burnt_black", "none"]
Picture = Literal["images", "masks", "roi"]
PICTURES: tuple[Picture, ...] = ("images", "masks", "roi")
IDENTITY_RULE = "letters a-z, digits, '.', '_' and '-', not '.' or '-' first, at most 100 of them"


class FrameIndex(NamedTuple):
    """One picture: the instant, and the camera, both from 0."""

    instant: int
    camera: int


class Fault(NamedTuple):
    """Something wrong with a clip."""

    file: str  # inside the clip's folder
    frame: FrameIndex | None
    field: str
    message: str

    def __str__(self) -> str:
        where = "" if self.frame is None else f", instant {self.frame.instant} camera {self.frame.camera}"
        return f"{self.file}{where}: {self.field}: {self.message}"


def in_a_line(faults: Sequence[Fault], hint: str = "") -> str:
    """The first of some faults, and how many more there are."""
    return f"{faults[0]} (and {len(faults) - 1} more{hint})" if len(faults) > 1 else str(faults[0])


@dataclass(frozen=True)
class ClipSource:
    """Where pictures and parameters come from."""

    tool: str
    note: str = ""
    licence: str = "not stated"


@dataclass(frozen=True)
class ClipHeader:
    """The fields of ``clip.json``."""

    identity: str
    instants: int
    cameras: int
    width: int
    height: int
    fps: float
    image_format: Literal["jpg", "png"]
    matte: MatteKind
    region: bool
    test_from: int | None
    test_cameras: list[int]
    shape_codes: int
    expression_codes: int
    head: HeadReference
    source: ClipSource

    def to_json(self) -> dict[str, Any]:
        """What ``clip.json`` holds."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    @property
    def pictures(self) -> list[Picture]:
        """The folders of pictures that the clip has."""
        present: list[Picture] = ["images"]
        if self.matte == "alpha":
            present.append("masks")
        if self.region:
            present.append("roi")
        return present

    def frame_file(self, picture: Picture, frame: FrameIndex) -> str:
        """Path inside the clip's folder: ``images/000000.jpg``, or ``images/000000_00.jpg`` with several cameras."""
        camera = f"_{frame.camera:02d}" if self.cameras > 1 else ""
        ending = self.image_format if picture == "images" else "png"
        return f"{picture}/{frame.instant:06d}{camera}.{ending}"

    def frames(self) -> list[FrameIndex]:
        """All frames, by instant, then camera."""
        return [FrameIndex(t, c) for t in range(self.instants) for c in range(self.cameras)]


def beside(folder: files.Location, which: Literal["new", "old"]) -> str:
    """Where a clip stands while it takes another's place (``new``) or makes room for one (``old``)."""
    name = f"{which}{files.TEMPORARY}"
    if not files.is_local(folder):
        return files.join(folder, f".{name}")
    path = files.local_path(folder).resolve()
    return str(path.with_name(f".{path.name}.{name}"))


def is_identity(name: str) -> bool:
    """Whether a text may name a person (IDENTITY_RULE)."""
    return jsonschema.Draft202012Validator(_schema()["properties"]["identity"]).is_valid(name)


def safe_identity(name: str) -> str:
    """``name`` with everything that an identity cannot hold replaced by '_'."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:100] or "unnamed"


def header_from_json(value: Any, name: str) -> ClipHeader:
    """Raises SpatialAvatarError with the first fault; ``name`` of the file is for messages."""
    faults, header = check_header(value)
    if faults or header is None:
        more = f" (and {len(faults) - 1} more fault{'s' if len(faults) > 2 else ''})" if len(faults) > 1 else ""
        raise SpatialAvatarError(f"{name}: {faults[0].field}: {faults[0].message}{more}")
    return header


def read_header_json(folder: files.Location) -> Any:
    """The content of ``clip.json`` as parsed, not yet checked."""
    location = files.join(folder, HEADER_FILE)
    if not files.exists(location):
        if files.exists(files.join(folder, UNFINISHED_FILE)):
            raise SpatialAvatarError(f"{folder}: writing this clip was interrupted; run the command that made it again")
        if not files.is_folder(folder):
            if files.is_local(folder) and files.is_folder(beside(folder, "old")):
                raise SpatialAvatarError(
                    f"{folder}: replacing this clip was interrupted, the old one is {beside(folder, 'old')}; "
                    "run the command that replaced it again, or rename that folder"
                )
            raise SpatialAvatarError(f"{folder}: no such folder; a tracked clip is a folder that holds {HEADER_FILE}")
        raise SpatialAvatarError(
            f"{folder}: not a tracked clip, it holds no {HEADER_FILE}; make one with 'spatialavatar clip import'"
        )
    return files.read_json(location)


def check_header(value: Any) -> tuple[list[Fault], ClipHeader | None]:
    """Every fault of a parsed ``clip.json``, and the header with faulty side fields replaced by neutral ones.

    The header is None when the fields that say which files and arrays there are cannot be known.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        return [_fault("format", f'not a tracked clip of ours, expected "format": "{FORMAT}"')], None
    if value.get("version") != VERSION or isinstance(value.get("version"), bool):
        found = json.dumps(value.get("version"), default=str)[:40]
        message = f"is {found}, this program reads {VERSION}; import the clip again or use a matching release"
        return [_fault("version", message)], None

    faults = []
    usable = {key: value[key] for key in value if key in _schema()["properties"]}
    for error in jsonschema.Draft202012Validator(_schema()).iter_errors(value):
        field = ".".join(str(p) for p in error.absolute_path) or "clip.json"
        faults.append(_fault(field, _wording(error)))
        if error.absolute_path:
            usable.pop(str(error.absolute_path[0]), None)
    if isinstance(usable.get("fps"), float) and not math.isfinite(usable["fps"]):
        faults.append(_fault("fps", f"is {usable.pop('fps')}, expected a positive number"))
    if set(usable) & _LAYOUT != _LAYOUT:
        return faults, None

    known = {**_NEUTRAL, **usable}
    for key in ("instants", "cameras", "width", "height", "shape_codes", "expression_codes"):
        known[key] = int(known[key])  # JSON Schema counts 5.0 as an integer
    t, c = known["instants"], known["cameras"]
    if known["test_from"] is not None:
        known["test_from"] = int(known["test_from"])
        if known["test_from"] >= t:
            faults.append(
                _fault("test_from", f"is {known['test_from']}, expected 1..{t - 1} or null: there are {t} instants")
            )
            known["test_from"] = None
    known["test_cameras"] = sorted(int(i) for i in known["test_cameras"])
    if any(i >= c for i in known["test_cameras"]) or len(known["test_cameras"]) >= c:
        message = f"is {known['test_cameras']}; expected some of 0..{c - 1}, with at least one camera left for training"
        faults.append(_fault("test_cameras", message))
        known["test_cameras"] = []
    known["fps"] = float(known["fps"])
    header = ClipHeader(
        **{k: known[k] for k in _FIELDS if k not in ("head", "source")},
        head=HeadReference(**known["head"]),
        source=ClipSource(**known["source"]),
    )
    return faults, header


def _wording(error: jsonschema.ValidationError) -> str:
    """What is wrong, without the schema's language."""
    rule, limit = str(error.validator), error.validator_value
    found = json.dumps(error.instance, default=str)
    found = found if len(found) <= 60 else found[:60] + " ..."
    if rule == "pattern" and error.absolute_path[-1] == "identity":
        return f"is {found}, expected {IDENTITY_RULE}"
    if rule == "pattern":
        return f"is {found}, expected 64 hexadecimal digits"
    if rule in ("minimum", "maximum") and {"minimum", "maximum"} <= set(error.schema):
        return f"is {found}, expected {error.schema['minimum']}..{error.schema['maximum']}"
    if rule in ("enum", "const"):
        choices = limit if rule == "enum" else [limit]
        return f"is {found}, expected {' or '.join(json.dumps(choice) for choice in choices)}"
    if rule == "type":
        return f"is {found}, expected {' or '.join([limit] if isinstance(limit, str) else limit)}"
    if rule == "required":
        return f"lacks {', '.join(key for key in limit if key not in error.instance)}"
    if rule == "additionalProperties":
        unknown = sorted(set(error.instance) - set(error.schema["properties"]))
        return f"holds unknown keys: {json.dumps(unknown)[1:-1][:200]}"
    worded = {
        "exclusiveMinimum": f"more than {limit}",
        "maximum": f"at most {limit}",
        "maxLength": f"at most {limit} characters",
        "uniqueItems": "each once",
    }
    if rule in worded:
        return f"is {found}, expected {worded[rule]}"
    return error.message if len(error.message) < 300 else error.message[:300] + " ..."


_FIELDS = [f.name for f in dataclasses.fields(ClipHeader)]
# without these nobody can say which files and arrays belong to the clip
_LAYOUT = {
    "instants",
    "cameras",
    "width",
    "height",
    "image_format",
    "matte",
    "region",
    "shape_codes",
    "expression_codes",
}
_NEUTRAL: dict[str, Any] = {
    "identity": "unknown",
    "fps": 25.0,
    "test_from": None,
    "test_cameras": [],
    "head": {"id": "", "hash": "", "licence": "", "attribution": ""},
    "source": {"tool": "", "note": "", "licence": ""},
}


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(resources.files("spatialavatar.clip").joinpath("clip.schema.json").read_text())
    return schema


def _fault(field: str, message: str) -> Fault:
    return Fault(HEADER_FILE, None, field, message)
