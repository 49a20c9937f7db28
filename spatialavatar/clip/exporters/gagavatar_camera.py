"""A clip as GAGAvatar_track's camera would have filmed it: squares around the head, and the head's pose in each.

The tool knows square pictures of 512 pixels, one focal length, a centred principal point, and no neck. A clip whose
cameras are like that and whose neck rests is held exactly. Of any other clip a square around the head is cut out as the
tool does, and the pose is fitted anew, frame by frame, so that the head without its neck rotation falls on the same
pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from spatialavatar.clip.importers.gagavatar_track import FOCAL
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
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
class ToolVideo:
    """One camera's frames as the tool would have them."""

    crops: Int[np.ndarray, "T 3"]  # left, top and side of the square, in the clip's pixels
    whole: bool  # the square is the clip's picture
    boxes: Float64[np.ndarray, "T 4"]  # of the head, as shares of the square
    world_to_camera: Float64[np.ndarray, "T 4 4"]
    errors: Float64[np.ndarray, "T 2"] | None  # pixels of 512 between fitted and true vertices: mean, largest


def tool_video(
    clip: TrackedClip, head: HeadModel, params: HeadParams, world_to_camera: Tensor, camera: int
) -> ToolVideo:
    """Of one camera of a clip; ``params`` and ``world_to_camera`` [T,4,4] are canonical; the cameras in float64.

    Raises SpatialAvatarError for a head that is not before the camera.
    """
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
        return ToolVideo(crops, whole, shares, cameras, None)

    plain = replace(params, neck=torch.zeros_like(params.neck), static_offset=None)
    fitted, errors = cameras.copy(), np.empty((clip.instants, 2))
    pairs = zip(_posed(head, plain), _projected(where, head, params, cameras, intrinsics))
    for t, (vertices, seen) in enumerate(pairs):
        fitted[t], errors[t] = _fitted_pose(vertices, (seen - corner[t]) * (SIZE / side[t]), cameras[t])
    return ToolVideo(crops, whole, shares, fitted, errors)


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
