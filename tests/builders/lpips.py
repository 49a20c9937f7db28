"""AlexNet features of the right shapes, without its training: a distance of pictures all the same."""

import torch
from torch import Tensor

from spatialavatar.losses.lpips_weights import CONVOLUTIONS


def random_alexnet() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    features = {}
    for index, shape in CONVOLUTIONS.items():
        fan_in = shape[1] * shape[2] * shape[3]
        features[f"features.{index}.weight"] = torch.randn(shape, generator=g) * (2 / fan_in) ** 0.5
        features[f"features.{index}.bias"] = torch.randn(shape[0], generator=g) * 0.1
    return features
