"""Exporter to GAGAvatar_track's folder: img_lmdb, optim.pkl, smoothed.pkl, dataset.json (the importer says what is in
them).

The rigid motion goes into the camera (``canonical``). What the tool's camera cannot see as the clip's does is fitted
(gagavatar_camera.py); the report says how well.
"""

import io
import pickle
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import lmdb
import numpy as np
import torch
from jaxtyping import Float64, UInt8

from spatialavatar import files
from spatialavatar.clip.conventions import to_pytorch3d
from spatialavatar.clip.exporters.gagavatar_camera import SIZE, ToolVideo, tool_video
from spatialavatar.clip.exporters.report import ExportReport, common_notes
from spatialavatar.clip.header import FrameIndex
from spatialavatar.clip.importers.gagavatar_track import HEAD_SCALE, PARAMETERS, PICTURES, SHAPES, SPLIT
from spatialavatar.clip.importers.lmdb_reader import DATA_FILE
from spatialavatar.clip.importers.options import fitted_codes
from spatialavatar.clip.pictures import encode, encoded_size
from spatialavatar.clip.tracked_clip import Progress, TrackedClip
from spatialavatar.head.canonical import canonical
from spatialavatar.head.model import HeadModel


def export_gagavatar_track(
    clip: TrackedClip, head: HeadModel, out: files.Location, progress: Progress | None = None
) -> ExportReport:
    """Write the clip into the folder ``out``; of several cameras each becomes a video.

    Raises SpatialAvatarError: another head than the clip's, more codes than the tool has, a head out of sight, a
    picture that cannot be read.
    """
    clip.require_head(head)
    codes = {
        "shapecode": fitted_codes(clip.params.shape, SHAPES["shapecode"][0], f"{clip.location}: shape"),
        "expcode": fitted_codes(clip.params.expression, SHAPES["expcode"][0], f"{clip.location}: expression"),
    }
    params, world_to_camera = canonical(head, clip.params, clip.world_to_camera.double())
    videos = [tool_video(clip, head, params, world_to_camera[:, c], c) for c in range(clip.cameras)]
    names = _video_names(clip)

    tracked = {
        f"{names[c]}_{t}": {
            "bbox": video.boxes[t].astype(np.float32),
            **{field: values[t].float().numpy() for field, values in codes.items()},
            "posecode": np.array([0, 0, 0, *params.jaw[t]], np.float32),
            "eyecode": params.eyes[t].float().numpy(),
            "transform_matrix": _transform(video.world_to_camera[t]),
        }
        for c, video in enumerate(videos)
        for t in range(clip.instants)
    }
    for file in PARAMETERS:  # of an earlier export, which would track what is half written
        files.remove(files.join(out, file))
    _write_pictures(clip, videos, names, out, progress)
    split = {
        "train": [f"{names[c]}_{t}" for t, c in _by_camera(clip.split("train"))],
        "val": [],
        "test": [f"{names[c]}_{t}" for t, c in _by_camera([*clip.split("test"), *clip.split("view")])],
    }
    files.write_json(files.join(out, SPLIT), split)
    content = _pickled(tracked)
    for file in PARAMETERS:
        files.write_bytes(files.join(out, file), content)
    return ExportReport(4, tuple(_notes(clip, head, videos, names)))


def _transform(world_to_camera: Float64[np.ndarray, "4 4"]) -> np.ndarray:
    rotation, translation = to_pytorch3d(torch.from_numpy(world_to_camera))
    return torch.cat([rotation, HEAD_SCALE * translation[:, None]], -1).float().numpy()


def _video_names(clip: TrackedClip) -> list[str]:
    """Without underscores: readers of these folders take what stands before the first as the video's name, and pass
    over a first part "img"."""
    name = clip.identity.replace("_", "-")
    if clip.cameras > 1:
        return [f"{name}-{c:02d}" for c in range(clip.cameras)]
    return ["img-00" if name == "img" else name]


def _by_camera(frames: list[FrameIndex]) -> list[FrameIndex]:
    return sorted(frames, key=lambda frame: (frame.camera, frame.instant))


def _write_pictures(
    clip: TrackedClip, videos: list[ToolVideo], names: list[str], out: files.Location, progress: Progress | None
) -> None:
    done, everything = 0, clip.instants * clip.cameras
    beside = None
    if files.is_local(out):
        beside = files.local_path(out)
        beside.mkdir(parents=True, exist_ok=True)  # where there is room for the pictures, unlike perhaps in /tmp
    with tempfile.TemporaryDirectory(prefix="spatialavatar-", dir=beside) as folder:
        with lmdb.open(folder, map_size=1 << 28, sync=False) as environment:
            for index in _by_camera(clip.header.frames()):
                data = _picture(clip, videos[index.camera], index)
                _put(environment, f"{names[index.camera]}_{index.instant}".encode(), data)
                done += 1
                if progress is not None:
                    progress(done, everything)
            environment.sync(True)
        files.move_into_place(Path(folder, DATA_FILE), files.join(out, PICTURES, DATA_FILE))


def _put(environment: lmdb.Environment, key: bytes, data: bytes) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction:
                transaction.put(key, data)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def _picture(clip: TrackedClip, video: ToolVideo, index: FrameIndex) -> bytes:
    """The frame's square on black as JPEG; the clip's own bytes where they are that already."""
    if video.whole and clip.width == SIZE and clip.matte_kind != "alpha":
        data = clip.encoded(index).image
        try:
            if encoded_size(data) == ("jpg", SIZE, SIZE):
                return data
        except ValueError:
            pass  # clip.frame says what is wrong
    frame = clip.frame(index)
    on_black = (frame.image * frame.matte[..., None] * 255).round().byte().numpy()
    left, top, side = video.crops[index.instant].tolist()
    return encode(_cut_out(on_black, left, top, side), "jpg")


def _cut_out(pixels: UInt8[np.ndarray, "H W 3"], left: int, top: int, side: int) -> UInt8[np.ndarray, "512 512 3"]:
    """A square at the tool's size; black where it reaches beyond the picture."""
    height, width = pixels.shape[:2]
    square = np.zeros((side, side, 3), np.uint8)
    x0, x1 = np.clip([left, left + side], 0, width)
    y0, y1 = np.clip([top, top + side], 0, height)
    square[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
    if side == SIZE:
        return square
    return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA if side > SIZE else cv2.INTER_CUBIC)


def _pickled(tracked: dict[str, dict[str, np.ndarray]]) -> bytes:
    """As numpy 1 wrote it: the tool's own is older than the module's new name, and numpy 2 reads both."""
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=3).dump(tracked)
    # named once, before the first array's content; later arrays refer back to it
    return re.sub(
        rb"cnumpy\._core\.multiarray\n_reconstruct\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        stream.getvalue(),
        count=1,
    )


def _notes(clip: TrackedClip, head: HeadModel, videos: list[ToolVideo], names: list[str]) -> Iterator[str]:
    for name, video in zip(names, videos):
        if video.errors is not None:
            why = "another camera than the tool's" if not video.whole else "a neck rotation or a static offset"
            mean, largest = video.errors[:, 0].mean(), video.errors[:, 1].max()
            yield (
                f"{name}: {why}: poses fitted anew, the head's vertices are {mean:.2f} pixels off on average, "
                f"{largest:.2f} at most (of {SIZE})"
            )
        if not video.whole:
            side = video.crops[:, 2]
            yield f"{name}: pictures cut out of {clip.width} x {clip.height}, squares of {side.min()}..{side.max()}"
    if clip.params.neck.any():
        degrees = float(torch.rad2deg(clip.params.neck.norm(dim=-1).max()))
        yield f"the neck rotation (up to {degrees:.1f} degrees) is in the pose of the whole head: there is no neck"
    if clip.params.static_offset is not None:
        largest = float(clip.params.static_offset[0].norm(dim=-1).max()) * 1000
        yield f"the static offset (up to {largest:.1f} mm) is not held"
    if clip.matte_kind == "alpha":
        yield "mattes are not held, pictures are on black"
    if clip.matte_kind == "none":
        yield "the clip has no mattes: pictures keep their background, where the tool's are black"
    if clip.cameras == 1 and names[0] != clip.identity:
        yield f"'{clip.identity}' is named {names[0]}: readers take a video's name from what stands before underscores"
    yield from common_notes(clip, head)
    yield "smoothed.pkl holds the values of optim.pkl, not smoothed"
