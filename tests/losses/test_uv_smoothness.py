"""Total variation over a made-up layout with a hole and two charts, against loops."""

import torch
from torch import Tensor

from spatialavatar.head.uv_layout import UVLayout
from spatialavatar.losses.uv_smoothness import texel_pairs, total_variation

# chart of each texel, "." for no Gaussian; the last column and the first are no neighbours
ATLAS = ("0011", "0.11", "00.0", "1.00")


def layout() -> UVLayout:
    cells = "".join(ATLAS)
    texel = torch.tensor([i for i, cell in enumerate(cells) if cell != "."])
    chart = torch.tensor([int(cell) for cell in cells if cell != "."])
    n = len(texel)
    return UVLayout(torch.zeros(n, dtype=torch.long), torch.full((n, 3), 1 / 3), texel, chart, 4, "made up")


def pairs_by_loops() -> set[tuple[int, int]]:
    number, cells = {}, {}
    for row, line in enumerate(ATLAS):
        for column, cell in enumerate(line):
            if cell != ".":
                number[row, column] = len(number)
                cells[row, column] = cell
    return {
        (number[place], number[other])
        for place in number
        for other in ((place[0], place[1] + 1), (place[0] + 1, place[1]))
        if cells.get(other) == cells[place]
    }


def offsets() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, layout().count, 3, dtype=torch.float64, generator=g)


def test_pairs() -> None:
    pairs = [tuple(pair) for pair in texel_pairs(layout()).tolist()]
    assert len(pairs) == len(set(pairs)) and set(pairs) == pairs_by_loops()


def test_a_layout_of_one_texel_has_no_pairs() -> None:
    one = UVLayout(torch.zeros(1, dtype=torch.long), torch.ones(1, 3) / 3, torch.tensor([0]), torch.tensor([0]), 1, "")
    assert texel_pairs(one).shape == (0, 2)
    assert total_variation(torch.ones(2, 1, 3), texel_pairs(one)).tolist() == [0, 0]


def test_sum_over_channels_and_pairs_over_the_number_of_texels() -> None:
    x = offsets()
    expected = torch.stack([sum((row[q] - row[p]).abs().sum() for p, q in pairs_by_loops()) / x.shape[1] for row in x])
    torch.testing.assert_close(total_variation(x, texel_pairs(layout())), expected, rtol=1e-12, atol=0)


def test_a_jump_between_charts_is_free() -> None:
    made = layout()
    jump = (made.chart * 7.0)[None, :, None].expand(1, -1, 3)
    assert total_variation(jump, texel_pairs(made)).item() == 0


def test_gradient_is_finite_differences() -> None:
    pairs = texel_pairs(layout())
    assert torch.autograd.gradcheck(lambda x: total_variation(x, pairs), offsets().requires_grad_(), eps=1e-7)


def test_bfloat16_is_summed_in_float32() -> None:
    x = offsets().bfloat16()
    pairs = texel_pairs(layout())
    value = total_variation(x, pairs)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, total_variation(x.double(), pairs).float(), rtol=1e-5, atol=0)
