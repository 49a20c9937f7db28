"""Head parameters of VHAP's exports: ``flame_param/*.npz``, one file for each timestep, FLAME x 1, metres."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from spatialavatar import npz_files
from spatialavatar.clip.importers.options import ImportOptions, fitted_codes
from spatialavatar.clip.importers.vhap_listing import VhapSequence
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.flame import TEETH_VERTICES
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams

PARAMETERS = {"translation": 3, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "shape": 0, "expr": 0}
_LARGEST_PARAMETERS = 1 << 26  # bytes
_ROUNDING = 1e-5  # of a code, and of an offset in metres: what counts as the same value
_READERS = 16  # files read at once


def read_parameters(sequence: VhapSequence, head: HeadModel, options: ImportOptions) -> tuple[HeadParams, list[str]]:
    """Head parameters of every timestep, and what had to be left out.

    Raises SpatialAvatarError: arrays that are missing or do not fit the head, a shape or static offset that changes
    with time, dynamic offsets that nobody said to drop.
    """
    first: dict[str, np.ndarray] = {}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in PARAMETERS if name != "shape"}
    largest = 0.0
    pool = ThreadPoolExecutor(_READERS)
    try:
        for location, row in zip(sequence.parameters, pool.map(_read_row, sequence.parameters)):
            dynamic = row.pop("dynamic_offset", None)
            if dynamic is not None and dynamic.size:
                largest = max(largest, float(np.abs(dynamic).max()))
                if not largest == 0 and not options.drop_dynamic_offsets:
                    raise SpatialAvatarError(
                        f"{location}: dynamic_offset moves vertices by up to {1000 * largest:.3g} mm, which no clip "
                        "holds; track without dynamic offsets, or import without them by --drop-dynamic-offsets"
                    )
            first = first or row
            for name in ("shape", "static_offset"):
                _require_same(name, (first, row), (sequence.parameters[0], location))
            for name, values in columns.items():
                if values and values[0].shape != row[name].shape:
                    raise SpatialAvatarError(
                        f"{location}: {name} has {row[name].size} numbers, other files have {values[0].size}"
                    )
                values.append(row[name])
    finally:
        pool.shutdown(cancel_futures=True)
    count = len(sequence.parameters)

    def stacked(name: str) -> torch.Tensor:
        return _narrow(np.stack(columns[name]))

    place = sequence.parameters[0]
    offset = None
    if "static_offset" in first:
        offset = _narrow(_fitted_offset(first["static_offset"], head, place)).expand(count, -1, -1)
    params = HeadParams(
        shape=fitted_codes(_narrow(first["shape"]), head.shape_codes, f"{place}: shape").expand(count, -1),
        expression=fitted_codes(stacked("expr"), head.expression_codes, f"{sequence.location}: expr"),
        global_rotation=stacked("rotation"),
        neck=stacked("neck_pose"),
        jaw=stacked("jaw_pose"),
        eyes=stacked("eyes_pose"),
        translation=stacked("translation"),
        static_offset=offset,
    )
    return params, [f"dynamic offsets of up to {1000 * largest:.3g} mm dropped"] if largest else []


def _read_row(location: str) -> dict[str, np.ndarray]:
    """The arrays of one timestep, those of one row without that axis."""
    arrays = npz_files.read_npz(location, (*PARAMETERS, "static_offset", "dynamic_offset"), _LARGEST_PARAMETERS)
    missing = [name for name in PARAMETERS if name not in arrays]
    if missing:
        raise SpatialAvatarError(f"{location}: lacks {', '.join(missing)}; export with VHAP's --flame-mode param")
    for name, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise SpatialAvatarError(f"{location}: {name} is {array.dtype}, expected numbers")
        axes = 2 if name.endswith("offset") else 1
        row = array[0] if array.ndim == axes + 1 and len(array) == 1 else array
        wanted = PARAMETERS.get(name, 0)
        if row.ndim != axes or (wanted and row.size != wanted) or (axes == 2 and row.shape[1] != 3):
            expected = "V x 3" if axes == 2 else wanted or "a row of codes"
            raise SpatialAvatarError(f"{location}: {name} has shape {list(array.shape)}, expected {expected}")
        arrays[name] = row
    return arrays


def _require_same(name: str, rows: Sequence[dict[str, np.ndarray]], locations: Sequence[str]) -> None:
    """Of two timesteps."""
    first, now = (row.get(name) for row in rows)
    first_location, location = locations
    if first is None and now is None:
        return
    if first is None or now is None or first.shape != now.shape:
        raise SpatialAvatarError(f"{location}: {name} is not as in {first_location}; a clip has one for all timesteps")
    with np.errstate(invalid="ignore"):  # infinities: their difference is refused with all that is no number
        difference = np.abs(first.astype(np.float64) - now.astype(np.float64)).max() if now.size else 0.0
    if not difference <= _ROUNDING:
        raise SpatialAvatarError(
            f"{location}: {name} differs from {first_location} by {difference:.3g}; a clip has one for all "
            "timesteps: import sequences of one tracking run, or track again"
        )


def _fitted_offset(offset: np.ndarray, head: HeadModel, location: str) -> np.ndarray:
    """VHAP's teeth come last and are left out for a head without them."""
    if len(offset) not in (head.vertex_count, head.vertex_count + TEETH_VERTICES):
        raise SpatialAvatarError(
            f"{location}: static_offset has {len(offset)} rows, head '{head.info.id}' has {head.vertex_count} vertices "
            f"({head.vertex_count + TEETH_VERTICES} with VHAP's teeth); name the head that the clip was tracked with "
            "by --head"
        )
    return offset[: head.vertex_count]


def _narrow(array: np.ndarray) -> torch.Tensor:
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which the clip's own check refuses
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))
