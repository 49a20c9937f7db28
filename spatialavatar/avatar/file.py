"""The avatar's files: ``avatar.json`` and its tensors (docs/formats.md).

``avatar.json`` is written last: a folder without it is not an avatar. It names the head, the UV layout and where the
avatar came from. A ``static`` avatar keeps local Gaussians in ``gaussians.safetensors``; a ``generated`` one keeps the
subject's UV features and the decoder's parameters in ``features.safetensors``, so that nothing but the head is needed
to show it.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from spatialavatar import __version__, files, tensor_files
from spatialavatar.avatar.avatar import Avatar, GeneratedAppearance, Kind, StaticAppearance
from spatialavatar.avatar.folder import FEATURES, FORMAT, GAUSSIANS, MANIFEST
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.generator.config import DecoderConfig
from spatialavatar.head import HeadParams, HeadReference
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import LocalGaussians

VERSION = 1  # of each kind's layout: a new kind leaves the others readable for older programs
TENSORS: dict[Kind, str] = {"static": GAUSSIANS, "generated": FEATURES}
_REFERENCE, _DECODER = "reference.", "decoder."  # prefixes of tensors' names


def write_avatar(folder: files.Location, avatar: Avatar) -> None:
    """Write the avatar; tensors that an avatar of another kind left in the folder go at the end."""
    tensors, facts = _appearance_tensors(avatar.appearance)
    tensors["shape"] = avatar.shape
    if avatar.static_offset is not None:
        tensors["static_offset"] = avatar.static_offset
    for field in dataclasses.fields(HeadParams):
        value = getattr(avatar.reference_params, field.name)
        if value is not None and field.name not in ("shape", "static_offset"):
            tensors[_REFERENCE + field.name] = value
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    tensor_files.write_tensors(
        files.join(folder, TENSORS[avatar.kind]), arrays, {"format": FORMAT, "version": str(VERSION)}
    )
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "kind": avatar.kind,
        "identity": avatar.identity,
        "head": dataclasses.asdict(avatar.head),
        "layout": {
            "uv_resolution": avatar.uv_resolution,
            "count": avatar.appearance.count,
            "fingerprint": avatar.layout_fingerprint,
        },
        **facts,
        "provenance": {"spatialavatar": __version__, "torch": torch.__version__, **avatar.provenance},
        "licence_note": avatar.licence_note,
        "tensors": tensor_files.content_hash(arrays),  # so that no manifest ever speaks for another avatar's tensors
    }
    files.write_json(files.join(folder, MANIFEST), manifest)
    for kind, name in TENSORS.items():
        if kind != avatar.kind:
            files.remove(files.join(folder, name))


def read_avatar(folder: files.Location) -> Avatar:
    """Raises SpatialAvatarError: not an avatar, another version, damaged or inconsistent files."""
    where = files.join(folder, MANIFEST)
    if not files.exists(where):
        raise SpatialAvatarError(
            f"{folder}: holds no {MANIFEST}; an avatar folder (from 'spatialavatar refine' or 'reconstruct') is needed"
        )
    manifest = files.read_json(where)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SpatialAvatarError(f"{where}: not an avatar of ours (format is not {FORMAT})")
    if manifest.get("version") != VERSION:
        raise SpatialAvatarError(
            f"{where}: avatar format version {manifest.get('version')}, this program reads {VERSION}; make it again"
        )
    kind = manifest.get("kind")
    if kind not in TENSORS:
        raise SpatialAvatarError(f"{where}: kind {kind!r}, expected one of {', '.join(TENSORS)}")
    arrays, _ = tensor_files.read_tensors(files.join(folder, TENSORS[kind]))
    if manifest.get("tensors") != tensor_files.content_hash(arrays):
        raise SpatialAvatarError(
            f"{folder}: {TENSORS[kind]} is not what {MANIFEST} was written with (a broken copy or write); make it again"
        )
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        layout = manifest["layout"]
        appearance = _static(tensors) if kind == "static" else _generated(tensors, manifest)
        reference = {
            f.name: tensors.get(_REFERENCE + f.name) for f in dataclasses.fields(HeadParams) if f.name != "shape"
        }
        reference["static_offset"] = tensors.get("static_offset")
        avatar = Avatar(
            identity=manifest["identity"],
            head=HeadReference(**manifest["head"]),
            uv_resolution=layout["uv_resolution"],
            layout_fingerprint=layout["fingerprint"],
            appearance=appearance,
            shape=tensors["shape"],
            static_offset=tensors.get("static_offset"),
            reference_params=HeadParams(shape=tensors["shape"], **reference),  # type: ignore[arg-type]
            provenance=manifest["provenance"],
            licence_note=manifest["licence_note"],
        )
    except (KeyError, TypeError, ValueError) as e:
        raise SpatialAvatarError(f"{folder}: avatar is incomplete ({in_short(e)}); make it again") from None
    if not _fits(avatar.appearance, layout["count"]):
        raise SpatialAvatarError(
            f"{folder}: {TENSORS[avatar.kind]} does not hold {layout['count']} Gaussians as {MANIFEST} says; "
            "make it again"
        )
    return avatar


def _appearance_tensors(appearance: StaticAppearance | GeneratedAppearance) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what the manifest says beside them."""
    if isinstance(appearance, StaticAppearance):
        return appearance.gaussians.tensors(), {}
    camera = appearance.reference_camera
    tensors = {
        "features": appearance.features,
        **{_DECODER + name: tensor for name, tensor in appearance.weights.items()},
        _REFERENCE + "world_to_camera": camera.world_to_camera,
        _REFERENCE + "intrinsics": camera.intrinsics,
    }
    facts = {
        "generator": {
            "hash": appearance.generator_hash,
            "file": appearance.generator_file,
            "decoder": appearance.decoder.model_dump(mode="json"),
        },
        "reference_camera": {"width": camera.width, "height": camera.height},
    }
    return tensors, facts


def _static(tensors: dict[str, Tensor]) -> StaticAppearance:
    return StaticAppearance(LocalGaussians(**{f.name: tensors[f.name] for f in dataclasses.fields(LocalGaussians)}))


def _generated(tensors: dict[str, Tensor], manifest: dict[str, Any]) -> GeneratedAppearance:
    generator, size = manifest["generator"], manifest["reference_camera"]
    weights = {name.removeprefix(_DECODER): t for name, t in tensors.items() if name.startswith(_DECODER)}
    camera = Camera(
        tensors[_REFERENCE + "world_to_camera"], tensors[_REFERENCE + "intrinsics"], size["width"], size["height"]
    )
    return GeneratedAppearance(
        features=tensors["features"],
        decoder=DecoderConfig.model_validate(generator["decoder"]),
        weights=weights,
        reference_camera=camera,
        generator_hash=generator["hash"],
        generator_file=generator["file"],
    )


def _fits(appearance: StaticAppearance | GeneratedAppearance, count: int) -> bool:
    if isinstance(appearance, GeneratedAppearance):
        return appearance.features.shape == (1, count, appearance.decoder.feature_channels)
    gaussians = appearance.gaussians
    expected = {"position": 3, "rotation": 4, "log_scale": 3, "color": appearance.channels}
    fits = all(getattr(gaussians, name).shape == (1, count, width) for name, width in expected.items())
    return fits and gaussians.opacity_logit.shape == (1, count)
