"""The listings of VHAP's exports, which GaussianAvatars trains on: frames, cameras, and where their files lie.

A folder lists its frames in ``transforms.json`` or, without it, in ``transforms_{train,val,test}.json`` together. A
frame is one picture of one camera at one timestep: ``transform_matrix`` is camera-to-world of OpenGL, ``cy`` counts
from the lower edge (VHAP flips it with the axes), ``flame_param_path`` names the timestep's parameters
(vhap_parameters.py). Union folders list frames of sibling folders (``../SEQUENCE/...``), whose names stand in
``sequences_{trainval,test}.txt``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from spatialavatar import files
from spatialavatar.clip.conventions import from_opengl_camera_to_world
from spatialavatar.clip.importers.foreign_json import read_foreign_json, rigid_matrix
from spatialavatar.clip.importers.foreign_pictures import LARGEST_SIDE, picture_size
from spatialavatar.clip.importers.options import safe_member
from spatialavatar.errors import SpatialAvatarError

Division = Literal["train", "val", "test"]
DIVISIONS: tuple[Division, ...] = ("train", "val", "test")
LISTING_FILE = "transforms.json"
CANONICAL_FILE = "canonical_flame_param.npz"
_SEQUENCE_FILES = ("sequences_trainval.txt", "sequences_test.txt")


@dataclass(frozen=True, order=True)
class VhapCamera:
    """A camera of a listing."""

    index: int
    id: str  # NeRSemble: the serial number


@dataclass(frozen=True)
class VhapSequence:
    """T timesteps seen by all of C cameras; only timesteps that every camera sees are kept."""

    location: str  # its own folder
    listing: str  # the file that lists it, for messages
    timesteps: list[int]  # timestep_index
    frame_numbers: list[int | None]  # in the video that was tracked, where the listing says it
    frame_names: list[str]  # timestep_id: how VHAP's unpacked pictures are numbered; empty where it is not said
    cameras: list[VhapCamera]
    width: int
    height: int
    world_to_camera: Float[np.ndarray, "T C 4 4"]  # OpenCV, metres
    intrinsics: Float[np.ndarray, "T C 3 3"]  # pixels, y from the upper edge
    images: list[list[str]]  # T x C locations
    mattes: list[list[str]] | None
    parameters: list[str]  # T locations
    divisions: list[list[Division | None]]  # T x C: the tool's own split
    incomplete: int  # timesteps left out


class _Entry(NamedTuple):
    """A frame of a listing, checked."""

    where: str  # listing and frame, for messages
    sequence: str | None  # of a union
    timestep: int
    number: int | None
    name: str
    camera: VhapCamera
    image: str
    matte: str | None
    parameters: str
    size: tuple[int, int] | None
    intrinsics: tuple[float | None, float | None, float | None, float | None, float | None]
    pose: Float[np.ndarray, "4 4"]
    division: Division | None


def read_sequences(folder: str, with_divisions: bool = False) -> list[VhapSequence]:
    """The sequences of an export, one unless it is a union. ``with_divisions``: also what each frame is meant for.

    Raises SpatialAvatarError: no listing, frames without what is needed, file names that point elsewhere.
    """
    names = set(files.list_folder(folder))
    parts: list[tuple[str, Division | None]] = [(division_file(d), d) for d in DIVISIONS if division_file(d) in names]
    divided: dict[tuple[str, int, VhapCamera], Division] = {}
    siblings = _siblings(folder, names)
    if LISTING_FILE in names:
        for file, division in parts if with_divisions else []:
            for entry in _entries(folder, file, division, siblings):
                assert division is not None
                divided[entry.sequence or "", entry.timestep, entry.camera] = division
        parts = [(LISTING_FILE, None)]
    entries = [entry for file, division in parts for entry in _entries(folder, file, division, siblings)]
    if not entries:
        raise SpatialAvatarError(f"{folder}: no frames in {LISTING_FILE} or transforms_train.json; export it again")
    grouped: dict[str | None, list[_Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.sequence, []).append(entry)
    return [
        _sequence(folder if name is None else siblings[name], files.join(folder, parts[0][0]), members, divided)
        for name, members in grouped.items()
    ]


def division_file(division: Division) -> str:
    """The listing of one division."""
    return f"transforms_{division}.json"


def _siblings(folder: str, names: set[str]) -> dict[str, str]:
    """Sequences that a union may take files from, by name."""
    found = {}
    for file in _SEQUENCE_FILES:
        if file not in names:
            continue
        location = files.join(folder, file)
        local = files.is_local(folder)
        parent = str(files.local_path(folder).resolve().parent) if local else folder.rpartition("/")[0]
        for line in files.read_bytes(location, 1 << 20).decode("utf-8", "replace").split("\n"):
            name = line.strip()
            if name:
                if "/" in name or name == ".":
                    raise SpatialAvatarError(f"{location}: {ascii(name)[:100]} is no name of a folder beside this one")
                found[name] = safe_member(parent, name, location)
    return found


def _entries(folder: str, file: str, division: Division | None, siblings: dict[str, str]) -> Iterator[_Entry]:
    location = files.join(folder, file)
    content = read_foreign_json(location)
    frames = content.get("frames")
    if not isinstance(frames, list):
        raise SpatialAvatarError(f"{location}: lacks a list of frames")
    for number, frame in enumerate(frames):
        where = f"{location}: frame {number}"
        if not isinstance(frame, dict):
            raise SpatialAvatarError(f"{where} is a {type(frame).__name__}, a JSON object was expected")
        yield _entry(folder, where, _Fields(where, frame, content), location, division, siblings)


@dataclass(frozen=True)
class _Fields:
    """The fields of one frame, checked when asked for."""

    where: str
    frame: dict[str, Any]
    shared: dict[str, Any]  # intrinsics may stand at the top alone

    def number(self, key: str) -> float | None:
        value = self.frame.get(key, self.shared.get(key))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
            raise SpatialAvatarError(f"{self.where}: {key} is {_shown(value)}, a number was expected")
        return float(value)

    def whole(self, key: str) -> int | None:
        value = self.frame.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**9):
            raise SpatialAvatarError(f"{self.where}: {key} is {_shown(value)}, a whole number from 0 was expected")
        return value

    def name(self, key: str) -> str:
        value = self.frame.get(key, "")
        if isinstance(value, bool) or not isinstance(value, int | str) or len(str(value)) > 100:
            raise SpatialAvatarError(f"{self.where}: {key} is {_shown(value)}, a short text was expected")
        return str(value)


def _shown(value: Any) -> str:
    return ascii(value)[:40] if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _entry(
    folder: str, where: str, fields: _Fields, location: str, division: Division | None, siblings: dict[str, str]
) -> _Entry:
    timestep, camera = fields.whole("timestep_index"), fields.whole("camera_index")
    if timestep is None:
        raise SpatialAvatarError(f"{where} lacks timestep_index; is this a folder of VHAP's?")
    if "flame_param_path" not in fields.frame:
        raise SpatialAvatarError(f"{where} lacks flame_param_path; export with VHAP's --flame-mode param")
    width, height = fields.number("w"), fields.number("h")
    size = None if width is None or height is None else (int(width), int(height))
    if size is not None and not (size == (width, height) and min(size) > 0 and max(size) <= LARGEST_SIDE):
        raise SpatialAvatarError(f"{where} is {width:g} x {height:g} pixels, expected whole numbers to {LARGEST_SIDE}")
    sequence, image = _member(folder, fields.frame.get("file_path"), location, siblings)
    matte = fields.frame.get("fg_mask_path")
    name = fields.name("timestep_id")
    numbered = name.isascii() and name.isdigit() and len(name) < 10
    number = int(name) if numbered else fields.whole("timestep_index_original")
    focal = fields.number("fl_x")
    angle = fields.number("camera_angle_x")
    if focal is None and angle is None:
        raise SpatialAvatarError(f"{where} lacks fl_x and camera_angle_x: its focal length is not known")
    return _Entry(
        where=where,
        sequence=sequence,
        timestep=timestep,
        number=number,
        name=name,
        camera=VhapCamera(camera or 0, fields.name("camera_id") or str(camera or 0)),
        image=image,
        matte=None if matte is None else _member(folder, matte, location, siblings)[1],
        parameters=_member(folder, fields.frame["flame_param_path"], location, siblings)[1],
        size=size,
        intrinsics=(focal, fields.number("fl_y"), fields.number("cx"), fields.number("cy"), angle),
        pose=rigid_matrix(fields.frame.get("transform_matrix"), f"{where}: transform_matrix"),
        division=division,
    )


def _member(folder: str, name: object, holder: str, siblings: dict[str, str]) -> tuple[str | None, str]:
    """Sequence (None: this folder's own) and place of a file that a listing names."""
    parts = name.split("/", 2) if isinstance(name, str) else []
    if len(parts) == 3 and parts[0] == ".." and parts[1] in siblings:
        return parts[1], safe_member(siblings[parts[1]], parts[2], holder)
    return None, safe_member(folder, name, holder)


def _sequence(
    folder: str, listing: str, entries: list[_Entry], divided: dict[tuple[str, int, VhapCamera], Division]
) -> VhapSequence:
    cameras = sorted({entry.camera for entry in entries})
    indices = [camera.index for camera in cameras]
    if len(set(indices)) < len(indices):
        raise SpatialAvatarError(
            f"{listing}: cameras {', '.join(c.id for c in cameras[:4])} share or lack a camera_index; "
            "each needs one of its own"
        )
    table: dict[tuple[int, VhapCamera], _Entry] = {}
    for entry in entries:
        other = table.setdefault((entry.timestep, entry.camera), entry)
        if other.image != entry.image:
            raise SpatialAvatarError(
                f"{entry.where}: is a second picture of timestep {entry.timestep}, camera {entry.camera.index} "
                f"(beside {other.image})"
            )
    everything = sorted({entry.timestep for entry in entries})  # by number: file names sort otherwise from 100000 on
    timesteps = [t for t in everything if all((t, c) in table for c in cameras)]
    if not timesteps:
        raise SpatialAvatarError(
            f"{listing}: none of the {len(everything)} timesteps is seen by all {len(cameras)} cameras; "
            "give a listing of cameras that ran together"
        )
    rows = [[table[t, c] for c in cameras] for t in timesteps]
    kept = [entry for row in rows for entry in row]
    size = kept[0].size or picture_size(kept[0].image)
    for entry in kept:
        if entry.size not in (None, size):
            assert entry.size is not None
            raise SpatialAvatarError(
                f"{entry.where} ({entry.image}) is {entry.size[0]} x {entry.size[1]} pixels, others are "
                f"{size[0]} x {size[1]}; a clip has one size: resize the pictures and export again"
            )
        if (entry.matte is None) != (kept[0].matte is None):
            odd = entry if entry.matte is None else kept[0]
            raise SpatialAvatarError(f"{odd.where} lacks fg_mask_path, which other frames have; export again")
    for row in rows:
        for entry in row[1:]:
            if entry.parameters != row[0].parameters:
                raise SpatialAvatarError(
                    f"{entry.where} names {entry.parameters}, another frame of timestep {entry.timestep} names "
                    f"{row[0].parameters}; one file for each timestep is needed"
                )
    poses = torch.from_numpy(np.stack([entry.pose for entry in kept]))
    shape = (len(timesteps), len(cameras))
    return VhapSequence(
        location=folder,
        listing=listing,
        timesteps=timesteps,
        frame_numbers=[row[0].number for row in rows],
        frame_names=[row[0].name for row in rows],
        cameras=cameras,
        width=size[0],
        height=size[1],
        world_to_camera=from_opengl_camera_to_world(poses).numpy().reshape(*shape, 4, 4),
        intrinsics=np.stack([_intrinsics(entry, *size) for entry in kept]).reshape(*shape, 3, 3),
        images=[[entry.image for entry in row] for row in rows],
        mattes=None if kept[0].matte is None else [[entry.matte or "" for entry in row] for row in rows],
        parameters=[row[0].parameters for row in rows],
        divisions=[[e.division or divided.get((e.sequence or "", e.timestep, e.camera)) for e in row] for row in rows],
        incomplete=len(everything) - len(timesteps),
    )


def _intrinsics(entry: _Entry, width: int, height: int) -> Float[np.ndarray, "3 3"]:
    """As OpenCV's; what is not said is taken from camera_angle_x (square pixels) and the middle of the picture."""
    fx, fy, cx, cy, angle = entry.intrinsics
    if fx is None:
        assert angle is not None
        if not 0 < angle < math.pi:
            raise SpatialAvatarError(f"{entry.where}: camera_angle_x is {angle:g}, expected 0..pi radians")
        fx = width / 2 / math.tan(angle / 2)
    middle = height / 2
    return np.array(
        [
            [fx, 0, width / 2 if cx is None else cx],
            [0, fx if fy is None else fy, height - (middle if cy is None else cy)],
            [0, 0, 1],
        ]
    )
