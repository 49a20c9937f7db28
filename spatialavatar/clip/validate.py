"""Checking a whole clip: every fault with its file, frame and field.

``open_clip`` stops at the first fault of header and arrays; this goes on, decodes every picture, and looks whether the
cameras see the head. ``validate_clip`` looks at a folder's files; ``check_values``, ``check_geometry`` and
``check_frame`` at the parts of a clip that may be anywhere.
"""

import itertools
import re

import numpy as np
import torch

from spatialavatar import files
from spatialavatar.clip.arrays import check_arrays, read_arrays
from spatialavatar.clip.header import (
    HEADER_FILE,
    PARAMS_FILE,
    PICTURES,
    ClipHeader,
    Fault,
    FrameIndex,
    Picture,
    check_header,
    read_header_json,
)
from spatialavatar.clip.pictures import EncodedFrame, decode, encoded_size
from spatialavatar.clip.tracked_clip import Progress, TrackedClip, clip_folder
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.splat.camera import Camera

OUTSIDE_SHARE = 0.5  # a face with more of its box or landmarks than this outside the image is out of frame
MISSING_LISTED = 20  # of a folder's missing pictures; the others are counted
LANDMARK_ERROR = 0.1  # of the image's longer side: the mean distance at which tracked and projected points disagree


def validate_clip(
    folder: files.Location, head: HeadModel | None = None, progress: Progress | None = None
) -> list[Fault]:
    """Every fault of a clip, in the order header, arrays, geometry, pictures; empty when the clip is sound.

    With ``head`` also: hash and code counts, vertex counts, and where the posed head's landmarks fall.
    Raises SpatialAvatarError only where there is no clip at all.
    """
    text = clip_folder(folder)
    faults, header = check_header(read_header_json(text))
    if header is None:
        return faults
    if head is not None:
        faults += _check_head(header, head)

    arrays: dict[str, np.ndarray] = {}
    try:
        arrays = read_arrays(text)
    except SpatialAvatarError as e:
        faults.append(Fault(PARAMS_FILE, None, "file", str(e).removeprefix(files.join(text, PARAMS_FILE) + ": ")))
    else:
        of_arrays = check_arrays(header, arrays)
        # geometry is not looked at through broken numbers
        sound = {name: array for name, array in arrays.items() if name not in {fault.field for fault in of_arrays}}
        faults += of_arrays + _check_offset(sound, head) + check_geometry(header, sound, head)
    faults += _check_pictures(text, header, progress)
    return faults


def check_values(clip: TrackedClip, head: HeadModel | None = None) -> list[Fault]:
    """Every fault of a clip's header and arrays; with ``head`` also where they do not fit it."""
    faults, header = check_header(clip.header.to_json())
    if header is None:
        return faults
    if head is not None:
        faults += _check_head(header, head)
    arrays = clip.arrays()
    return faults + check_arrays(header, arrays) + _check_offset(arrays, head)


def check_frame(header: ClipHeader, index: FrameIndex, encoded: EncodedFrame) -> list[Fault]:
    """Whether a frame's pictures are those that the header tells of, and decode."""
    pieces: dict[Picture, bytes | None] = {"images": encoded.image, "masks": encoded.matte, "roi": encoded.region}
    faults = []
    for picture, data in pieces.items():
        problem: tuple[str, str] | None = None
        if (data is not None) != (picture in header.pictures):
            said = f"clip.json says matte '{header.matte}', region {str(header.region).lower()}"
            problem = "file", f"is missing: {said}" if data is None else f"is there, but {said}"
        elif data is not None:
            problem = _picture_problem(data, header, picture)
        if problem:
            faults.append(Fault(header.frame_file(picture, index), index, *problem))
    return faults


def check_geometry(header: ClipHeader, arrays: dict[str, np.ndarray], head: HeadModel | None) -> list[Fault]:
    """Frames whose tracking misses the face: cameras that do not see the head, a box that is empty or outside the
    image, landmarks elsewhere. ``arrays`` without faulty ones."""
    faults: list[Fault] = []
    if "face_box" in arrays:
        faults += _check_boxes(header, arrays["face_box"].astype(np.float64))
    if "world_to_camera" not in arrays or "intrinsics" not in arrays:
        return faults
    points = _head_points(header, arrays, head)
    if points is None:
        return faults
    what = "the head's origin" if points.shape[1] == 1 else "the head"
    size = torch.tensor([header.width, header.height], dtype=torch.float32)
    for c in range(header.cameras):
        camera = Camera(
            torch.from_numpy(arrays["world_to_camera"][:, c]),
            torch.from_numpy(arrays["intrinsics"][:, c]),
            header.width,
            header.height,
        )
        pixels, depth = camera.project(points)
        behind = (depth <= 0).any(-1)
        outside = ((pixels < 0) | (pixels > size)).any(-1).float().mean(-1)
        error, said = torch.zeros(header.instants), "lie {:.0f} pixels from the posed head's landmarks on average"
        if "landmarks" in arrays and points.shape[1] > 1:
            tracked = torch.from_numpy(arrays["landmarks"][:, c])
            if tracked.shape[1] == points.shape[1]:
                error = (pixels - tracked).norm(dim=-1).nanmean(-1)
            else:  # another set of points on the same face
                error = (pixels.mean(1) - tracked.nanmean(1)).norm(dim=-1)
                said = "their middle lies {:.0f} pixels from that of the posed head's landmarks"
        for t in range(header.instants):
            frame = FrameIndex(t, c)
            if behind[t]:
                message = f"looks away: {what} lies behind the camera (OpenCV: z forward, world to camera)"
                faults.append(Fault(PARAMS_FILE, frame, "world_to_camera", message))
            elif outside[t] > OUTSIDE_SHARE:
                x, y = pixels[t].mean(0).tolist()
                message = f"{what} falls outside the {header.width} x {header.height} image, at ({x:.0f}, {y:.0f})"
                faults.append(Fault(PARAMS_FILE, frame, "world_to_camera", message))
            elif error[t] > LANDMARK_ERROR * size.max():
                message = f"{said.format(error[t])}; another head or camera?"
                faults.append(Fault(PARAMS_FILE, frame, "landmarks", message))
    return faults


def _check_head(header: ClipHeader, head: HeadModel) -> list[Fault]:
    faults = []
    for field, found, expected in (
        ("shape_codes", header.shape_codes, head.shape_codes),
        ("expression_codes", header.expression_codes, head.expression_codes),
    ):
        if found != expected:
            faults.append(Fault(HEADER_FILE, None, field, f"is {found}, head '{head.info.id}' has {expected}"))
    if header.head.hash != head.content_hash:
        message = (
            f"the clip was tracked with '{header.head.id}' ({header.head.hash[:12]}), "
            f"the head given is '{head.info.id}' ({head.content_hash[:12]})"
        )
        faults.append(Fault(HEADER_FILE, None, "head.hash", message))
    return faults


def _check_offset(arrays: dict[str, np.ndarray], head: HeadModel | None) -> list[Fault]:
    if head is None or "static_offset" not in arrays or len(arrays["static_offset"]) == head.vertex_count:
        return []
    message = f"has {len(arrays['static_offset'])} rows, head '{head.info.id}' has {head.vertex_count} vertices"
    return [Fault(PARAMS_FILE, None, "static_offset", message)]


def _head_points(header: ClipHeader, arrays: dict[str, np.ndarray], head: HeadModel | None) -> torch.Tensor | None:
    """[T P 3]: the posed landmarks when the head fits, else the head's origin (moved by the translation)."""
    names = ("shape", "expression", "global_rotation", "neck", "jaw", "eyes", "translation")
    if head is None or not len(head.landmark_faces) or not set(names) <= set(arrays):
        return torch.from_numpy(arrays["translation"])[:, None] if "translation" in arrays else None
    if (header.shape_codes, header.expression_codes) != (head.shape_codes, head.expression_codes):
        return torch.from_numpy(arrays["translation"])[:, None]
    points = []
    with torch.no_grad():
        for start in range(0, header.instants, 16):
            rows = {name: torch.from_numpy(arrays[name])[start : start + 16] for name in names[1:]}
            count = len(rows["expression"])
            offset = arrays.get("static_offset")
            fits = offset is not None and len(offset) == head.vertex_count
            params = HeadParams(
                shape=torch.from_numpy(arrays["shape"]).expand(count, -1),
                static_offset=torch.from_numpy(offset).expand(count, -1, -1) if fits else None,
                **rows,
            )
            points.append(head.landmarks(head(params)))
    return torch.cat(points)


def _check_boxes(header: ClipHeader, boxes: np.ndarray) -> list[Fault]:
    limit = np.array([header.width, header.height] * 2, np.float64)
    clipped = np.clip(boxes, 0, limit)

    def area(b: np.ndarray) -> np.ndarray:
        return (b[..., 2] - b[..., 0]).clip(0) * (b[..., 3] - b[..., 1]).clip(0)

    empty = (boxes[..., 2:] <= boxes[..., :2]).any(-1)
    outside = np.where(empty, 0, 1 - area(clipped) / area(boxes).clip(1e-9))
    return [
        Fault(
            PARAMS_FILE,
            FrameIndex(int(t), int(c)),
            "face_box",
            f"is empty: {' '.join(f'{v:.4g}' for v in boxes[t, c])}, expected x0 y0 x1 y1 with x0 < x1",
        )
        for t, c in np.argwhere(empty)
    ] + [
        Fault(
            PARAMS_FILE,
            FrameIndex(int(t), int(c)),
            "face_box",
            f"face out of frame: {outside[t, c]:.0%} of the box is outside the {header.width} x {header.height} image",
        )
        for t, c in np.argwhere(outside > OUTSIDE_SHARE)
    ]


def _check_pictures(folder: str, header: ClipHeader, progress: Progress | None) -> list[Fault]:
    """Work and faults grow with the files that there are, not with the frames that clip.json claims."""
    faults: list[Fault] = []
    listed = {picture: files.list_folder(files.join(folder, picture)) for picture in PICTURES}
    present: dict[Picture, set[FrameIndex]] = {picture: set() for picture in header.pictures}
    said = {"masks": ("matte", header.matte), "roi": ("region", str(header.region).lower()), "images": ("", "")}
    for picture in PICTURES:
        if picture not in header.pictures:
            if listed[picture]:
                field, value = said[picture]
                message = f"is '{value}', but the folder {picture}/ holds {len(listed[picture])} files"
                faults.append(Fault(HEADER_FILE, None, field, message))
            continue
        if not listed[picture] and picture != "images":
            field, value = said[picture]
            message = f"is '{value}', but there is no folder {picture}/ with pictures"
            faults.append(Fault(HEADER_FILE, None, field, message))
        for name in listed[picture]:
            frame = _frame_of(name)
            claimed = frame is not None and frame.instant < header.instants and frame.camera < header.cameras
            if frame is not None and claimed and header.frame_file(picture, frame) == f"{picture}/{name}":
                present[picture].add(frame)
            else:
                message = f"belongs to no frame: clip.json says {header.instants} instants, {header.cameras} cameras"
                faults.append(Fault(f"{picture}/{name}", frame, "file", message))

    for picture in header.pictures:
        if listed[picture] or picture == "images":
            faults += _missing(header, picture, present[picture])
    frames = sorted(set().union(*present.values()))
    for done, frame in enumerate(frames):
        for picture in header.pictures:
            if frame in present[picture]:
                name = header.frame_file(picture, frame)
                problem = _file_problem(files.join(folder, name), header, picture)
                if problem:
                    faults.append(Fault(name, frame, *problem))
        if progress is not None:
            progress(done + 1, len(frames))
    return faults


def _missing(header: ClipHeader, picture: Picture, present: set[FrameIndex]) -> list[Fault]:
    absent = (FrameIndex(t, c) for t in range(header.instants) for c in range(header.cameras) if (t, c) not in present)
    faults = [
        Fault(header.frame_file(picture, frame), frame, "file", "is missing")
        for frame in itertools.islice(absent, MISSING_LISTED)
    ]
    more = header.instants * header.cameras - len(present) - len(faults)
    if more:
        message = f"{more} more are missing: clip.json says {header.instants} instants, {header.cameras} cameras"
        faults.append(Fault(f"{picture}/", None, "files", message))
    return faults


def _file_problem(location: str, header: ClipHeader, picture: Picture) -> tuple[str, str] | None:
    try:
        return _picture_problem(files.read_bytes(location), header, picture)
    except SpatialAvatarError as e:
        return "content", str(e).removeprefix(f"{location}: ")


def _picture_problem(data: bytes, header: ClipHeader, picture: Picture) -> tuple[str, str] | None:
    """Field and message, or None for a sound picture."""
    try:
        size = encoded_size(data)
        if size[1:] != (header.width, header.height):
            field = "size"
            return field, f"is {size.width} x {size.height} pixels, clip.json says {header.width} x {header.height}"
        wanted = header.image_format if picture == "images" else "png"
        if size.kind != wanted:
            return "format", f"is a {size.kind} picture, expected {wanted}"
        decode(data, header.width, header.height, color=picture == "images")
    except ValueError as e:
        return "content", str(e)
    return None


def _frame_of(name: str) -> FrameIndex | None:
    match = re.fullmatch(r"([0-9]{6})(?:_([0-9]{2}))?\.(?:jpg|png)", name)
    return FrameIndex(int(match[1]), int(match[2] or 0)) if match else None
