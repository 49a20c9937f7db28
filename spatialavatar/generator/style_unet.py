"""The StyleUNet: pooled UV maps to the UV features F (Wang et al. 2023; Karras et al. 2020; Wang et al. 2018, SFT).

A U-Net whose decoder has StyleGAN2's modulated convolutions, without noise and without minibatch statistics. Skip
connections enter through SFT layers, whose scale and shift maps are made from the skip by a convolution that the
source's CLS token modulates. As in StyleGAN, weights have unit variance and are scaled when they are used ("equalised
learning rate", Karras et al. 2018): Adam's steps are then the same share of every layer's weights.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, leaky_relu, linear

from spatialavatar.generator.config import StyleUNetConfig
from spatialavatar.generator.recompute import through

_SLOPE = 0.2
_GAIN = math.sqrt(2)
_START = 0.1  # of the network's own output beside the shortcut


class StyleUNet(nn.Module):
    """``recompute`` makes the backward pass redo each level instead of keeping its activations."""

    recompute = False

    def __init__(
        self,
        config: StyleUNetConfig,
        resolution: int,
        in_channels: int,
        shown_channels: int,  # the first of them: colours and the like
        cls_channels: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        levels = max(0, int(math.log2(resolution / config.coarsest)))
        widths = [min(config.channels << level, config.max_channels) for level in range(levels + 1)]
        style = config.style_channels
        self.mapping = nn.Sequential(_Dense(cls_channels, style), _Activation(), _Dense(style, style), _Activation())
        self.stem = nn.Sequential(_Conv(in_channels, widths[0]), _Activation())
        self.down = nn.ModuleList(_Down(widths[level], widths[level + 1]) for level in range(levels))
        side = resolution >> levels
        self.constant = nn.Parameter(torch.randn(1, widths[-1], side, side))  # as StyleGAN2's input
        self.bottom = _Styled(2 * widths[-1], widths[-1], style)
        self.up = nn.ModuleList(_Up(widths[level + 1], widths[level], style) for level in range(levels))
        # at the start F is mostly what the sources show, which need not learn its way through the levels
        self.output = ModulatedConv(widths[0], out_channels, style, size=1, demodulate=False, start=_START)
        self.shortcut = nn.Conv2d(shown_channels, out_channels, 1)
        nn.init.normal_(self.shortcut.weight)

    def forward(self, maps: Float[Tensor, "B C R R"], cls: Float[Tensor, "B D"]) -> Float[Tensor, "B F R R"]:
        """Maps over the UV square and the CLS token of B subjects to F, over the same square."""
        style = self.mapping(cls * (cls.square().mean(-1, keepdim=True) + 1e-8).rsqrt())
        x = self.stem(maps)
        skips = []
        for down in self.down:
            skips.append(x)
            x = through(down, x, recompute=self.recompute)
        x = self.bottom(torch.cat([x, self.constant.expand(len(x), -1, -1, -1).to(x.dtype)], 1), style)
        for level in reversed(range(len(skips))):
            x = through(self.up[level], x, skips[level], style, recompute=self.recompute)
        out: Tensor = self.output(x, style) + self.shortcut(maps[:, : self.shortcut.in_channels])
        return out


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, and whose output is brought back to unit variance.

    Karras et al. 2020, eqs. 1 and 3: the weights scaled by the style and divided by their norm, written as scalings
    of input and output, so that a batch is one convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: int,
        size: int = 3,
        demodulate: bool = True,
        start: float = 1.0,  # standard deviation of the output at the start, without demodulation
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, size, size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = _Dense(style, in_channels, start=1.0)
        self.gain, self.demodulate = start / math.sqrt(in_channels * size * size), demodulate

    def forward(self, x: Float[Tensor, "B I H W"], style: Float[Tensor, "B S"]) -> Float[Tensor, "B O H W"]:
        """``style`` is a row for each map of the batch."""
        scale, weight = self.affine(style), self.weight * self.gain
        out = conv2d(x * scale[:, :, None, None].to(x.dtype), weight, padding=int(weight.shape[-1]) // 2)
        if self.demodulate:
            with torch.autocast(x.device.type, enabled=False):
                energy = scale.to(weight.dtype).square() @ weight.square().sum((2, 3)).mT
            out = out * (energy + 1e-8).rsqrt()[:, :, None, None].to(out.dtype)
        return out + self.bias[:, None, None].to(out.dtype)


class _Activation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(x, _SLOPE) * _GAIN


class _Styled(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, style: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(in_channels, out_channels, style)
        self.activation = _Activation()

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        out: Tensor = self.activation(self.conv(x, style))
        return out


class _Down(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _Conv(in_channels, in_channels), _Activation(), _Conv(in_channels, out_channels, stride=2), _Activation()
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        half = interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        out: Tensor = (self.layers(x) + self.shortcut(half)) / _GAIN
        return out


class _Up(nn.Module):
    """Twice the size, a styled convolution, the skip by SFT, another styled convolution."""

    def __init__(self, in_channels: int, out_channels: int, style: int) -> None:
        super().__init__()
        self.first = _Styled(in_channels, out_channels, style)
        self.sft = _SFT(out_channels, style)
        self.second = _Styled(out_channels, out_channels, style)

    def forward(self, x: Tensor, skip: Tensor, style: Tensor) -> Tensor:
        x = interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = self.second(self.sft(self.first(x, style), skip, style), style)
        return out


class _SFT(nn.Module):
    """Spatial feature transform: x (1 + gamma) + beta, both maps made from the skip under the style."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.shared = _Styled(channels, channels, style)
        self.maps = _Conv(channels, 2 * channels)

    def forward(self, x: Tensor, skip: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.maps(self.shared(skip, style)).chunk(2, 1)
        out: Tensor = x * (1 + scale) + shift
        return out


class _Dense(nn.Module):
    """A linear layer with equalised learning rate."""

    def __init__(self, in_channels: int, out_channels: int, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.full((out_channels,), start))
        self.gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B O"]:
        return linear(x, self.weight * self.gain, self.bias)


class _Conv(nn.Module):
    """A 3 x 3 convolution with equalised learning rate."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain, self.stride = 1 / math.sqrt(9 * in_channels), stride

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        return conv2d(x, self.weight * self.gain, self.bias, stride=self.stride, padding=1)
