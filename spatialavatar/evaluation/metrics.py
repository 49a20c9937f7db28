"""Image metrics per image, on values in [0, 1] (method.md section 5).

Every metric takes pictures [B H W 3] and returns one number for each; all numbers are finite, because metrics files
are JSON. Higher is better for PSNR and SSIM, lower for MSE and LPIPS.
"""

import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.lpips_weights import CONVOLUTIONS, load_alexnet_features
from spatialavatar.files import Location
from spatialavatar.losses import photometric

__all__ = ["PSNR_CAP", "Lpips", "mse", "psnr", "ssim"]

PSNR_CAP = 100.0  # dB: what equal images get, whose PSNR is infinite
LPIPS_LEAST_SIZE = 31  # pixels, for AlexNet's two poolings


def mse(a: Float[Tensor, "B H W C"], b: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """Mean squared error over pixels and channels."""
    return ((a - b) ** 2).mean((1, 2, 3))


def psnr(a: Float[Tensor, "B H W C"], b: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio in dB for a peak of 1, at most ``PSNR_CAP``."""
    least = 10 ** (-PSNR_CAP / 10)
    return -10 * torch.log10(mse(a, b).clamp(min=least))


def ssim(a: Float[Tensor, "B H W C"], b: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """``losses.photometric.ssim``: 11 x 11 window of sigma 1.5, zero padding.

    RGB pictures in float32 on the CPU go through the loss's fused kernels, some fifty times faster.
    """
    if a.shape[-1] != 3 or a.requires_grad or b.requires_grad:
        return photometric.ssim(a, b)
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (a, b)):
        return photometric.ssim(a, b)
    from spatialavatar.losses.photometric_cpu import l1_and_ssim_cpu  # here, because numba takes a second to import

    everywhere, black = a.new_ones(a.shape[:3]), a.new_zeros(len(a), 3)
    return l1_and_ssim_cpu(a, everywhere, b, everywhere, black, 0.0, 1.0)[1]


class Lpips:
    """LPIPS with AlexNet, version 0.1 (Zhang et al. 2018): the perceptual distance of pictures [B H W 3] in [0, 1].

    The AlexNet features come from ``features`` (five convolutions, see ``lpips_weights``), the linear layers from
    the ``lpips`` package. Differentiable in both pictures.
    """

    def __init__(self, features: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        self._network = _lpips_network(features).to(device)

    @classmethod
    def find(cls, weights: Location | None = None, device: torch.device | str = "cpu") -> "Lpips | None":
        """With the weights that ``lpips_weights`` finds; None, after one line that says so, when there are none."""
        features = load_alexnet_features(weights)
        return None if features is None else cls(features, device)

    def __call__(self, a: Float[Tensor, "B H W 3"], b: Float[Tensor, "B H W 3"]) -> Float[Tensor, " B"]:
        if min(a.shape[1:3]) < LPIPS_LEAST_SIZE:
            height, width = a.shape[1:3]
            raise SpatialAvatarError(
                f"LPIPS needs pictures of at least {LPIPS_LEAST_SIZE} pixels on a side, got {width} x {height}"
            )
        first, second = (picture.movedim(-1, 1) * 2 - 1 for picture in (a, b))
        distance: Tensor = self._network(first, second)
        return distance.flatten()


def _lpips_network(features: dict[str, Tensor]) -> torch.nn.Module:
    """The package's network with every weight set from files: nothing is downloaded, drawn at random or printed."""
    import lpips  # here because it takes seconds to import

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by an old signature
        network = lpips.LPIPS(net="alex", pnet_rand=True, pretrained=False, verbose=False)
    linear_file = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    linear = torch.load(linear_file, map_location="cpu", weights_only=True)
    # The package holds each linear layer under two names.
    twice = {name.replace("lin", "lins.", 1): tensor for name, tensor in linear.items()}
    slices = zip(CONVOLUTIONS, range(1, 6))
    trunk = {
        f"net.slice{part}.{index}.{kind}": features[f"features.{index}.{kind}"]
        for index, part in slices
        for kind in ("weight", "bias")
    }
    constants = dict(network.scaling_layer.named_buffers(prefix="scaling_layer"))
    network.load_state_dict({**constants, **trunk, **linear, **twice}, assign=True)
    return network.eval().requires_grad_(False)
