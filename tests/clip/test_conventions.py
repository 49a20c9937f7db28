"""Camera conventions against projections written out by each tool's own formulas, and against pytorch3d itself."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from spatialavatar.clip.conventions import (
    from_opengl,
    from_opengl_camera_to_world,
    from_pytorch3d,
    intrinsics_matrix,
    ndc_focal_to_pixels,
    pixels_to_ndc_focal,
    to_opengl,
    to_opengl_camera_to_world,
    to_pytorch3d,
)

FX, FY, CX, CY = 300.0, 320.0, 120.0, 140.0
POINTS = np.random.default_rng(3).normal(0, 0.1, (20, 3))  # metres, about a head that looks along +z


def rotation(seed: int) -> np.ndarray:
    """A random rotation within some 30 degrees of none."""
    x, y, z = np.random.default_rng(seed).normal(0, 0.3, 3)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def opencv_pixels(world_to_camera: Tensor) -> np.ndarray:
    """Ours: u = fx x / z + cx, v = fy y / z + cy."""
    matrix = world_to_camera.numpy()
    x, y, z = (POINTS @ matrix[:3, :3].T + matrix[:3, 3]).T
    assert (z > 0).all() and np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    assert matrix[3].tolist() == [0, 0, 0, 1]
    return np.stack([FX * x / z + CX, FY * y / z + CY], -1)


@pytest.mark.parametrize("seed", range(5))
def test_pytorch3d_sees_the_same(seed: int) -> None:
    """Row vectors; the camera's x points to the left of the picture, y up."""
    turn = np.diag([-1.0, 1, -1]) @ rotation(seed)  # before the face, looking back at it
    shift = np.array([0.02, -0.01, 0.8])
    x, y, z = (POINTS @ turn + shift).T
    expected = np.stack([CX - FX * x / z, CY - FY * y / z], -1)
    ours = from_pytorch3d(torch.from_numpy(turn), torch.from_numpy(shift))
    np.testing.assert_allclose(opencv_pixels(ours), expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [3, 4])
def test_opengl_sees_the_same(seed: int, rows: int) -> None:
    """The camera looks along its -z, y up; what it sees has negative z."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(seed), [0.02, -0.01, -0.8]
    x, y, z = (POINTS @ matrix[:3, :3].T + matrix[:3, 3]).T
    expected = np.stack([CX + FX * x / -z, CY - FY * y / -z], -1)
    np.testing.assert_allclose(opencv_pixels(from_opengl(torch.from_numpy(matrix[:rows]))), expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_poses_of_opengl_cameras(seed: int) -> None:
    """Their columns are the camera's right, up and backward axes and its place, in the world."""
    place, axes = np.array([0.1, -0.05, 0.9]), rotation(seed)
    offset = POINTS - place
    right, up, backward = (offset @ axes).T
    expected = np.stack([CX + FX * right / -backward, CY - FY * up / -backward], -1)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = axes, place
    np.testing.assert_allclose(opencv_pixels(from_opengl_camera_to_world(torch.from_numpy(pose))), expected, atol=1e-9)


def test_a_camera_before_the_face() -> None:
    """From all conventions the same: one metre before a head that looks along +z, upright."""
    expected = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    expected[2, 3] = 1
    turn, place = torch.diag(torch.tensor([-1.0, 1, -1])), torch.tensor([0.0, 0, 1])
    assert torch.equal(from_pytorch3d(turn, place), expected)
    gl = torch.eye(4)
    gl[2, 3] = -1
    assert torch.equal(from_opengl(gl), expected)
    gl[2, 3] = 1
    assert torch.equal(from_opengl_camera_to_world(gl), expected)


THERE_AND_BACK: dict[str, Callable[[Tensor], Tensor]] = {
    "pytorch3d": lambda m: from_pytorch3d(*to_pytorch3d(m)),
    "opengl": lambda m: from_opengl(to_opengl(m)),
    "opengl poses": lambda m: from_opengl_camera_to_world(to_opengl_camera_to_world(m)),
}


@pytest.mark.parametrize("name", THERE_AND_BACK)
@pytest.mark.parametrize("batch", [(), (1,), (3, 2)])
def test_there_and_back(name: str, batch: tuple[int, ...]) -> None:
    matrices = torch.eye(4, dtype=torch.float64).repeat(*batch, 1, 1)
    for seed, matrix in enumerate(matrices.view(-1, 4, 4)):
        matrix[:3, :3] = torch.from_numpy(rotation(seed))
        matrix[:3, 3] = torch.tensor([seed, 2.0, 3.0])
    back = THERE_AND_BACK[name](matrices)
    assert back.shape == matrices.shape and torch.allclose(back, matrices, atol=1e-12)
    narrow = THERE_AND_BACK[name](matrices.float())
    assert narrow.dtype == torch.float32 and torch.allclose(narrow, matrices.float(), atol=1e-5)


def test_poses_are_inverted_in_float64() -> None:
    """A camera far away: float32 alone would lose millimetres."""
    pose = torch.eye(4)
    pose[:3, :3] = torch.from_numpy(rotation(1))
    pose[:3, 3] = torch.tensor([1234.5, -987.6, 4321.0])
    exact = -(pose[:3, :3].double().T @ pose[:3, 3].double()).numpy()
    ours = from_opengl_camera_to_world(pose)[:3, 3].double().numpy()
    np.testing.assert_allclose(ours, exact * [1, -1, -1], rtol=1e-7)


def test_pixel_intrinsics() -> None:
    fx, fy, cx, cy = torch.tensor([[300.0, 310], [320, 330], [120, 121], [140, 141]])
    k = intrinsics_matrix(fx, fy, cx, cy)
    assert k.tolist() == [[[300, 0, 120], [0, 320, 140], [0, 0, 1]], [[310, 0, 121], [0, 330, 141], [0, 0, 1]]]


def test_the_gagavatar_trackers_focal_length() -> None:
    """12 in NDC at 512 pixels: 3072, a twelfth of half the picture per metre of depth."""
    assert ndc_focal_to_pixels(12.0, 512) == 3072
    assert pixels_to_ndc_focal(3072, 512) == 12


def test_pytorch3d_agrees() -> None:
    cameras = pytest.importorskip("pytorch3d.renderer.cameras", reason="pytorch3d is not installed (no wheel on PyPI)")
    turn = np.diag([-1.0, 1, -1]) @ rotation(4)
    shift = np.array([0.02, -0.01, 0.8])
    size = 256
    camera = cameras.PerspectiveCameras(
        focal_length=((FX, FY),),
        principal_point=((CX, CY),),
        R=torch.from_numpy(turn)[None].float(),
        T=torch.from_numpy(shift)[None].float(),
        in_ndc=False,
        image_size=((size, size),),
    )
    theirs = camera.transform_points_screen(torch.from_numpy(POINTS)[None].float())[0, :, :2].numpy()
    ours = from_pytorch3d(torch.from_numpy(turn), torch.from_numpy(shift))
    np.testing.assert_allclose(opencv_pixels(ours), theirs, atol=1e-2)
