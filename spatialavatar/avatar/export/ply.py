"""The PLY file of 3D Gaussian splatting (Kerbl et al. 2023), which every splat viewer opens.

Binary little-endian, one ``vertex`` of floats for each Gaussian: x y z, nx ny nz (zero), f_dc_0..2, f_rest_0..44,
opacity, scale_0..2, rot_0..3. Opacity is a logit, scales are logarithms, rotation is a quaternion wxyz, and f_dc are
spherical harmonics of degree 0: rgb = 0.5 + 0.28209479 f_dc. Our colours do not depend on the view, so f_rest is zero;
it is written all the same, because the reference viewer reads records of degree 3 without looking at the header.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from plyfile import PlyData, PlyElement, PlyParseError

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.splat.gaussians import LocalGaussians, WorldGaussians

SH_DEGREE_0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
SH_DEGREE = 3
_OPACITY_EDGE = 1e-6  # opacities are kept this far from 0 and 1: their logit must be finite
_LEAST_SCALE = 1e-10  # metres


def write_ply(
    location: files.Location, world: WorldGaussians, comments: Sequence[str] = (), sh_degree: int = SH_DEGREE
) -> None:
    """Write one subject's placed Gaussians, in metres and in the world they are in (ours: +y up, +z out of the face).

    Colours are the first three channels, in [0, 1]. ``comments`` go into the header: say there what licences ask for.
    ``sh_degree`` 0 leaves out f_rest and a quarter of the file remains; not every viewer opens that.
    """
    _require_one(world.means.shape[0])
    write_splats(
        location,
        position=_array(world.means),
        color=_array(world.colors),
        opacity_logit=_array(torch.logit(world.opacities.double(), eps=_OPACITY_EDGE)),
        log_scale=_array(world.scales.clamp_min(_LEAST_SCALE).log()),
        rotation=_array(world.quats),
        comments=comments,
        sh_degree=sh_degree,
    )


def read_ply(location: files.Location) -> WorldGaussians:
    """The Gaussians of a plain PLY (B = 1), colours from degree 0. Raises SpatialAvatarError."""
    vertex = _read_vertices(location)
    return WorldGaussians(
        means=_columns(location, vertex, "x y z"),
        quats=_columns(location, vertex, "rot_0 rot_1 rot_2 rot_3"),
        scales=_columns(location, vertex, "scale_0 scale_1 scale_2").exp(),
        colors=_columns(location, vertex, "f_dc_0 f_dc_1 f_dc_2") * SH_DEGREE_0 + 0.5,
        opacities=torch.sigmoid(_columns(location, vertex, "opacity"))[..., 0],
    )


def read_bound_ply(location: files.Location) -> tuple[LocalGaussians, torch.Tensor]:
    """The triangle-local Gaussians (B = 1) and the faces [N] of a GaussianAvatars PLY. Raises SpatialAvatarError."""
    vertex = _read_vertices(location)
    if "binding_0" not in (vertex.dtype.names or ()):
        raise SpatialAvatarError(f"{location}: has no binding_0, so its Gaussians are not bound to triangles")
    local = LocalGaussians(
        position=_columns(location, vertex, "x y z"),
        rotation=_columns(location, vertex, "rot_0 rot_1 rot_2 rot_3"),
        log_scale=_columns(location, vertex, "scale_0 scale_1 scale_2"),
        color=_columns(location, vertex, "f_dc_0 f_dc_1 f_dc_2") * SH_DEGREE_0 + 0.5,
        opacity_logit=_columns(location, vertex, "opacity")[..., 0],
    )
    return local, torch.from_numpy(vertex["binding_0"].astype(np.int64))


def write_splats(
    location: files.Location,
    *,
    position: Float[np.ndarray, "N 3"],
    color: Float[np.ndarray, "N C"],  # RGB first, [0, 1]
    opacity_logit: Float[np.ndarray, " N"],
    log_scale: Float[np.ndarray, "N 3"],
    rotation: Float[np.ndarray, "N 4"],  # wxyz, any length
    binding: np.ndarray | None = None,  # face of each Gaussian
    comments: Sequence[str] = (),
    sh_degree: int = SH_DEGREE,
) -> None:
    """Write values as they stand in the file, rotations normalised. Raises SpatialAvatarError on NaN or infinity."""
    length = np.linalg.norm(rotation, axis=1, keepdims=True)
    columns: dict[str, np.ndarray] = {
        **_named("x y z", position),
        **_named("nx ny nz", np.zeros_like(position)),
        **_named("f_dc_0 f_dc_1 f_dc_2", (color[:, :3] - 0.5) / SH_DEGREE_0),
        **{f"f_rest_{i}": np.zeros(len(position)) for i in range(3 * (sh_degree + 1) ** 2 - 3)},
        "opacity": opacity_logit,
        **_named("scale_0 scale_1 scale_2", log_scale),
        **_named("rot_0 rot_1 rot_2 rot_3", rotation / np.maximum(length, 1e-30)),
    }
    if binding is not None:
        columns["binding_0"] = binding
    table = np.empty(len(position), [(name, "<f4") for name in columns])
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise SpatialAvatarError(f"{location}: not written, {name} of the avatar holds NaN or infinity")
        table[name] = values
    lines = [line for comment in comments for line in comment.encode("ascii", "replace").decode().splitlines()]
    buffer = io.BytesIO()
    PlyData([PlyElement.describe(table, "vertex")], text=False, byte_order="<", comments=lines).write(buffer)
    files.write_bytes(location, buffer.getvalue())


def _read_vertices(location: files.Location) -> np.ndarray:
    data = files.read_bytes(location)
    try:
        ply = PlyData.read(io.BytesIO(data))
        vertex = np.asarray(ply["vertex"].data)
    except (PlyParseError, ValueError, KeyError, EOFError, MemoryError, UnicodeDecodeError) as e:
        raise SpatialAvatarError(f"{location}: not a readable PLY of splats ({e}); it may be truncated") from None
    if vertex.dtype.names is None:
        raise SpatialAvatarError(f"{location}: its vertices have no values, so it is no PLY of 3D Gaussian splats")
    return vertex


def _columns(location: files.Location, vertex: np.ndarray, names: str) -> torch.Tensor:
    present = {name for name in vertex.dtype.names or () if vertex.dtype[name].kind in "fiu"}
    missing = [name for name in names.split() if name not in present]
    if missing:
        raise SpatialAvatarError(f"{location}: has no {', '.join(missing)}, so it is no PLY of 3D Gaussian splats")
    stacked = np.stack([vertex[name] for name in names.split()], -1).astype(np.float32)
    return torch.from_numpy(stacked)[None]


def _named(names: str, values: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names.split(), values.T, strict=True))


def _array(values: torch.Tensor) -> np.ndarray:
    return values[0].detach().double().cpu().numpy()


def _require_one(batch: int) -> None:
    if batch != 1:
        raise ValueError(f"a PLY holds one subject, got a batch of {batch}; pass one row of it")
