"""Exporter to GAGAvatar_track's folder: img_lmdb, optim.pkl, smoothed.pkl, dataset.json (the importer says what is in
them).

The tool knows square pictures of 512 pixels, one focal length, a centred principal point, and no neck. A clip whose
cameras are like that and whose neck rests is held exactly: the rigid motion goes into the camera (``canonical``). Of
any other clip a square around the head is cut out as the tool does, and the pose is fitted anew, frame by frame, so
that the head without its neck rotation falls on the same pixels; the report says how well it does.
"""

import io
import pickle
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import lmdb
import numpy as np
import torch
from jaxtyping import Float64, Int, UInt8
from torch import Tensor

from spatialavatar import files
from spatialavatar.clip.conventions import to_pytorch3d
from spatialavatar.clip.exporters.report import ExportReport, common_notes
from spatialavatar.clip.header import FrameIndex
from spatialavatar.clip.importers.gagavatar_track import FOCAL, HEAD_SCALE, PARAMETERS, PICTURES, SHAPES, SPLIT
from spatialavatar.clip.importers.options import fitted_codes
from spatialavatar.clip.pictures import encode, encoded_size
from spatialavatar.clip.tracked_clip import Progress, TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.canonical import canonical
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams

SIZE = 512  # pixels of the tool's pictures
_CROP = 1.65  # side of the tool's square, in roots of the head box's area
_SMOOTHING = 0.03  # weight of a new box in the tool's moving average
_WIDEST_CROP = 2  # times the picture's longer side
_NEAREST = 0.01  # metres
_FITTED_POINTS = 1000  # vertices that a pose is fitted to
_FITTING_STEPS = 50
_MATRIX = np.array([[FOCAL * SIZE / 2, 0, SIZE / 2], [0, FOCAL * SIZE / 2, SIZE / 2], [0, 0, 1]])


@dataclass(frozen=True)
class _Video:
    """One camera's frames as the tool would have them."""

    crops: Int[np.ndarray, "T 3"]  # left, top and side of the square, in the clip's pixels
    whole: bool  # the square is the clip's picture
    boxes: Float64[np.ndarray, "T 4"]  # of the head, as shares of the square
    world_to_camera: Float64[np.ndarray, "T 4 4"]
    errors: Float64[np.ndarray, "T 2"] | None  # pixels of 512 between fitted and true vertices: mean, largest


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
    videos = [_video(clip, head, params, world_to_camera[:, c], c) for c in range(clip.cameras)]
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


def _video(clip: TrackedClip, head: HeadModel, params: HeadParams, world_to_camera: Tensor, camera: int) -> _Video:
    """``params`` and ``world_to_camera`` [T,4,4] are canonical; the cameras in float64."""
    where = f"{clip.location}, camera {camera}"
    intrinsics = clip.intrinsics[:, camera].double().numpy()
    cameras = world_to_camera.numpy()
    boxes = np.empty((clip.instants, 4))
    for t, seen in enumerate(_projected(where, head, params, cameras, intrinsics)):
        boxes[t] = [*seen.min(0), *seen.max(0)]
    if clip.face_box is not None:
        stated = clip.face_box[:, camera].double().numpy()
        found = (stated[:, 2:] > stated[:, :2]).all(-1)  # an empty box: the tracker lost the face
        boxes[found] = stated[found]
    whole = _is_the_tools(clip, intrinsics)
    crops = np.tile([0, 0, clip.width], (clip.instants, 1)) if whole else _crops(boxes, max(clip.width, clip.height))
    corner, side = crops[:, :2], crops[:, 2:]
    shares = ((boxes - np.tile(corner, 2)) / side).clip(0, 1)
    shares[(shares[:, 2:] <= shares[:, :2]).any(-1)] = [0, 0, 1, 1]  # a box beside the square
    if whole and not params.neck.any() and params.static_offset is None:
        return _Video(crops, whole, shares, cameras, None)

    plain = replace(params, neck=torch.zeros_like(params.neck), static_offset=None)
    fitted, errors = cameras.copy(), np.empty((clip.instants, 2))
    pairs = zip(_posed(head, plain), _projected(where, head, params, cameras, intrinsics))
    for t, (vertices, seen) in enumerate(pairs):
        fitted[t], errors[t] = _fitted_pose(vertices, (seen - corner[t]) * (SIZE / side[t]), cameras[t])
    return _Video(crops, whole, shares, fitted, errors)


def _posed(head: HeadModel, params: HeadParams) -> Iterator[Float64[np.ndarray, "N 3"]]:
    """For each instant the vertices that turn with the neck joint; those below it cannot follow without a neck."""
    on_head = (head.weights[:, 1:].sum(-1) > 0.5).numpy()
    if on_head.sum() < 10:
        on_head[:] = True
    for start in range(0, params.batch, 16):
        with torch.no_grad():  # not around the yield: two such generators in turns would leave gradients off
            posed = head(params[start : start + 16]).double().numpy()
        yield from posed[:, on_head]


def _projected(
    where: str,
    head: HeadModel,
    params: HeadParams,
    world_to_camera: Float64[np.ndarray, "T 4 4"],
    intrinsics: Float64[np.ndarray, "T 3 3"],
) -> Iterator[Float64[np.ndarray, "N 2"]]:
    """For each instant the pixels of those vertices."""
    for t, vertices in enumerate(_posed(head, params)):
        seen = vertices @ world_to_camera[t, :3, :3].T + world_to_camera[t, :3, 3]
        if seen[:, 2].min() < _NEAREST:
            raise SpatialAvatarError(
                f"{where}: instant {t}: the head is not before the camera; the tool cannot hold such a frame"
            )
        yield (seen @ intrinsics[t].T)[:, :2] / seen[:, 2:]


def _is_the_tools(clip: TrackedClip, intrinsics: Float64[np.ndarray, "T 3 3"]) -> bool:
    """Whether the clip's picture is what the tool's camera sees, but for its size."""
    wanted = _MATRIX * [[clip.width / SIZE], [clip.width / SIZE], [1]]
    return clip.width == clip.height and bool((np.abs(intrinsics - wanted) <= 1e-5 * wanted[0, 0]).all())


def _crops(boxes: Float64[np.ndarray, "T 4"], longest: int) -> Int[np.ndarray, "T 3"]:
    """The tool's squares, smoothed as it does but from both ends: from the first frame alone they trail the head."""
    extent = (boxes[:, 2:] - boxes[:, :2]).clip(1)
    squares = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, _CROP * np.sqrt(extent.prod(-1, keepdims=True))], -1)
    squares = (_trailing(squares) + _trailing(squares[::-1])[::-1]) / 2
    side = squares[:, 2:].clip(8, _WIDEST_CROP * longest).round()
    return np.concatenate([(squares[:, :2] - side / 2).round(), side], -1).astype(np.int64)


def _trailing(values: Float64[np.ndarray, "T n"]) -> Float64[np.ndarray, "T n"]:
    out = values.copy()
    for before, now in pairwise(out):
        now += (1 - _SMOOTHING) * (before - now)
    return out


def _fitted_pose(
    vertices: Float64[np.ndarray, "N 3"], wanted: Float64[np.ndarray, "N 2"], start: Float64[np.ndarray, "4 4"]
) -> tuple[Float64[np.ndarray, "4 4"], tuple[float, float]]:
    """World to the tool's camera with the vertices nearest to the pixels wanted; mean and largest distance left.

    Starts from the clip's camera, moved along its view until the head has its size and place in the square.
    """
    turned = vertices @ start[:3, :3].T
    focal = _MATRIX[0, 0]
    depth = focal * np.ptp(turned[:, :2], axis=0).max() / max(np.ptp(wanted, axis=0).max(), 1e-6)
    pose = start.copy()
    pose[:3, 3] = np.append((wanted.mean(0) - SIZE / 2) / focal, 1) * depth - turned.mean(0)
    few = slice(None, None, max(1, len(vertices) // _FITTED_POINTS))
    pose = _refined_pose(vertices[few], wanted[few], pose)
    distances = np.linalg.norm(_tool_pixels(vertices, pose) - wanted, axis=-1)
    return pose, (float(distances.mean()), float(distances.max()))


def _refined_pose(
    vertices: Float64[np.ndarray, "N 3"], wanted: Float64[np.ndarray, "N 2"], pose: Float64[np.ndarray, "4 4"]
) -> Float64[np.ndarray, "4 4"]:
    """Levenberg-Marquardt on the pixels' squared distances over a turn and a shift of the camera, from ``pose`` on.

    OpenCV's own (solvePnPRefineLM of 5.0) stops far from the minimum with so long a focal length.
    """
    damping, error = 1e-3, _tool_pixels(vertices, pose) - wanted
    for _ in range(_FITTING_STEPS):
        turned = vertices @ pose[:3, :3].T
        x, y, z = (turned + pose[:3, 3]).T
        zero = np.zeros_like(z)
        by_shift = _MATRIX[0, 0] * np.stack([[1 / z, zero, -x / z**2], [zero, 1 / z, -y / z**2]]).transpose(2, 0, 1)
        by_turn = np.cross(turned[:, None], by_shift)  # of a small rotation w: d(point) = w x turned
        slope = np.concatenate([by_turn, by_shift], -1).reshape(-1, 6)
        curvature = slope.T @ slope
        step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), -slope.T @ error.ravel())
        moved = pose.copy()
        moved[:3, :3] = cv2.Rodrigues(step[:3])[0] @ pose[:3, :3]
        moved[:3, 3] += step[3:]
        new = _tool_pixels(vertices, moved) - wanted
        gain = 1 - (new**2).sum() / max((error**2).sum(), 1e-30)
        damping *= 0.1 if gain > 0 else 10
        if gain > 0:
            pose, error = moved, new
        if abs(gain) < 1e-12:
            break
    return pose


def _tool_pixels(vertices: Float64[np.ndarray, "N 3"], pose: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "N 2"]:
    seen = (vertices @ pose[:3, :3].T + pose[:3, 3]) @ _MATRIX.T
    return seen[:, :2] / seen[:, 2:]


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
    clip: TrackedClip, videos: list[_Video], names: list[str], out: files.Location, progress: Progress | None
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
        files.move_into_place(Path(folder, "data.mdb"), files.join(out, PICTURES, "data.mdb"))


def _put(environment: lmdb.Environment, key: bytes, data: bytes) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction:
                transaction.put(key, data)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def _picture(clip: TrackedClip, video: _Video, index: FrameIndex) -> bytes:
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


def _notes(clip: TrackedClip, head: HeadModel, videos: list[_Video], names: list[str]) -> Iterator[str]:
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
