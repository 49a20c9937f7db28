"""Pooling over a subject's portraits: identity at one, blind to order, and no subject sees another's."""

import pytest
import torch
from torch import Tensor

from spatialavatar.generator.pooling import AttentionPool, MeanPool, Ownership

TEXELS, CHANNELS, CLS = 7, 5, 6
POOLS = ["mean", "attention"]


def pool_of(kind: str) -> MeanPool | AttentionPool:
    torch.manual_seed(0)
    pool = MeanPool() if kind == "mean" else AttentionPool(CHANNELS, CLS, hidden=4)
    return pool.double()


def portraits(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    texels = torch.randn(count, TEXELS, CHANNELS, generator=random, dtype=torch.float64)
    return texels, torch.randn(count, CLS, generator=random, dtype=torch.float64)


def owned(rows: list[list[int]]) -> Ownership:
    return Ownership.of(torch.tensor(rows).bool())


def test_ownership_counts_portraits_row_by_row() -> None:
    assert owned([[1, 0, 0], [1, 1, 1], [0, 1, 1]]).subject.tolist() == [0, 1, 1, 1, 2, 2]


def test_the_mean() -> None:
    texels, cls = portraits(4)
    pooled, token = pool_of("mean")(texels, cls, owned([[1, 1, 1], [0, 1, 0]]))
    torch.testing.assert_close(pooled, torch.stack([texels[:3].mean(0), texels[3]]))
    torch.testing.assert_close(token, torch.stack([cls[:3].mean(0), cls[3]]))


def test_attention_is_a_softmax_for_each_texel() -> None:
    pool = pool_of("attention")
    texels, cls = portraits(4)
    pooled, token = pool(texels, cls, owned([[1, 1, 1], [0, 1, 0]]))
    weights = pool.texel_score(texels[:3]).softmax(0)  # [K N 1]
    assert weights.std() > 0.01
    torch.testing.assert_close(pooled, torch.stack([(texels[:3] * weights).sum(0), texels[3]]))
    torch.testing.assert_close(token[0], (cls[:3] * pool.cls_score(cls[:3]).softmax(0)).sum(0))


@pytest.mark.parametrize("kind", POOLS)
def test_one_portrait_passes_to_the_bit(kind: str) -> None:
    texels, cls = portraits(3)
    pooled, token = pool_of(kind)(texels, cls, owned([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]))
    assert torch.equal(pooled, texels) and torch.equal(token, cls)


@pytest.mark.parametrize("kind", POOLS)
def test_order_does_not_matter(kind: str) -> None:
    pool = pool_of(kind)
    texels, cls = portraits(4)
    whole = owned([[1, 1, 1, 1]])
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        for a, b in zip(pool(texels[order], cls[order], whole), pool(texels, cls, whole)):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", POOLS)
def test_no_subject_sees_anothers_portraits(kind: str) -> None:
    pool = pool_of(kind)
    texels, cls = portraits(6)
    together = pool(texels, cls, owned([[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]]))
    start = 0
    for subject, count in enumerate([2, 1, 3]):
        rows = slice(start, start + count)
        alone = pool(texels[rows], cls[rows], owned([[1] * count]))
        for a, b in zip(together, alone):
            torch.testing.assert_close(a[subject : subject + 1], b, atol=1e-14, rtol=0)
        start += count


@pytest.mark.parametrize("kind", POOLS)
def test_gradients(kind: str) -> None:
    pool = pool_of(kind)
    mixed = owned([[1, 0, 1], [0, 1, 0]])
    inputs = [t.requires_grad_() for t in portraits(3)]
    assert torch.autograd.gradcheck(lambda t, c: pool(t, c, mixed), inputs)


def test_attention_has_no_dead_parameter() -> None:
    pool = pool_of("attention")
    pooled, token = pool(*portraits(3), owned([[1, 1, 1]]))
    (pooled.square().sum() + token.square().sum()).backward()
    for name, parameter in pool.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-8, name
