"""The assembled generator f_theta (method.md section 2): portraits to UV features, UV features to Gaussians."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.config import GeneratorConfig
from spatialavatar.generator.decoder import Decoded, GaussianDecoder
from spatialavatar.generator.dpt import DPT
from spatialavatar.generator.encoder import Encoder
from spatialavatar.generator.pooling import AttentionPool, MeanPool, Ownership
from spatialavatar.generator.sources import Sources
from spatialavatar.generator.style_unet import StyleUNet
from spatialavatar.generator.warp import FACING_CHANNELS, facing, warp
from spatialavatar.head import HeadModel, HeadParams, UVLayout, build_layout
from spatialavatar.splat.camera import Camera

_POSITION_UNIT = 0.1  # metres: makes the rest positions that the StyleUNet sees about 1


class Generator(nn.Module):
    """``encode`` looks at the sources once; ``decode`` runs for every driver frame.

    Belongs to one head and one UV layout. A sample never depends on the others in its batch.
    """

    rest_map: Float[Tensor, "1 4 R R"]

    def __init__(self, config: GeneratorConfig, head: HeadModel, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.head = copy.deepcopy(head).cpu()  # moves with the generator, under nobody else
        self.layout: UVLayout = build_layout(head, config.uv_resolution)
        self.encoder = Encoder(config.encoder, pretrained)
        features = config.encoder.feature_channels
        self.dpt = DPT(self.encoder.channels, config.encoder.dpt_channels, features)
        shown = 3 + 1 + FACING_CHANNELS * config.facing  # colour, validity
        warped = shown + features
        self.pool = MeanPool() if config.pool == "mean" else AttentionPool(warped, self.encoder.channels)
        self.unet = StyleUNet(
            config.unet, config.uv_resolution, warped + 4, shown, self.encoder.channels, config.decoder.feature_channels
        )
        self.decoder = GaussianDecoder(config.decoder, self.head, self.layout)
        rest = self.layout.points(self.head.template[None], self.head.faces) / _POSITION_UNIT
        where = self.layout.to_map(torch.cat([rest, torch.ones_like(rest[..., :1])], -1))
        self.register_buffer("rest_map", where, persistent=False)  # where a texel lies, and which texels there are

    def encode(self, sources: Sources) -> Float[Tensor, "B N F"]:
        """The pooled UV features of B subjects, F = config.decoder.feature_channels.

        Raises SpatialAvatarError for a subject without a source, or sources of another size than the encoder's.
        """
        layout = self.layout
        if not bool(sources.mask.any(1).all()):
            raise SpatialAvatarError("generator: a subject without a single source; one to four are needed")
        ownership = Ownership.of(sources.mask)
        rows = sources.mask.flatten().nonzero()[:, 0]
        images, camera = sources.images[sources.mask], sources.camera[rows]
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            vertices = self.head(sources.params[rows])
            points = layout.points(vertices, self.head.faces)
        encoded = self.encoder(images)
        features, valid = warp(self.dpt(encoded.maps), points, camera)
        colors, _ = warp(images, points, camera)
        shown = [colors, valid]
        if self.config.facing:  # what the pool averages: the colour by how well it was seen, and how well that is
            squarely = facing(vertices[:, self.head.faces[layout.face_index]], points, camera) * valid
            shown += [colors * squarely, squarely]
        texels, cls = self.pool(torch.cat([*shown, features], -1), encoded.cls, ownership)
        maps = torch.cat([layout.to_map(texels), self.rest_map.expand(len(texels), -1, -1, -1).to(texels.dtype)], 1)
        out: Tensor = self.unet(maps, cls)
        return layout.from_map(out).to(texels.dtype)

    def decode(
        self, features: Float[Tensor, "B N F"], params: HeadParams, camera: Camera, *, penalised: bool = False
    ) -> Decoded:
        """The Gaussians for B driver frames in canonical form."""
        return self.decoder.at(features, params, camera, penalised=penalised)

    def forward(self, sources: Sources, params: HeadParams, camera: Camera, *, penalised: bool = False) -> Decoded:
        """Sources of B subjects, and one driver frame for each in canonical form."""
        return self.decode(self.encode(sources), params, camera, penalised=penalised)

    def recompute_activations(self, wanted: bool) -> None:
        """Trade time for memory in training: compute activations anew in the backward pass. Changes no value."""
        self.dpt.recompute = self.unet.recompute = self.decoder.recompute = wanted
        if not self.config.encoder.frozen:
            self.encoder.backbone.set_grad_checkpointing(wanted)

    def recomputed_blocks(self) -> list[nn.Module]:
        """What ``recompute_activations`` computes anew, one at a time."""
        blocks = [*self.dpt.reassemble, *self.dpt.fusion, *self.unet.down, *self.unet.up, *self.decoder.heads.values()]
        return blocks if self.config.encoder.frozen else [*self.encoder.backbone.blocks, *blocks]

    def _apply(self, fn: Any, recurse: bool = True) -> "Generator":
        if fn(self.rest_map).dtype in (torch.bfloat16, torch.float16):
            raise SpatialAvatarError(
                "generator: its geometry needs 32 bits; keep its weights in float32 and run it under torch.autocast "
                "(precision: bf16)"
            )
        super()._apply(fn, recurse)
        self.layout = self.layout.to(self.rest_map.device)  # goes where the module goes
        return self
