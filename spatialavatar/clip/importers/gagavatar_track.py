"""Importer for GAGAvatar_track's folders: ``img_lmdb`` with ``smoothed.pkl`` or ``optim.pkl``.

Both pickles hold, by the key ``{NAME}_{i}`` of a picture in img_lmdb: bbox [4] (head box, shares of the picture),
shapecode [300], expcode [100], posecode [6] (zero, jaw), eyecode [6], and transform_matrix [3,4], a PyTorch3D camera
R, T that carries the head's motion. The tool renders FLAME five times as large, by a focal length of 12 in NDC. The
smoothed values are taken where there are any, as the tool's own drivers do. Pictures are on black, alpha is not kept.
Beside them may lie tracked.mp4, whose header knows the frame rate, and dataset.json with a split.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from spatialavatar import files
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.conventions import from_pytorch3d, intrinsics_matrix, ndc_focal_to_pixels
from spatialavatar.clip.header import ClipSource
from spatialavatar.clip.importers.foreign_json import read_foreign_json
from spatialavatar.clip.importers.lmdb_reader import LmdbReader
from spatialavatar.clip.importers.mp4_header import mp4_frame_rate
from spatialavatar.clip.importers.options import ImportOptions, chosen_identity, fitted_codes, with_test_last
from spatialavatar.clip.pictures import EncodedFrame, encoded_size
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.unpickle import read_pickle

PICTURES = "img_lmdb"
PARAMETERS = ("smoothed.pkl", "optim.pkl")  # the first that is there
VIDEO, SPLIT = "tracked.mp4", "dataset.json"
FOCAL = 12.0  # NDC: half the picture's side is 1
HEAD_SCALE = 5.0  # of the tool's head against one in metres
SHAPES = {
    "bbox": (4,),
    "shapecode": (300,),
    "expcode": (100,),
    "posecode": (6,),
    "eyecode": (6,),
    "transform_matrix": (3, 4),
}
_FPS = 25.0  # where nothing says it
_HALVED_ABOVE = 50.0  # frames in a second: of such videos the tool keeps every second frame, but states the full rate

Tracked = dict[str, Any]  # key to what the pickle holds under it


@dataclass(frozen=True)
class _Results:
    """What the videos of a folder share."""

    location: str  # of the pickle, for messages
    reader: LmdbReader
    fps: float
    held_out: frozenset[str]  # keys
    notes: list[str]


def is_gagavatar_track(names: frozenset[str]) -> bool:
    return PICTURES in names and not names.isdisjoint(PARAMETERS)


def open_gagavatar_track(folder: str, head: HeadModel, options: ImportOptions) -> list[TrackedClip]:
    """One clip for each video (NAME) in the folder.

    Raises SpatialAvatarError naming the file and key: damaged, a frame without its picture, codes beyond the head's.
    """
    names = files.list_folder(folder)
    location = files.join(folder, next(name for name in PARAMETERS if name in names))
    videos = _videos(location, read_pickle(location))
    held_out = _held_out(files.join(folder, SPLIT)) if options.keep_split and SPLIT in names else frozenset[str]()
    fps, origin = _frame_rate(files.join(folder, VIDEO) if VIDEO in names else None, options)
    reader = LmdbReader(files.join(folder, PICTURES))
    try:
        notes = [location.rsplit("/", 1)[-1], origin, *_check_pictures(reader, location, videos)]
        results = _Results(location, reader, fps, held_out, notes)
        return [
            _clip(folder if len(videos) == 1 else f"{folder}#{_printable(name)}", name, tracked, results, head, options)
            for name, tracked in videos.items()
        ]
    except BaseException:
        reader.close()
        raise


def _videos(location: str, content: Any) -> dict[str, Tracked]:
    """The pickle by videos, each in the order of its frames' numbers (as texts, 10 would come before 2)."""
    if not isinstance(content, dict) or not content:
        raise SpatialAvatarError(f"{location}: holds no tracked frames; expected a dictionary by the pictures' keys")
    numbered: dict[str, dict[int, str]] = {}
    for key in content:
        match = re.fullmatch(r"(.+)_([0-9]{1,9})", key) if isinstance(key, str) else None
        if match is None:
            raise SpatialAvatarError(f"{location}: key {_shown(key)} is not of the form NAME_NUMBER")
        frames = numbered.setdefault(match[1], {})
        if int(match[2]) in frames:
            raise SpatialAvatarError(
                f"{location}: keys {_shown(frames[int(match[2])])} and {_shown(key)} are one frame"
            )
        frames[int(match[2])] = key
    return {
        name: {frames[number]: content[frames[number]] for number in sorted(frames)}
        for name, frames in sorted(numbered.items())
    }


def _check_pictures(reader: LmdbReader, location: str, videos: dict[str, Tracked]) -> list[str]:
    """What to note of pictures that were not tracked. Raises SpatialAvatarError for a tracked frame without one."""
    pictures = set(reader.keys())
    for tracked in videos.values():
        missing = [key for key in tracked if key not in pictures]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise SpatialAvatarError(
                f"{reader.location}: holds no picture for {_shown(missing[0])}{more}, which {location} tracks; "
                "copy the folder again or track the video again"
            )
    untracked = len(pictures) - sum(map(len, videos.values()))
    return [f"{untracked} pictures without tracking left out"] if untracked else []


def _clip(
    where: str, name: str, tracked: Tracked, results: _Results, head: HeadModel, options: ImportOptions
) -> TrackedClip:
    location, reader = results.location, results.reader
    keys = list(tracked)
    values = {field: _rows(location, tracked, field) for field in SHAPES}
    shape, shape_notes = _mean_shape(values["shapecode"])
    kind, size = _picture_size(reader, keys[0])
    count = len(keys)
    params = HeadParams(
        shape=fitted_codes(shape, head.shape_codes, f"{location}: shapecode").float().expand(count, -1),
        expression=fitted_codes(values["expcode"], head.expression_codes, f"{location}: expcode").float(),
        global_rotation=values["posecode"][:, :3].float(),  # zero in what the tool writes
        neck=torch.zeros(count, 3),
        jaw=values["posecode"][:, 3:].float(),
        eyes=values["eyecode"].float(),
        translation=torch.zeros(count, 3),
    )
    transform = values["transform_matrix"]
    test_from, split_notes = _test_from(tracked, results.held_out)
    notes = [*results.notes, *split_notes, *shape_notes]
    focal = torch.full((count,), ndc_focal_to_pixels(FOCAL, size))
    centre = torch.full((count,), size / 2)
    clip = assemble_clip(
        where,
        identity=chosen_identity(options, name),
        head=head,
        params=params,
        world_to_camera=from_pytorch3d(transform[..., :3], transform[..., 3] / HEAD_SCALE)[:, None],
        intrinsics=intrinsics_matrix(focal, focal, centre, centre)[:, None],
        width=size,
        height=size,
        fps=results.fps,
        frames=_frames(reader, keys),
        matte_kind="burnt_black",
        face_box=(values["bbox"] * size)[:, None],
        test_from=test_from,
        source=ClipSource("gagavatar-track", "; ".join(notes), options.licence or "not stated"),
        image_format="jpg" if kind == "jpg" else "png",
    )
    return with_test_last(clip, options.test_last)


def _frames(reader: LmdbReader, keys: list[str]) -> Callable[[int, int], EncodedFrame]:
    return lambda instant, camera: EncodedFrame(reader.get(keys[instant]))


def _rows(location: str, tracked: Tracked, field: str) -> Float[torch.Tensor, "T ..."]:
    """One field of all frames, in float64."""
    rows = []
    for key, record in tracked.items():
        value = record.get(field) if isinstance(record, dict) else None
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.shape != SHAPES[field]:
            found = f"shape {list(value.shape)} of {value.dtype}" if isinstance(value, np.ndarray) else "no array"
            raise SpatialAvatarError(
                f"{location}: {_shown(key)}: {field} is {found}, expected numbers of shape {list(SHAPES[field])}"
            )
        rows.append(value)
    with np.errstate(invalid="ignore"):  # NaN of the odd kinds; the clip's own checks refuse every kind
        return torch.from_numpy(np.stack(rows).astype(np.float64))


def _mean_shape(rows: Float[torch.Tensor, "T 300"]) -> tuple[Float[torch.Tensor, "1 300"], list[str]]:
    """The tool keeps one shape for each of its batches of a long video, which interleave in time; a clip has one."""
    if (rows == rows[:1]).all():
        return rows[:1], []
    different = len(np.unique(rows.numpy(), axis=0))
    return rows.mean(0, keepdim=True), [f"shape: mean over the frames, which have {different} different ones"]


def _picture_size(reader: LmdbReader, key: str) -> tuple[str, int]:
    try:
        kind, width, height = encoded_size(reader.get(key))
    except ValueError as e:
        raise SpatialAvatarError(f"{reader.location}: {_shown(key)}: {e}; expected the JPEGs of a video") from None
    if width != height:
        raise SpatialAvatarError(
            f"{reader.location}: {_shown(key)}: the picture has {width} x {height} pixels, the tool's are square"
        )
    return kind, width


def _frame_rate(video: str | None, options: ImportOptions) -> tuple[float, str]:
    """Frames in a second, and who says so: the person, else the tool's video."""
    if options.fps:
        return options.fps, f"{options.fps:g} frames a second as given"
    stated = mp4_frame_rate(video) if video is not None else None
    if stated is None or not 0 < stated <= 10000:
        return _FPS, f"frame rate not stated, {_FPS:g} taken"
    if stated > _HALVED_ABOVE:
        return stated / 2, f"{VIDEO} states {stated:g} frames a second, of which the tool keeps every second"
    return stated, f"frame rate of {VIDEO}"


def _held_out(location: str) -> frozenset[str]:
    """Keys that dataset.json does not train on."""
    content = read_foreign_json(location)
    lists = [content.get(name, []) for name in ("val", "test")]
    if not all(isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in lists):
        raise SpatialAvatarError(f"{location}: not a split; expected train, val and test with lists of keys")
    return frozenset(key for keys in lists for key in keys)


def _test_from(tracked: Tracked, held_out: frozenset[str]) -> tuple[int | None, list[str]]:
    """A clip holds out its last instants; anything else that the tool holds out is noted."""
    held = [key in held_out for key in tracked]
    if not any(held):
        return None, []
    first = held.index(True)
    if first and all(held[first:]):
        return first, []
    what = "the whole video" if all(held) else f"{sum(held)} of {len(held)} frames, not the last ones"
    return None, [f"{SPLIT} holds out {what}: not kept"]


def _shown(key: object) -> str:
    return ascii(key)[:100]


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]
