"""L2-SP: an anchor at the weights where fine-tuning started (Li et al. 2018; method.md section 3, Phase 2).

    1/2 x sum over trainable parameters of (theta - theta_ref)^2,    gradient theta - theta_ref,

weighted by lambda_sp outside. The reference is a plain dictionary of tensors, by the parameters' names: nothing trains
it.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError


def l2_sp(parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Of the trainable ``parameters`` by name; summed at least in float32, whatever they are held in.

    Raises SpatialAvatarError when the two do not have the same names and shapes.
    """
    require_same(parameters, reference)
    squares = []
    for name, parameter in parameters.items():
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        difference = parameter.to(dtype) - reference[name].detach().to(parameter.device, dtype)
        squares.append((difference * difference).sum())
    return torch.stack(squares).sum() / 2


def require_same(parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
    """Raises SpatialAvatarError that names the first parameter without its counterpart."""
    for name in [*parameters, *reference]:
        if name not in reference:
            raise SpatialAvatarError(f"L2-SP: no reference for parameter {name}; {_ADVICE}")
        if name not in parameters:
            raise SpatialAvatarError(f"L2-SP: the reference has {name}, which is no trainable parameter; {_ADVICE}")
        expected, found = tuple(parameters[name].shape), tuple(reference[name].shape)
        if found != expected:
            raise SpatialAvatarError(
                f"L2-SP: parameter {name} should have a reference of shape {expected}, found {found}; {_ADVICE}"
            )


_ADVICE = "start from a Phase-1 checkpoint of the same generator, or set loss.lambda_sp to 0"
