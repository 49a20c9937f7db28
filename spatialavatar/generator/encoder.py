"""The image encoder: a DINOv3 vision transformer (timm), frozen unless told otherwise (method.md section 2, 1)."""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from spatialavatar import files, tensor_files
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.generator.config import HUB_WEIGHTS, RANDOM_WEIGHTS, EncoderConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Encoded:
    """M images as a vision transformer sees them."""

    maps: tuple[Float[Tensor, "M D h w"], ...]  # four intermediate layers, shallow to deep
    cls: Float[Tensor, "M D"]  # of the deepest of them


class Encoder(nn.Module):
    """Square RGB images in [0, 1] of ``config.image_size`` pixels to four feature maps and the CLS token.

    ``pretrained=False`` makes the architecture alone, for weights that are loaded afterwards. Raises
    SpatialAvatarError: unknown backbone, weights that are missing or do not fit, a size that patches do not divide.
    """

    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    def __init__(self, config: EncoderConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        # while the backbone is as these weights give it, a file need not hold it; whoever changes it says so here
        self.as_published = pretrained and config.weights != RANDOM_WEIGHTS
        self.backbone: Any = _backbone(config, pretrained)  # timm's type says little
        patch = self.backbone.patch_embed.patch_size[0]
        if config.image_size % patch:
            raise SpatialAvatarError(
                f"encoder.image_size {config.image_size}: must be a multiple of the patch size {patch} of "
                f"{config.backbone}"
            )
        self.grid = config.image_size // patch
        self.channels: int = self.backbone.embed_dim
        depth = len(self.backbone.blocks)
        # ends of the four quarters: 2, 5, 8, 11 for S and B; 5, 11, 17, 23 for L
        self.layers = list(config.layers or ((i + 1) * depth // 4 - 1 for i in range(4)))
        if sorted(set(self.layers)) != self.layers or not 0 <= self.layers[0] <= self.layers[-1] < depth:
            raise SpatialAvatarError(
                f"encoder.layers {self.layers}: expected four rising numbers from 0 to {depth - 1} ({config.backbone} "
                f"has {depth} blocks)"
            )
        heads = self.backbone.blocks[0].attn.num_heads
        if self.channels % (4 * heads):  # the rotary embedding turns pairs, for rows and for columns
            raise SpatialAvatarError(
                f"encoder.architecture {config.architecture}: embed_dim {self.channels} must be a multiple of 4 x "
                f"num_heads {heads}"
            )
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.backbone.requires_grad_(not config.frozen)
        if not config.frozen:
            # what lies behind the last tapped block takes no part
            for block in self.backbone.blocks[self.layers[-1] + 1 :]:
                block.requires_grad_(False)

    def forward(self, images: Float[Tensor, "M 3 H W"]) -> Encoded:
        """Raises SpatialAvatarError for images of another size than ``config.image_size``."""
        side = self.config.image_size
        if images.shape[-2:] != (side, side):
            raise SpatialAvatarError(
                f"sources are {images.shape[-1]} x {images.shape[-2]} pixels, the encoder takes {side} x {side}"
            )
        without_graph = torch.no_grad() if self.config.frozen else contextlib.nullcontext()
        with without_graph:
            taps = self.backbone.forward_intermediates(
                (images - self.mean) / self.std,
                indices=self.layers,
                norm=True,
                return_prefix_tokens=True,
                stop_early=True,
                intermediates_only=True,
            )
        return Encoded(tuple(grid for grid, _ in taps), taps[-1][1][:, 0])

    @property
    def licence(self) -> str | None:
        """The terms of the backbone's weights, as timm states them; none for random ones."""
        if self.config.weights == RANDOM_WEIGHTS:
            return None
        return str(self.backbone.pretrained_cfg.get("license") or "their own terms")

    @property
    def kept_elsewhere(self) -> bool:
        """Whether ``config.weights`` alone gives the backbone back."""
        return self.as_published and self.config.frozen

    def checksum(self) -> str:
        """SHA-256 over the backbone's weights, wherever they came from."""
        return tensor_files.content_hash(
            {name: as_array(tensor) for name, tensor in self.backbone.state_dict().items()}
        )


def as_array(tensor: Tensor) -> np.ndarray:
    """As files hold it: numpy knows no bfloat16, weights of 16 bits are written in 32."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.detach().cpu().numpy()


def _backbone(config: EncoderConfig, pretrained: bool) -> Any:
    import timm  # here because it takes seconds to import
    from timm.models import load_checkpoint
    from timm.models.eva import checkpoint_filter_fn

    if config.architecture and config.weights != RANDOM_WEIGHTS:
        raise SpatialAvatarError(
            f"encoder.architecture changes {config.backbone}, for which encoder.weights {config.weights} do not exist; "
            "use weights: random, or leave architecture empty"
        )
    if config.backbone not in timm.list_models("*dinov3*"):
        known = [name for name in timm.list_models("*dinov3*") if not name.endswith("qkvb")]
        raise SpatialAvatarError(f"encoder.backbone {config.backbone}: unknown; one of {', '.join(known)} is expected")
    from_hub = pretrained and config.weights == HUB_WEIGHTS
    changes: dict[str, Any] = {"num_classes": 0, "img_size": config.image_size}
    changes |= {str(key): value for key, value in config.architecture.items()}
    if config.weights == RANDOM_WEIGHTS:
        changes["init_values"] = 1.0  # with timm's 1e-5, untrained blocks do nothing and the CLS token sees no image
    try:
        backbone = timm.create_model(config.backbone, pretrained=from_hub, **changes)
    except Exception as e:
        if not from_hub:
            raise SpatialAvatarError(
                f"encoder {config.backbone} with architecture {config.architecture}: {in_short(e)}; "
                "embed_dim, depth and num_heads can be set"
            ) from None
        raise SpatialAvatarError(
            f"encoder.weights hub: timm could not make {config.backbone} ({in_short(e)}); accept "
            "its licence and log in to the hub, or name a local file: encoder.weights=FILE.safetensors"
        ) from None
    if pretrained and config.weights not in (HUB_WEIGHTS, RANDOM_WEIGHTS):
        path = files.local_path(config.weights)
        if not path.is_file():
            raise SpatialAvatarError(
                f"encoder.weights {config.weights}: no such file; give timm's file of {config.backbone} (.safetensors "
                "or .pth; --encoder-weights for a trained generator), hub to fetch it, or random to train without"
            )
        try:
            load_checkpoint(backbone, str(path), filter_fn=checkpoint_filter_fn, weights_only=True)
        except Exception as e:
            raise SpatialAvatarError(
                f"encoder.weights {config.weights}: not the weights of {config.backbone} ({in_short(e)})"
            ) from None
    return backbone
