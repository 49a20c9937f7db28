"""L1 against a closed form."""

import torch

from spatialavatar.losses.l1 import l1


def test_mean_over_pixels_and_channels_of_each_picture() -> None:
    target = torch.rand(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    prediction = target.clone()
    prediction[0] += 0.25
    prediction[1, :, :2, 1] -= 0.6  # half the pixels, a third of the channels
    torch.testing.assert_close(l1(prediction, target), torch.tensor([0.25, 0.1]))
