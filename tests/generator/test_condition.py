"""What the residual head is told of the target's face."""

import dataclasses

import torch

from spatialavatar.generator.condition import POSE_AND_EYES, condition
from spatialavatar.head import HeadParams


def numbered(expression_codes: int) -> HeadParams:
    """Every number of the parameters is another one."""
    widths = [3, expression_codes, 3, 3, 3, 6, 3]
    parts = torch.arange(2.0 * sum(widths)).view(2, -1).split(widths, -1)
    return HeadParams(*parts)


def test_expression_then_root_jaw_and_eyes() -> None:
    params = numbered(4)
    seen = condition(params)
    assert seen.shape == (2, 4 + POSE_AND_EYES) == (2, 16)
    for columns, part in [
        (slice(0, 4), params.expression),
        (slice(4, 7), params.global_rotation),
        (slice(7, 10), params.jaw),
        (slice(10, 16), params.eyes),
    ]:
        assert torch.equal(seen[:, columns], part)


def test_a_hundred_codes_give_112_numbers() -> None:
    assert condition(numbered(100)).shape == (2, 112)


def test_identity_neck_and_place_are_left_out() -> None:
    params = numbered(4)
    moved = dataclasses.replace(
        params,
        shape=params.shape + 1,
        neck=params.neck + 1,
        translation=params.translation + 1,
        static_offset=torch.ones(2, 9, 3),
    )
    assert torch.equal(condition(moved), condition(params))
