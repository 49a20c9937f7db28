"""An avatar under a driver: pose its mesh, place its Gaussians, splat (eq. 1, and design.md "Kinds of avatar")."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.avatar.avatar import Avatar
from spatialavatar.head import HeadModel, HeadParams
from spatialavatar.splat.binding import bind
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import LocalGaussians, WorldGaussians
from spatialavatar.splat.rasterize import Rendering, rasterize


def gaussians_for(avatar: Avatar, params: HeadParams, camera: Camera) -> LocalGaussians:
    """The local Gaussians that the avatar shows for a driver's parameters and view, B = ``params.batch``.

    A static avatar shows the same ones always.
    """
    local = avatar.gaussians
    return LocalGaussians(**{name: t.expand(params.batch, *t.shape[1:]) for name, t in local.tensors().items()})


class AvatarRenderer:
    """An avatar made ready to be rendered on a device.

    Raises SpatialAvatarError when the head or the layout is not the avatar's.
    """

    def __init__(self, avatar: Avatar, head: HeadModel, device: torch.device | str, what: str = "avatar") -> None:
        self.layout = avatar.layout(head, what).to(device)
        self.head = head.on(device)
        offset = avatar.static_offset
        self.avatar = dataclasses.replace(
            avatar,
            gaussians=avatar.gaussians.to(device),
            shape=avatar.shape.to(device),
            static_offset=None if offset is None else offset.to(device),
        )
        self.device = torch.device(device)

    def world(self, params: HeadParams, camera: Camera) -> WorldGaussians:
        """The avatar's Gaussians under a driver: its own shape, the driver's expression and pose."""
        own = params.to(self.device).with_identity(self.avatar.shape, self.avatar.static_offset)
        local = gaussians_for(self.avatar, own, camera)
        return bind(local, self.head(own), self.head.faces, self.layout.face_index)

    @torch.no_grad()
    def render(self, params: HeadParams, camera: Camera) -> Rendering:
        """B frames: B rows of parameters, B cameras."""
        return rasterize(self.world(params, camera), camera.to(self.device))

    @torch.no_grad()
    def image(
        self, params: HeadParams, camera: Camera, background: Float[Tensor, " 3"] | None = None
    ) -> Float[Tensor, "B H W 3"]:
        """RGB over a background (white by default), in [0, 1]."""
        behind = torch.ones(3) if background is None else background
        rendering = self.render(params, camera)
        rgb = Rendering(rendering.features[..., :3], rendering.alpha)
        return rgb.over(behind.to(self.device)).clamp(0, 1)
