"""L1 of the training objective: mean absolute difference over pixels and channels (method.md section 3).

L1 = 1 / (H W C) x sum |prediction - target|. The paper's table (App. A.2) divides by H W alone.
"""

from jaxtyping import Float
from torch import Tensor


def l1(prediction: Float[Tensor, "B H W C"], target: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """Mean absolute difference of each image."""
    return (prediction - target).abs().mean((1, 2, 3))
