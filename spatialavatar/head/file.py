"""The head model file, ``*.head.safetensors``: HeadModel's arrays, with HeadInfo as JSON in the metadata.

Arrays are float32 and int32. The metadata holds ``format`` ("spatialavatar-head"), ``version``, ``info`` and ``hash``
(SHA-256 over arrays and info), which every artefact made with the head repeats.
"""

import dataclasses
import json

import numpy as np
import torch

from spatialavatar import files, tensor_files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import ARRAYS, JOINTS, HeadInfo, HeadModel

FORMAT = "spatialavatar-head"
VERSION = 1
SUFFIX = ".head.safetensors"
_INTEGER = {"faces", "uv_faces", "face_chart", "face_part", "landmark_faces"}


def head_from_arrays(info: HeadInfo, arrays: dict[str, np.ndarray], what: str = "head") -> HeadModel:
    """A head in memory, with the hash that its file would have.

    ``arrays`` has HeadModel's arrays by name, in any numeric type. Raises SpatialAvatarError naming the array that does
    not fit.
    """
    typed = _typed(arrays)
    _check(what, info, typed)
    return _build(info, typed, _digest(info, typed))


def write_head(path: files.Location, info: HeadInfo, arrays: dict[str, np.ndarray]) -> HeadModel:
    """Check and write a head file; returns the head as ``head_from_arrays`` does."""
    head = head_from_arrays(info, arrays, str(path))
    metadata = {"format": FORMAT, "version": str(VERSION), "info": _info_text(info), "hash": head.content_hash}
    tensor_files.write_tensors(path, _typed(arrays), metadata)
    return head


def read_head(path: files.Location) -> HeadModel:
    """Raises SpatialAvatarError: no such file, not a head file, newer version, damaged content."""
    arrays, metadata = tensor_files.read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise SpatialAvatarError(
            f"{path}: not a head model of ours; make one with 'spatialavatar head convert' or 'head generate'"
        )
    if metadata.get("version") != str(VERSION):
        raise SpatialAvatarError(
            f"{path}: head format version {metadata.get('version')}, this program reads {VERSION}; "
            "convert the head again"
        )
    missing = sorted(set(ARRAYS) - set(arrays))
    if missing:
        raise SpatialAvatarError(f"{path}: head file lacks {', '.join(missing)}; convert the head again")
    try:
        info = HeadInfo(**json.loads(metadata["info"]))
    except (KeyError, TypeError, ValueError):
        raise SpatialAvatarError(f"{path}: head file without readable info; convert the head again") from None
    if _digest(info, arrays) != metadata.get("hash"):
        raise SpatialAvatarError(f"{path}: content does not match its own hash; the file is damaged, convert again")
    _check(str(path), info, arrays)
    return _build(info, arrays, metadata["hash"])


def stored_head_id(path: files.Location) -> str | None:
    """The id of the head in a file, of whatever version; None when the file is no whole head model."""
    try:
        _, metadata = tensor_files.read_tensors(path)
        return str(json.loads(metadata["info"])["id"]) if metadata.get("format") == FORMAT else None
    except (SpatialAvatarError, KeyError, TypeError, ValueError):
        return None


def _typed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if set(arrays) != set(ARRAYS):
        raise ValueError(f"arrays differ from HeadModel's: {sorted(set(arrays) ^ set(ARRAYS))}")
    return {name: np.asarray(a, np.int32 if name in _INTEGER else np.float32) for name, a in arrays.items()}


def _info_text(info: HeadInfo) -> str:
    return json.dumps(dataclasses.asdict(info), sort_keys=True)


def _digest(info: HeadInfo, typed: dict[str, np.ndarray]) -> str:
    return tensor_files.content_hash(typed, _info_text(info))


def _build(info: HeadInfo, typed: dict[str, np.ndarray], digest: str) -> HeadModel:
    tensors = {
        name: torch.from_numpy(typed[name].astype(np.int64 if name in _INTEGER else np.float32)) for name in ARRAYS
    }
    return HeadModel(info, content_hash=digest, **tensors)


def _check(path: str, info: HeadInfo, a: dict[str, np.ndarray]) -> None:
    v, f, u = len(a["template"]), len(a["faces"]), len(a["uv"])
    j, landmarks = len(JOINTS), len(a["landmark_faces"])
    s, e, p = (a[name].shape[-1] for name in ("shapedirs", "exprdirs", "posedirs"))
    expected = {
        "template": (v, 3),
        "faces": (f, 3),
        "uv": (u, 2),
        "uv_faces": (f, 3),
        "face_chart": (f,),
        "face_part": (f,),
        "shapedirs": (v, 3, s),
        "exprdirs": (v, 3, e),
        "posedirs": (v, 3, p),
        "joint_regressor": (j, v),
        "weights": (v, j),
        "landmark_faces": (landmarks,),
        "landmark_barycentric": (landmarks, 3),
    }

    def fail(message: str) -> None:
        raise SpatialAvatarError(f"{path}: head model: {message}")

    for name, shape in expected.items():
        if a[name].shape != shape:
            fail(f"{name} has shape {list(a[name].shape)}, expected {list(shape)}")
        if a[name].dtype.kind == "f" and not np.isfinite(a[name]).all():
            fail(f"{name} holds NaN or infinity")
    if p not in (0, 9 * (j - 1)):
        fail(f"posedirs has {p} correctives, expected 0 or {9 * (j - 1)}")
    ranges = {"faces": (0, v), "uv_faces": (-1, u), "landmark_faces": (0, f)}
    ranges["face_part"] = (0, max(1, len(info.part_names)))
    for name, (low, high) in ranges.items():
        if a[name].size and (a[name].min() < low or a[name].max() >= high):
            fail(f"{name} holds {a[name].min()}..{a[name].max()}, expected {low}..{high - 1}")
    if not np.array_equal((a["uv_faces"] < 0).any(1), a["face_chart"] < 0):
        fail("faces without UV must have -1 in uv_faces and in face_chart alike")
    if np.abs(a["weights"].sum(1) - 1).max() > 1e-3:
        fail("skinning weights of a vertex do not sum to 1")
    if info.expression_names and len(info.expression_names) != e:
        fail(f"{len(info.expression_names)} expression names for {e} expression codes")
    unknown = set(info.mouth_opening_codes) - set(info.expression_names)
    if unknown:
        fail(f"mouth-opening codes {sorted(unknown)} are not among the expression names")
