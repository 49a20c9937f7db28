"""Augmented frames stay true: cameras and boxes follow the pictures, and colours stay those of one person."""

import numpy as np
import pytest
import torch

from spatialavatar.clip.square import SquarePicture
from spatialavatar.head import HeadParams
from spatialavatar.splat.camera import Camera
from spatialavatar.training.augmentation import augmented, color_table
from spatialavatar.training.config import AugmentConfig
from spatialavatar.training.pool import View

SIZE = 64
POINT = torch.tensor([[[0.02, -0.03, 0.0]]])  # metres


def view(seed: int = 0) -> View:
    """A frame with a bright smooth spot where its camera sees POINT, and a face box around it."""
    world_to_camera = torch.eye(4)[None].clone()
    world_to_camera[:, 2, 3] = 0.5 + 0.05 * seed
    intrinsics = torch.tensor([[[90.0, 0, 30], [0, 90, 34], [0, 0, 1]]])
    camera = Camera(world_to_camera, intrinsics, SIZE, SIZE)
    x, y = camera.project(POINT)[0][0, 0].tolist()
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 3**2))
    image = np.repeat((200 * spot).astype(np.uint8)[..., None], 3, -1)
    picture = SquarePicture(image, np.full((SIZE, SIZE), 255, np.uint8), np.ones((SIZE, SIZE), bool))
    box = torch.tensor([x - 5, y - 5, x + 5, y + 5])
    return View(picture, box, HeadParams.neutral(1, 3, 4), camera, False)


def spot_of(picture: SquarePicture) -> tuple[float, float]:
    weight = picture.image[..., 0].astype(np.float64)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    return float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())


def test_off_changes_nothing() -> None:
    sources, target = (view(0), view(1)), view(2)
    after = augmented(sources, target, 5, 0, AugmentConfig())
    assert after[1] is target and all(a is b for a, b in zip(after[0], sources))


@pytest.mark.parametrize("number", range(6))
def test_camera_and_box_follow_the_picture(number: int) -> None:
    sources, target = augmented((view(0), view(1)), view(2), number, 3, AugmentConfig(framing=0.2))
    assert target.camera is not None and torch.equal(target.camera.intrinsics, view(2).camera.intrinsics)
    for source, before in zip(sources, (view(0), view(1))):
        seen = source.camera.project(POINT)[0][0, 0]
        assert spot_of(source.pixels) == pytest.approx(seen.tolist(), abs=0.1)
        assert (source.face_box[:2] + source.face_box[2:]).div(2).tolist() == pytest.approx(seen.tolist(), abs=1e-4)
        assert not torch.equal(source.camera.intrinsics, before.camera.intrinsics)
        after, then = source.camera.intrinsics[0].numpy(), before.camera.intrinsics[0].numpy()
        across = (np.arange(SIZE) + 0.5 - after[0, 2]) * then[0, 0] / after[0, 0] + then[0, 2]
        down = (np.arange(SIZE) + 0.5 - after[1, 2]) * then[1, 1] / after[1, 1] + then[1, 2]
        within = np.minimum.outer(np.minimum(down, SIZE - down), np.minimum(across, SIZE - across))
        assert source.pixels.region[within > 1].all() and not source.pixels.region[within < -1].any()
        assert (source.pixels.matte[within > 1] == 255).all() and not source.pixels.matte[within < -1].any()


def test_frames_of_a_sample_are_framed_apart_and_coloured_alike() -> None:
    config = AugmentConfig(color=0.4, framing=0.2)
    first, second = augmented((view(0), view(0)), view(0), 1, 7, config)[0]
    assert not torch.equal(first.camera.intrinsics, second.camera.intrinsics)
    colored_only = AugmentConfig(color=0.4)
    (source,), target = augmented((view(0),), view(0), 1, 7, colored_only)
    assert np.array_equal(source.pixels.image, target.pixels.image)
    assert not np.array_equal(source.pixels.image, view(0).pixels.image)
    assert np.array_equal(source.pixels.matte, view(0).pixels.matte)


def test_a_sample_is_always_augmented_the_same_way() -> None:
    config = AugmentConfig(color=0.4, framing=0.2)

    def drawn(number: int, seed: int) -> bytes:
        (source,), target = augmented((view(0),), view(1), number, seed, config)
        return (
            source.pixels.image.tobytes() + target.pixels.image.tobytes() + source.camera.intrinsics.numpy().tobytes()
        )

    assert drawn(4, 0) == drawn(4, 0)
    assert len({drawn(4, 0), drawn(5, 0), drawn(4, 1)}) == 3


def test_colours_by_the_formula() -> None:
    gain, gamma = np.array([1.0, 0.5, 2.0]), np.array([1.0, 2.0, 1.0])
    table = color_table(gain, gamma)[0]
    assert table[:, 0].tolist() == list(range(256))
    assert table[255].tolist() == [255, 128, 255]
    assert table[128, 1] == round(0.5 * (128 / 255) ** 2 * 255) and table[100, 2] == 200 and table[200, 2] == 255
