"""``params.safetensors``: head parameters, cameras and boxes of a clip, all float32.

Letters: T instants, C cameras, S shape and E expression codes, V vertices, L landmarks. ``shape`` and
``static_offset`` are one per clip.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatialavatar import files, tensor_files
from spatialavatar.clip.header import PARAMS_FILE, VERSION, ClipHeader, Fault, FrameIndex
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.params import HeadParams

FORMAT = "spatialavatar-clip-params"
SHAPES = {
    "shape": "S",
    "expression": "T E",
    "global_rotation": "T 3",  # axis-angle, radians
    "neck": "T 3",
    "jaw": "T 3",
    "eyes": "T 6",  # left, right
    "translation": "T 3",  # metres
    "world_to_camera": "T C 4 4",  # OpenCV, metres
    "intrinsics": "T C 3 3",  # pixels, the outer corner of the first pixel is (0, 0)
    "static_offset": "V 3",  # metres
    "face_box": "T C 4",  # pixels, x0 y0 x1 y1
    "landmarks": "T C L 2",  # pixels; NaN where a point was not found
}
OPTIONAL = ("static_offset", "face_box", "landmarks")
ROTATION_TOLERANCE = 1e-3  # on the entries of R R^T - I
SHORTEST_FOCAL = 0.1  # of the image's longer side (157 degrees); normalised intrinsics fall below


def write_arrays(folder: files.Location, arrays: dict[str, np.ndarray]) -> None:
    """Write a clip's ``params.safetensors``."""
    files.write_bytes(files.join(folder, PARAMS_FILE), encoded_arrays(arrays))


def encoded_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """What ``params.safetensors`` is, as bytes."""
    metadata = {"format": FORMAT, "version": str(VERSION), "hash": tensor_files.content_hash(arrays)}
    return tensor_files.tensor_bytes(arrays, metadata)


def read_arrays(folder: files.Location) -> dict[str, np.ndarray]:
    """Raises SpatialAvatarError: no such file, damaged, not ours. A file of other tools may go without a hash."""
    location = files.join(folder, PARAMS_FILE)
    return decoded_arrays(files.read_bytes(location), location)


def decoded_arrays(data: bytes, location: str) -> dict[str, np.ndarray]:
    """The same of the file's bytes; ``location`` is for messages."""
    arrays, metadata = tensor_files.tensors_of(data, location)
    if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
        found = f"{metadata.get('format')} version {metadata.get('version')}"
        raise SpatialAvatarError(f"{location}: is {found}, expected {FORMAT} version {VERSION}; import the clip again")
    unknown = sorted(set(metadata) - {"format", "version", "hash"})
    if unknown:
        raise SpatialAvatarError(
            f"{location}: unknown metadata {unknown[0]!r}; restore the file or import the clip again"
        )
    if "hash" in metadata and metadata["hash"] != tensor_files.content_hash(arrays):
        raise SpatialAvatarError(
            f"{location}: the values are not those that were written (their hash differs); "
            "restore the file or import the clip again"
        )
    return arrays


def check_arrays(header: ClipHeader, arrays: dict[str, np.ndarray]) -> list[Fault]:
    """Every fault of the arrays: names, types, row counts, code lengths, non-finite values, matrices."""
    faults = []
    for name in sorted(set(arrays) - set(SHAPES)):
        faults.append(Fault(PARAMS_FILE, None, name, f"unknown array, expected only {', '.join(SHAPES)}"))
    sound: dict[str, np.ndarray] = {}
    for name in SHAPES:
        if name not in arrays:
            if name not in OPTIONAL:
                faults.append(Fault(PARAMS_FILE, None, name, "is missing"))
            continue
        problem = _shape_problem(header, name, arrays[name])
        if problem:
            faults.append(Fault(PARAMS_FILE, None, name, problem))
        else:
            sound[name] = arrays[name]

    finite: dict[str, np.ndarray] = {}  # per frame: which rows further checks may look at
    for name, array in sound.items():
        bad = np.isinf(array) if name == "landmarks" else ~np.isfinite(array)
        if SHAPES[name].startswith("T"):
            axes = 2 if SHAPES[name].startswith("T C") else 1
            rows = bad.reshape(*array.shape[:axes], -1).any(-1)
            finite[name] = ~rows
            for row in np.argwhere(rows):
                frame = FrameIndex(int(row[0]), int(row[1]) if axes == 2 else 0)
                faults.append(Fault(PARAMS_FILE, frame, name, "holds NaN or infinity"))
        elif bad.any():
            faults.append(Fault(PARAMS_FILE, None, name, "holds NaN or infinity"))

    if "world_to_camera" in sound:
        faults += _check_extrinsics(sound["world_to_camera"], finite["world_to_camera"])
    if "intrinsics" in sound:
        faults += _check_intrinsics(header, sound["intrinsics"], finite["intrinsics"])
    return faults


def params_from_arrays(arrays: dict[str, np.ndarray], instants: int) -> HeadParams:
    """Head parameters of all instants; the one shape and offset repeated without a copy."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(arrays[name])

    offset = tensor("static_offset").expand(instants, -1, -1) if "static_offset" in arrays else None
    names = ("expression", "global_rotation", "neck", "jaw", "eyes", "translation")
    shape = tensor("shape").expand(instants, -1)
    return HeadParams(shape=shape, static_offset=offset, **{name: tensor(name) for name in names})


def clip_arrays(
    params: HeadParams,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    face_box: Tensor | None = None,
    landmarks: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of a clip, not yet checked. Raises SpatialAvatarError when shape or static_offset change with time."""
    names = ("expression", "global_rotation", "neck", "jaw", "eyes", "translation")
    tensors = {name: getattr(params, name) for name in names}
    for name in ("shape", "static_offset"):
        per_instant = getattr(params, name)
        if per_instant is None:
            continue
        if not bool((per_instant == per_instant[:1]).all()):
            raise SpatialAvatarError(
                f"{name} changes from instant to instant, a clip has one; average it or track with it fixed"
            )
        tensors[name] = per_instant[0]
    tensors |= {"world_to_camera": world_to_camera, "intrinsics": intrinsics}
    tensors |= {k: v for k, v in {"face_box": face_box, "landmarks": landmarks}.items() if v is not None}
    return {name: np.array(t.detach().cpu().numpy(), np.float32) for name, t in tensors.items()}


def _shape_problem(header: ClipHeader, name: str, array: np.ndarray) -> str | None:
    sizes = {
        "T": header.instants,
        "C": header.cameras,
        "S": header.shape_codes,
        "E": header.expression_codes,
    }
    letters = SHAPES[name].split()
    expected = [int(letter) if letter.isdigit() else sizes.get(letter) for letter in letters]
    if array.dtype != np.float32:
        return f"is {array.dtype}, expected float32"
    if len(array.shape) == len(expected) and all(e in (None, n) for e, n in zip(expected, array.shape)):
        return None
    shown = " x ".join(letter if e is None else str(e) for letter, e in zip(letters, expected))
    return (
        f"has shape {' x '.join(map(str, array.shape)) or 'of one number'}, clip.json asks for {shown} ({SHAPES[name]})"
    )


def _frames(bad: Any) -> Iterator[FrameIndex]:
    """Where a bool array [T C] is true."""
    for t, c in np.argwhere(bad):
        yield FrameIndex(int(t), int(c))


def _check_extrinsics(matrices: np.ndarray, finite: np.ndarray) -> list[Fault]:
    faults = []
    m = np.where(finite[..., None, None], matrices, np.eye(4)).astype(np.float64)
    rotation = m[..., :3, :3]
    skew = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max((-1, -2))
    determinant = np.linalg.det(rotation)
    last_row = np.abs(m[..., 3, :] - [0, 0, 0, 1]).max(-1) > 1e-6
    for frame in _frames(last_row):
        message = "last row is not 0 0 0 1; a transposed (row-vector) matrix?"
        faults.append(Fault(PARAMS_FILE, frame, "world_to_camera", message))
    skewed = skew > ROTATION_TOLERANCE
    for frame in _frames(skewed):
        message = f"not a rotation: R R^T differs from the identity by {skew[frame]:.3g} (scale must not be in it)"
        faults.append(Fault(PARAMS_FILE, frame, "world_to_camera", message))
    for frame in _frames(~skewed & (determinant < 0)):
        message = "not a rotation: determinant -1, so left and right are swapped"
        faults.append(Fault(PARAMS_FILE, frame, "world_to_camera", message))
    return faults


def _check_intrinsics(header: ClipHeader, matrices: np.ndarray, finite: np.ndarray) -> list[Fault]:
    faults = []
    size = np.array([header.width, header.height], np.float64)
    neutral = np.diag([header.width, header.width, 1.0])
    neutral[:2, 2] = size / 2
    k = np.where(finite[..., None, None], matrices, neutral).astype(np.float64)
    focal, centre = k[..., [0, 1], [0, 1]], k[..., :2, 2]
    form = np.abs(k[..., [0, 1, 2, 2], [1, 0, 0, 1]]).max(-1) + np.abs(k[..., 2, 2] - 1)
    for frame in _frames(form > 1e-4):
        faults.append(Fault(PARAMS_FILE, frame, "intrinsics", "is not [[fx 0 cx] [0 fy cy] [0 0 1]]"))
    shortest = SHORTEST_FOCAL * max(header.width, header.height)
    for frame in _frames((focal < shortest).any(-1)):
        shown = f"{focal[frame][0]:.4g}, {focal[frame][1]:.4g}"
        message = f"focal lengths {shown}, expected at least {shortest:.4g}: in pixels and positive"
        faults.append(Fault(PARAMS_FILE, frame, "intrinsics", message))
    for frame in _frames((np.abs(centre - size / 2) > size * 1.5).any(-1)):
        shown = f"({centre[frame][0]:.4g}, {centre[frame][1]:.4g})"
        message = f"principal point {shown} is far outside the {header.width} x {header.height} image; in pixels?"
        faults.append(Fault(PARAMS_FILE, frame, "intrinsics", message))
    return faults
