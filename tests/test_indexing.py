"""An int as the index of a batch: one row with the batch axis, and IndexError beyond the ends."""

import pytest
import torch

from spatialavatar.indexing import row_slice
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import LocalGaussians, WorldGaussians

X = torch.arange(3.0)[:, None, None]
BATCHES = {
    "camera": Camera(torch.eye(4) + X, torch.eye(3) + X, 8, 8),
    "local": LocalGaussians(*(X.expand(3, 5, n) for n in (3, 4, 3, 3)), X[..., 0].expand(3, 5)),
    "world": WorldGaussians(*(X.expand(3, 5, n) for n in (3, 4, 3, 3)), X[..., 0].expand(3, 5)),
}


@pytest.mark.parametrize("length", range(5))
def test_a_row_is_that_of_a_list(length: int) -> None:
    values = list(range(length))
    for index in range(-7, 8):
        if -length <= index < length:
            assert values[row_slice(index, length)] == [values[index]]
        else:
            with pytest.raises(IndexError, match=f"row {index} of a batch of {length}"):
                row_slice(index, length)


@pytest.mark.parametrize("name", BATCHES)
def test_batches_check_their_rows(name: str) -> None:
    batch = BATCHES[name]
    for index in (0, 2, -1, -3):
        for whole, row in zip(vars(batch).values(), vars(batch[index]).values()):
            assert not isinstance(whole, torch.Tensor) or torch.equal(row, whole[index][None])
    for beyond in (3, 4, -4, -5):
        with pytest.raises(IndexError, match="of a batch of 3"):
            batch[beyond]
