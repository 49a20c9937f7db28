"""The viewing axis and its harmonics against hand values."""

import math

import numpy as np
import pytest
import torch

from spatialavatar.generator.view_encoding import VIEW_CHANNELS, harmonic_encoding, view_direction
from tests.builders.clips import tiny_cameras
from tests.builders.generators import tiny_view


def test_a_camera_before_the_face_looks_along_minus_z() -> None:
    """The face looks to +z, so the camera stands there and looks back."""
    world_to_camera, _ = tiny_cameras(1, 1, 8, 8)
    torch.testing.assert_close(view_direction(world_to_camera[0]), torch.tensor([[0.0, 0.0, -1.0]]))


def test_it_is_the_third_row_of_the_rotation() -> None:
    """Cameras that look at the origin: the axis points from where they stand to there."""
    camera = tiny_view(6, 16)
    rotation, translation = camera.world_to_camera[:, :3, :3].double(), camera.world_to_camera[:, :3, 3].double()
    stand = -(rotation.mT @ translation[..., None]).squeeze(-1)
    expected = -stand / stand.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(view_direction(camera.world_to_camera).double(), expected, atol=1e-6, rtol=0)
    # and not the third column, which the paper's row-vector matrices have it in
    assert (rotation[:, :, 2] - expected).abs().max() > 0.1


def test_rounding_in_a_rotation_leaves_the_axis_a_unit() -> None:
    matrix = torch.eye(4)[None] * 1.01
    assert view_direction(matrix).norm().item() == pytest.approx(1, abs=1e-6)


def test_channels_in_order() -> None:
    """[d, sin(pi d), cos(pi d), sin(2 pi d), cos(2 pi d), ... 8 pi], each of three numbers."""
    half = math.sqrt(0.5)
    encoded = harmonic_encoding(torch.tensor([[0.0, 0.5, -0.25]], dtype=torch.float64))
    expected = [
        [0.0, 0.5, -0.25],
        [0.0, 1.0, -half],
        [1.0, 0.0, half],
        [0.0, 0.0, -1.0],
        [1.0, -1.0, 0.0],
        [0.0, 0.0, 0.0],
        [1.0, 1.0, -1.0],
        [0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0],
    ]
    assert encoded.shape == (1, VIEW_CHANNELS) == (1, 27)
    np.testing.assert_allclose(encoded.numpy(), np.array(expected).reshape(1, 27), atol=1e-14)
