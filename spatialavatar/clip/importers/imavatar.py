"""Importer for IMavatar's and SplattingAvatar's data sets: ``flame_params.json`` beside ``image/`` or ``images/``.

Layout after IMavatar's preprocess/DECA/optimize.py and the readers of both (IMavatar real_dataset.py, SplattingAvatar
imavatar_data.py). FLAME is four times its size there, so the camera's translation is divided by 4; ``world_mat`` is an
OpenGL world-to-camera, whose negative z makes the first of ``intrinsics`` negative. ``pose`` is root, neck, jaw and
eyes, with the head's rotation in the neck's place. Frames are numbered from 1 in ``file_path``, without ending. The
matte is the alpha of RGBA images (SplattingAvatar) or stands in ``mask/`` (IMavatar).
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar import files
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.conventions import from_opengl, intrinsics_matrix
from spatialavatar.clip.header import ClipSource
from spatialavatar.clip.importers.foreign_json import numbers, read_foreign_json
from spatialavatar.clip.importers.foreign_pictures import read_picture
from spatialavatar.clip.importers.mattes import decode_rgba, has_alpha, split_alpha
from spatialavatar.clip.importers.options import (
    ImportOptions,
    chosen_identity,
    fitted_codes,
    safe_member,
    with_test_last,
)
from spatialavatar.clip.pictures import EncodedFrame, encoded_size
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams

PARAMS_FILE = "flame_params.json"
SCALE = 4.0  # of FLAME's vertices in the tracker's world
PIXELS_AT = 512  # older files hold intrinsics in pixels of images of this size
TEST_INSTANTS = 350  # at the end, held out by both programs


class _Frame(NamedTuple):
    """Where its pictures lie."""

    image: str
    mask: str | None


def is_imavatar(names: frozenset[str]) -> bool:
    return PARAMS_FILE in names


def open_imavatar(folder: str, head: HeadModel, options: ImportOptions) -> list[TrackedClip]:
    """The clip in such a folder. Raises SpatialAvatarError naming the frame and field that is missing or wrong."""
    location = files.join(folder, PARAMS_FILE)
    content = read_foreign_json(location)
    listed = content.get("frames")
    if not isinstance(listed, list) or not listed or not all(isinstance(frame, dict) for frame in listed):
        raise SpatialAvatarError(f"{location}: frames is not a list of frames; a file of IMavatar's was expected")
    ordered = sorted(((_number(frame, location), frame) for frame in listed), key=lambda pair: pair[0])
    order = [number for number, _ in ordered]
    for number, following in itertools.pairwise(order):
        if number == following:
            raise SpatialAvatarError(f"{location}: holds two frames of number {number}, expected each once")
    values = [frame for _, frame in ordered]
    frames = _find_pictures(folder, location, values, order)

    first = read_picture(frames[0].image)
    try:
        size = encoded_size(first)
        matte = _matte(first, frames[0])
    except ValueError as e:
        raise SpatialAvatarError(f"{frames[0].image}: {e}") from None

    pixels = torch.tensor([size.width, size.height])
    box = _optional(values, "bbox", (4,), location)
    points = _optional(values, "flame_keypoints", (None, 2), location)
    if points is not None and head.info.landmark_scheme == "ibug68":
        points = points[:, :68]  # the irises may follow
    clip = assemble_clip(
        folder,
        identity=chosen_identity(options, folder.rsplit("/", 1)[-1]),
        head=head,
        params=_params(content, values, head, location),
        world_to_camera=_world_to_camera(values, location)[:, None],
        intrinsics=_intrinsics(content, pixels, location).expand(len(frames), 1, 3, 3),
        width=size.width,
        height=size.height,
        fps=options.fps or 25.0,
        frames=lambda instant, _: _read(frames[instant], matte),
        matte_kind="none" if matte == "none" else "alpha",
        face_box=None if box is None else ((box + 1) / 2 * pixels.repeat(2)).float()[:, None],
        landmarks=None if points is None else ((points + 1) / 2 * pixels).float()[:, None],
        source=ClipSource("imavatar", f"{PARAMS_FILE}, matte: {matte}", options.licence or "not stated"),
        image_format=size.kind,
    )
    if options.keep_split and not options.test_last:
        if clip.instants <= TEST_INSTANTS:
            raise SpatialAvatarError(
                f"{location}: the tool's split holds out the last {TEST_INSTANTS} instants, which leaves nothing of "
                f"{clip.instants} to train on; hold out fewer with --test-last instead of --keep-split"
            )
        return [with_test_last(clip, TEST_INSTANTS)]
    return [with_test_last(clip, options.test_last)]


def _number(frame: dict[str, Any], location: str) -> int:
    """Of ``./image/17``: 17."""
    path = frame.get("file_path")
    match = re.search(r"([0-9]{1,9})(?:\.[A-Za-z]{3,4})?$", path) if isinstance(path, str) else None
    if match is None:
        raise SpatialAvatarError(
            f"{location}: a frame's file_path is {ascii(path)[:100]}, expected a path that ends in the frame's number"
        )
    return int(match[1])


def _find_pictures(folder: str, location: str, values: list[dict[str, Any]], order: list[int]) -> list[_Frame]:
    """Where each frame's image lies, and its mask where there is a folder of them."""
    names = [safe_member(folder, frame["file_path"], location) for frame in values]
    own = sorted({name.rpartition("/")[0] for name in names})
    if len(own) > 1:
        raise SpatialAvatarError(f"{location}: frames lie in several folders ({own[0]}, {own[1]}); expected one")
    places = list(dict.fromkeys([files.join(folder, "images"), files.join(folder, "image"), own[0]]))
    present = {place: frozenset(files.list_folder(place)) for place in (*places, files.join(folder, "mask"))}

    def find(stem: str, where: Sequence[str]) -> str | None:
        candidates = [f"{stem}.{ending}" for ending in ("png", "jpg", "jpeg")]
        return next((files.join(p, name) for p in where for name in candidates if name in present[p]), None)

    frames = []
    masks = files.join(folder, "mask")
    for name, number in zip(names, order):
        stem = re.sub(r"\.(png|jpe?g)$", "", name.rpartition("/")[2])
        image, mask = find(stem, places), find(stem, [masks])
        if image is None or (present[masks] and mask is None):
            kind, tried = ("image", places) if image is None else ("mask", [masks])
            shown = " or ".join(p.removeprefix(folder).strip("/") + "/" for p in tried)
            raise SpatialAvatarError(f"{location}: frame {number} has no {kind} {stem}.png in {shown}; restore it")
        frames.append(_Frame(image, mask))
    return frames


Matte = Literal["alpha of the images", "mask/", "none"]


def _matte(first: bytes, frame: _Frame) -> Matte:
    """Where the matte of the whole clip stands, from its first image. Opaque alpha says nothing where masks do."""
    if has_alpha(first) and (frame.mask is None or bool((decode_rgba(first)[..., 3] < 255).any())):
        return "alpha of the images"
    return "mask/" if frame.mask is not None else "none"


def _read(frame: _Frame, matte: Matte) -> EncodedFrame:
    image = read_picture(frame.image)
    alpha = None
    try:
        if matte == "alpha of the images" or has_alpha(image):
            image, alpha = split_alpha(image)
    except ValueError as e:
        raise SpatialAvatarError(f"{frame.image}: {e}") from None
    if matte == "mask/":
        assert frame.mask is not None
        alpha = read_picture(frame.mask)
    return EncodedFrame(image, None if matte == "none" else alpha)


def _params(content: dict[str, Any], values: list[dict[str, Any]], head: HeadModel, location: str) -> HeadParams:
    shape = _tensor(numbers(content.get("shape_params"), (None,), f"{location}: shape_params"))
    pose = _stacked(values, "pose", (15,), location).float()
    expression = _stacked(values, "expression", (None,), location).float()
    return HeadParams(
        shape=fitted_codes(shape.float(), head.shape_codes, f"{location}: shape_params").expand(len(values), -1),
        expression=fitted_codes(expression, head.expression_codes, f"{location}: expression"),
        global_rotation=pose[:, :3],
        neck=pose[:, 3:6],
        jaw=pose[:, 6:9],
        eyes=pose[:, 9:],
        translation=torch.zeros(len(values), 3),
    )


def _world_to_camera(values: list[dict[str, Any]], location: str) -> Float[Tensor, "T 4 4"]:
    """OpenCV, metres."""
    rows = len(values[0]["world_mat"]) if isinstance(values[0].get("world_mat"), list) else 3
    matrices = _stacked(values, "world_mat", (4 if rows == 4 else 3, 4), location)
    matrices[:, :3, 3] /= SCALE
    return from_opengl(matrices).float()


def _intrinsics(content: dict[str, Any], pixels: Tensor, location: str) -> Float[Tensor, "3 3"]:
    k = _tensor(numbers(content.get("intrinsics"), (4,), f"{location}: intrinsics"))
    if k[3] > 1:
        k = k / PIXELS_AT
    fx, fy, cx, cy = (k * pixels.repeat(2)).abs().unbind()
    return intrinsics_matrix(fx, fy, cx, cy).float()


def _optional(values: list[dict[str, Any]], name: str, shape: tuple[int | None, ...], location: str) -> Tensor | None:
    """None when a frame goes without."""
    if not all(name in frame for frame in values):
        return None
    return _stacked(values, name, shape, location)


def _stacked(values: list[dict[str, Any]], name: str, shape: tuple[int | None, ...], location: str) -> Tensor:
    """One row a frame, float64; every frame as long as the first."""
    rows: list[np.ndarray] = []
    for frame in values:
        what = f"{location}: {name} of frame {ascii(frame['file_path'])[:100]}"
        rows.append(numbers(frame.get(name), rows[0].shape if rows else shape, what))
    return _tensor(np.stack(rows))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)
