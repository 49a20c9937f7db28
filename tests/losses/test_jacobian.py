"""The Jacobian penalty against exact Jacobians, finite differences, and the sum over texels that it replaces."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spatialavatar.losses.jacobian import JacobianTerms, jacobian_penalty, rademacher

TEXELS, FEATURES, VIEW, HIDDEN = 7, 4, 27, 6
Head = Callable[[Tensor, Tensor], Tensor]


def head_weights(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(HIDDEN, FEATURES + VIEW), (HIDDEN,), (3, HIDDEN)]
    return [torch.randn(shape, dtype=torch.float64, generator=g).mul(0.4).to(dtype) for shape in shapes]


def run_head(features: Tensor, view: Tensor, first: Tensor, bias: Tensor, second: Tensor) -> Tensor:
    """A small network on each texel's features and the view, bounded like the decoder's heads."""
    seen = torch.cat([features, view[:, None].expand(-1, features.shape[1], -1)], -1)
    hidden = torch.nn.functional.silu(torch.nn.functional.linear(seen, first, bias))
    return torch.nn.functional.linear(hidden, second).tanh()


def inputs(batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(7)
    features = torch.randn(batch, TEXELS, FEATURES, dtype=torch.float64, generator=g)
    return features.to(dtype), torch.randn(batch, VIEW, dtype=torch.float64, generator=g).to(dtype)


def terms_of(position: Head, log_scale: Head, features: Tensor, view: Tensor) -> JacobianTerms:
    first, second = (view.detach().clone().requires_grad_() for _ in range(2))
    return JacobianTerms(position(features, first), log_scale(features, second), first, second)


def heads(weights: list[Tensor]) -> tuple[Head, Head]:
    def position(features: Tensor, view: Tensor) -> Tensor:
        return run_head(features, view, *weights[:3])

    def log_scale(features: Tensor, view: Tensor) -> Tensor:
        return run_head(features, view, *weights[3:])

    return position, log_scale


def both_heads_weights(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return head_weights(0, dtype) + head_weights(1, dtype)


def signs(batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    position, log_scale = rademacher(seed, range(batch), TEXELS)
    return position.to(dtype), log_scale.to(dtype)


def energy(head: Head, features: Tensor, view: Tensor) -> Tensor:
    """Sum over texels of the squared Frobenius norms of d head / d view, of one sample."""
    return torch.func.jacrev(lambda v: head(features[None], v[None])[0])(view).square().sum()


def test_mean_over_draws_converges_to_the_exact_energy() -> None:
    """Rows that differ in their signs alone: every row is one draw."""
    draws = 20_000
    features, view = inputs(1)
    position, log_scale = heads(both_heads_weights())
    exact = energy(position, features[0], view[0]) + energy(log_scale, features[0], view[0])
    terms = terms_of(position, log_scale, features.expand(draws, -1, -1), view.expand(draws, -1))
    estimates = jacobian_penalty(terms, *signs(draws)).detach().expm1()
    standard_error = estimates.std() / draws**0.5
    assert standard_error < 0.01 * exact  # or the next line would say little
    assert abs(estimates.mean() - exact) < 4 * standard_error
    # neither head alone would pass
    for part in (energy(position, features[0], view[0]), energy(log_scale, features[0], view[0])):
        assert part < exact - 20 * standard_error


def test_sign_cancelling_jacobians_are_seen() -> None:
    """Texels turn with the view in opposite directions: their sum does not move, each of them does."""
    draws = 4000
    direction = torch.randn(3, VIEW, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sides = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)

    def turning(_: Tensor, view: Tensor) -> Tensor:
        return sides[:, None] * (view @ direction.T)[:, None]

    def still(_: Tensor, view: Tensor) -> Tensor:
        return 0 * turning(_, view)

    view = torch.zeros(draws, VIEW, dtype=torch.float64)
    ones = torch.ones(draws, len(sides), 3, dtype=torch.float64)
    terms = terms_of(turning, still, view, view)
    unprojected = jacobian_penalty(terms, ones, ones).detach()
    assert (unprojected < 1e-12).all()
    exact = len(sides) * direction.square().sum()
    projections = (s.double() for s in rademacher(0, range(draws), len(sides)))
    estimates = jacobian_penalty(terms_of(turning, still, view, view), *projections).detach().expm1()
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / draws**0.5
    assert estimates.std() / draws**0.5 < 0.03 * exact


def test_samples_are_independent() -> None:
    features, view = inputs(3)
    both = heads(both_heads_weights())
    v = signs(3)
    together = jacobian_penalty(terms_of(*both, features, view), *v)
    assert together.shape == (3,) and together.unique().numel() == 3
    for b in range(3):
        row = slice(b, b + 1)
        alone = jacobian_penalty(terms_of(*both, features[row], view[row]), *(s[row] for s in v))
        torch.testing.assert_close(alone, together[row], rtol=1e-12, atol=0)


def test_value_is_the_logarithm_of_both_heads_energy_along_the_signs() -> None:
    features, view = inputs(2)
    both = heads(both_heads_weights())
    v = signs(2)
    expected = []
    for b in range(2):
        squared = 0.0
        for head, sign in zip(both, v):
            jacobian = torch.func.jacrev(lambda x, h=head, b=b: h(features[b : b + 1], x[None])[0])(view[b])
            squared += float(torch.einsum("nc,ncv->v", sign[b], jacobian).square().sum())
        expected.append(1 + squared)
    found = jacobian_penalty(terms_of(*both, features, view), *v)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).log(), rtol=1e-12, atol=0)


def test_gradient_is_finite_differences() -> None:
    """Through both backward passes, in weights and features."""
    features, view = inputs(2)
    v = signs(2)

    def penalty(features: Tensor, *weights: Tensor) -> Tensor:
        return jacobian_penalty(terms_of(*heads(list(weights)), features, view), *v)

    leaves = [t.requires_grad_() for t in (features, *both_heads_weights())]
    assert torch.autograd.gradcheck(penalty, leaves, eps=1e-6, atol=1e-7)


def penalty_and_gradients(
    dtype: torch.dtype, autocast: bool, checkpointed: bool, weights_dtype: torch.dtype | None = None
) -> list[Tensor]:
    features, view = inputs(2, dtype)
    weights = [w.requires_grad_() for w in both_heads_weights(weights_dtype or dtype)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        both = heads(weights)
        if checkpointed:
            both = tuple(lambda f, v, h=h: checkpoint(h, f, v, use_reentrant=False) for h in both)
        terms = terms_of(*both, features, view)
        value = jacobian_penalty(terms, *signs(2, dtype))
        rest = terms.position.square().sum() + terms.log_scale.sum()  # the attributes have other uses, too
    return [value.detach(), *torch.autograd.grad(value.sum() + rest.to(value.dtype), weights)]


def test_gradient_checkpointing_changes_nothing() -> None:
    plain = penalty_and_gradients(torch.float64, autocast=False, checkpointed=False)
    for found, expected in zip(penalty_and_gradients(torch.float64, autocast=False, checkpointed=True), plain):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_autocast(checkpointed: bool) -> None:
    truth = penalty_and_gradients(torch.float64, autocast=False, checkpointed=False)
    found = penalty_and_gradients(torch.float32, autocast=True, checkpointed=checkpointed)
    assert all(t.dtype == torch.float32 for t in found)
    for x, y in zip(found, truth):
        assert float((x - y).norm() / y.norm()) < 0.03  # bfloat16 keeps eight bits
    assert not torch.equal(found[0], truth[0].float())  # it was on


def test_heads_that_do_not_see_the_view_cost_nothing() -> None:
    weights = [w.requires_grad_() for w in both_heads_weights()]
    with torch.no_grad():
        weights[2].zero_()  # last layers start at zero
        weights[5].zero_()
    value = jacobian_penalty(terms_of(*heads(weights), *inputs(2)), *signs(2))
    assert (value == 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), weights))


def test_signs_are_a_function_of_seed_and_number() -> None:
    together = rademacher(5, [3, 10**12, 4], TEXELS)
    for row, number in enumerate([3, 10**12, 4]):
        alone = rademacher(5, [number], TEXELS)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together))
    assert not torch.equal(together[0][0], together[0][2])
    assert not torch.equal(together[0][0], rademacher(6, [3], TEXELS)[0][0])
    # fixed for good: what a checkpoint goes on from
    assert rademacher(0, [0], 2)[0].tolist() == GOLDEN


GOLDEN: list[list[list[float]]] = [[[-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]]


def test_signs_are_fair_and_unrelated() -> None:
    count = 3000
    position, log_scale = rademacher(1, range(8), count)
    assert position.shape == log_scale.shape == (8, count, 3) and position.dtype == torch.float32
    assert set(position.unique().tolist()) == set(log_scale.unique().tolist()) == {-1.0, 1.0}
    bound = 4.5 / (3 * count) ** 0.5  # standard errors of a mean of 3 x count signs
    for x in (position, log_scale, position * log_scale, position[1:] * position[:-1]):
        assert (x.mean((1, 2)).abs() < bound).all()
    neighbours = position[:, 1:] * position[:, :-1]
    assert (neighbours.mean((1, 2)).abs() < bound).all()
