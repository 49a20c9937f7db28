"""Reading what VHAP exports and GaussianAvatars trains on: listings, cameras, FLAME parameters, pictures.

A folder lists its frames in ``transforms.json`` or, without it, in ``transforms_{train,val,test}.json`` together. A
frame is one picture of one camera at one timestep: ``transform_matrix`` is camera-to-world of OpenGL, ``cy`` counts
from the lower edge (VHAP flips it with the axes). ``flame_param/*.npz`` holds a timestep's parameters, FLAME x 1,
metres. Union folders list frames of sibling folders (``../SEQUENCE/...``), whose names stand in
``sequences_{trainval,test}.txt``.
"""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8

from spatialavatar import files
from spatialavatar.clip.conventions import from_opengl_camera_to_world
from spatialavatar.clip.importers.mattes import LARGEST_SIDE, has_alpha, split_alpha, uncomposited
from spatialavatar.clip.importers.options import ImportOptions, fitted_codes, safe_member
from spatialavatar.clip.pictures import EncodedFrame, decode, encode, encoded_size
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams

Division = Literal["train", "val", "test"]
DIVISIONS: tuple[Division, ...] = ("train", "val", "test")
LISTING_FILE = "transforms.json"
CANONICAL_FILE = "canonical_flame_param.npz"
TEETH = 120  # vertices that VHAP appends to FLAME's
PARAMETERS = {"translation": 3, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "shape": 0, "expr": 0}
_SEQUENCE_FILES = ("sequences_trainval.txt", "sequences_test.txt")
_LARGEST_LISTING = 1 << 29  # bytes
_LARGEST_PARAMETERS = 1 << 26
_LARGEST_PICTURE = 1 << 28
_ROUNDING = 1e-5  # of a code, and of an offset in metres: what counts as the same value
_ROTATION_TOLERANCE = 1e-3
_READERS = 16  # files read at once


@dataclass(frozen=True, order=True)
class VhapCamera:
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


# listings -------------------------------------------------------------------------------------------------------------


def is_export(names: frozenset[str]) -> bool:
    listed = {LISTING_FILE, *(_division_file(d) for d in DIVISIONS)} & names
    return bool(listed) and bool({CANONICAL_FILE, "flame_param"} & names)


def read_sequences(folder: str, with_divisions: bool = False) -> list[VhapSequence]:
    """The sequences of an export, one unless it is a union. ``with_divisions``: also what each frame is meant for.

    Raises SpatialAvatarError: no listing, frames without what is needed, file names that point elsewhere.
    """
    names = set(files.list_folder(folder))
    parts: list[tuple[str, Division | None]] = [(_division_file(d), d) for d in DIVISIONS if _division_file(d) in names]
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


def _division_file(division: Division) -> str:
    return f"transforms_{division}.json"


def _siblings(folder: str, names: set[str]) -> dict[str, str]:
    """Sequences that a union may take files from, by name."""
    found = {}
    for file in _SEQUENCE_FILES:
        if file not in names:
            continue
        location = files.join(folder, file)
        parent = str(Path(files.local_path(folder)).resolve().parent) if files.is_local(folder) else _upper(folder)
        for line in files.read_bytes(location, 1 << 20).decode("utf-8", "replace").split("\n"):
            name = line.strip()
            if name:
                if "/" in name or name == ".":
                    raise SpatialAvatarError(f"{location}: {ascii(name)[:100]} is no name of a folder beside this one")
                found[name] = safe_member(parent, name, location)
    return found


def _upper(folder: str) -> str:
    return folder.rstrip("/").rsplit("/", 1)[0]


def read_object(location: str) -> dict[str, Any]:
    """A JSON file of a tool. Raises SpatialAvatarError: no such file, too large, not a JSON object."""
    try:
        value = json.loads(files.read_bytes(location, _LARGEST_LISTING))
    except (ValueError, RecursionError) as e:  # numbers of thousands of digits, thousands of nested brackets
        reason = ascii(str(e))[1:-1][:120]
        raise SpatialAvatarError(f"{location}: not usable JSON ({reason}); restore the file or make it anew") from None
    if not isinstance(value, dict):
        raise SpatialAvatarError(f"{location}: holds a {type(value).__name__}, a JSON object was expected")
    return value


def _entries(folder: str, file: str, division: Division | None, siblings: dict[str, str]) -> Iterator[_Entry]:
    location = files.join(folder, file)
    content = read_object(location)
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
        pose=_pose(where, fields.frame.get("transform_matrix")),
        division=division,
    )


def _member(folder: str, name: object, holder: str, siblings: dict[str, str]) -> tuple[str | None, str]:
    """Sequence (None: this folder's own) and place of a file that a listing names."""
    parts = name.split("/", 2) if isinstance(name, str) else []
    if len(parts) == 3 and parts[0] == ".." and parts[1] in siblings:
        return parts[1], safe_member(siblings[parts[1]], parts[2], holder)
    return None, safe_member(folder, name, holder)


def _pose(where: str, value: Any) -> Float[np.ndarray, "4 4"]:
    try:
        pose = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        pose = np.empty(0)
    if pose.shape != (4, 4) or not (np.abs(pose) < 1e9).all():
        raise SpatialAvatarError(f"{where}: transform_matrix is not 4 x 4 finite numbers")
    rotation = pose[:3, :3]
    off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if off > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0 or np.abs(pose[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise SpatialAvatarError(
            f"{where}: transform_matrix is no rotation and position (R R^T differs from the identity by {off:.3g}, "
            f"determinant {np.linalg.det(rotation):.3g}); expected camera-to-world"
        )
    return pose


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
    size = kept[0].size or _picture_size(kept[0].image)
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


def _picture_size(location: str) -> tuple[int, int]:
    try:
        size = encoded_size(files.read_bytes(location, _LARGEST_PICTURE))
    except ValueError as e:
        raise SpatialAvatarError(f"{location}: {e}") from None
    if max(size.width, size.height) > LARGEST_SIDE:
        raise SpatialAvatarError(f"{location}: is {size.width} x {size.height} pixels, at most {LARGEST_SIDE} are read")
    return size.width, size.height


# parameters -----------------------------------------------------------------------------------------------------------


def read_parameters(sequence: VhapSequence, head: HeadModel, options: ImportOptions) -> tuple[HeadParams, list[str]]:
    """Head parameters of every timestep, and what had to be left out.

    Raises SpatialAvatarError: arrays that are missing or do not fit the head, a shape or static offset that changes
    with time, dynamic offsets that nobody said to drop.
    """
    first: dict[str, np.ndarray] = {}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in PARAMETERS if name != "shape"}
    largest = 0.0
    pool = ThreadPoolExecutor(_READERS)
    try:
        for location, row in zip(sequence.parameters, pool.map(_read_row, sequence.parameters)):
            dynamic = row.pop("dynamic_offset", None)
            if dynamic is not None and dynamic.size:
                largest = max(largest, float(np.abs(dynamic).max()))
                if not largest == 0 and not options.drop_dynamic_offsets:
                    raise SpatialAvatarError(
                        f"{location}: dynamic_offset moves vertices by up to {1000 * largest:.3g} mm, which no clip "
                        "holds; track without dynamic offsets, or import without them by --drop-dynamic-offsets"
                    )
            for name in ("shape", "static_offset"):
                _require_same(name, first.get(name), row.get(name), location, sequence.parameters[0], bool(first))
            first = first or row
            for name, values in columns.items():
                if values and values[0].shape != row[name].shape:
                    raise SpatialAvatarError(
                        f"{location}: {name} has {row[name].size} numbers, other files have {values[0].size}"
                    )
                values.append(row[name])
    finally:
        pool.shutdown(cancel_futures=True)
    count = len(sequence.parameters)

    def stacked(name: str) -> torch.Tensor:
        return _narrow(np.stack(columns[name]))

    place = sequence.parameters[0]
    offset = None
    if "static_offset" in first:
        offset = _narrow(_fitted_offset(first["static_offset"], head, place)).expand(count, -1, -1)
    params = HeadParams(
        shape=fitted_codes(_narrow(first["shape"]), head.shape_codes, f"{place}: shape").expand(count, -1),
        expression=fitted_codes(stacked("expr"), head.expression_codes, f"{sequence.location}: expr"),
        global_rotation=stacked("rotation"),
        neck=stacked("neck_pose"),
        jaw=stacked("jaw_pose"),
        eyes=stacked("eyes_pose"),
        translation=stacked("translation"),
        static_offset=offset,
    )
    return params, [f"dynamic offsets of up to {1000 * largest:.3g} mm dropped"] if largest else []


def _read_row(location: str) -> dict[str, np.ndarray]:
    """The arrays of one timestep, those of one row without that axis."""
    arrays = files.read_npz(location, (*PARAMETERS, "static_offset", "dynamic_offset"), _LARGEST_PARAMETERS)
    missing = [name for name in PARAMETERS if name not in arrays]
    if missing:
        raise SpatialAvatarError(f"{location}: lacks {', '.join(missing)}; export with VHAP's --flame-mode param")
    for name, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise SpatialAvatarError(f"{location}: {name} is {array.dtype}, expected numbers")
        axes = 2 if name.endswith("offset") else 1
        row = array[0] if array.ndim == axes + 1 and len(array) == 1 else array
        wanted = PARAMETERS.get(name, 0)
        if row.ndim != axes or (wanted and row.size != wanted) or (axes == 2 and row.shape[1] != 3):
            expected = "V x 3" if axes == 2 else wanted or "a row of codes"
            raise SpatialAvatarError(f"{location}: {name} has shape {list(array.shape)}, expected {expected}")
        arrays[name] = row
    return arrays


def _require_same(
    name: str, first: np.ndarray | None, now: np.ndarray | None, location: str, first_location: str, seen: bool
) -> None:
    if not seen or (first is None and now is None):
        return
    if first is None or now is None or first.shape != now.shape:
        raise SpatialAvatarError(f"{location}: {name} is not as in {first_location}; a clip has one for all timesteps")
    difference = np.abs(first.astype(np.float64) - now.astype(np.float64)).max() if now.size else 0.0
    if not difference <= _ROUNDING:
        raise SpatialAvatarError(
            f"{location}: {name} differs from {first_location} by {difference:.3g}; a clip has one for all timesteps: "
            "import sequences of one tracking run, or track again"
        )


def _fitted_offset(offset: np.ndarray, head: HeadModel, location: str) -> np.ndarray:
    """VHAP's teeth come last and are left out for a head without them."""
    if len(offset) not in (head.vertex_count, head.vertex_count + TEETH):
        raise SpatialAvatarError(
            f"{location}: static_offset has {len(offset)} rows, head '{head.info.id}' has {head.vertex_count} vertices "
            f"({head.vertex_count + TEETH} with VHAP's teeth); name the head that the clip was tracked with by --head"
        )
    return offset[: head.vertex_count]


def _narrow(array: np.ndarray) -> torch.Tensor:
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which the clip's own check refuses
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))


# pictures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VhapPictures:
    """The export's pictures as straight images with their mattes."""

    sequence: VhapSequence
    kind: Literal["jpg", "png"]  # of the first image
    alpha: bool  # the images are RGBA and no masks stand beside them
    on_white: bool  # the images are composited on white: undone with the matte

    @property
    def has_mattes(self) -> bool:
        return self.alpha or self.sequence.mattes is not None

    def encoded(self, instant: int, camera: int) -> EncodedFrame:
        """Bytes as they are in the export where nothing has to be undone."""
        image = self.sequence.images[instant][camera]
        data = files.read_bytes(image, _LARGEST_PICTURE)
        if self.alpha:
            try:
                self._check_size(data)
                return EncodedFrame(*split_alpha(data))
            except ValueError as e:
                raise SpatialAvatarError(f"{image}: {e}") from None
        mattes = self.sequence.mattes
        matte = None if mattes is None else files.read_bytes(mattes[instant][camera], _LARGEST_PICTURE)
        if self.on_white or has_alpha(data):
            straight, _ = self.decoded(instant, camera)
            data = encode(straight, "png")
        return EncodedFrame(data, matte)

    def decoded(self, instant: int, camera: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"] | None]:
        """Straight image and matte."""
        if self.alpha:
            frame = self.encoded(instant, camera)
            assert frame.matte is not None
            size = (self.sequence.width, self.sequence.height)
            return decode(frame.image, *size, color=True), decode(frame.matte, *size, color=False)
        image = self._pixels(self.sequence.images[instant][camera], color=True)
        matte = self.matte(instant, camera)
        if self.on_white and matte is not None:
            image = uncomposited(image, matte, 1.0)
        return image, matte

    def matte(self, instant: int, camera: int) -> UInt8[np.ndarray, "H W"] | None:
        if self.alpha:
            return self.decoded(instant, camera)[1]
        mattes = self.sequence.mattes
        return None if mattes is None else self._pixels(mattes[instant][camera], color=False)

    def _pixels(self, location: str, color: bool) -> UInt8[np.ndarray, "H W *C"]:
        data = files.read_bytes(location, _LARGEST_PICTURE)
        try:
            return decode(data, self.sequence.width, self.sequence.height, color)
        except ValueError as e:
            raise SpatialAvatarError(f"{location}: {e}") from None

    def _check_size(self, data: bytes) -> None:
        size, wanted = encoded_size(data), (self.sequence.width, self.sequence.height)
        if size[1:] != wanted:
            raise ValueError(f"is {size.width} x {size.height} pixels, expected {wanted[0]} x {wanted[1]}")


def open_pictures(sequence: VhapSequence) -> VhapPictures:
    """Looks at the first picture of each camera, until one shows what is behind the head, for the way they are stored.

    Raises SpatialAvatarError: the first picture is missing or damaged.
    """
    start = files.read_start(sequence.images[0][0], 64)
    kind: Literal["jpg", "png"] = "jpg" if start.startswith(b"\xff\xd8") else "png"
    if sequence.mattes is None:
        return VhapPictures(sequence, kind, alpha=has_alpha(start), on_white=False)
    plain = VhapPictures(sequence, kind, alpha=False, on_white=False)
    for camera in range(len(sequence.cameras)):
        image, matte = plain.decoded(0, camera)
        assert matte is not None
        if (matte == 0).any():
            white = image[matte == 0].min(-1) >= 250  # VHAP cuts decimals off more than once
            on_white = bool(white.mean() > 0.99)
            return VhapPictures(sequence, "png" if on_white else kind, alpha=False, on_white=on_white)
    return plain
