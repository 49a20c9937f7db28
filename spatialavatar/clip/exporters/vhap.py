"""Exporter to the layout of VHAP, which GaussianAvatars trains on.

``images/{t:05d}_{c:02d}.png`` on white, ``fg_masks/``, ``flame_param/{t:05d}.npz``, ``canonical_flame_param.npz``,
``transforms.json`` and ``transforms_{train,val,test}.json``. As VHAP does, the world is moved so that the mean
translation of the head is zero, and ``cy`` counts from the lower edge.

Split: the clip's own when it has one (train: training cameras before ``test_from``; val: its test cameras there; test:
all cameras from there on). Else VHAP's rule: the first ceil(0.7 T) timesteps train, with camera 8, or the last of
several when there is no camera 8, as val; the others test.
"""

import math
from typing import Any

import numpy as np

from spatialavatar import files, npz_files
from spatialavatar.clip.conventions import to_opengl_camera_to_world
from spatialavatar.clip.exporters.report import ExportReport, common_notes
from spatialavatar.clip.header import FrameIndex
from spatialavatar.clip.importers.vhap_listing import CANONICAL_FILE, DIVISIONS, LISTING_FILE, division_file
from spatialavatar.clip.pictures import decode, encode
from spatialavatar.clip.tracked_clip import Progress, TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import flame
from spatialavatar.head.model import HeadModel

LISTINGS = (*map(division_file, DIVISIONS), LISTING_FILE)
TRAIN_SHARE = 0.7
VALIDATION_CAMERA = 8  # NeRSemble's front view


def export_vhap(clip: TrackedClip, head: HeadModel, out: files.Location, progress: Progress | None) -> ExportReport:
    """Write a clip, of one camera or several, into ``out``. Notes say what the layout cannot hold.

    Raises SpatialAvatarError: another head than the clip's, a frame that cannot be read.
    """
    clip.require_head(head)
    arrays = clip.arrays()
    moved = arrays["translation"].astype(np.float64).mean(0)
    poses = to_opengl_camera_to_world(clip.world_to_camera.double()).numpy()
    poses[..., :3, 3] -= moved
    listed = [_frame(clip, index, poses) for index in clip.header.frames()]

    for name in LISTINGS:  # of an earlier export, which would list what is half written
        files.remove(files.join(out, name))
    written = _write_parameters(clip, arrays, moved, out)
    for done, (index, entry) in enumerate(zip(clip.header.frames(), listed)):
        image, matte = _pictures(clip, index)
        files.write_bytes(files.join(out, entry["file_path"]), image)
        written += 1
        if matte is not None:
            files.write_bytes(files.join(out, entry["fg_mask_path"]), matte)
            written += 1
        if progress is not None:
            progress(done + 1, len(listed))
    written += _write_listings(clip, listed, out)  # last: without them the folder is no export
    return ExportReport(written, tuple(_notes(clip, head, moved)))


def split_of(clip: TrackedClip) -> tuple[int, list[int]]:
    """The number of train timesteps and the cameras that validate."""
    if clip.test_from is not None or clip.test_cameras:
        return clip.instants if clip.test_from is None else clip.test_from, list(clip.test_cameras)
    last = VALIDATION_CAMERA if clip.cameras > VALIDATION_CAMERA else clip.cameras - 1
    return math.ceil(TRAIN_SHARE * clip.instants), [last] if clip.cameras > 1 else []


def _write_parameters(clip: TrackedClip, arrays: dict[str, np.ndarray], moved: np.ndarray, out: files.Location) -> int:
    shape = _padded(arrays["shape"], flame.SHAPE_CODES)
    fixed: dict[str, np.ndarray] = {"shape": shape}
    if "static_offset" in arrays:
        offset = arrays["static_offset"]
        if len(offset) == flame.VERTICES:
            offset = np.concatenate([offset, np.zeros((flame.TEETH_VERTICES, 3), np.float32)])
        fixed["static_offset"] = offset[None]
    columns = {
        "translation": (arrays["translation"] - moved).astype(np.float32),
        "rotation": arrays["global_rotation"],
        "neck_pose": arrays["neck"],
        "jaw_pose": arrays["jaw"],
        "eyes_pose": arrays["eyes"],
        "expr": _padded(arrays["expression"], flame.EXPRESSION_CODES),
    }
    for t in range(clip.instants):
        row = {name: values[t : t + 1] for name, values in columns.items()}
        npz_files.write_npz(files.join(out, _parameter_file(t)), {**row, **fixed})
    zeros = {name: np.zeros_like(values[:1]) for name, values in columns.items()}
    zeros["jaw_pose"] = np.array([[0.3, 0, 0]], np.float32)  # mouth open; readers drop what is not float32
    npz_files.write_npz(files.join(out, CANONICAL_FILE), {**zeros, **fixed})
    return clip.instants + 1


def _padded(codes: np.ndarray, count: int) -> np.ndarray:
    missing = max(0, count - codes.shape[-1])
    return np.concatenate([codes, np.zeros((*codes.shape[:-1], missing), np.float32)], -1)


def _parameter_file(timestep: int) -> str:
    return f"flame_param/{timestep:05d}.npz"


def _frame(clip: TrackedClip, index: FrameIndex, poses: np.ndarray) -> dict[str, Any]:
    t, c = index
    k = clip.intrinsics[t, c].double()
    fx, fy, cx, cy = (float(v) for v in (k[0, 0], k[1, 1], k[0, 2], k[1, 2]))
    frame = {
        "timestep_index": t,
        "timestep_index_original": t,
        "timestep_id": f"{t:05d}",
        "camera_index": c,
        "camera_id": str(c),
        "cx": cx,
        "cy": clip.height - cy,
        "fl_x": fx,
        "fl_y": fy,
        "h": clip.height,
        "w": clip.width,
        "camera_angle_x": 2 * math.atan(clip.width / (2 * fx)),
        "camera_angle_y": 2 * math.atan(clip.height / (2 * fy)),
        "transform_matrix": poses[t, c].tolist(),
        "file_path": f"images/{t:05d}_{c:02d}.png",
        "flame_param_path": _parameter_file(t),
    }
    if clip.matte_kind == "alpha":
        frame["fg_mask_path"] = f"fg_masks/{t:05d}_{c:02d}.png"
    return frame


def _write_listings(clip: TrackedClip, frames: list[dict[str, Any]], out: files.Location) -> int:
    shared = {
        key: frames[-1][key] for key in ("cx", "cy", "fl_x", "fl_y", "h", "w", "camera_angle_x", "camera_angle_y")
    }
    trained, validating = split_of(clip)
    every = list(range(clip.cameras))
    before, after = range(trained), range(trained, clip.instants)
    parts: dict[str, tuple[range, list[int]]] = {
        division_file("train"): (before, [c for c in every if c not in validating]),
        division_file("val"): (before, validating),
        division_file("test"): (after, every),
        LISTING_FILE: (range(clip.instants), every),
    }
    for name in LISTINGS:
        timesteps, cameras = parts[name]
        listing = {
            **shared,
            "timestep_indices": list(timesteps),
            "camera_indices": cameras,
            "frames": [frames[t * clip.cameras + c] for t in timesteps for c in cameras],
        }
        files.write_json(files.join(out, name), listing)
    return len(LISTINGS)


def _pictures(clip: TrackedClip, index: FrameIndex) -> tuple[bytes, bytes | None]:
    """The image on white and the matte, both as PNG."""
    encoded = clip.encoded(index)
    try:
        image = decode(encoded.image, clip.width, clip.height, color=True)
        if encoded.matte is None:
            return encode(image, "png"), None
        matte = decode(encoded.matte, clip.width, clip.height, color=False)
    except ValueError as e:
        raise SpatialAvatarError(
            f"{clip.location}: instant {index.instant}, camera {index.camera}: {e}; import the clip again"
        ) from None
    alpha = matte[..., None].astype(np.float32) / 255
    white = (alpha * image + (1 - alpha) * 255).round().astype(np.uint8)
    return encode(white, "png"), encode(matte, "png")


def _notes(clip: TrackedClip, head: HeadModel, moved: np.ndarray) -> list[str]:
    notes = []
    if clip.params.static_offset is not None and head.vertex_count == flame.VERTICES:
        notes.append(f"the static offset of the {flame.TEETH_VERTICES} vertices of VHAP's teeth is zero")
    if (distance := float(np.linalg.norm(moved))) > 1e-6:
        x, y, z = -moved
        notes.append(
            f"the world was moved by ({x:.4f}, {y:.4f}, {z:.4f}) m ({100 * distance:.2f} cm), so that the head's mean "
            "translation is zero"
        )
    k = clip.intrinsics.double().numpy()
    off = max(np.abs(k[..., 0, 2] - clip.width / 2).max(), np.abs(k[..., 1, 2] - clip.height / 2).max())
    if off > 0.01:
        notes.append(
            f"principal points lie up to {off:.1f} pixels off the middle: written, but GaussianAvatars ignores them"
        )
    stretched = np.abs(k[..., 1, 1] / k[..., 0, 0] - 1).max() * clip.height / 2
    if stretched > 0.01:
        notes.append(
            f"focal lengths of x and y differ, by up to {stretched:.1f} pixels at the picture's edge: written, but "
            "GaussianAvatars knows only that of x"
        )
    if clip.matte_kind != "alpha":
        what = "on black" if clip.matte_kind == "burnt_black" else "with their background"
        notes.append(f"the clip has no mattes: no fg_masks, and images {what} instead of on white")
    if clip.face_box is not None:
        notes.append("face boxes are not held")
    return [*notes, *common_notes(clip, head)]
