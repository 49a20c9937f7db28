"""LPIPS with AlexNet, version 0.1 (Zhang et al. 2018): the perceptual term of training, and a metric.

    LPIPS(a, b) = sum over layers l of mean over pixels of w_l . (phi_l(a) - phi_l(b))^2,

phi_l the activations after AlexNet's five convolutions, each pixel's of unit length, and w_l >= 0 learned.
"""

import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.losses.lpips_weights import CONVOLUTIONS, load_alexnet_features, require_alexnet_features

LPIPS_LEAST_SIZE = 31  # pixels, for AlexNet's two poolings


class Lpips:
    """The perceptual distance of pictures [B H W 3] in [0, 1], in float32 under autocast, too.

    The AlexNet features come from ``features`` (five convolutions, see ``lpips_weights``), the linear layers from
    the ``lpips`` package. Differentiable in both pictures; the network has nothing to train.
    """

    def __init__(self, features: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        self._network = _lpips_network(features).to(device)

    @classmethod
    def find(cls, weights: files.Location | None = None, device: torch.device | str = "cpu") -> "Lpips | None":
        """With the weights that ``lpips_weights`` finds; None, after one line that says so, when there are none."""
        features = load_alexnet_features(weights)
        return None if features is None else cls(features, device)

    @classmethod
    def require(cls, weights: files.Location | None = None, device: torch.device | str = "cpu") -> "Lpips":
        """With the weights that ``lpips_weights`` finds. Raises SpatialAvatarError when there are none."""
        return cls(require_alexnet_features(weights), device)

    def __call__(self, a: Float[Tensor, "B H W 3"], b: Float[Tensor, "B H W 3"]) -> Float[Tensor, " B"]:
        if min(a.shape[1:3]) < LPIPS_LEAST_SIZE:
            height, width = a.shape[1:3]
            raise SpatialAvatarError(
                f"LPIPS needs pictures of at least {LPIPS_LEAST_SIZE} pixels on a side, got {width} x {height}"
            )
        first, second = (picture.float().movedim(-1, 1) * 2 - 1 for picture in (a, b))
        with torch.autocast(a.device.type, enabled=False):
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
