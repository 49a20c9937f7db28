"""Avatar folders and their rendering: round trips, what does not fit together, drivers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spatialavatar import files
from spatialavatar.avatar import Avatar, AvatarRenderer, StaticAppearance, licence_note, read_avatar, write_avatar
from spatialavatar.avatar.animate import driven_frames, orbit_camera, still, write_video
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadReference, build_layout, find_head, write_head
from spatialavatar.head.model import ARRAYS
from spatialavatar.refine import template_start
from spatialavatar.splat.camera import Camera
from tests.builders.clips import tiny_cameras, tiny_head, tiny_params

UV = 20


def avatar(**changes) -> Avatar:  # type: ignore[no-untyped-def]
    head, start = tiny_head(), template_start(tiny_head(), UV)
    random = torch.Generator().manual_seed(0)
    gaussians = replace(start.gaussians, color=torch.rand(start.gaussians.color.shape, generator=random))
    params = tiny_params(1, seed=4)
    values = {
        "identity": "ann",
        "head": HeadReference.of(head),
        "uv_resolution": UV,
        "layout_fingerprint": start.layout.fingerprint,
        "appearance": StaticAppearance(gaussians),
        "shape": params.shape,
        "static_offset": None,
        "reference_params": params,
        "provenance": {"config": {"resolution": 32}, "clip": {"fps": 25.0}, "metrics": {}},
        "licence_note": licence_note(HeadReference.of(head), "CC0"),
    }
    return Avatar(**{**values, **changes})


def front(size: int = 32, count: int = 1) -> Camera:
    world_to_camera, intrinsics = tiny_cameras(count, 1, size, size)
    return Camera(world_to_camera[:, 0], intrinsics[:, 0], size, size)


@pytest.mark.parametrize("offset", [False, True])
def test_round_trip(tmp_path: Path, offset: bool) -> None:
    static_offset = 0.01 * torch.randn(1, tiny_head().vertex_count, 3) if offset else None
    written = avatar(static_offset=static_offset)
    written = replace(written, reference_params=replace(written.reference_params, static_offset=static_offset))
    write_avatar(tmp_path / "a", written)
    back = read_avatar(tmp_path / "a")
    for name, tensor in written.appearance.gaussians.tensors().items():
        assert torch.equal(back.appearance.gaussians.tensors()[name], tensor)
    assert torch.equal(back.reference_params.expression, written.reference_params.expression)
    if static_offset is None:
        assert back.static_offset is None and back.reference_params.static_offset is None
    else:
        assert torch.equal(back.static_offset, static_offset)
    assert (back.head, back.layout_fingerprint, back.licence_note) == (
        written.head, written.layout_fingerprint, written.licence_note,
    )  # fmt: skip
    assert back.provenance["config"] == {"resolution": 32}
    assert back.layout(tiny_head(), "a").count == back.appearance.count


def test_interrupted_write_leaves_no_avatar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(location: object, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(OSError):
        write_avatar(tmp_path / "a", avatar())
    with pytest.raises(SpatialAvatarError, match=r"holds no avatar\.json"):
        read_avatar(tmp_path / "a")


def test_manifest_never_speaks_for_other_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two files of an overwrite: the new tensors lie beside the old manifest."""
    write_avatar(tmp_path / "a", avatar())
    other = avatar(identity="ben", shape=avatar().shape + 1)
    monkeypatch.setattr(files, "write_json", lambda location, value: None)
    write_avatar(tmp_path / "a", other)
    with pytest.raises(SpatialAvatarError, match=r"not what avatar\.json was written with"):
        read_avatar(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "other"}, "not an avatar of ours"),
        ({"version": 99}, "version 99"),
        ({"kind": "hologram"}, "hologram"),
        ({"layout": {"uv_resolution": UV, "count": 3, "fingerprint": "x"}}, "does not hold 3 Gaussians"),
        ({"identity": None, "head": {"id": "x"}}, "incomplete"),
    ],
)
def test_manifest_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, object], expected: str) -> None:
    write_avatar(tmp_path / "a", avatar())
    manifest = json.loads((tmp_path / "a" / "avatar.json").read_text())
    (tmp_path / "a" / "avatar.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(SpatialAvatarError, match=expected):
        read_avatar(tmp_path / "a")


def test_another_head_or_layout_is_refused() -> None:
    other = build_layout(tiny_head(), UV + 1)
    with pytest.raises(SpatialAvatarError, match="made for UV layout"):
        AvatarRenderer(avatar(layout_fingerprint=other.fingerprint), tiny_head(), "cpu", "ann")
    head = avatar().head
    with pytest.raises(SpatialAvatarError, match=r"ann: made with head tiny .*--head"):
        AvatarRenderer(avatar(head=replace(head, hash="0" * 64)), tiny_head(), "cpu", "ann")


def test_head_is_found_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = tiny_head()
    arrays = {name: getattr(head, name).numpy() for name in ARRAYS}
    for folder, scale in (("wrong", 2.0), ("right", 1.0)):
        write_head(
            tmp_path / folder / "x.head.safetensors", head.info, {**arrays, "template": arrays["template"] * scale}
        )
    reference = HeadReference.of(head)
    places = [str(tmp_path / "wrong"), str(tmp_path / "right")]
    assert find_head(reference, "a", places).content_hash == head.content_hash
    with pytest.raises(SpatialAvatarError, match="--head or its folder in SPATIALAVATAR_HEADS"):
        find_head(reference, "a", places[:1])
    monkeypatch.setenv("SPATIALAVATAR_HEADS", ":".join(places))
    assert find_head(reference, "a").content_hash == head.content_hash


def test_driver_gives_motion_and_avatar_its_identity() -> None:
    renderer = AvatarRenderer(avatar(), tiny_head(), "cpu")
    driver = tiny_params(3, seed=9)
    camera = front(count=3)
    stranger = replace(driver, shape=driver.shape + 5)
    assert torch.equal(renderer.image(driver, camera), renderer.image(stranger, camera))
    moved = replace(driver, expression=driver.expression + 1)
    assert not torch.equal(renderer.image(driver, camera), renderer.image(moved, camera))
    pictures = list(driven_frames(renderer, driver, camera, torch.ones(3)))
    assert [p.shape for p in pictures] == [(32, 32, 3)] * 3
    together = (renderer.image(driver, camera) * 255).round().byte().numpy()
    assert all((a == b).all() for a, b in zip(pictures, together))


def test_orbit_keeps_the_head_in_the_picture_upright_and_swings_to_both_sides() -> None:
    head = tiny_head()
    camera = orbit_camera(head.template, 40, 64)
    pixels, depth = camera.project(head.template.expand(40, -1, -1))
    assert (depth > 0).all() and pixels.min() > 0 and pixels.max() < 64
    landmarks, _ = camera.project(head.landmarks(head.template[None]).expand(40, -1, -1))
    left, right, chin, nose = landmarks.unbind(1)
    assert (chin[:, 1] > nose[:, 1]).all(), "upright"
    assert left[0, 0] > right[0, 0], "the subject's left is on the picture's right"
    offset = nose[:, 0] - 32
    assert offset.max() > 5 and offset.min() < -5
    rotation = camera.world_to_camera[:, :3, :3]
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(40))


def test_still_keeps_expression_and_jaw_alone() -> None:
    params = tiny_params(2)
    rest = still(params)
    assert torch.equal(rest.expression, params.expression) and torch.equal(rest.jaw, params.jaw)
    for name in ("global_rotation", "neck", "translation"):
        assert not getattr(rest, name).any()


def test_video_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    import imageio.v2 as imageio
    import numpy as np

    pictures = [np.full((33, 48, 3), 40 * k, np.uint8) for k in range(5)]
    out = tmp_path / "deep" / "x.mp4"
    assert write_video(out, pictures, 10.0) == 5
    with imageio.get_reader(out) as reader:
        read = [frame for frame in reader]
        assert reader.get_meta_data()["fps"] == pytest.approx(10)
    assert len(read) == 5 and read[0].shape == (32, 48, 3)
    assert abs(float(read[3].mean()) - 120) < 6

    def broken():  # type: ignore[no-untyped-def]
        yield pictures[0]
        raise RuntimeError("renderer died")

    with pytest.raises(RuntimeError):
        write_video(tmp_path / "deep" / "y.mp4", broken(), 10.0)
    assert files.list_folder(tmp_path / "deep") == ["x.mp4"]
    with pytest.raises(SpatialAvatarError, match=r"written as \.mp4"):
        write_video(tmp_path / "x.avi", pictures, 10.0)
