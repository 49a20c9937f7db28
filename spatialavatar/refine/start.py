"""What a refinement starts from: the template skin, an avatar, or what a generator makes of the clip."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from spatialavatar import files, tensor_files
from spatialavatar.avatar import Avatar, GeneratedAppearance, StaticAppearance, bake_at_reference, read_avatar
from spatialavatar.avatar.reconstruct import LoadedGenerator, look_at, reconstruct
from spatialavatar.avatar.source_frames import choose_frames
from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.head import HeadModel, HeadParams, UVLayout, build_layout, texel_spacing
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import LocalGaussians
from spatialavatar.splat.template_skin import template_skin


@dataclass(frozen=True)
class Start:
    """The Gaussians that a refinement starts from, and what to call them."""

    gaussians: LocalGaussians
    layout: UVLayout
    origin: str
    fingerprint: str  # content hash of the Gaussians, or of all that they are computed from
    licence_note: str = ""  # of the avatar that it was
    provenance: dict[str, Any] = field(default_factory=dict)  # of that avatar; plain JSON


def template_start(head: HeadModel, uv_resolution: int, channels: int = 3) -> Start:
    """The skin of the head at rest, the same for everyone (method.md section 1)."""
    layout = build_layout(head, uv_resolution).to(head.template.device)
    skin = template_skin(
        head.template, head.faces, layout.face_index, layout.barycentric, texel_spacing(head, layout), channels
    )
    return Start(skin, layout, "template", _content(skin.tensors()))


def avatar_start(folder: files.Location, head: HeadModel, device: torch.device | str = "cpu") -> Start:
    """Another avatar's Gaussians and layout; a generated one's are those of its reference frame.

    Raises SpatialAvatarError when it belongs to another head.
    """
    avatar = read_avatar(folder)
    look = avatar.appearance
    if isinstance(look, StaticAppearance):
        fingerprint = _content(look.gaussians.tensors())
    else:
        # not of the baked Gaussians, whose last bits are another device's own
        fingerprint = _content(_seen(avatar.reference_params, look.reference_camera) | _generated(look))
    return _start(avatar, head, device, f"avatar {avatar.identity}", fingerprint, str(folder))


def generator_start(
    clip: TrackedClip, head: HeadModel, loaded: LoadedGenerator, sources: int = 4, seed: int = 0
) -> Start:
    """What a generator makes of the clip: source 0, view and condition are the training frames' reference frame's.

    Further sources are training frames far from it and from each other. Raises SpatialAvatarError when no training
    frame shows the face.
    """
    clip.require_head(head)
    size = loaded.generator.config.encoder.image_size
    portraits = look_at(choose_frames(clip, head, sources, size, seed), head, size)
    avatar = reconstruct(loaded, portraits, reference=0)
    names = ", ".join(_frame(source.index, clip) for source in portraits.frames)
    origin = f"generator {loaded.facts.hash[:12]} from frames {names}"
    seen = {"images": portraits.sources.images, **_seen(portraits.sources.params, portraits.sources.camera)}
    return _start(avatar, head, loaded.device, origin, _content(seen, loaded.facts.hash), clip.location)


def _start(
    avatar: Avatar, head: HeadModel, device: torch.device | str, origin: str, fingerprint: str, what: str
) -> Start:
    static = bake_at_reference(avatar, head, device, what).appearance
    assert isinstance(static, StaticAppearance)
    kept = {name: value for name, value in avatar.provenance.items() if name != "head_file"}
    provenance = {"kind": avatar.kind, "identity": avatar.identity, **kept}
    return Start(static.gaussians, avatar.layout(head, what), origin, fingerprint, avatar.licence_note, provenance)


def _generated(look: GeneratedAppearance) -> dict[str, Tensor]:
    return {"features": look.features, **{f"decoder.{name}": tensor for name, tensor in look.weights.items()}}


def _seen(params: HeadParams, camera: Camera) -> dict[str, Tensor]:
    tensors = {f.name: getattr(params, f.name) for f in fields(params) if getattr(params, f.name) is not None}
    return {**tensors, "world_to_camera": camera.world_to_camera, "intrinsics": camera.intrinsics}


def _content(tensors: dict[str, Tensor], *extra: str) -> str:
    return tensor_files.content_hash({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}, *extra)


def _frame(index: FrameIndex, clip: TrackedClip) -> str:
    return f"{index.instant} (camera {index.camera})" if clip.cameras > 1 else str(index.instant)
