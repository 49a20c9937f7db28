"""The reference frame of a clip: the one with the mouth most closed (method.md section 4; paper appendix A.4)."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from spatialavatar.head import HeadModel, HeadParams

NOISE = 1e-3  # below this openness says nothing (silent clip, occluded jaw)


def mouth_openness(head: HeadModel, params: HeadParams) -> Float[Tensor, " T"]:
    """|jaw|_1 in radians plus the weights of the codes that the head names as mouth-opening."""
    openness = params.jaw.abs().sum(-1)
    if head.mouth_opening_indices:
        openness = openness + params.expression[:, head.mouth_opening_indices].abs().sum(-1)
    return openness


def reference_frame(head: HeadModel, params: HeadParams, seed: int = 0) -> int:
    """Row of ``params`` with the smallest openness, the earliest on ties.

    If even that is below NOISE, a seeded random one of the bottom decile.
    """
    openness = mouth_openness(head, params).double().cpu().numpy()
    if openness.min() >= NOISE:
        return int(openness.argmin())
    pool = np.flatnonzero(openness <= np.quantile(openness, 0.1))
    return int(np.random.default_rng(seed).choice(pool))
