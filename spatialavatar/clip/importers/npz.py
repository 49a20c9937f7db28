"""Importer for a folder with ``params.npz``, ``images/``, ``masks/`` and optional ``roi/``.

``params.npz`` holds, for T frames of one camera (OpenCV, metres, pixels from the outer corner of the first pixel):
frame_ids [T], image_size (w, h), K [3,3] or [T,3,3], w2c [T,4,4], shape [S], expr [T,E]; optional: global_rot, neck,
jaw, eye_left, eye_right, translation [T,3] (zero when absent), bbox [T,4], landmarks2d [T,L,2], fps. Pictures are named
by frame id: ``images/000000.jpg`` (or .png), ``masks/000000.png``, ``roi/000000.png``; their bytes are kept.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatialavatar import files, npz_files
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.header import ClipSource
from spatialavatar.clip.importers.foreign_pictures import read_picture
from spatialavatar.clip.importers.options import ImportOptions, chosen_identity, with_test_last
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams

ARRAYS_FILE = "params.npz"
_REQUIRED = ("frame_ids", "image_size", "K", "w2c", "shape", "expr")
_OPTIONAL = ("global_rot", "neck", "jaw", "eye_left", "eye_right", "translation", "bbox", "landmarks2d", "fps")


def is_npz(names: frozenset[str]) -> bool:
    return {ARRAYS_FILE, "images"} <= names


def open_npz(folder: str, head: HeadModel, options: ImportOptions) -> list[TrackedClip]:
    """The clip in such a folder. Raises SpatialAvatarError naming the array that is missing or does not fit."""
    location = files.join(folder, ARRAYS_FILE)
    arrays = _read(location)
    t = arrays["frame_ids"].shape[0]
    _check_shapes(location, arrays, head)

    def tensor(name: str, width: int) -> Tensor:
        return torch.from_numpy(arrays[name]) if name in arrays else torch.zeros(t, width)

    params = HeadParams(
        shape=torch.from_numpy(arrays["shape"]).expand(t, -1),
        expression=torch.from_numpy(arrays["expr"]),
        global_rotation=tensor("global_rot", 3),
        neck=tensor("neck", 3),
        jaw=tensor("jaw", 3),
        eyes=torch.cat([tensor("eye_left", 3), tensor("eye_right", 3)], -1),
        translation=tensor("translation", 3),
    )
    intrinsics = torch.from_numpy(arrays["K"]).expand(t, 3, 3)[:, None]
    frame_ids = [int(i) for i in arrays["frame_ids"]]
    listed = {picture: set(files.list_folder(files.join(folder, picture))) for picture in ("images", "masks", "roi")}
    ending = "jpg" if f"{frame_ids[0]:06d}.jpg" in listed["images"] else "png"

    def read_frame(instant: int, camera: int) -> EncodedFrame:
        def read(picture: str, ending: str) -> bytes | None:
            name = f"{frame_ids[instant]:06d}.{ending}"
            return read_picture(files.join(folder, picture, name)) if listed[picture] else None

        image = read("images", ending)
        if image is None:
            raise SpatialAvatarError(f"{folder}: has no folder images/ with pictures")
        return EncodedFrame(image, read("masks", "png"), read("roi", "png"))

    clip = assemble_clip(
        folder,
        identity=chosen_identity(options, folder.rsplit("/", 1)[-1]),
        head=head,
        params=params,
        world_to_camera=torch.from_numpy(arrays["w2c"])[:, None],
        intrinsics=intrinsics,
        width=int(arrays["image_size"][0]),
        height=int(arrays["image_size"][1]),
        fps=options.fps or (float(arrays["fps"]) if "fps" in arrays else 25.0),
        frames=read_frame,
        matte_kind="alpha" if listed["masks"] else "none",
        has_region=bool(listed["roi"]),
        face_box=torch.from_numpy(arrays["bbox"])[:, None] if "bbox" in arrays else None,
        landmarks=torch.from_numpy(arrays["landmarks2d"])[:, None] if "landmarks2d" in arrays else None,
        source=ClipSource("npz", f"imported from a folder with {ARRAYS_FILE}", options.licence or "not stated"),
        image_format="jpg" if ending == "jpg" else "png",
    )
    return [with_test_last(clip, options.test_last)]


def _read(location: str) -> dict[str, np.ndarray]:
    arrays = npz_files.read_npz(location, (*_REQUIRED, *_OPTIONAL))
    for name, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise SpatialAvatarError(f"{location}: {name} is {array.dtype}, expected numbers")
        if name in ("frame_ids", "image_size"):
            if not (np.abs(array) < 1e9).all():
                raise SpatialAvatarError(f"{location}: {name} must hold whole numbers")
            arrays[name] = array.astype(np.int64)
        else:
            with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which the clip's check refuses
                arrays[name] = array.astype(np.float32)
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise SpatialAvatarError(f"{location}: lacks {', '.join(missing)}; expected {', '.join(_REQUIRED)}")
    if arrays["frame_ids"].ndim != 1 or not len(arrays["frame_ids"]):
        raise SpatialAvatarError(f"{location}: frame_ids must be a list of frame numbers")
    if arrays["frame_ids"].min() < 0 or arrays["frame_ids"].max() > 999999:
        raise SpatialAvatarError(f"{location}: frame_ids must lie in 0..999999")
    return arrays


def _check_shapes(location: str, arrays: dict[str, np.ndarray], head: HeadModel) -> None:
    t, s, e = len(arrays["frame_ids"]), head.shape_codes, head.expression_codes
    three = {key: [(t, 3)] for key in ("global_rot", "neck", "jaw", "eye_left", "eye_right", "translation")}
    expected: dict[str, list[tuple[Any, ...]]] = {
        "image_size": [(2,)],
        "K": [(3, 3), (t, 3, 3)],
        "w2c": [(t, 4, 4)],
        "shape": [(s,)],
        "expr": [(t, e)],
        **three,
        "bbox": [(t, 4)],
        "fps": [()],
    }
    if "landmarks2d" in arrays:
        expected["landmarks2d"] = [(t, *arrays["landmarks2d"].shape[1:2], 2)]
    for name, shapes in expected.items():
        if name in arrays and arrays[name].shape not in shapes:
            shown = " or ".join(str(list(shape)) for shape in shapes)
            raise SpatialAvatarError(
                f"{location}: {name} has shape {list(arrays[name].shape)}, expected {shown} "
                f"({t} frames; head '{head.info.id}' has {s} shape and {e} expression codes)"
            )
