"""From a generated avatar to a static one: its Gaussians at one frame, for good (docs/formats.md)."""

import dataclasses

import torch

from spatialavatar.avatar.avatar import Avatar, GeneratedAppearance, StaticAppearance
from spatialavatar.avatar.rendering import AvatarRenderer
from spatialavatar.head import HeadModel, HeadParams
from spatialavatar.splat.camera import Camera

REFERENCE = "its reference frame"


def bake(renderer: AvatarRenderer, params: HeadParams, camera: Camera, frame: str) -> Avatar:
    """The static avatar that shows at every frame what the generated one shows at this one (B = 1).

    ``frame`` names it in the provenance; ``params`` become the reference frame's. On the CPU.
    """
    avatar = renderer.avatar
    appearance = avatar.appearance
    baked = {"frame": frame}
    if isinstance(appearance, GeneratedAppearance):
        baked["generator"] = appearance.generator_hash
    offset = avatar.static_offset
    return dataclasses.replace(
        avatar,
        appearance=StaticAppearance(renderer.gaussians_for(params, camera).to("cpu")),
        shape=avatar.shape.cpu(),
        static_offset=None if offset is None else offset.cpu(),
        reference_params=renderer.own(params).to("cpu"),
        provenance={**avatar.provenance, "baked": baked},
    )


def bake_at_reference(
    avatar: Avatar, head: HeadModel, device: torch.device | str = "cpu", what: str = "avatar"
) -> Avatar:
    """The avatar as a static one: itself, or baked at its reference frame. Raises SpatialAvatarError as rendering."""
    if not isinstance(avatar.appearance, GeneratedAppearance):
        return avatar
    renderer = AvatarRenderer(avatar, head, device, what)
    return bake(renderer, avatar.reference_params, avatar.appearance.reference_camera, REFERENCE)
