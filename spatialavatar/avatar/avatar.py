"""The saved avatar: a folder ``avatar.json`` + ``gaussians.safetensors`` (design.md, "Files of our own").

``avatar.json`` is written last: a folder without it is not an avatar. It names the head, the UV layout and where the
avatar came from; the tensors hold the local Gaussians and the subject's shape.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar import __version__, files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, HeadParams, HeadReference, UVLayout, build_layout
from spatialavatar.splat.gaussians import LocalGaussians

FORMAT = "spatialavatar-avatar"
VERSION = 1
MANIFEST = "avatar.json"
TENSORS = "gaussians.safetensors"
PLY, GAUSSIAN_AVATARS = "point_cloud.ply", "gaussian-avatars"  # where exports lie unless told otherwise
Kind = Literal["static"]


@dataclass(frozen=True)
class Avatar:
    """One subject. ``gaussians`` has a batch axis of one; N is the layout's count."""

    kind: Kind
    identity: str
    head: HeadReference
    uv_resolution: int
    layout_fingerprint: str
    gaussians: LocalGaussians
    shape: Float[Tensor, "1 S"]
    static_offset: Float[Tensor, "1 V 3"] | None
    reference_params: HeadParams  # B = 1: the head at the reference frame, at which exports are posed
    provenance: dict[str, Any]  # configuration, clip, versions, metrics: plain JSON
    licence_note: str

    def layout(self, head: HeadModel, what: str) -> UVLayout:
        """The layout that the Gaussians belong to. Raises SpatialAvatarError for another head or layout."""
        self.head.require(head, what)
        layout = build_layout(head, self.uv_resolution)
        layout.require(self.layout_fingerprint, what)
        return layout

    def head_hints(self, folder: files.Location) -> list[str]:
        """Where the head of an avatar read from ``folder`` may lie: beside it, or where it was at refinement."""
        named = self.provenance.get("head_file")
        if named is None:
            return [str(folder)]
        relative = files.is_local(named) and not os.path.isabs(named)
        return [str(folder), files.join(folder, named) if relative else named]


def licence_note(head: HeadReference, clip_licence: str, start_note: str = "") -> str:
    """What a holder of the avatar must know: the terms of all that it was made from."""
    note = f"Made with head model {head.id} ({head.licence}; {head.attribution}) from footage under: {clip_licence}"
    return f"{note}; started from an avatar with this note: {start_note}" if start_note else note


def write_avatar(folder: files.Location, avatar: Avatar) -> None:
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in avatar.gaussians.tensors().items()}
    arrays["shape"] = avatar.shape.detach().cpu().numpy()
    if avatar.static_offset is not None:
        arrays["static_offset"] = avatar.static_offset.detach().cpu().numpy()
    for field in dataclasses.fields(HeadParams):
        value = getattr(avatar.reference_params, field.name)
        if value is not None and field.name not in ("shape", "static_offset"):
            arrays[f"reference.{field.name}"] = value.detach().cpu().numpy()
    files.write_tensors(files.join(folder, TENSORS), arrays, {"format": FORMAT, "version": str(VERSION)})
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "kind": avatar.kind,
        "identity": avatar.identity,
        "head": dataclasses.asdict(avatar.head),
        "layout": {
            "uv_resolution": avatar.uv_resolution,
            "count": avatar.gaussians.count,
            "fingerprint": avatar.layout_fingerprint,
        },
        "provenance": {"spatialavatar": __version__, "torch": torch.__version__, **avatar.provenance},
        "licence_note": avatar.licence_note,
        "tensors": files.content_hash(arrays),  # so that no manifest ever speaks for another avatar's tensors
    }
    files.write_json(files.join(folder, MANIFEST), manifest)


def read_avatar(folder: files.Location) -> Avatar:
    """Raises SpatialAvatarError: not an avatar, another version, damaged or inconsistent files."""
    where = files.join(folder, MANIFEST)
    if not files.exists(where):
        raise SpatialAvatarError(
            f"{folder}: holds no {MANIFEST}; an avatar folder (from 'spatialavatar refine') is needed"
        )
    manifest = files.read_json(where)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SpatialAvatarError(f"{where}: not an avatar of ours (format is not {FORMAT})")
    if manifest.get("version") != VERSION:
        raise SpatialAvatarError(
            f"{where}: avatar format version {manifest.get('version')}, this program reads {VERSION}; refine it again"
        )
    if manifest.get("kind") != "static":
        raise SpatialAvatarError(f"{where}: kind {manifest.get('kind')!r}, expected 'static'")
    arrays, _ = files.read_tensors(files.join(folder, TENSORS))
    if manifest.get("tensors") != files.content_hash(arrays):
        raise SpatialAvatarError(
            f"{folder}: {TENSORS} is not what {MANIFEST} was written with (a broken copy or write); refine it again"
        )
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        layout = manifest["layout"]
        gaussians = LocalGaussians(**{f.name: tensors[f.name] for f in dataclasses.fields(LocalGaussians)})
        reference = {
            f.name: tensors.get(f"reference.{f.name}") for f in dataclasses.fields(HeadParams) if f.name != "shape"
        }
        reference["static_offset"] = tensors.get("static_offset")
        avatar = Avatar(
            kind=manifest["kind"],
            identity=manifest["identity"],
            head=HeadReference(**manifest["head"]),
            uv_resolution=layout["uv_resolution"],
            layout_fingerprint=layout["fingerprint"],
            gaussians=gaussians,
            shape=tensors["shape"],
            static_offset=tensors.get("static_offset"),
            reference_params=HeadParams(shape=tensors["shape"], **reference),  # type: ignore[arg-type]
            provenance=manifest["provenance"],
            licence_note=manifest["licence_note"],
        )
    except (KeyError, TypeError) as e:
        raise SpatialAvatarError(f"{folder}: avatar is incomplete ({e}); refine it again") from None
    n = layout["count"]
    expected = {"position": 3, "rotation": 4, "log_scale": 3, "color": gaussians.color.shape[-1]}
    fits = all(getattr(gaussians, name).shape == (1, n, width) for name, width in expected.items())
    if not fits or gaussians.opacity_logit.shape != (1, n):
        raise SpatialAvatarError(f"{folder}: {TENSORS} does not hold {n} Gaussians as {MANIFEST} says; refine it again")
    return avatar
