"""Pools of clips: what a view holds, where it lies in its square, and that memory changes nothing."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.square import SquarePicture
from spatialavatar.clip.synthetic import synthesize_capture
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, builtin_head, write_head
from spatialavatar.head.canonical import canonical
from spatialavatar.training.config import DataConfig, SyntheticData
from spatialavatar.training.folder_pool import FolderPool
from spatialavatar.training.pool import Memory, View, open_pool
from spatialavatar.training.synthetic_pool import SyntheticPool
from tests.builders.clips import tiny_clip, tiny_head

SMALL = SyntheticData(identities=3, first_identity=5, instants=4, texture_size=32)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return builtin_head()


def same(a: View, b: View) -> bool:
    arrays = [(x.pixels.image, x.pixels.matte, x.pixels.region) for x in (a, b)]
    numbers = [
        (x.face_box, x.camera.world_to_camera, x.camera.intrinsics, x.params.expression, x.params.neck) for x in (a, b)
    ]
    return all(np.array_equal(*pair) for pair in zip(*arrays, strict=True)) and all(
        torch.equal(*pair) for pair in zip(*numbers, strict=True)
    )


def folder_pool(*clips: TrackedClip, memory_gb: float = 1.0) -> FolderPool:
    return FolderPool([clip.location for clip in clips], tiny_head(), memory_gb)


def test_a_view_of_a_square_clip_is_its_frame(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "a", width=24, height=24, instants=3, cameras=2)
    index = FrameIndex(2, 1)
    view, frame = folder_pool(clip).view(0, index, 16), clip.frame(index, 16, 16)
    assert np.array_equal(view.pixels.image, (frame.image * 255).round().numpy())
    assert np.array_equal(view.pixels.matte, (frame.matte * 255).round().numpy())
    assert np.array_equal(view.pixels.region, frame.region.numpy() > 0)
    assert not view.black_only
    camera = clip.camera(index).resized(16, 16)
    assert torch.allclose(view.camera.intrinsics, camera.intrinsics)
    assert torch.allclose(view.face_box, clip.face_box[2, 1] * 16 / 24)  # type: ignore[index]


@pytest.mark.parametrize(("width", "height"), [(32, 20), (20, 33)])
def test_a_clip_that_is_not_square_lies_undistorted_in_its_square(tmp_path: Path, width: int, height: int) -> None:
    clip = tiny_clip(tmp_path / "a", width=width, height=height, has_region=False)
    index, size = FrameIndex(1, 0), 24
    view = folder_pool(clip).view(0, index, size)
    inside = view.pixels.region
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    left, top, w, h = columns[0], rows[0], len(columns), len(rows)
    assert inside.sum() == w * h and max(w, h) == size
    assert w / h == pytest.approx(width / height, abs=0.06)
    assert abs((size - w) - 2 * left) <= 1 and abs((size - h) - 2 * top) <= 1
    frame = clip.frame(index, w, h)
    assert np.array_equal(view.pixels.image[inside].reshape(h, w, 3), (frame.image * 255).round().numpy())
    assert not view.pixels.image[~inside].any() and not view.pixels.matte[~inside].any()

    # what is seen somewhere in the clip's picture is seen there in the square too
    points = tiny_head()(clip.params_at(index))
    pixels, _ = clip.camera(index).resized(w, h).project(points)
    posed = tiny_head()(view.params)
    moved, _ = view.camera.project(posed)
    assert torch.allclose(moved, pixels + torch.tensor([left, top]), atol=1e-3)
    box = clip.face_box[1, 0] * torch.tensor([w / width, h / height]).repeat(2)  # type: ignore[index]
    assert torch.allclose(view.face_box, box + torch.tensor([left, top]).repeat(2), atol=1e-4)


def test_views_and_facts_are_canonical(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "a", instants=4, cameras=3, test_from=3, test_cameras=(1,))
    pool = folder_pool(clip)
    params, world_to_camera = canonical(tiny_head(), clip.params, clip.world_to_camera)
    assert clip.params.global_rotation.abs().max() > 0.01, "the clip keeps the head's motion in its parameters"
    view = pool.view(0, FrameIndex(2, 2), 16)
    assert not view.params.global_rotation.any() and not view.params.translation.any()
    assert torch.equal(view.camera.world_to_camera[0], world_to_camera[2, 2])
    assert torch.equal(view.params.neck, params.neck[2:3])
    facts = pool.facts(0)
    assert facts.instants == (0, 1, 2) and facts.cameras == (0, 2), "training frames only"
    assert facts.view_direction.shape == (4, 3, 3)
    assert np.allclose(facts.view_direction[2, 2], world_to_camera[2, 2, 2, :3], atol=1e-6)
    assert facts.name == pool.name(0) == clip.location


@pytest.mark.parametrize("matte_kind", ["burnt_black", "none"])
def test_clips_without_mattes_are_for_black_alone(tmp_path: Path, matte_kind: str) -> None:
    view = folder_pool(tiny_clip(tmp_path / "a", matte_kind=matte_kind, width=32, height=16, has_region=False)).view(
        0, FrameIndex(0, 0), 16
    )
    assert view.black_only
    assert (view.pixels.matte[4:12] == 255).all() and not view.pixels.matte[:4].any()


def test_an_absent_face_box_is_nan(tmp_path: Path) -> None:
    pool = folder_pool(tiny_clip(tmp_path / "a", face_box=None))
    assert torch.isnan(pool.view(0, FrameIndex(0, 0), 16).face_box).all()


@pytest.mark.parametrize("memory_gb", [0.0, 4e-6, 1.0])
def test_memory_changes_no_value(tmp_path: Path, memory_gb: float) -> None:
    """With no memory, with some for two of the twelve pictures, with all."""
    clip = tiny_clip(tmp_path / "a", instants=6, cameras=2)
    frames = clip.split("all")
    reference = [folder_pool(clip).view(0, frame, 20) for frame in frames]
    pool = folder_pool(clip, memory_gb=memory_gb)
    for _ in range(2):
        for frame, expected in zip(frames, reference, strict=True):
            assert same(pool.view(0, frame, 20), expected)


def test_memory_keeps_within_its_budget() -> None:
    made: list[int] = []

    def make(number: int) -> SquarePicture:
        made.append(number)
        return SquarePicture(
            np.zeros((10, 10, 3), np.uint8), np.zeros((10, 10), np.uint8), np.broadcast_to(True, (10, 10))
        )

    memory = Memory(850e-9)  # bytes for two pictures of 400
    for number in (0, 1, 2, 0, 1, 2):
        memory.pixels(0, FrameIndex(number, 0), 10, lambda number=number: make(number))  # type: ignore[misc]
    assert made == [0, 1, 2, 2] and memory.left == pytest.approx(50)


def test_folders_come_by_name_and_by_pattern(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        tiny_clip(tmp_path / "clips" / name)
    (tmp_path / "clips" / "notes").mkdir()
    everything = FolderPool([f"{tmp_path}/clips/*"], tiny_head(), 0)
    assert [everything.name(i).rpartition("/")[2] for i in range(len(everything))] == ["a", "b", "c"]
    some = FolderPool([f"{tmp_path}/clips/c/clip.json", f"{tmp_path}/clips/[ac]/clip.json"], tiny_head(), 0)
    assert [some.name(i).rpartition("/")[2] for i in range(len(some))] == ["c", "a"], "each once"
    tiny_clip("memory://pool/x")
    assert FolderPool(["memory://pool/*"], tiny_head(), 0).view(0, FrameIndex(0, 0), 8).pixels.image.shape == (8, 8, 3)


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match="no tracked clip matches this pattern"):
        FolderPool([f"{tmp_path}/*"], tiny_head(), 0)
    with pytest.raises(SpatialAvatarError, match="no such folder"):
        FolderPool([f"{tmp_path}/absent"], tiny_head(), 0)
    with pytest.raises(SpatialAvatarError, match=r"1 frame\(s\) to train on"):
        folder_pool(tiny_clip(tmp_path / "short", test_from=1))


def test_a_clip_of_another_head_is_refused(tmp_path: Path, head: HeadModel) -> None:
    clip = tiny_clip(tmp_path / "a")
    with pytest.raises(SpatialAvatarError, match="the head that the clip was tracked with"):
        open_pool(DataConfig(clips=(clip.location,)), head)


def test_synthetic_views_are_captures_by_number(head: HeadModel) -> None:
    pool = open_pool(DataConfig(synthetic=SMALL), head)
    assert isinstance(pool, SyntheticPool) and len(pool) == 3 and pool.name(1) == "synthetic-006"
    view = pool.view(1, FrameIndex(3, 0), 40)
    capture = synthesize_capture(
        head, identity=6, motion=6, lighting=6, framing=6, swing=30.0, frames=4, size=40, fps=1.0, texture_size=32
    )
    image, matte = capture.render(3)
    # the same scene filmed at 40 pixels, but for the last bit of the scaled camera
    assert np.abs(view.pixels.image.astype(int) - image).mean() < 0.05 and (view.pixels.matte > 127).mean() > 0.2
    assert np.abs(view.pixels.matte.astype(int) - matte).mean() < 0.05
    assert view.pixels.region.all() and not view.params.global_rotation.any() and view.params.static_offset is None
    # canonical parameters and camera see the landmarks where the capture's own do
    pixels, _ = view.camera.project(head.landmarks(head(view.params)))
    camera = type(view.camera)(capture.world_to_camera[3, :1], capture.intrinsics[3, :1], 40, 40)
    truth, _ = camera.project(head.landmarks(head(capture.params[3])))
    assert torch.allclose(pixels, truth, atol=2e-3)
    with pytest.raises(IndexError):
        pool.view(3, FrameIndex(0, 0), 16)


def test_synthetic_takes_are_synchronized(head: HeadModel) -> None:
    config = SMALL.model_copy(update={"cameras": 16})
    pool = SyntheticPool(config, head, 1.0)
    facts = pool.facts(0)
    assert facts.cameras == tuple(range(16)) and facts.view_direction.shape == (4, 16, 3)
    # the arc spans two thirds of a half circle, whichever way the head looks
    angles = np.degrees(np.arccos(np.clip(facts.view_direction[0] @ facts.view_direction[0].T, -1, 1)))
    assert 100 < angles.max() < 125
    views = [pool.view(0, FrameIndex(1, c), 24) for c in (0, 7)]
    assert torch.equal(views[0].params.expression, views[1].params.expression)
    assert not np.array_equal(views[0].pixels.image, views[1].pixels.image)


def test_monocular_clips_show_both_sides(head: HeadModel) -> None:
    pool = SyntheticPool(SyntheticData(identities=12, instants=16, texture_size=32), head, 1.0)
    for clip in range(len(pool)):
        sideways = np.degrees(np.arcsin(pool.facts(clip).view_direction[:, 0, 0]))
        assert sideways.max() - sideways.min() > 35


def test_synthetic_views_are_the_same_in_any_order(head: HeadModel) -> None:
    frames = [(clip, FrameIndex(t, 0)) for clip in range(2) for t in (0, 3)]
    first, second = SyntheticPool(SMALL, head, 1.0), SyntheticPool(SMALL, head, 0.0)
    forward = [first.view(*frame, 24) for frame in frames]
    backward = [second.view(*frame, 24) for frame in reversed(frames)][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))


@pytest.mark.slow
def test_synthetic_views_are_the_same_in_any_process(head: HeadModel, tmp_path: Path) -> None:
    view = SyntheticPool(SMALL, head, 0.0).view(1, FrameIndex(3, 0), 24)
    file = str(tmp_path / "builtin.head.safetensors")
    write_head(file, head.info, {name: buffer.numpy() for name, buffer in head.named_buffers()})
    program = (
        "import hashlib\n"
        "from spatialavatar.clip import FrameIndex\n"
        "from spatialavatar.head import read_head\n"
        "from spatialavatar.training.config import SyntheticData\n"
        "from spatialavatar.training.synthetic_pool import SyntheticPool\n"
        f"pool = SyntheticPool(SyntheticData.model_validate({SMALL.model_dump()!r}), read_head({file!r}), 0.0)\n"
        "view = pool.view(1, FrameIndex(3, 0), 24)\n"
        "print(hashlib.sha256(view.pixels.image.tobytes() + view.camera.world_to_camera.numpy().tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    here = hashlib.sha256(view.pixels.image.tobytes() + view.camera.world_to_camera.numpy().tobytes())
    assert other.stdout.strip() == here.hexdigest(), other.stderr
