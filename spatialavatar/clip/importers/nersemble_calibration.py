"""NeRSemble's calibration: cameras, by serial number, in the world that VHAP tracked in; colours."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from spatialavatar import files
from spatialavatar.clip.importers.color_correction import color_matrix
from spatialavatar.clip.importers.foreign_json import numbers, read_foreign_json, rigid_matrix
from spatialavatar.clip.importers.vhap_listing import VhapSequence
from spatialavatar.errors import SpatialAvatarError

CALIBRATED_SIZE = (2200, 3208)  # width and height of the pictures that the intrinsics belong to
LARGEST_SHIFT, LARGEST_TURN = 0.01, 0.5  # metres, degrees: what calibration and tracking may disagree by
_OTHER_CAMERA = 0.01  # share by which VHAP's intrinsics may differ


@dataclass(frozen=True)
class Calibration:
    """Of one participant's 16 cameras, by serial number."""

    location: str
    world_to_camera: dict[str, Float[np.ndarray, "4 4"]]  # OpenCV, metres
    intrinsics: Float[np.ndarray, "3 3"]  # pixels at CALIBRATED_SIZE; one for all cameras
    colors: dict[str, Float[np.ndarray, "3 n"]]  # empty without color_calibration.json


def read_calibration(folder: str) -> Calibration:
    """Raises SpatialAvatarError naming the file and camera: missing, not matrices."""
    location = files.join(folder, "camera_params.json")
    content = read_foreign_json(location)
    poses = content.get("world_2_cam")
    if not isinstance(poses, dict) or not poses:
        raise SpatialAvatarError(f"{location}: lacks world_2_cam, the cameras by serial number")
    intrinsics = numbers(content.get("intrinsics"), (3, 3), f"{location}: intrinsics")
    if not (intrinsics[[0, 1], [0, 1]] > 0).all():
        raise SpatialAvatarError(f"{location}: intrinsics: focal lengths must be positive")
    colors: dict[str, Any] = {}
    color_file = files.join(folder, "color_calibration.json")
    if files.exists(color_file):
        colors = read_foreign_json(color_file)
        missing = [serial for serial in poses if serial not in colors]
        if missing:
            raise SpatialAvatarError(f"{color_file}: lacks camera {ascii(missing[0])[:40]}; get the file again")
    return Calibration(
        location=location,
        world_to_camera={s: rigid_matrix(p, f"{location}: camera {ascii(s)[:40]}") for s, p in poses.items()},
        intrinsics=intrinsics,
        colors={s: color_matrix(m, f"{color_file}: camera {ascii(s)[:40]}") for s, m in colors.items()},
    )


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
