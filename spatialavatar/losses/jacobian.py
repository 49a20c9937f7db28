"""The Jacobian penalty: geometry should not follow the view (paper, eq. 3 and App. A.3; method.md section 3, Ljac).

    Ljac = log(1 + |grad_gamma g_x|^2 + |grad_gamma g_s|^2),    g = sum over texels p of <v_p, f_p(gamma)>,

for the position head f = x and the log-scale head f = s, with i.i.d. random signs v_p, independent for the two. Over
the signs, E |grad_gamma g|^2 = sum over p of |d f_p / d gamma|_F^2 (Hutchinson 1989): the energy of all texels'
Jacobians by one backward pass, where an unprojected sum over texels would let Jacobians of opposite sign cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_STREAM = 0x6A61636F  # keeps these signs apart from other draws with the same seed and number


@dataclass(frozen=True)
class JacobianTerms:
    """What the penalty looks at: the bounded local attributes, residual excluded, and the view that each head saw.

    The two views hold the same values; being apart, they get each head's gradient by itself from one backward.
    """

    position: Float[Tensor, "B N 3"]
    log_scale: Float[Tensor, "B N 3"]
    view_of_position: Float[Tensor, "B V"]  # harmonic encoding, requires grad
    view_of_log_scale: Float[Tensor, "B V"]


def jacobian_penalty(
    terms: JacobianTerms, sign_position: Float[Tensor, "B N 3"], sign_log_scale: Float[Tensor, "B N 3"]
) -> Float[Tensor, " B"]:
    """Differentiable in the heads' parameters; autocast is off for the gradient, which is summed at least in float32.

    One backward serves the batch, because no sample's attributes depend on another's view.
    """
    with torch.autocast(terms.position.device.type, enabled=False):
        projected = (_widened(terms.position) * sign_position).sum() + (
            _widened(terms.log_scale) * sign_log_scale
        ).sum()
        gradients = torch.autograd.grad(projected, (terms.view_of_position, terms.view_of_log_scale), create_graph=True)
        of_position, of_log_scale = (_widened(g).square().sum(-1) for g in gradients)
        return torch.log1p(of_position + of_log_scale)


def rademacher(
    seed: int, sample_numbers: Sequence[int], count: int, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N 3"]]:
    """Random signs, +1 or -1, for the position and the log-scale of ``count`` texels.

    A row is a function of (seed, its sample number) alone.
    """
    length = 2 * count * 3
    rows = [
        np.unpackbits(
            np.frombuffer(np.random.Generator(_bits(seed, number)).bytes(-(-length // 8)), np.uint8), count=length
        )
        for number in sample_numbers
    ]
    bits = torch.from_numpy(np.stack(rows)).to(device).view(-1, 2, count, 3)
    position, log_scale = bits.float().mul_(2).sub_(1).unbind(1)
    return position, log_scale


def _bits(seed: int, number: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence([_STREAM, seed, int(number)]))


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
