"""An avatar under a driver: pose its mesh, place its Gaussians, splat (eq. 1)."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.avatar.avatar import Avatar, GeneratedAppearance, StaticAppearance
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.decoder import GaussianDecoder
from spatialavatar.head import HeadModel, HeadParams, UVLayout
from spatialavatar.head.canonical import canonical
from spatialavatar.splat.binding import bind
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import LocalGaussians, WorldGaussians
from spatialavatar.splat.rasterize import Rendering, rasterize


class AvatarRenderer:
    """An avatar made ready to be rendered on a device.

    Raises SpatialAvatarError when the head or the layout is not the avatar's.
    """

    def __init__(self, avatar: Avatar, head: HeadModel, device: torch.device | str, what: str = "avatar") -> None:
        layout = avatar.layout(head, what)
        self.layout = layout.to(device)
        self.head = head.on(device)
        offset = avatar.static_offset
        self.avatar = dataclasses.replace(
            avatar,
            appearance=avatar.appearance.to(device),
            shape=avatar.shape.to(device),
            static_offset=None if offset is None else offset.to(device),
        )
        self.device = torch.device(device)
        self._decoder: GaussianDecoder | None = None
        if isinstance(avatar.appearance, GeneratedAppearance):
            self._decoder = _decoder(avatar.appearance, head, layout, what).to(device)

    def gaussians_for(self, params: HeadParams, camera: Camera) -> LocalGaussians:
        """The local Gaussians that the avatar shows for B drivers' parameters and views, in any form.

        A static avatar shows the same ones always; a generated one decodes them from the canonical form of its own
        head with the driver's motion.
        """
        appearance = self.avatar.appearance
        if isinstance(appearance, StaticAppearance):
            tensors = appearance.gaussians.tensors()
            return LocalGaussians(**{name: t.expand(params.batch, *t.shape[1:]) for name, t in tensors.items()})
        assert self._decoder is not None
        still, world_to_camera = canonical(self.head, self.own(params), camera.world_to_camera.to(self.device))
        view = dataclasses.replace(camera.to(self.device), world_to_camera=world_to_camera)
        with torch.no_grad():
            return self._decoder.at(appearance.features.expand(params.batch, -1, -1), still, view).gaussians

    def own(self, params: HeadParams) -> HeadParams:
        """The avatar's own shape with a driver's expression and pose."""
        return params.to(self.device).with_identity(self.avatar.shape, self.avatar.static_offset)

    def world(self, params: HeadParams, camera: Camera) -> WorldGaussians:
        """The avatar's Gaussians under a driver."""
        return self.posed(self.gaussians_for(params, camera), params)

    @torch.no_grad()
    def render(self, params: HeadParams, camera: Camera) -> Rendering:
        """B frames, with all channels: B rows of parameters, B cameras."""
        return rasterize(self.world(params, camera), camera.to(self.device))

    @torch.no_grad()
    def show(self, local: LocalGaussians, params: HeadParams, camera: Camera) -> Rendering:
        """What ``gaussians_for`` gave, posed and splatted in RGB."""
        return rasterize(self.posed(in_rgb(local), params), camera.to(self.device))

    @torch.no_grad()
    def image(
        self, params: HeadParams, camera: Camera, background: Float[Tensor, " 3"] | None = None
    ) -> Float[Tensor, "B H W 3"]:
        """RGB over a background (white by default), in [0, 1]."""
        behind = torch.ones(3) if background is None else background
        rendering = self.show(self.gaussians_for(params, camera), params, camera)
        return rendering.over(behind.to(self.device)).clamp(0, 1)

    def posed(self, local: LocalGaussians, params: HeadParams) -> WorldGaussians:
        """Local Gaussians on the avatar's own mesh, moved by a driver."""
        return bind(local, self.head(self.own(params)), self.head.faces, self.layout.face_index)


def in_rgb(local: LocalGaussians) -> LocalGaussians:
    """The same Gaussians with the channels that a picture has: a splatter's time grows with every further one."""
    return dataclasses.replace(local, color=local.color[..., :3])


def _decoder(appearance: GeneratedAppearance, head: HeadModel, layout: UVLayout, what: str) -> GaussianDecoder:
    decoder = GaussianDecoder(appearance.decoder, head.on("cpu"), layout)
    wanted = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
    found = {name: tuple(t.shape) for name, t in appearance.weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise SpatialAvatarError(
                f"{what}: its decoder holds {found.get(name, 'nothing')} for {name}, this program and head need "
                f"{wanted.get(name, 'nothing')}; reconstruct it again"
            )
    decoder.load_state_dict(appearance.weights)
    return decoder.requires_grad_(False).eval()
