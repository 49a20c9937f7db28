"""Importer for NeRSemble v2: its calibration and videos, with the head parameters that VHAP tracked.

Source: a sequence (``ROOT/030/sequences/SEQ``) or a participant (``ROOT/030``: every sequence with tracking). Tracking:
VHAP's export, in ``SEQ/vhap`` or where ``--tracking`` says. Cameras come from ``calibration/camera_params.json``,
brought into VHAP's world, which is theirs rigidly moved; mattes from the export; colours are corrected by
``calibration/color_calibration.json`` whatever the pixels come from, for VHAP leaves them as they are.

Pixels come from ``images/cam_{serial}.mp4``, else from the pictures that VHAP unpacked there, else from the export,
all at the export's size. VHAP unpacks videos at 25 frames in a second unless told otherwise, so frame n of the tracking
need not be frame n of the video: which of the two counts is in use is found by the export's own pictures.
"""

import contextlib
import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from spatialavatar import files
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.header import ClipSource
from spatialavatar.clip.importers.color_correction import color_matrix, corrected
from spatialavatar.clip.importers.mattes import LARGEST_SIDE
from spatialavatar.clip.importers.options import ImportOptions, chosen_identity, with_test_last
from spatialavatar.clip.importers.vhap import held_out, reading_notes
from spatialavatar.clip.importers.vhap_export import (
    VhapPictures,
    VhapSequence,
    is_export,
    open_pictures,
    read_object,
    read_parameters,
    read_sequences,
)
from spatialavatar.clip.pictures import decode, encoded_size
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel

CALIBRATED_SIZE = (2200, 3208)  # width and height of the pictures that the intrinsics belong to
UNPACKED_RATE = 25.0  # frames in a second that VHAP unpacks
LARGEST_SHIFT, LARGEST_TURN = 0.01, 0.5  # metres, degrees: what calibration and tracking may disagree by
_BACKGROUND = "BACKGROUND"  # stands among the sequences
_SEQUENCE_NAMES = {"images", "alpha_maps", "landmark2d", "vhap", "annotations"}
_OTHER_CAMERA = 0.01  # share by which VHAP's intrinsics may differ
_OTHER_PICTURE = 20.0  # levels: beyond this mean difference a picture is not the one that was tracked
_LARGEST_PICTURE = 1 << 28  # bytes

Pixels = UInt8[np.ndarray, "H W 3"]


def is_nersemble(names: frozenset[str]) -> bool:
    """A participant, or a sequence: with tracking, or nothing but pictures and what is made from them."""
    if {"calibration", "sequences"} <= names or {"images", "vhap"} <= names:
        return True
    return "images" in names and all(name in _SEQUENCE_NAMES or name.startswith("images_") for name in names)


def open_nersemble(folder: str, head: HeadModel, options: ImportOptions) -> list[TrackedClip]:
    """A clip for each sequence. Raises SpatialAvatarError: no tracking, calibration that disagrees with it."""
    place = str(Path(files.local_path(folder)).resolve()) if files.is_local(folder) else folder
    if "sequences" in files.list_folder(place):
        participant = place
        names = [name for name in files.list_folder(files.join(place, "sequences")) if name != _BACKGROUND]
        found = [files.join(place, "sequences", name) for name in names]
    else:
        participant, found = place.rsplit("/", 2)[0], [place]
    person = participant.rsplit("/", 1)[-1]
    pairs = [(sequence, _tracking(sequence, person, options)) for sequence in found]
    tracked = [(sequence, tracking) for sequence, tracking in pairs if tracking is not None]
    if not tracked:
        where = "its folder vhap/" if options.tracking is None else options.tracking
        raise SpatialAvatarError(
            f"{folder}: no sequence has tracking in {where}; name the folder that VHAP exported by --tracking"
        )
    if len({tracking for _, tracking in tracked}) < len(tracked):
        raise SpatialAvatarError(
            f"{options.tracking}: is the tracking of one sequence, {folder} holds several; name the sequence's folder"
        )
    calibration = read_calibration(files.join(participant, "calibration"))
    return [_open(sequence, tracking, person, calibration, head, options) for sequence, tracking in tracked]


def _tracking(sequence: str, person: str, options: ImportOptions) -> str | None:
    """VHAP's export of a sequence: a folder named like ``030_EMO-1_...`` where several stand side by side."""
    if options.tracking is None:
        own = files.join(sequence, "vhap")
        return own if is_export(frozenset(files.list_folder(own))) else None
    tracking, name = str(options.tracking).rstrip("/"), sequence.rsplit("/", 1)[-1]
    names = files.list_folder(tracking)
    if is_export(frozenset(names)):
        return tracking
    fitting = [n for n in names if n == name or _is_named_after(n, person, name)]
    if len(fitting) > 1:
        raise SpatialAvatarError(f"{tracking}: {' and '.join(fitting[:3])} both track {name}; name one by --tracking")
    return files.join(tracking, fitting[0]) if fitting else None


def _is_named_after(folder: str, person: str, sequence: str) -> bool:
    parts = folder.split("_")
    return len(parts) > 1 and parts[0] == person and f"{sequence}-".startswith(f"{parts[1]}-")


def _open(
    folder: str, tracking: str, person: str, calibration: "Calibration", head: HeadModel, options: ImportOptions
) -> TrackedClip:
    sequences = read_sequences(tracking, with_divisions=options.keep_split)
    if len(sequences) != 1 or sequences[0].location != tracking:
        raise SpatialAvatarError(f"{tracking}: is a union of sequences; name the export of this one by --tracking")
    sequence = sequences[0]
    world_to_camera, intrinsics, notes = calibrated_cameras(sequence, calibration)
    params, dropped = read_parameters(sequence, head, options)
    pictures = (
        open_pictures(sequence)
        if files.exists(sequence.images[0][0])
        else VhapPictures(sequence, "png", alpha=False, on_white=False)
    )
    source = _pixel_source(folder, sequence, pictures)
    matrices = [calibration.colors.get(camera.id) for camera in sequence.cameras]
    test_from, test_cameras, split_notes = held_out(sequence) if options.keep_split else (None, [], [])

    def frames(instant: int, camera: int) -> tuple[Pixels | UInt8[np.ndarray, "H W"] | None, ...]:
        image, matrix = source.read(instant, camera), matrices[camera]
        return image if matrix is None else corrected(image, matrix), pictures.matte(instant, camera)

    notes = [*reading_notes(sequence), f"pixels from {source.name}", *source.notes, *notes, *dropped, *split_notes]
    clip = assemble_clip(
        folder,
        identity=chosen_identity(options, person),
        head=head,
        params=params,
        world_to_camera=torch.from_numpy(world_to_camera),
        intrinsics=torch.from_numpy(intrinsics),
        width=sequence.width,
        height=sequence.height,
        fps=options.fps or source.rate,
        frames=frames,
        matte_kind="alpha" if pictures.has_mattes else "none",
        test_from=test_from,
        test_cameras=test_cameras,
        source=ClipSource("nersemble", "; ".join(notes), options.licence or "not stated"),
    )
    return with_test_last(clip, options.test_last)


# calibration ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Of one participant's 16 cameras, by serial number."""

    location: str
    world_to_camera: dict[str, Float[np.ndarray, "4 4"]]  # OpenCV, metres
    intrinsics: Float[np.ndarray, "3 3"]  # pixels at CALIBRATED_SIZE; one for all cameras
    colors: dict[str, Float[np.ndarray, "3 n"]]  # empty without color_calibration.json


def read_calibration(folder: str) -> Calibration:
    location = files.join(folder, "camera_params.json")
    content = read_object(location)
    poses = content.get("world_2_cam")
    if not isinstance(poses, dict) or not poses:
        raise SpatialAvatarError(f"{location}: lacks world_2_cam, the cameras by serial number")
    intrinsics = _matrix(content.get("intrinsics"), (3, 3), f"{location}: intrinsics")
    if not (intrinsics[[0, 1], [0, 1]] > 0).all():
        raise SpatialAvatarError(f"{location}: intrinsics: focal lengths must be positive")
    colors: dict[str, Any] = {}
    color_file = files.join(folder, "color_calibration.json")
    if files.exists(color_file):
        colors = read_object(color_file)
        missing = [serial for serial in poses if serial not in colors]
        if missing:
            raise SpatialAvatarError(f"{color_file}: lacks camera {ascii(missing[0])[:40]}; get the file again")
    return Calibration(
        location=location,
        world_to_camera={s: _rigid(p, f"{location}: camera {ascii(s)[:40]}") for s, p in poses.items()},
        intrinsics=intrinsics,
        colors={s: color_matrix(m, f"{color_file}: camera {ascii(s)[:40]}") for s, m in colors.items()},
    )


def _matrix(value: Any, shape: tuple[int, int], where: str) -> np.ndarray:
    try:
        matrix = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape != shape or not (np.abs(matrix) < 1e9).all():
        raise SpatialAvatarError(f"{where}: is not {shape[0]} x {shape[1]} finite numbers")
    return matrix


def _rigid(value: Any, where: str) -> Float[np.ndarray, "4 4"]:
    matrix = _matrix(value, (4, 4), where)
    rotation = matrix[:3, :3]
    off = max(np.abs(rotation @ rotation.T - np.eye(3)).max(), np.abs(matrix[3] - [0, 0, 0, 1]).max())
    if off > 1e-3 or np.linalg.det(rotation) < 0:
        raise SpatialAvatarError(f"{where}: is no rotation and translation (off by {off:.3g})")
    return matrix


def calibrated_cameras(
    sequence: VhapSequence, calibration: Calibration
) -> tuple[Float[np.ndarray, "T C 4 4"], Float[np.ndarray, "T C 3 3"], list[str]]:
    """The calibration's cameras in the world of VHAP's parameters, at the export's picture size, and remarks.

    Raises SpatialAvatarError: cameras that the calibration does not know, that lie otherwise, or see otherwise.
    """
    unknown = [camera.id for camera in sequence.cameras if camera.id not in calibration.world_to_camera]
    if unknown:
        raise SpatialAvatarError(
            f"{sequence.listing}: camera {ascii(unknown[0])[:40]} is not in {calibration.location}; "
            "camera_id must be the serial number, is this the tracking of this participant?"
        )
    instants, cameras = len(sequence.timesteps), len(sequence.cameras)
    known = np.stack([calibration.world_to_camera[camera.id] for camera in sequence.cameras])
    motion, shift, turn = rigid_motion(sequence.world_to_camera.reshape(-1, 4, 4), np.tile(known, (instants, 1, 1)))
    worst = int(np.maximum(shift / LARGEST_SHIFT, turn / LARGEST_TURN).argmax())
    if shift[worst] > LARGEST_SHIFT or turn[worst] > LARGEST_TURN:
        raise SpatialAvatarError(
            f"{sequence.listing}: cameras do not stand as in {calibration.location}: after the best rigid motion "
            f"camera {sequence.cameras[worst % cameras].id} at timestep {sequence.timesteps[worst // cameras]} is "
            f"{100 * shift[worst]:.2f} cm and {turn[worst]:.2f} degrees off (up to {100 * LARGEST_SHIFT:g} cm and "
            f"{LARGEST_TURN:g} degrees are fine); is this the tracking of this participant?"
        )
    scale = np.array([sequence.width / CALIBRATED_SIZE[0], sequence.height / CALIBRATED_SIZE[1], 1])
    intrinsics = calibration.intrinsics * scale[:, None]
    assumed = sequence.intrinsics.reshape(-1, 3, 3)
    size = np.array([sequence.width, sequence.height])
    off = max(
        np.abs(assumed[:, [0, 1], [0, 1]] / intrinsics[[0, 1], [0, 1]] - 1).max(),
        (np.abs(assumed[:, :2, 2] - intrinsics[:2, 2]) / size).max(),
        abs(scale[0] / scale[1] - 1),
    )
    if not off <= _OTHER_CAMERA:
        raise SpatialAvatarError(
            f"{sequence.listing}: pictures of {sequence.width} x {sequence.height} pixels were tracked with intrinsics "
            f"that are {off:.1%} off the calibration's at that size; VHAP takes unpacked pictures for "
            f"{CALIBRATED_SIZE[0]} x {CALIBRATED_SIZE[1]}, track again with their true size"
        )
    notes = [] if cameras > 1 else ["one camera: its place in VHAP's world could not be checked"]
    if not calibration.colors:
        notes.append("no color_calibration.json: colours are the cameras' own")
    return (
        np.tile(known @ motion, (instants, 1, 1, 1)),
        np.tile(intrinsics, (instants, cameras, 1, 1)),
        notes,
    )


def rigid_motion(
    source: Float[np.ndarray, "N 4 4"], target: Float[np.ndarray, "N 4 4"]
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """The motion G from one world to another with target_i G = source_i (world-to-camera) as well as can be.

    Also how far each camera then is off, in metres and in degrees. The rotation is the one nearest to the mean of the
    pairs' (in the sense of Frobenius), the translation brings the cameras' mean positions together.
    """
    turns = target[:, :3, :3].transpose(0, 2, 1) @ source[:, :3, :3]
    u, _, v = np.linalg.svd(turns.mean(0))
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    from_centres, to_centres = _centres(source), _centres(target)
    motion = np.eye(4)
    motion[:3, :3] = rotation
    motion[:3, 3] = (to_centres - from_centres @ rotation.T).mean(0)
    shift = np.linalg.norm(to_centres - from_centres @ rotation.T - motion[:3, 3], axis=1)
    # |A - B|_F = 2 sqrt(2) sin(angle / 2): exact for small angles too, unlike the trace
    half = np.linalg.norm(turns - rotation, axis=(1, 2)) / math.sqrt(8)
    return motion, shift, np.degrees(2 * np.arcsin(half.clip(0, 1)))


def _centres(world_to_camera: Float[np.ndarray, "N 4 4"]) -> Float[np.ndarray, "N 3"]:
    rotation, translation = world_to_camera[:, :3, :3], world_to_camera[:, :3, 3]
    return -(rotation.transpose(0, 2, 1) @ translation[..., None])[..., 0]


# pixels ---------------------------------------------------------------------------------------------------------------


class _PixelSource(NamedTuple):
    name: str
    read: Callable[[int, int], Pixels]  # (instant, camera): at the export's size, colours as filmed
    rate: float  # instants in a second
    notes: list[str]


def _pixel_source(folder: str, sequence: VhapSequence, pictures: VhapPictures) -> _PixelSource:
    images = files.join(folder, "images")
    listed = set(files.list_folder(images))
    size = (sequence.width, sequence.height)
    notes = []
    videos = [f"cam_{camera.id}.mp4" for camera in sequence.cameras]
    if set(videos) <= listed:
        opened = [_Video(files.join(images, name)) for name in videos]
        chosen = _frames_of_video(opened[0], sequence, pictures)
        if chosen is not None:
            numbers, rate, remarks = chosen
            return _PixelSource(
                "images/cam_*.mp4",
                lambda t, c: _resized(opened[c].frame(numbers[t]), size),
                rate / _stride(sequence),
                remarks,
            )
        notes.append("the videos' pictures are not those that were tracked, and not used")
    unpacked = [[_unpacked_name(sequence, t, c) for c in range(len(videos))] for t in range(len(sequence.timesteps))]
    if all(name in listed for row in unpacked for name in row):
        return _PixelSource(
            "images/cam_*.jpg",
            lambda t, c: _resized(_read_jpeg(files.join(images, unpacked[t][c])), size),
            UNPACKED_RATE / _stride(sequence),
            notes,
        )
    return _PixelSource(
        "VHAP's export", lambda t, c: pictures.decoded(t, c)[0], UNPACKED_RATE / _stride(sequence), notes
    )


def _number(sequence: VhapSequence, instant: int) -> int:
    """Of the unpacked frame that an instant was tracked on."""
    number = sequence.frame_numbers[instant]
    return sequence.timesteps[instant] if number is None else number


def _stride(sequence: VhapSequence) -> int:
    """Unpacked frames from one instant to the next, where that is the same throughout."""
    steps = {int(step) for step in np.diff([_number(sequence, t) for t in range(len(sequence.timesteps))])}
    return max(1, steps.pop()) if len(steps) == 1 else 1


def _unpacked_name(sequence: VhapSequence, instant: int, camera: int) -> str:
    name = sequence.frame_names[instant] or f"{_number(sequence, instant):06d}"
    return f"cam_{sequence.cameras[camera].id}_{name}.jpg"


def _frames_of_video(
    video: "_Video", sequence: VhapSequence, pictures: VhapPictures
) -> tuple[list[int], float, list[str]] | None:
    """The video's frame of each instant, the rate they are counted at, and remarks; None when no count fits."""
    plain = [_number(sequence, t) for t in range(len(sequence.timesteps))]
    if abs(video.rate - UNPACKED_RATE) < 0.01:
        counts = {UNPACKED_RATE: plain}
    else:
        counts = {UNPACKED_RATE: [unpacked_frame(n, video.rate) for n in plain], video.rate: plain}
    checked = sorted({0, len(plain) // 2, len(plain) - 1})
    truths = {t: _seen(pictures, t) for t in checked}
    if not all(truths.values()):
        return counts[UNPACKED_RATE], UNPACKED_RATE, ["frames of the videos counted as VHAP unpacks them, not checked"]
    off: dict[float, float] = {}
    wanted = sorted({numbers[t] for numbers in counts.values() for t in checked})
    size = (sequence.width, sequence.height)
    found = {number: _resized(video.frame(number), size) for number in wanted if number < video.frames}
    for rate, numbers in counts.items():
        differences = []
        for t in checked:
            seen = truths[t]
            assert seen is not None
            picture = found.get(numbers[t])
            differences.append(
                255.0 if picture is None else float(np.abs(picture[seen[1]].astype(float) - seen[0][seen[1]]).mean())
            )
        off[rate] = max(differences)
    best = min(off, key=lambda rate: off[rate])
    return (counts[best], best, []) if off[best] <= _OTHER_PICTURE else None


def _seen(pictures: VhapPictures, instant: int) -> tuple[Pixels, UInt8[np.ndarray, "H W"]] | None:
    """The export's picture of the first camera, and where it shows what was filmed; None when there is none."""
    if not files.exists(pictures.sequence.images[instant][0]):
        return None
    image, matte = pictures.decoded(instant, 0)
    shown = np.ones(image.shape[:2], bool) if matte is None else matte == 255
    return (image, shown) if shown.any() else None


def unpacked_frame(number: int, rate: float) -> int:
    """The frame of a video of ``rate`` that ffmpeg's filter fps=25 gives as its frame ``number``.

    Frame i goes to the time round(25 i / rate), halves up; the last one that is not later is shown.
    """
    return max(0, math.ceil((number + 0.5) * rate / UNPACKED_RATE - 1e-9) - 1)


class _Video:
    """Frames of a video by number. Going forward reads on, going back starts over; several threads may ask."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._lock = threading.Lock()
        kept = contextlib.ExitStack()
        self._path = kept.enter_context(files.local_copy(location))
        weakref.finalize(self, kept.close)
        self._start()
        sides = [self._capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        if not self._capture.isOpened() or not all(0 < side <= LARGEST_SIDE for side in sides):
            raise SpatialAvatarError(f"{location}: not a readable video of at most {LARGEST_SIDE} pixels a side")
        rate, frames = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 0 < rate < 1000 else UNPACKED_RATE
        self.frames = int(frames) if 0 < frames < 10**7 else 0

    def frame(self, number: int) -> Pixels:
        with self._lock:
            if number < self._next - 1:
                self._start()
            while self._next <= number:
                if not self._capture.grab():
                    raise SpatialAvatarError(
                        f"{self._location}: ends before frame {number}, after {self._next}; get the video again"
                    )
                self._next += 1
            done, pixels = self._capture.retrieve()
        if not done or pixels is None or pixels.ndim != 3:
            raise SpatialAvatarError(f"{self._location}: frame {number} cannot be decoded; get the video again")
        return np.ascontiguousarray(pixels[..., ::-1])

    def _start(self) -> None:
        # one thread each: sixteen videos are open side by side
        self._capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        self._next = 0


def _read_jpeg(location: str) -> Pixels:
    data = files.read_bytes(location, _LARGEST_PICTURE)
    try:
        size = encoded_size(data)
        if max(size.width, size.height) > LARGEST_SIDE:
            raise ValueError(f"is {size.width} x {size.height} pixels, at most {LARGEST_SIDE} a side are read")
        return decode(data, size.width, size.height, color=True)
    except ValueError as e:
        raise SpatialAvatarError(f"{location}: {e}") from None


def _resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    return image if image.shape[1::-1] == size else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
