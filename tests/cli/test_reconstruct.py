"""``reconstruct``, ``avatar`` and what the other commands do with a generated avatar, as a person types them."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import pytest

from spatialavatar import files
from spatialavatar.avatar import AvatarRenderer, StaticAppearance, read_avatar
from spatialavatar.cli import main
from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.frame_name import frame_name, parse_frame_name
from spatialavatar.clip.reference_frame import reference_frame
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import write_generator
from spatialavatar.head import write_head
from spatialavatar.head.model import ARRAYS
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.generators import awaken, tiny_generator
from tests.builders.training import tiny_head_file


class World(NamedTuple):
    head: Path
    clip: TrackedClip
    driver: TrackedClip
    checkpoint: Path
    avatar: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A head file, two clips, a generator and its avatar, the last through the command line."""
    folder = tmp_path_factory.mktemp("world")
    _, head = tiny_head_file(folder)
    clip = tiny_clip(
        folder / "clip", instants=6, cameras=2, width=40, height=40, test_from=4, test_cameras=[1], identity="ann"
    )
    driver = tiny_clip(folder / "driver", instants=3, width=40, height=32, seed=7, identity="ben")
    checkpoint = folder / "generator.safetensors"
    write_generator(checkpoint, awaken(tiny_generator(tiny_head())), {"licence": "made up", "phase": 1, "step": 7})
    avatar = folder / "avatar"
    command = ["reconstruct", f"{clip.location}#1", f"{clip.location}/clip.json#2,1", "--checkpoint", str(checkpoint)]
    command += ["--head", str(head), "--out", str(avatar), "--preview", str(folder / "preview.png")]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        main.app(command, standalone_mode=False)
    assert f"sources: {clip.location}#1,0, {clip.location}#2,1" in said.getvalue()
    assert "trained on footage under: made up" in said.getvalue()
    return World(head, clip, driver, checkpoint, avatar)


def test_avatar_needs_nothing_but_its_head(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert files.list_folder(world.avatar) == ["avatar.json", "features.safetensors"]
    hidden = world.checkpoint.rename(world.checkpoint.with_name("away"))
    try:
        out = tmp_path / "m.json"
        result = run("evaluate", world.avatar, world.clip.location, "--out", out)
        assert result.code == 0, result.err
        report = json.loads(out.read_text())
        assert report["kind"] == "generated" and report["frames"] == 2 and report["resolution"] == 32
        assert report["max_aspect_ratio"] > 1 and report["gaussians"] == read_avatar(world.avatar).appearance.count
        for options in (["--driver", world.driver.location], ["--camera", "orbit", "--frames", 3]):
            assert run("animate", world.avatar, "--out", tmp_path / f"{len(options)}.mp4", *options).code == 0
        assert run("export", world.avatar, "--out", tmp_path / "a.ply").code == 0
        assert run("avatar", "bake", world.avatar, "--out", tmp_path / "baked").code == 0
    finally:
        hidden.rename(world.checkpoint)


def test_preview_shows_sources_renders_and_other_views(world: World) -> None:
    picture = cv2.imread(str(world.avatar.parent / "preview.png"))
    assert picture.shape == (3 * (32 + 26), 4 * 32, 3)
    cells = picture.reshape(3, 58, 4, 32, 3)[:, 26:].swapaxes(1, 2)
    assert (cells[:2, 2:] == 255).all(), "two sources leave two places empty"
    assert all(cells[row, column].std() > 10 for row in range(3) for column in range(2 if row < 2 else 4))


def test_a_whole_clip_gives_k_frames(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    command = ["reconstruct", world.clip.location, "--checkpoint", world.checkpoint, "--head", world.head, "--k", 3]
    taken = []
    for out in (tmp_path / "a", tmp_path / "b"):
        result = run(*command, "--out", out)
        assert result.code == 0, result.err
        taken.append(json.loads((out / "avatar.json").read_text())["provenance"]["clip"]["frames"])
    assert taken[0] == taken[1] and len(set(taken[0])) == 3
    reference = reference_frame(tiny_head(), world.clip.params[:4])
    clip = json.loads((tmp_path / "a" / "avatar.json").read_text())["provenance"]["clip"]
    assert clip["reference_frame"] == taken[0][0] == f"{world.clip.location}#{reference},0"
    assert all(parse_frame_name(name)[1] in world.clip.split("train") for name in taken[0])
    first, again = (tmp_path / out / "features.safetensors" for out in "ab")
    assert first.read_bytes() == again.read_bytes()
    assert run(*command, "--out", tmp_path / "a").code == 2
    assert run(*command, "--out", tmp_path / "a", "--force").code == 0


def test_bake_at_a_frame_shows_that_frame(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name, index in (("#3", FrameIndex(3, 0)), ("#0,1", FrameIndex(0, 1))):
        out = tmp_path / name
        result = run("avatar", "bake", world.avatar, "--at", f"{world.clip.location}{name}", "--out", out)
        assert result.code == 0, result.err
        baked = read_avatar(out)
        renderer = AvatarRenderer(read_avatar(world.avatar), tiny_head(), "cpu")
        shown = renderer.gaussians_for(world.clip.params_at(index), world.clip.camera(index))
        assert isinstance(baked.appearance, StaticAppearance)
        for key, tensor in shown.tensors().items():
            assert (baked.appearance.gaussians.tensors()[key] == tensor).all()
        # found through the avatar's own record, moved along
        assert run("evaluate", out, world.clip.location).code == 0
    result = run("avatar", "bake", out, "--out", tmp_path / "again")
    assert result.code == 2 and "is static already" in result.err


def test_info(world: World, run) -> None:  # type: ignore[no-untyped-def]
    facts = json.loads(run("avatar", "info", world.avatar, "--json").out)
    assert facts["kind"] == "generated" and facts["identity"] == "ann" and facts["features"] == 5
    assert facts["trained"] == "phase 1, step 7" and len(facts["source_frames"]) == 2
    assert facts["reference_frame"] in facts["source_frames"]
    shown = run("avatar", "info", world.avatar).out
    assert "generated" in shown and facts["generator"] in shown and "licence note" in shown


def test_refine_from_a_generated_avatar_and_from_the_generator(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    short = ["--iterations", 2, "--resolution", 40, "--no-evaluate", "--head", world.head]
    assert run("refine", world.clip.location, "--init", world.avatar, "--out", tmp_path / "a", *short).code == 0
    command = ["refine", world.clip.location, "--init", "generator", "--checkpoint", world.checkpoint, "--k", 2]
    result = run(*command, "--out", tmp_path / "b", *short)
    assert result.code == 0, result.err
    assert "Gaussians from the generator" in result.err
    for out in "ab":
        avatar = read_avatar(tmp_path / out)
        assert avatar.kind == "static" and "made up" in avatar.licence_note
        assert avatar.layout_fingerprint == read_avatar(world.avatar).layout_fingerprint


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{clip}#1", "{driver}#0"], "show 2 people (ann, ben)"),
        (["{clip}#1", "{clip}#1,0"], "{clip}#1,0: is named as a source twice"),
        (["{clip}#77"], "no frame at instant 77, camera 0"),
        (["{clip}#1,5"], "no frame at instant 1, camera 5"),
        (["{clip}#one"], "expected CLIP#12 for instant 12"),
        (["{clip}#-1"], "expected CLIP#12 for instant 12"),
        (["{tmp}/none#1"], "{tmp}/none"),
        (["{clip}", "{clip}#1,1"], "5 source frames; 1 to 4 are expected"),
        (["{clip}", "--k", "5"], "--k"),
        (["{clip}#1", "--k", "2"], "--k 2: says how many frames of a whole clip"),
        (["{clip}#1", "--identity", "anna m"], "--identity anna_m"),
        (["{clip}#1", "--encoder-weights", "{head}"], "holds the weights of its encoder"),
        (["{clip}#1", "--checkpoint", "{tmp}"], "holds neither generator.safetensors nor"),
        (["{clip}#1", "--checkpoint", "{head}"], "not a generator of ours"),
        (["{clip}#1", "--out", "{tmp}/papers"], "holds something else"),
        (["{clip}#1", "--out", "{avatar}"], "finished avatar"),
        (["{clip}#1", "--preview", "{head}"], "exists; name another file"),
    ],
)
def test_what_cannot_be_reconstructed_is_one_line_and_exit_2(  # type: ignore[no-untyped-def]
    world: World, run, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("years")
    places = {
        "clip": world.clip.location,
        "driver": world.driver.location,
        "head": world.head,
        "avatar": world.avatar,
        "tmp": tmp_path,
    }
    given = [argument.format(**places) for argument in arguments]
    if "--checkpoint" not in given:
        given += ["--checkpoint", str(world.checkpoint)]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "a")]
    result = run("reconstruct", *given, "--head", world.head)
    assert result.code == 2
    last = result.err.strip().splitlines()[-1]
    assert last.lower().startswith("error: ") and expected.format(**places) in last
    assert "Traceback" not in result.err and not (tmp_path / "a" / "avatar.json").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["refine", "{clip}", "--init", "generator", "--out", "{tmp}/a"], "go together"),
        (["refine", "{clip}", "--checkpoint", "{checkpoint}", "--out", "{tmp}/a"], "go together"),
        (["refine", "{clip}", "--k", "2", "--out", "{tmp}/a"], "are for --init generator"),
        (["avatar", "bake", "{avatar}", "--at", "{clip}", "--out", "{tmp}/a"], "names a whole clip"),
        (["avatar", "bake", "{avatar}", "--at", "{clip}#9", "--out", "{tmp}/a"], "no frame at instant 9"),
        (["avatar", "bake", "{avatar}", "--out", "{avatar}"], "finished avatar"),
        (["avatar", "info", "{clip}"], "holds no avatar.json"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_exit_2(  # type: ignore[no-untyped-def]
    world: World, run, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    places = {
        "clip": world.clip.location,
        "avatar": world.avatar,
        "checkpoint": world.checkpoint,
        "tmp": tmp_path,
    }
    head = ["--head", str(world.head)] if arguments[0] == "refine" else []
    result = run(*(a.format(**places) for a in arguments), *head)
    assert result.code == 2, result.err
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and expected in last and "Traceback" not in result.err


def test_one_person_in_clips_of_two_names(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    command = [
        "reconstruct",
        f"{world.clip.location}#1",
        f"{world.driver.location}#0",
        "--checkpoint",
        world.checkpoint,
    ]
    result = run(*command, "--head", world.head, "--identity", "anna", "--out", tmp_path / "a")
    assert result.code == 0, result.err
    assert read_avatar(tmp_path / "a").identity == "anna"
    assert "tracked with another shape" in result.err


def test_another_head_is_refused_by_name(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arrays = {name: getattr(tiny_head(), name).numpy() for name in ARRAYS}
    arrays["template"] = arrays["template"] * 1.1
    file = tmp_path / "other.head.safetensors"
    other = write_head(file, tiny_head().info, arrays)
    clip = tiny_clip(tmp_path / "clip", instants=2, head=other)
    result = run(
        "reconstruct", f"{clip.location}#0", "--checkpoint", world.checkpoint, "--head", file, "--out", tmp_path / "a"
    )
    last = result.err.strip().splitlines()[-1]
    assert result.code == 2 and last.startswith(f"error: {world.checkpoint}: made with head tiny") and "--head" in last


def test_frame_names(tmp_path: Path) -> None:
    assert parse_frame_name("clips/anna#12") == ("clips/anna", FrameIndex(12, 0))
    assert parse_frame_name("memory://anna/clip.json#0,3") == ("memory://anna/clip.json", FrameIndex(0, 3))
    assert parse_frame_name("clips/anna") == ("clips/anna", None)
    odd = tiny_clip(tmp_path / "take#2", instants=2)
    assert parse_frame_name(odd.location) == (odd.location, None)
    assert parse_frame_name(f"{odd.location}#1") == (odd.location, FrameIndex(1, 0))
    for clip in (odd, tiny_clip(tmp_path / "two", instants=2, cameras=2)):
        for index in clip.split("all"):
            assert parse_frame_name(frame_name(clip, index)) == (clip.location, index)
    for wrong in ("clips/anna#", "#3", "clips/anna#1,", "clips/anna#1,2,3", "clips/anna#1.5", "a#²"):
        with pytest.raises(SpatialAvatarError, match="expected CLIP#12"):
            parse_frame_name(wrong)
