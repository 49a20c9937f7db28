"""The DPT head: four transformer layers to one dense feature map (Ranftl et al. 2021), with GroupNorm."""

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from spatialavatar.generator.recompute import through

LEVELS = 4
UPSAMPLING = 8  # the map has this many times the patch grid's side


class DPT(nn.Module):
    """Reassemble the layers at 4, 2, 1 and 1/2 times the patch grid, then fuse them from the deepest to the first.

    ``recompute`` makes the backward pass redo each stage instead of keeping its activations.
    """

    recompute = False

    def __init__(self, token_channels: int, channels: int, feature_channels: int) -> None:
        super().__init__()
        self.reassemble = nn.ModuleList(_reassemble(level, token_channels, channels) for level in range(LEVELS))
        self.fusion = nn.ModuleList(_Fusion(channels, deepest=level == LEVELS - 1) for level in range(LEVELS))
        self.output = nn.Conv2d(channels, feature_channels, 3, padding=1)

    def forward(self, maps: tuple[Float[Tensor, "M D h w"], ...]) -> Float[Tensor, "M C 8h 8w"]:
        """``maps`` are four layers of M images on the patch grid h x w, shallow to deep."""
        levels = [
            through(reassemble, tokens, recompute=self.recompute) for reassemble, tokens in zip(self.reassemble, maps)
        ]
        fused = through(self.fusion[-1], levels[-1], None, levels[-2].shape[-2:], recompute=self.recompute)
        for level in range(LEVELS - 2, -1, -1):
            size = levels[level - 1].shape[-2:] if level else [2 * side for side in levels[0].shape[-2:]]
            fused = through(self.fusion[level], levels[level], fused, size, recompute=self.recompute)
        out: Tensor = self.output(fused)
        return out


def _reassemble(level: int, token_channels: int, channels: int) -> nn.Sequential:
    resize: nn.Module
    if level < 2:
        factor = 4 >> level
        resize = nn.ConvTranspose2d(channels, channels, factor, stride=factor)
    else:
        resize = nn.Identity() if level == 2 else nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    return nn.Sequential(
        nn.Conv2d(token_channels, channels, 1), resize, nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    )


class _Fusion(nn.Module):
    def __init__(self, channels: int, deepest: bool) -> None:
        super().__init__()
        self.skip = None if deepest else _Residual(channels)
        self.refine = _Residual(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, level: Tensor, coarser: Tensor | None, size: tuple[int, int] | list[int]) -> Tensor:
        fused = level
        if self.skip is not None and coarser is not None:
            fused = coarser + self.skip(level)
        # the projection, which commutes with the interpolation, costs a quarter before it
        return interpolate(self.project(self.refine(fused)), size=tuple(size), mode="bilinear", align_corners=False)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        # up to 32 groups of at least 8 channels: smaller ones would wipe out what a map of one pixel says
        groups = math.gcd(32, channels, max(1, channels // 8))
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out
