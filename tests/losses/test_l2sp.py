"""The anchor: value, gradient and what does not fit."""

import pytest
import torch
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.losses.l2sp import l2_sp


def weights(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"layer.weight": (4, 3), "layer.bias": (4,), "gain": ()}
    return {name: torch.randn(shape, dtype=torch.float64, generator=g) for name, shape in shapes.items()}


def test_value_and_gradient() -> None:
    parameters = {name: value.requires_grad_() for name, value in weights(0).items()}
    reference = weights(1)
    kept = {name: value.clone() for name, value in reference.items()}
    loss = l2_sp(parameters, reference)
    expected = sum(float(((parameters[n] - reference[n]).detach() ** 2).sum()) for n in reference) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, parameter.detach() - reference[name], rtol=1e-12, atol=0)
        assert torch.equal(reference[name], kept[name])
    assert l2_sp(reference, kept).item() == 0


def test_the_reference_is_never_trained() -> None:
    parameters = {name: value.requires_grad_() for name, value in weights(0).items()}
    reference = {name: value.requires_grad_() for name, value in weights(1).items()}
    l2_sp(parameters, reference).backward()
    assert all(value.grad is None for value in reference.values())


def test_mixed_precision_is_summed_in_float32() -> None:
    parameters = {
        "low": torch.ones(4096, dtype=torch.bfloat16, requires_grad=True),
        "full": torch.ones(5, requires_grad=True),
    }
    reference = {"low": torch.full((4096,), 0.9), "full": torch.zeros(5, dtype=torch.bfloat16)}
    loss = l2_sp(parameters, reference)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((4096 * 0.01 + 5) / 2, rel=1e-4)
    loss.backward()
    assert parameters["low"].grad.dtype == torch.bfloat16
    torch.testing.assert_close(parameters["low"].grad.float(), torch.full((4096,), 0.1), rtol=1e-2, atol=0)
    torch.testing.assert_close(parameters["full"].grad, torch.ones(5))


def test_names_and_shapes_must_match() -> None:
    parameters = weights(0)
    with pytest.raises(SpatialAvatarError, match=r"no reference for parameter layer\.bias; .*lambda_sp to 0"):
        l2_sp(parameters, {name: value for name, value in weights(1).items() if name != "layer.bias"})
    with pytest.raises(SpatialAvatarError, match="the reference has head, which is no trainable parameter"):
        l2_sp(parameters, weights(1) | {"head": torch.zeros(1)})
    with pytest.raises(SpatialAvatarError, match=r"layer\.weight should .* shape \(4, 3\), found \(3, 4\)"):
        l2_sp(parameters, weights(1) | {"layer.weight": torch.zeros(3, 4)})
