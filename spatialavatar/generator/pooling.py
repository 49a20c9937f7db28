"""From K sources to one subject: the mean (paper section 3.2) and, for the ablation's row G, attention.

Both take the portraits that there are, M in all, with the subject each belongs to. Both are the identity for one
portrait and do not depend on the portraits' order.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Ownership:
    """Which subject each of the M portraits belongs to."""

    mask: Bool[Tensor, "B K"]
    subject: Int[Tensor, " M"]

    @staticmethod
    def of(mask: Bool[Tensor, "B K"]) -> "Ownership":
        """From the mask of a batch's sources."""
        return Ownership(mask, mask.nonzero()[:, 0])

    def total(self, values: Float[Tensor, "M ..."]) -> Float[Tensor, "B ..."]:
        """The sum over each subject's portraits."""
        zeros = values.new_zeros(len(self.mask), *values.shape[1:])
        return zeros.index_add(0, self.subject, values)


class MeanPool(nn.Module):
    """The mean over a subject's portraits; no parameters."""

    def forward(
        self, texels: Float[Tensor, "M N C"], cls: Float[Tensor, "M D"], ownership: Ownership
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B D"]]:
        """Texels and CLS tokens of M portraits to those of B subjects."""
        share = 1 / ownership.mask.sum(1).to(texels.dtype)[ownership.subject]
        return ownership.total(texels * share[:, None, None]), ownership.total(cls * share[:, None].to(cls.dtype))


class AttentionPool(nn.Module):
    """A softmax over a subject's portraits, for each texel and for the CLS token, of a score learned from each."""

    def __init__(self, texel_channels: int, cls_channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.texel_score = _score(texel_channels, hidden)
        self.cls_score = _score(cls_channels, hidden)

    def forward(
        self, texels: Float[Tensor, "M N C"], cls: Float[Tensor, "M D"], ownership: Ownership
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B D"]]:
        """Texels and CLS tokens of M portraits to those of B subjects."""
        return (
            ownership.total(texels * _weights(self.texel_score(texels), ownership)),
            ownership.total(cls * _weights(self.cls_score(cls), ownership)),
        )


def _score(in_channels: int, hidden: int) -> nn.Sequential:
    # no bias at the end: a softmax does not see it
    return nn.Sequential(nn.Linear(in_channels, hidden), nn.SiLU(), nn.Linear(hidden, 1, bias=False))


def _weights(scores: Float[Tensor, "M ..."], ownership: Ownership) -> Float[Tensor, "M ..."]:
    """The softmax of the scores over each subject's portraits."""
    padded = scores.new_full((*ownership.mask.shape, *scores.shape[1:]), float("-inf"))
    padded[ownership.mask] = scores
    return torch.softmax(padded, 1)[ownership.mask]
