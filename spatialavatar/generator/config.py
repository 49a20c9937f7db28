"""What a generator is made of (method.md section 2); configs/phase1.yaml explains each value."""

from typing import Literal

from pydantic import Field, field_validator

from spatialavatar.config import Config

RANDOM_WEIGHTS = "random"
HUB_WEIGHTS = "hub"


class EncoderConfig(Config):
    """A timm vision transformer of the DINOv3 family, and the DPT head on it."""

    backbone: str = "vit_base_patch16_dinov3"  # timm's name
    weights: str = HUB_WEIGHTS  # "hub" (timm's), a local .safetensors or .pth file in timm's format, or "random"
    architecture: dict[Literal["embed_dim", "depth", "num_heads"], int] = Field({})  # with random weights
    image_size: int = Field(512, ge=32)  # pixels; sources are resized to this square
    layers: tuple[int, int, int, int] | None = None  # blocks that feed the DPT head, zero-based; None: by depth
    frozen: bool = True
    dpt_channels: int = Field(256, ge=8)  # inside the DPT head
    feature_channels: int = Field(128, ge=1)  # of the dense map that is warped


class StyleUNetConfig(Config):
    """The U-Net over the UV square."""

    channels: int = Field(64, ge=4)  # at full UV resolution; doubled at each coarser level
    max_channels: int = Field(512, ge=4)
    coarsest: int = Field(8, ge=1)  # texels along the side of the coarsest level
    style_channels: int = Field(512, ge=4)  # of the mapped CLS token


class DecoderConfig(Config):
    """The five heads and the residual head."""

    feature_channels: int = Field(32, ge=1)  # of the UV features F
    hidden_channels: int = Field(64, ge=1)  # of each head
    color_channels: int = Field(3, ge=3)  # 3, or 32 as the paper; the loss sees the first three
    position_bound: float = Field(0.02, gt=0)  # metres
    scale_bound: float = Field(10.0, gt=1)  # a scale is at most multiplied or divided by this
    residual: bool = True  # the FiLM head on expression, pose and eyes
    residual_hidden: int = Field(128, ge=1)


class GeneratorConfig(Config):
    """The whole generator; ``pool``, ``unet`` and ``decoder`` decide which weights there are, as the encoder does."""

    uv_resolution: int = Field(256, ge=8)  # a power of two
    pool: Literal["mean", "attention"] = "mean"  # over the K sources; attention is the ablation's row G
    facing: bool = False  # warp, beside colour and validity, how squarely a texel faces the source (not in the paper)
    encoder: EncoderConfig = EncoderConfig()
    unet: StyleUNetConfig = StyleUNetConfig()
    decoder: DecoderConfig = DecoderConfig()

    @field_validator("uv_resolution")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two")
        return value
