"""The face box: which pixels count, against loops; boxes that are empty."""

import math

import pytest
import torch
from torch import Tensor

from spatialavatar.losses.face_box import box_pixels, face_box_l1

HEIGHT, WIDTH = 11, 17
NAN = float("nan")


def pictures(batch: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    shape = (batch, HEIGHT, WIDTH, 3)
    return torch.rand(shape, dtype=torch.float64, generator=g), torch.rand(shape, dtype=torch.float64, generator=g)


def by_loops(a: Tensor, b: Tensor, box: list[float], dilation: float) -> float:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across, down = (box[2] - box[0]) / 2 * dilation, (box[3] - box[1]) / 2 * dilation
    values = []
    for row in range(math.floor(max(y - down, 0)), math.ceil(min(y + down, HEIGHT))):
        for column in range(math.floor(max(x - across, 0)), math.ceil(min(x + across, WIDTH))):
            values += [abs(float(a[row, column, c] - b[row, column, c])) for c in range(3)]
    return sum(values) / len(values)


@pytest.mark.parametrize("dilation", [1.0, 1.65, 3.0])
def test_mean_over_the_dilated_box(dilation: float) -> None:
    boxes = [
        [5.0, 3.0, 9.0, 6.0],
        [5.3, 3.9, 8.1, 6.2],
        [-4.0, -3.0, 3.0, 2.0],
        [12.5, 8.0, 40.0, 10.5],
        [0, 0, 17, 11],
    ]
    a, b = pictures(len(boxes))
    expected = torch.tensor([by_loops(x, y, box, dilation) for x, y, box in zip(a, b, boxes)], dtype=torch.float64)
    torch.testing.assert_close(face_box_l1(a, b, torch.tensor(boxes).double(), dilation), expected, rtol=1e-12, atol=0)


def test_rounds_outwards_to_whole_pixels() -> None:
    inside = box_pixels(torch.tensor([[2.0, 3.0, 4.0, 5.0], [2.1, 3.0, 3.9, 5.1]]), 1.0, HEIGHT, WIDTH)
    assert inside.sum((1, 2)).tolist() == [2 * 2, 2 * 3]
    assert inside[0, 3:5, 2:4].all() and inside[1, 3:6, 2:4].all()


def test_default_dilation() -> None:
    a, b = pictures(1)
    box = torch.tensor([[5.0, 3.0, 9.0, 6.0]]).double()
    assert face_box_l1(a, b, box).item() == pytest.approx(by_loops(a[0], b[0], box[0].tolist(), 1.65))


EMPTY = {
    "outside": [30.0, 2.0, 40.0, 8.0],
    "left of it": [-9.0, 2.0, -5.0, 8.0],
    "no width": [5.2, 2.0, 5.2, 8.0],
    "inside out": [9.0, 8.0, 5.0, 2.0],
    "unknown": [NAN, NAN, NAN, NAN],
    "half known": [2.0, NAN, 8.0, NAN],
    "infinite": [float("-inf"), 0.0, float("inf"), 9.0],
}


@pytest.mark.parametrize("box", EMPTY.values(), ids=EMPTY)
def test_empty_boxes_are_zero_beside_others(box: list[float]) -> None:
    a, b = pictures(2)
    a.requires_grad_()
    loss = face_box_l1(a, b, torch.tensor([box, [5.0, 3.0, 9.0, 6.0]]).double())
    loss.sum().backward()
    assert loss[0].item() == 0 and loss[1].item() > 0
    assert (a.grad[0] == 0).all() and a.grad.isfinite().all() and (a.grad[1] != 0).any()


def test_gradient_is_finite_differences() -> None:
    a, b = pictures(2)
    box = torch.tensor([[5.0, 3.0, 9.0, 6.0], [NAN] * 4]).double()
    assert torch.autograd.gradcheck(lambda x: face_box_l1(x, b, box), a.requires_grad_(), eps=1e-7)
