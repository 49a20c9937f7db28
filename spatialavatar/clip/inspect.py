"""A contact sheet of a clip: do mesh, cameras, boxes and mattes sit where the picture says?

One row a frame, three panels: the frame with face box, landmarks and the head's axes; the posed mesh over it, the
subject's left half orange and the right half blue; the matte's edge and cut-out with the region of interest.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spatialavatar import files
from spatialavatar.clip.header import FrameIndex
from spatialavatar.clip.pictures import encode
from spatialavatar.clip.tracked_clip import Frame, TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.rotation import axis_angle_to_matrix
from spatialavatar.splat.camera import Camera

PANEL = 440  # pixels of a panel's longer side
ROWS, CAMERAS = 4, 4  # shown when no frames are named
AXIS = 0.08  # metres
EAR_HEIGHT = 0.04  # metres: L and R stand at the widest vertices within this of the head's origin
FAR_SIDE = 0.04  # metres behind the head's middle: there L and R are hidden
WIREFRAME_FACES = 20_000  # finer meshes are drawn without their edges, which would cover everything

Picture = UInt8[np.ndarray, "H W 3"]  # RGB
Color = tuple[int, int, int]
LEFT, RIGHT = (255, 150, 40), (70, 140, 255)
BOX, TRACKED, PROJECTED, EDGE = (255, 230, 0), (0, 255, 80), (255, 40, 40), (255, 0, 255)
AXES: tuple[tuple[str, Color], ...] = (("x left", (255, 70, 70)), ("y up", (80, 255, 80)), ("z out", (90, 150, 255)))


def inspect_clip(
    clip: TrackedClip, head: HeadModel, out: files.Location, frames: Sequence[FrameIndex | int] | None = None
) -> list[FrameIndex]:
    """Write the sheet as PNG and return the frames that it shows.

    ``frames`` may hold instants (seen by every camera) or frames; by default four instants spread over the clip and up
    to four cameras. Raises SpatialAvatarError: another head, frames that the clip does not have, damaged pictures.
    """
    clip.require_head(head)
    shown = _choose(clip, frames)
    width, height = (min(a, b) for a, b in zip(clip.size_at(PANEL), (clip.width * 4, clip.height * 4)))
    rows = [_title(clip, head, 3 * width + 4)]
    with torch.no_grad():
        for index in shown:
            rows.append(_row(clip, head, index, width, height))
    files.write_bytes(out, encode(np.concatenate(rows), "png"))
    return shown


def tracking_over(clip: TrackedClip, head: HeadModel, index: FrameIndex, width: int, height: int) -> Picture:
    """The frame under the posed mesh, with the head's landmarks and the tracked ones."""
    frame = clip.frame(index, width, height)
    camera = clip.camera(index).resized(width, height)
    with torch.no_grad():
        vertices = head(clip.params_at(index))
        pixels, depth = (a[0].double().numpy() for a in camera.project(vertices))
        projected = camera.project(head.landmarks(vertices))[0][0].double().numpy()
    picture = _mesh_panel(_bytes(frame.image), head, pixels, depth)
    for point in projected:
        _cross(picture, point, PROJECTED)
    tracked = () if clip.landmarks is None else clip.landmarks[index].double().numpy()
    for point in tracked:
        if np.isfinite(point).all():
            cv2.circle(picture, _point(point * (width / clip.width, height / clip.height)), 2, TRACKED, 1, cv2.LINE_AA)
    return picture


def _choose(clip: TrackedClip, frames: Sequence[FrameIndex | int] | None) -> list[FrameIndex]:
    def spread(count: int, limit: int) -> list[int]:
        return sorted({round(i) for i in np.linspace(0, count - 1, min(count, limit))})

    if frames is None:
        return [FrameIndex(t, c) for t in spread(clip.instants, ROWS) for c in spread(clip.cameras, CAMERAS)]
    shown = []
    for f in frames:
        shown += [f] if isinstance(f, FrameIndex) else [FrameIndex(f, c) for c in range(clip.cameras)]
    if not shown:
        raise SpatialAvatarError("no frames named to inspect; give some, e.g. --frames 0,10,20")
    clip.camera(shown)  # checks the indices
    return shown


def _row(clip: TrackedClip, head: HeadModel, index: FrameIndex, width: int, height: int) -> Picture:
    frame = clip.frame(index, width, height)
    camera = clip.camera(index).resized(width, height)
    params = clip.params_at(index)
    vertices = head(params)
    pixels, depth = (a[0].double().numpy() for a in camera.project(vertices))
    scale = np.array([width / clip.width, height / clip.height])
    projected = camera.project(head.landmarks(vertices))[0][0].double().numpy()
    tracked = None if clip.landmarks is None else clip.landmarks[index].double().numpy() * scale

    first = _bytes(frame.image)
    if clip.face_box is not None:
        x0, y0, x1, y1 = clip.face_box[index].double().numpy() * np.tile(scale, 2)
        cv2.rectangle(first, _point((x0, y0)), _point((x1, y1)), BOX, 1, cv2.LINE_AA)
    for point in projected:
        _cross(first, point, PROJECTED)
    for point in tracked if tracked is not None else ():
        if np.isfinite(point).all():
            cv2.circle(first, _point(point), 2, TRACKED, 1, cv2.LINE_AA)
    _draw_axes(first, camera, params.translation[0], axis_angle_to_matrix(params.global_rotation)[0])

    second = _mesh_panel(_bytes(frame.image), head, pixels, depth)
    across = torch.where(head.template[:, 1].abs() < EAR_HEIGHT, head.template[:, 0], 0)
    for letter, vertex in (("L", int(across.argmax())), ("R", int(across.argmin()))):
        if depth[vertex] < depth.mean() + FAR_SIDE:
            _text(second, letter, pixels[vertex], 0.7)

    caption = f"instant {index.instant}  camera {index.camera}"
    if tracked is not None and tracked.shape == projected.shape:
        error = np.nanmean(np.linalg.norm((tracked - projected) / scale, axis=-1))
        caption += f"  landmarks {error:.1f} px apart"
    _text(first, caption, (8, height - 12), 0.5, anchor="left")
    gap = np.zeros((height, 2, 3), np.uint8)
    row = np.concatenate([first, gap, second, gap, _matte_panel(frame)], 1)
    return np.concatenate([row, np.zeros((2, row.shape[1], 3), np.uint8)])


def _mesh_panel(
    picture: Picture, head: HeadModel, pixels: Float[np.ndarray, "V 2"], depth: Float[np.ndarray, " V"]
) -> Picture:
    """The mesh over the picture: triangles that face the camera, far ones first, brighter the more they face it."""
    faces = head.faces.numpy()
    a, b, c = (pixels[faces[:, i]] for i in range(3))
    doubled = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    front = (depth[faces] > 0).all(1) & (doubled < 0)  # counter-clockwise outside, image rows grow downwards
    corners = np.concatenate([pixels, depth[:, None] * np.ptp(pixels) / max(np.ptp(depth), 1e-9) * 0.5], 1)[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = np.abs(normal[:, 2]) / np.linalg.norm(normal, axis=1).clip(1e-12)
    is_left = head.template.numpy()[faces][..., 0].mean(1) > 0
    colors = np.where(is_left[:, None], LEFT, RIGHT) * (0.25 + 0.75 * facing[:, None])
    order = np.flatnonzero(front)
    order = order[np.argsort(-depth[faces[order]].mean(1))]
    mesh = picture.copy()
    fixed = np.round(np.stack([a, b, c], 1) * 16 - 8).clip(-(2**20), 2**20).astype(np.int32)  # 4 fractional bits
    for f in order:
        cv2.fillConvexPoly(mesh, fixed[f], colors[f].tolist(), cv2.LINE_8, 4)
        if len(faces) <= WIREFRAME_FACES:
            cv2.polylines(mesh, [fixed[f]], True, (colors[f] * 0.5).tolist(), 1, cv2.LINE_AA, 4)
    return cv2.addWeighted(picture, 0.4, mesh, 0.6, 0)


def _matte_panel(frame: Frame) -> Picture:
    """Cut-out on grey checks with the matte's edge; what does not count is dark, its border white."""
    height, width = frame.matte.shape
    checks = ((np.arange(height)[:, None] // 12 + np.arange(width) // 12) % 2 * 0.15 + 0.6)[..., None]
    matte = frame.matte.numpy()[..., None]
    region = frame.region.numpy()
    picture = frame.image.numpy() * matte + checks * (1 - matte)
    panel = _bytes(torch.from_numpy(picture * np.where(region[..., None] > 0, 1, 0.3)))
    for mask, color in ((region, (255, 255, 255)), (frame.matte.numpy() > 0.5, EDGE)):
        outlines, _ = cv2.findContours(np.asarray(mask, np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(panel, outlines, -1, color, 1, cv2.LINE_AA)
    return panel


def _draw_axes(picture: Picture, camera: Camera, origin: Float[Tensor, "3"], rotation: Float[Tensor, "3 3"]) -> None:
    tips = torch.stack([origin, *(origin + AXIS * rotation[:, i] for i in range(3))])
    points, depth = camera.project(tips[None])
    if bool((depth <= 0).any()):
        return
    start, *ends = points[0].double().numpy()
    for end, (name, color) in zip(ends, AXES):
        cv2.arrowedLine(picture, _point(start), _point(end), color, 2, cv2.LINE_AA, 0, 0.15)
        _text(picture, name, end + (end - start) * 0.15, 0.4, color)


def _title(clip: TrackedClip, head: HeadModel, width: int) -> Picture:
    test = "all frames train" if clip.test_from is None else f"test from {clip.test_from}"
    lines: list[tuple[str, Color]] = [
        (
            f"{clip.identity}: {clip.instants} instants x {clip.cameras} cameras, {clip.width} x {clip.height}, "
            f"{clip.fps:g} fps, {test}, matte {clip.matte_kind}, head {head.info.id}",
            (255, 255, 255),
        ),
        ("frame: yellow face box, green tracked landmarks, red projected landmarks, axes of the head", BOX),
        ("mesh: orange = the subject's left (L, +x), blue = the right (R); it must sit on the face, upright", LEFT),
        ("matte: magenta edge; dark = outside the region of interest", EDGE),
    ]
    picture = np.full((22 * len(lines) + 12, width, 3), 30, np.uint8)
    scale = min(0.5, width / 1900)
    for i, (text, color) in enumerate(lines):
        _text(picture, text, (8, 22 * i + 22), scale, color, anchor="left")
    return picture


def _text(
    picture: Picture,
    text: str,
    at: Sequence[float] | np.ndarray,
    scale: float,
    color: Color = (255, 255, 255),
    anchor: str = "centre",
) -> None:
    """Text on a dark plate, readable on any picture."""
    if not np.isfinite(at).all():
        return
    (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x, y = _point(at)
    if anchor == "centre":
        x, y = x - w // 2, y + h // 2
    top, left = max(0, y - h - 2), max(0, x - 3)
    plate = picture[top : max(0, y + below), left : max(0, x + w + 3)]
    plate[:] = plate // 3
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)


def _cross(picture: Picture, at: np.ndarray, color: Color) -> None:
    if np.isfinite(at).all():
        cv2.drawMarker(picture, _point(at), color, cv2.MARKER_TILTED_CROSS, 5, 1, cv2.LINE_AA)


def _point(at: Sequence[float] | np.ndarray) -> tuple[int, int]:
    """The pixel that holds a continuous position; far outside is enough for OpenCV to clip."""
    x, y = np.clip(np.floor(np.asarray(at, np.float64)), -30_000, 30_000)
    return int(x), int(y)


def _bytes(image: Tensor) -> Picture:
    return (image.numpy() * 255).round().clip(0, 255).astype(np.uint8)
