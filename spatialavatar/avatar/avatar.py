"""The avatar: one subject's Gaussians, or what makes them, on its head (docs/formats.md)."""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar import files
from spatialavatar.generator.config import DecoderConfig
from spatialavatar.head import HeadModel, HeadParams, HeadReference, UVLayout, build_layout
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import LocalGaussians

Kind = Literal["static", "generated"]


@dataclass(frozen=True)
class StaticAppearance:
    """The same Gaussians for every driver."""

    gaussians: LocalGaussians  # B = 1

    @property
    def count(self) -> int:
        return self.gaussians.count

    @property
    def channels(self) -> int:
        return self.gaussians.color.shape[-1]

    def to(self, device: torch.device | str) -> "StaticAppearance":
        return StaticAppearance(self.gaussians.to(device))


@dataclass(frozen=True)
class GeneratedAppearance:
    """Gaussians that a decoder makes for each driver frame, from its view and its expression."""

    features: Float[Tensor, "1 N F"]  # the subject's pooled UV features
    decoder: DecoderConfig
    weights: dict[str, Tensor]  # of the decoder, by parameter name
    reference_camera: Camera  # B = 1, canonical as the avatar's reference parameters are; both say where it is baked
    generator_hash: str
    generator_file: str  # where the checkpoint lay; not needed again

    @property
    def count(self) -> int:
        return self.features.shape[1]

    @property
    def channels(self) -> int:
        return self.decoder.color_channels

    def to(self, device: torch.device | str) -> "GeneratedAppearance":
        return dataclasses.replace(
            self,
            features=self.features.to(device),
            weights={name: tensor.to(device) for name, tensor in self.weights.items()},
            reference_camera=self.reference_camera.to(device),
        )


@dataclass(frozen=True)
class Avatar:
    """One subject. N is the layout's count."""

    identity: str
    head: HeadReference
    uv_resolution: int
    layout_fingerprint: str
    appearance: StaticAppearance | GeneratedAppearance
    shape: Float[Tensor, "1 S"]
    static_offset: Float[Tensor, "1 V 3"] | None
    reference_params: HeadParams  # B = 1: the head at the reference frame, at which exports are posed
    provenance: dict[str, Any]  # configuration, clip, versions, metrics: plain JSON
    licence_note: str

    @property
    def kind(self) -> Kind:
        return "static" if isinstance(self.appearance, StaticAppearance) else "generated"

    def layout(self, head: HeadModel, what: str) -> UVLayout:
        """The layout that the Gaussians belong to. Raises SpatialAvatarError for another head or layout."""
        self.head.require(head, what)
        layout = build_layout(head, self.uv_resolution)
        layout.require(self.layout_fingerprint, what)
        return layout

    def head_hints(self, folder: files.Location) -> list[str]:
        """Where the head of an avatar read from ``folder`` may lie: beside it, or where it was when it was made."""
        named = self.provenance.get("head_file")
        if named is None:
            return [str(folder)]
        relative = files.is_local(named) and not os.path.isabs(named)
        return [str(folder), files.join(folder, named) if relative else named]


def licence_note(head: HeadReference, clip_licence: str, start_note: str = "", generator_licence: str = "") -> str:
    """What a holder of the avatar must know: the terms of all that it was made from."""
    note = f"Made with head model {head.id} ({head.licence}; {head.attribution}) from footage under: {clip_licence}"
    if generator_licence:
        note += f"; by a generator trained on footage under: {generator_licence}"
    return f"{note}; started from an avatar with this note: {start_note}" if start_note else note
