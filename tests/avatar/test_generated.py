"""Generated avatars: what they show under a driver, baking, their files, and how they come from clips."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spatialavatar import files, tensor_files
from spatialavatar.avatar import (
    Avatar,
    AvatarRenderer,
    GeneratedAppearance,
    StaticAppearance,
    bake,
    bake_at_reference,
    read_avatar,
    write_avatar,
)
from spatialavatar.avatar.reconstruct import LoadedGenerator, load_generator, look_at, reconstruct
from spatialavatar.avatar.source_frames import SourceFrame, choose_frames, face_in_view, with_a_face
from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.reference_frame import mouth_openness
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import write_generator
from spatialavatar.head import HeadParams
from spatialavatar.head.canonical import canonical
from spatialavatar.refine import RefineConfig, avatar_start, generator_start, refine_clip, template_start
from spatialavatar.splat.camera import Camera
from tests.builders.clips import tiny_cameras, tiny_clip, tiny_head, tiny_params
from tests.builders.generators import IMAGE_SIZE, awaken, tiny_generator


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> TrackedClip:
    return tiny_clip(tmp_path_factory.mktemp("clips") / "ann", instants=5, width=40, height=32, test_from=4)


def generation(folder: Path, awake: bool = True, **changes) -> LoadedGenerator:  # type: ignore[no-untyped-def]
    generator = tiny_generator(tiny_head(), **changes)
    where = folder / "g" / "generator.safetensors"
    write_generator(where, awaken(generator) if awake else generator, {"licence": "made up"})
    return load_generator(where, tiny_head())


def made(folder: Path, clip: TrackedClip, awake: bool = True, **changes) -> Avatar:  # type: ignore[no-untyped-def]
    frames = [SourceFrame(clip, FrameIndex(t, 0)) for t in (0, 2)]
    return reconstruct(generation(folder, awake, **changes), look_at(frames, tiny_head(), IMAGE_SIZE))


def driver(count: int = 1) -> tuple[HeadParams, Camera]:
    world_to_camera, intrinsics = tiny_cameras(1, count, 32, 32)
    return tiny_params(count, seed=9), Camera(world_to_camera[0], intrinsics[0], 32, 32)


def test_untrained_generator_shows_the_template_skin(tmp_path: Path, clip: TrackedClip) -> None:
    avatar = made(tmp_path, clip, awake=False)
    skin = replace(avatar, appearance=StaticAppearance(template_start(tiny_head(), 32).gaussians))
    params, camera = driver(2)
    generated, static = (AvatarRenderer(a, tiny_head(), "cpu").render(params, camera) for a in (avatar, skin))
    torch.testing.assert_close(generated.features, static.features, rtol=0, atol=1e-6)
    assert static.alpha.max() > 0.9, "the head is in the picture"


def test_view_and_expression_change_what_it_shows_and_baking_ends_that(tmp_path: Path, clip: TrackedClip) -> None:
    renderer = AvatarRenderer(made(tmp_path, clip), tiny_head(), "cpu")
    params, camera = driver()
    here = renderer.gaussians_for(params, camera)
    aside = driver(2)[1][1]
    smiling = replace(params, expression=params.expression + 1)
    for other in (renderer.gaussians_for(params, aside), renderer.gaussians_for(smiling, camera)):
        for name in ("position", "rotation", "log_scale", "color"):
            assert not torch.allclose(getattr(here, name), getattr(other, name), atol=1e-4), name
    baked = bake(renderer, params, camera, "some frame")
    still = AvatarRenderer(baked, tiny_head(), "cpu")
    for at in ((params, camera), (params, aside), (smiling, camera)):
        for name, tensor in still.gaussians_for(*at).tensors().items():
            assert torch.equal(tensor, here.tensors()[name]), name
    assert torch.equal(still.image(params, camera), renderer.image(params, camera))
    assert not torch.equal(still.image(smiling, camera), renderer.image(smiling, camera))
    assert baked.kind == "static" and baked.provenance["baked"]["frame"] == "some frame"


def test_driver_gives_motion_alone(tmp_path: Path, clip: TrackedClip) -> None:
    renderer = AvatarRenderer(made(tmp_path, clip), tiny_head(), "cpu")
    params, camera = driver(3)
    assert torch.equal(renderer.image(params, camera), renderer.image(replace(params, shape=params.shape + 5), camera))


def test_same_picture_whether_the_head_or_the_camera_moves(tmp_path: Path, clip: TrackedClip) -> None:
    avatar = made(tmp_path, clip)
    renderer = AvatarRenderer(avatar, tiny_head(), "cpu")
    params, camera = driver(4)
    params = replace(params, global_rotation=8 * params.global_rotation, translation=4 * params.translation)
    own = params.with_identity(avatar.shape, avatar.static_offset)
    still, world_to_camera = canonical(tiny_head(), own, camera.world_to_camera)
    moved = replace(camera, world_to_camera=world_to_camera)
    assert (world_to_camera - camera.world_to_camera).abs().max() > 0.1
    for name, tensor in renderer.gaussians_for(params, camera).tensors().items():
        torch.testing.assert_close(tensor, renderer.gaussians_for(still, moved).tensors()[name], rtol=0, atol=1e-5)
    torch.testing.assert_close(renderer.image(params, camera), renderer.image(still, moved), rtol=0, atol=2e-3)
    # the camera alone, without the head's share of the motion, is another view
    assert (renderer.gaussians_for(still, camera).color - renderer.gaussians_for(still, moved).color).abs().max() > 1e-2


def test_a_frame_does_not_depend_on_its_batch(tmp_path: Path, clip: TrackedClip) -> None:
    renderer = AvatarRenderer(made(tmp_path, clip), tiny_head(), "cpu")
    params, camera = driver(3)
    together = renderer.gaussians_for(params, camera)
    for row in range(3):
        alone = renderer.gaussians_for(params[row], camera[row])
        for name, tensor in alone.tensors().items():
            torch.testing.assert_close(tensor, together[row].tensors()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("channels", [3, 32])
def test_round_trip_shows_the_same_bit_for_bit(tmp_path: Path, offset: bool, channels: int) -> None:
    params = tiny_params(3)
    if offset:
        shift = 0.01 * torch.randn(1, tiny_head().vertex_count, 3, generator=torch.Generator().manual_seed(1))
        params = replace(params, static_offset=shift.expand(3, -1, -1))
    clip = tiny_clip(tmp_path / "clip", instants=3, params=params)
    avatar = made(tmp_path, clip, decoder={"color_channels": channels})
    write_avatar(tmp_path / "a", avatar)
    assert files.list_folder(tmp_path / "a") == ["avatar.json", "features.safetensors"]
    back = read_avatar(tmp_path / "a")
    assert back.kind == "generated" and back.appearance.channels == channels
    assert (back.static_offset is not None) == offset
    at = driver(2)
    shown, again = (AvatarRenderer(a, tiny_head(), "cpu").render(*at) for a in (avatar, back))
    assert torch.equal(shown.features, again.features) and shown.features.shape[-1] == channels
    baked = [bake_at_reference(a, tiny_head()).appearance for a in (avatar, back)]
    assert all(isinstance(b, StaticAppearance) for b in baked)
    assert torch.equal(baked[0].gaussians.color, baked[1].gaussians.color)
    assert "made for tests" in back.licence_note and "trained on footage under: made up" in back.licence_note


def test_one_kind_takes_the_others_place(tmp_path: Path, clip: TrackedClip) -> None:
    avatar = made(tmp_path, clip)
    static = bake_at_reference(avatar, tiny_head())
    assert bake_at_reference(static, tiny_head()) is static
    for each, name in ((avatar, "features"), (static, "gaussians"), (avatar, "features")):
        write_avatar(tmp_path / "a", each)
        assert files.list_folder(tmp_path / "a") == ["avatar.json", f"{name}.safetensors"]
        assert read_avatar(tmp_path / "a").kind == each.kind


def test_static_avatars_are_written_as_before_there_were_kinds(tmp_path: Path, clip: TrackedClip) -> None:
    """Version 1: programs from before generated avatars read them, and we read theirs."""
    write_avatar(tmp_path / "a", bake_at_reference(made(tmp_path, clip), tiny_head()))
    manifest = json.loads((tmp_path / "a" / "avatar.json").read_text())
    assert manifest["version"] == 1
    assert list(manifest) == [
        "format", "version", "kind", "identity", "head", "layout", "provenance", "licence_note", "tensors",
    ]  # fmt: skip
    arrays, _ = tensor_files.read_tensors(tmp_path / "a" / "gaussians.safetensors")
    local = {"position", "rotation", "log_scale", "color", "opacity_logit"}
    motion = {"expression", "global_rotation", "neck", "jaw", "eyes", "translation"}
    assert arrays.keys() == local | {"shape"} | {f"reference.{name}" for name in motion}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "static"}, "gaussians.safetensors: no such file"),
        ({"generator": {"hash": "x"}}, "incomplete"),
        ({"generator": {"hash": "x", "file": "y", "decoder": {"colour": 3}}}, "incomplete"),
        ({"reference_camera": None}, "incomplete"),
        ({"layout": {"uv_resolution": 32, "count": 3, "fingerprint": "x"}}, "does not hold 3 Gaussians"),
        ({"tensors": "0" * 64}, "not what avatar.json was written with"),
    ],
)
def test_manifest_that_does_not_fit_is_named(
    tmp_path: Path, clip: TrackedClip, change: dict[str, object], expected: str
) -> None:
    write_avatar(tmp_path / "a", made(tmp_path, clip))
    where = tmp_path / "a" / "avatar.json"
    where.write_text(json.dumps({**json.loads(where.read_text()), **change}))
    with pytest.raises(SpatialAvatarError, match=expected):
        read_avatar(tmp_path / "a")


def test_truncated_features_are_named(tmp_path: Path, clip: TrackedClip) -> None:
    write_avatar(tmp_path / "a", made(tmp_path, clip))
    where = tmp_path / "a" / "features.safetensors"
    where.write_bytes(where.read_bytes()[:-50])
    with pytest.raises(SpatialAvatarError, match=r"features\.safetensors: not a readable safetensors"):
        read_avatar(tmp_path / "a")


def test_decoder_that_does_not_fit_is_named(tmp_path: Path, clip: TrackedClip) -> None:
    avatar = made(tmp_path, clip)
    look = avatar.appearance
    assert isinstance(look, GeneratedAppearance)
    for changed, expected in (
        (replace(look, decoder=look.decoder.model_copy(update={"hidden_channels": 13})), r"holds \(12,"),
        (replace(look, weights={n: t for n, t in look.weights.items() if "residual" not in n}), "holds nothing for"),
    ):
        with pytest.raises(SpatialAvatarError, match=rf"ann: its decoder {expected}.*reconstruct it again"):
            AvatarRenderer(replace(avatar, appearance=changed), tiny_head(), "cpu", "ann")


def test_sources_reach_the_generator_as_training_has_them(tmp_path: Path) -> None:
    """The same clip through the training's own pool: the same pictures, parameters and cameras, bit for bit."""
    from spatialavatar.training.example import Example
    from spatialavatar.training.folder_pool import FolderPool
    from spatialavatar.training.packed_batch import collate

    clip = tiny_clip(tmp_path / "clip", instants=3, cameras=2, width=52, height=38)
    frames = [FrameIndex(2, 1), FrameIndex(0, 0)]
    pool = FolderPool([clip.location], tiny_head(), 0.1)
    views = tuple(pool.view(0, frame, 32) for frame in frames)
    theirs = collate([Example(0, views, views[0], torch.zeros(3))]).sources
    ours = look_at([SourceFrame(clip, frame) for frame in frames], tiny_head(), 32).sources
    assert torch.equal(ours.images, theirs.images) and ours.images.std() > 0.1
    assert torch.equal(ours.camera.world_to_camera, theirs.camera.world_to_camera)
    torch.testing.assert_close(ours.camera.intrinsics, theirs.camera.intrinsics)
    assert torch.equal(ours.params.expression, theirs.params.expression)
    assert not ours.params.global_rotation.any() and bool(ours.mask.all())


def test_reference_is_the_most_closed_mouth_and_shape_the_first_sources(tmp_path: Path, clip: TrackedClip) -> None:
    frames = [SourceFrame(clip, FrameIndex(t, 0)) for t in (3, 1, 0)]
    portraits = look_at(frames, tiny_head(), IMAGE_SIZE)
    avatar = reconstruct(generation(tmp_path), portraits)
    openness = mouth_openness(tiny_head(), clip.params_at([frame.index for frame in frames]))
    chosen = frames[int(openness.argmin())]
    assert avatar.provenance["clip"]["reference_frame"] == chosen.name
    assert torch.equal(avatar.reference_params.expression, clip.params_at(chosen.index).expression)
    assert torch.equal(avatar.shape, clip.params.shape[:1]) and not avatar.reference_params.global_rotation.any()
    # baked where the clip had that frame, whatever form it kept its motion in
    renderer = AvatarRenderer(avatar, tiny_head(), "cpu")
    there = renderer.gaussians_for(clip.params_at(chosen.index), clip.camera(chosen.index))
    baked = bake_at_reference(avatar, tiny_head()).appearance
    assert isinstance(baked, StaticAppearance) and torch.equal(baked.gaussians.color, there.color)


def turned(yaw: list[float], **changes) -> dict[str, object]:  # type: ignore[no-untyped-def]
    """Arguments for a clip whose head turns by these angles."""
    params = tiny_params(len(yaw), seed=2)
    still = torch.zeros_like(params.translation)
    rotation = torch.stack([still[:, 0], torch.tensor(yaw), still[:, 0]], -1)
    return {"instants": len(yaw), "params": replace(params, global_rotation=rotation, translation=still), **changes}


def with_mouth(arguments: dict[str, object], jaw: list[float]) -> dict[str, object]:
    """The same clip with the jaw open by these angles, and no expression."""
    params = arguments["params"]
    assert isinstance(params, HeadParams)
    opened = torch.zeros_like(params.jaw)
    opened[:, 0] = torch.tensor(jaw)
    return {**arguments, "params": replace(params, jaw=opened, expression=torch.zeros_like(params.expression))}


def instants(clip: TrackedClip, count: int, seed: int = 0) -> list[int]:
    return [frame.index.instant for frame in choose_frames(clip, tiny_head(), count, IMAGE_SIZE, seed)]


def test_face_in_view_falls_as_the_head_turns_away(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip", **turned([0.0, 1.0, 1.6, 2.4, 3.14, -1.0]))  # type: ignore[arg-type]
    shares = face_in_view(clip, tiny_head(), clip.split("all"))
    assert shares[0] > 0.95 and shares[4] == 0
    assert (shares[:5].diff() <= 0).all() and shares[1] > shares[2] > shares[3]
    assert 0.05 < shares[2] < 0.7, "a profile shows about half of it"


def test_chosen_frames_are_far_apart_and_show_the_face(tmp_path: Path) -> None:
    yaw = [0.3, -0.1, 0.02, 0.9, -0.8, 3.0, 0.5]
    clip = tiny_clip(tmp_path / "clip", **with_mouth(turned(yaw), [0.3, 0.2, 0.1, 0.2, 0.3, 0.05, 0.4]))  # type: ignore[arg-type]
    shown = with_a_face(clip, tiny_head())
    assert FrameIndex(5, 0) not in shown and len(shown) == 6
    assert instants(clip, 3) == [2, 3, 4], "the most closed mouth that shows the face first"
    assert instants(clip, 9)[:4] == [2, 3, 4, 6] and len(instants(clip, 9)) == 6
    quiet = tiny_clip(tmp_path / "quiet", **with_mouth(turned(yaw), [0.0] * 7))  # type: ignore[arg-type]
    assert {instants(quiet, 1, seed)[0] for seed in range(60)} == {0, 1, 2, 3, 4, 6}, "seeded below the noise"


def test_empty_frames_are_passed_over(tmp_path: Path) -> None:
    import numpy as np

    def frames(instant: int, camera: int):  # type: ignore[no-untyped-def]
        matte, region = np.full((24, 32), 255, np.uint8), np.full((24, 32), 255, np.uint8)
        if instant == 2:
            matte[:] = 0
        if instant == 3:
            matte[:, 16:], region[:, :16] = 0, 0  # the person is where nothing counts
        return np.full((24, 32, 3), 99, np.uint8), matte, region

    arguments = with_mouth(turned([0.3, -0.1, 0.02, 0.9, -0.8]), [0.3, 0.2, 0.1, 0.2, 0.3])
    clip = tiny_clip(tmp_path / "clip", frames=frames, **arguments)  # type: ignore[arg-type]
    assert instants(clip, 4) == [1, 4, 0]
    look_at(choose_frames(clip, tiny_head(), 4, IMAGE_SIZE), tiny_head(), IMAGE_SIZE)
    for instant in (2, 3):
        with pytest.raises(SpatialAvatarError, match=rf"#{instant}: no face in view \(its matte is empty"):
            look_at([SourceFrame(clip, FrameIndex(instant, 0))], tiny_head(), IMAGE_SIZE)
    none = tiny_clip(tmp_path / "none", frames=lambda t, c: frames(2, c), **arguments)  # type: ignore[arg-type]
    with pytest.raises(SpatialAvatarError, match="the matte is empty in every training frame"):
        choose_frames(none, tiny_head(), 4, IMAGE_SIZE)


def test_sources_that_cannot_be_used(tmp_path: Path, clip: TrackedClip) -> None:
    def fails(other: TrackedClip, expected: str, frames: tuple[FrameIndex, ...] = (FrameIndex(1, 0),)) -> None:
        with pytest.raises(SpatialAvatarError, match=expected):
            look_at([SourceFrame(other, frame) for frame in frames], tiny_head(), IMAGE_SIZE)

    away = tiny_clip(tmp_path / "away", **turned([0.0, 3.1]))  # type: ignore[arg-type]
    fails(away, r"away#1: no face in view \(the tracked mesh shows 0%")
    with pytest.raises(SpatialAvatarError, match="no training frame has the face in view"):
        with_a_face(tiny_clip(tmp_path / "never", **turned([3.1, 3.1])), tiny_head())  # type: ignore[arg-type]
    for name, axis, shift in (("behind", 2, -1.2), ("outside", 0, 1.0)):
        elsewhere, _ = tiny_cameras(2, 1, 32, 24)
        elsewhere[1, :, axis, 3] += shift
        other = tiny_clip(tmp_path / name, instants=2, world_to_camera=elsewhere, face_box=None)
        fails(other, f"{name}#1: no face in view")
    fails(clip, "no frame at instant 99", (FrameIndex(99, 0),))
    fails(clip, "5 source frames; 1 to 4", tuple(FrameIndex(t, 0) for t in range(5)))
    fails(clip, "0 source frames", ())

    def empty(instant: int, camera: int):  # type: ignore[no-untyped-def]
        import numpy as np

        return np.full((24, 32, 3), 99, np.uint8), np.full((24, 32), 0 if instant else 255, np.uint8), None

    blank = tiny_clip(tmp_path / "blank", instants=2, frames=empty, has_region=False)
    fails(blank, r"blank#1: no face in view \(its matte is empty")


@pytest.mark.slow
def test_refinement_starts_from_the_generator(tmp_path: Path) -> None:
    # the most closed of all is held out
    jaw = [0.3, 0.2, 0.05, 0.2, 0.3, 0.01]
    arguments = with_mouth(turned([0.4, -0.5, 0.0, 0.7, 0.2, 0.1], test_from=5, width=32, height=32), jaw)
    clip = tiny_clip(tmp_path / "clip", **arguments)  # type: ignore[arg-type]
    made = generation(tmp_path, decoder={"color_channels": 5})
    start = generator_start(clip, tiny_head(), made, 2)
    assert start.origin == f"generator {made.facts.hash[:12]} from frames 2, 3"
    assert "made up" in start.licence_note
    index = FrameIndex(2, 0)
    sources = [SourceFrame(clip, index), SourceFrame(clip, FrameIndex(3, 0))]
    avatar = reconstruct(made, look_at(sources, tiny_head(), IMAGE_SIZE), reference=0)
    expected = AvatarRenderer(avatar, tiny_head(), "cpu").gaussians_for(clip.params_at(index), clip.camera(index))
    for name, tensor in start.gaussians.tensors().items():
        assert torch.equal(tensor, expected.tensors()[name]), name
    config = RefineConfig(iterations=3, resolution=32, uv_resolution=32)
    refined = refine_clip(clip, tiny_head(), start, config, tmp_path / "out")
    assert refined.kind == "static" and refined.provenance["start"] == start.origin
    started = refined.provenance["started_from"]
    assert started["generator"] == {"hash": made.facts.hash, "training": made.facts.training}
    assert started["clip"]["frames"] == [source.name for source in sources]
    assert isinstance(refined.appearance, StaticAppearance)
    color = refined.appearance.gaussians.color
    assert color.shape[-1] == 5 and color[..., :3].min() >= 0 and color[..., :3].max() <= 1
    torch.testing.assert_close(color[..., 3:], start.gaussians.color[..., 3:])


def test_a_start_is_known_by_what_it_is_computed_from(tmp_path: Path, clip: TrackedClip) -> None:
    avatar = made(tmp_path, clip)
    look = avatar.appearance
    assert isinstance(look, GeneratedAppearance)
    name = next(iter(look.weights))
    changes = (
        {},
        {"appearance": replace(look, features=look.features + 1e-6)},
        {"appearance": replace(look, weights={**look.weights, name: look.weights[name] + 1e-6})},
        {"reference_params": replace(avatar.reference_params, jaw=avatar.reference_params.jaw + 0.1)},
    )
    fingerprints = []
    for number, change in enumerate(changes):
        write_avatar(tmp_path / f"{number}", replace(avatar, **change))
        fingerprints.append(avatar_start(tmp_path / f"{number}", tiny_head()).fingerprint)
    assert len(set(fingerprints)) == len(changes)
    assert avatar_start(tmp_path / "0", tiny_head()).fingerprint == fingerprints[0]
    loaded = load_generator(tmp_path / "g", tiny_head())
    starts = [generator_start(clip, tiny_head(), loaded, k) for k in (1, 2, 2)]
    assert starts[0].fingerprint != starts[1].fingerprint == starts[2].fingerprint


def test_named_portraits_are_baked_at_their_reference_frame(tmp_path: Path) -> None:
    yaw = [0.3, -0.1, 0.02, 0.4]
    for jaw, expected in (([0.3, 0.01, 0.2, 0.1], 1), ([0.3, 1e-4, 0.2, 0.1], 1), ([0.3, 0.2, 0.2, 0.2], 1)):
        clip = tiny_clip(tmp_path / f"{jaw}", **with_mouth(turned(yaw), jaw))  # type: ignore[arg-type]
        portraits = look_at([SourceFrame(clip, FrameIndex(t, 0)) for t in range(4)], tiny_head(), IMAGE_SIZE)
        avatar = reconstruct(generation(tmp_path), portraits)
        assert avatar.provenance["clip"]["reference_frame"] == f"{clip.location}#{expected}"


def test_resolution_is_what_the_generator_was_trained_to_show(tmp_path: Path, clip: TrackedClip) -> None:
    where = tmp_path / "g.safetensors"
    portraits = look_at([SourceFrame(clip, FrameIndex(0, 0))], tiny_head(), IMAGE_SIZE)
    for training, expected in (({}, IMAGE_SIZE), ({"resolution": 48}, 48)):
        write_generator(where, tiny_generator(tiny_head()), training)
        avatar = reconstruct(load_generator(where, tiny_head()), portraits)
        assert avatar.provenance["config"]["resolution"] == expected


def test_pictures_have_the_first_three_channels(tmp_path: Path, clip: TrackedClip) -> None:
    renderer = AvatarRenderer(made(tmp_path, clip, decoder={"color_channels": 7}), tiny_head(), "cpu")
    params, camera = driver(2)
    whole = renderer.render(params, camera)
    assert whole.features.shape[-1] == 7
    shown = renderer.show(renderer.gaussians_for(params, camera), params, camera)
    assert shown.features.shape[-1] == 3
    torch.testing.assert_close(shown.features, whole.features[..., :3], rtol=0, atol=1e-6)
    assert torch.equal(shown.alpha, whole.alpha)
    white = whole.features[..., :3] + (1 - whole.alpha[..., None])
    torch.testing.assert_close(renderer.image(params, camera), white.clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_shows_what_the_cpu_shows(tmp_path: Path, clip: TrackedClip) -> None:
    generation(tmp_path)
    on_cuda = load_generator(tmp_path / "g", tiny_head(), "cuda")
    frames = [SourceFrame(clip, FrameIndex(t, 0)) for t in (0, 2)]
    avatars = [reconstruct(g, look_at(frames, tiny_head(), IMAGE_SIZE)) for g in (generation(tmp_path), on_cuda)]
    params, camera = driver(2)
    shown = [
        AvatarRenderer(a, tiny_head(), d).gaussians_for(params, camera).to("cpu")
        for a, d in zip(avatars, ("cpu", "cuda"))
    ]
    for name, tensor in shown[0].tensors().items():
        torch.testing.assert_close(shown[1].tensors()[name], tensor, rtol=0, atol=1e-2)
    baked = bake_at_reference(avatars[1], tiny_head(), "cuda").appearance
    assert isinstance(baked, StaticAppearance) and baked.gaussians.color.device.type == "cpu"
    start = generator_start(clip, tiny_head(), on_cuda, 2)
    assert start.gaussians.color.device.type == "cpu" and tiny_head().template.device.type == "cpu"
