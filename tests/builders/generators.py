"""Tiny generators and what they look at, for tests: a transformer of four narrow blocks, random weights, no files."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spatialavatar.generator import DecoderConfig, EncoderConfig, GeneratorConfig, StyleUNetConfig
from spatialavatar.generator.decoder import GaussianDecoder
from spatialavatar.generator.generator import Generator
from spatialavatar.generator.sources import Sources
from spatialavatar.head import HeadModel, HeadParams
from spatialavatar.splat.camera import Camera

IMAGE_SIZE = 32
DISTANCE = 0.6  # metres from camera to head


def tiny_encoder_config(**changes: Any) -> EncoderConfig:
    values: dict[str, Any] = {
        "backbone": "vit_small_patch16_dinov3",
        "weights": "random",
        "architecture": {"embed_dim": 32, "depth": 4, "num_heads": 2},
        "image_size": IMAGE_SIZE,
        "dpt_channels": 8,
        "feature_channels": 6,
    }
    return EncoderConfig(**{**values, **changes})


def tiny_generator_config(**changes: Any) -> GeneratorConfig:
    """``changes`` name fields of the configuration; for encoder, unet and decoder, a dict changes some of their own.

    ``tiny_generator_config(pool="attention", encoder={"frozen": False}, decoder={"color_channels": 32})``
    """
    parts: dict[str, dict[str, Any]] = {
        "unet": {"channels": 8, "max_channels": 16, "coarsest": 4, "style_channels": 16},
        "decoder": {"feature_channels": 5, "hidden_channels": 12, "residual_hidden": 8},
        "encoder": {},
    }
    for name in parts:
        parts[name] |= changes.pop(name, {})
    values: dict[str, Any] = {
        "uv_resolution": 32,
        "encoder": tiny_encoder_config(**parts["encoder"]),
        "unet": StyleUNetConfig(**parts["unet"]),
        "decoder": DecoderConfig(**parts["decoder"]),
    }
    return GeneratorConfig(**{**values, **changes})


def tiny_generator(head: HeadModel, seed: int = 0, **changes: Any) -> Generator:
    """Untrained, the same for the same seed; ``changes`` as in ``tiny_generator_config``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Generator(tiny_generator_config(**changes), head)


def awaken(generator: Generator, seed: int = 0) -> Generator:
    """Give its zero-initialised last layers random weights, so that sources, view and expression matter."""
    awaken_decoder(generator.decoder, seed)
    return generator


def awaken_decoder(decoder: GaussianDecoder, seed: int = 0) -> GaussianDecoder:
    random = torch.Generator().manual_seed(seed)
    layers: list[Any] = [head.output for head in decoder.heads.values()]
    if decoder.residual is not None:
        layers += [decoder.residual.film[-1], *decoder.residual.convs.values()]
    with torch.no_grad():
        for layer in layers:
            for parameter, spread in ((layer.weight, 0.5 / layer.in_features**0.5), (layer.bias, 0.5)):
                parameter.copy_(spread * torch.randn(parameter.shape, generator=random))
    return decoder


def tiny_view(count: int, size: int, seed: int = 0) -> Camera:
    """Square cameras in front of the head, turned about it at random by up to some 30 degrees each way."""
    random = torch.Generator().manual_seed(seed)
    yaw, pitch = (torch.rand(2, count, generator=random, dtype=torch.float64) - 0.5).unbind(0)
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    about_y = torch.stack([yaw.cos(), zero, -yaw.sin(), zero, one, zero, yaw.sin(), zero, yaw.cos()], -1)
    about_x = torch.stack([one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos()], -1)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))  # OpenCV: y down, z into the picture
    world_to_camera = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    world_to_camera[:, :3, :3] = flip @ about_x.view(-1, 3, 3) @ about_y.view(-1, 3, 3)
    world_to_camera[:, 2, 3] = DISTANCE
    intrinsics = torch.tensor([[1.6 * size, 0, size / 2], [0, 1.6 * size, size / 2], [0, 0, 1]])
    return Camera(world_to_camera.float(), intrinsics.repeat(count, 1, 1), size, size)


def tiny_motion(head: HeadModel, count: int, seed: int = 0) -> HeadParams:
    """Canonical parameters, of another shape in each row."""
    random = torch.Generator().manual_seed(seed)

    def draw(width: int, scale: float) -> Tensor:
        return scale * torch.randn(count, width, generator=random)

    still = torch.zeros(count, 3)
    expression = draw(head.expression_codes, 0.5).abs()
    return HeadParams(draw(head.shape_codes, 0.5), expression, still, draw(3, 0.1), draw(3, 0.1), draw(6, 0.1), still)


def tiny_sources(
    head: HeadModel, batch: int, ks: int | Sequence[int] = 1, size: int = IMAGE_SIZE, seed: int = 0
) -> Sources:
    """``ks`` portraits of each subject, or of each its own number, padded; the pictures are smooth noise."""
    counts = torch.tensor([ks] * batch if isinstance(ks, int) else list(ks))
    k = int(counts.max())
    mask = torch.arange(k) < counts[:, None]
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch * k, 3, 5, 5, generator=random)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").unflatten(0, (batch, k))
    images = images * mask[..., None, None, None]
    return Sources(images, tiny_motion(head, batch * k, seed), tiny_view(batch * k, size, seed), mask)


def tiny_drivers(head: HeadModel, batch: int, size: int = IMAGE_SIZE, seed: int = 100) -> tuple[HeadParams, Camera]:
    """A canonical frame to show for each subject."""
    return tiny_motion(head, batch, seed), tiny_view(batch, size, seed)
