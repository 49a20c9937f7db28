"""The command line: what a person types, what they read, and the exit codes that scripts rely on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from spatialavatar import files
from spatialavatar.avatar import Avatar, StaticAppearance, write_avatar
from spatialavatar.clip import TrackedClip
from spatialavatar.head import HeadReference, read_head, write_head
from spatialavatar.head.model import ARRAYS
from spatialavatar.refine import Refinement, StepTerms, template_start
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.flame_like import flame_like, write_flame_pickle, write_template_obj
from tests.builders.training import tiny_head_file

SHORT = ["--iterations", "6", "--resolution", "40", "--uv-resolution", "16"]


class World(NamedTuple):
    head: Path
    clip: TrackedClip
    driver: TrackedClip
    avatar: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A head file, two clips and a refined avatar, made through the command line once."""
    folder = tmp_path_factory.mktemp("world")
    _, head = tiny_head_file(folder)
    clip = tiny_clip(
        folder / "clip", instants=6, cameras=2, width=40, height=40, test_from=4, test_cameras=[1], identity="ann"
    )
    driver = tiny_clip(folder / "driver", instants=3, width=40, height=32, seed=7, identity="ben")
    avatar = folder / "avatar"
    command = ["refine", clip.location, "--head", str(head), "--out", str(avatar), *SHORT]
    done = subprocess.run([sys.executable, "-m", "spatialavatar", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "training on 4 images (frames 0..3, 2 cameras); 2 held out from frame 4" in done.stderr
    assert "refining: 6/6" in done.stderr
    return World(head, clip, driver, avatar)


def test_refine_leaves_what_scripts_rely_on(world: World) -> None:
    assert {"avatar.json", "gaussians.safetensors", "metrics.json", "refine.jsonl"} <= set(
        files.list_folder(world.avatar)
    )
    metrics = json.loads((world.avatar / "metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["frames"] == 2 and metrics["iterations"] == 6
    assert {"psnr", "ssim", "lpips", "mse", "max_aspect_ratio", "seconds", "frames_per_second"} <= metrics.keys()
    assert 5 < metrics["psnr"] < 60 and 0 < metrics["mse"] < 0.3 and metrics["max_aspect_ratio"] <= 8.00001


def test_evaluate_every_split(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    expected = {"test": 2, "train": 4, "view": 6, "all": 12}
    for split, frames in expected.items():
        out = tmp_path / f"{split}.json"
        result = run("evaluate", world.avatar, world.clip.location, "--split", split, "--out", out)
        assert result.code == 0, result.err
        report = json.loads(out.read_text())
        assert report["frames"] == len(report["per_frame"]) == frames
        mean = sum(row["psnr"] for row in report["per_frame"]) / frames
        assert report["psnr"] == pytest.approx(mean)
        assert f"{report['psnr']:.2f} dB" in result.out
    assert json.loads((tmp_path / "test.json").read_text())["psnr"] == pytest.approx(
        json.loads((world.avatar / "metrics.json").read_text())["psnr"]
    )


def test_contact_sheet(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import cv2

    sheet = tmp_path / "sheet.png"
    assert run("evaluate", world.avatar, world.clip.location, "--sheet", sheet, "--background", "0,0,1").code == 0
    picture = cv2.imread(str(sheet))
    assert picture.shape == (2 * (40 + 26), 3 * 40, 3)
    assert tuple(picture[27, 1]) == (255, 0, 0), "the target's corner is the background, blue (BGR)"


def test_animate_self_cross_and_orbit(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import imageio.v2 as imageio

    for name, options, frames, size in (
        ("self", ["--driver", world.clip.location], 6, (40, 40)),
        ("cross", ["--driver", world.driver.location], 3, (32, 40)),
        ("orbit", ["--camera", "orbit", "--frames", 5], 5, (40, 40)),
        ("orbit_driven", ["--camera", "orbit", "--driver", world.driver.location, "--resolution", 48], 3, (48, 48)),
    ):
        out = tmp_path / f"{name}.mp4"
        result = run("animate", world.avatar, "--out", out, *options)
        assert result.code == 0, result.err
        with imageio.get_reader(out) as reader:
            pictures = [picture for picture in reader]
        assert len(pictures) == frames and pictures[0].shape[:2] == size
        assert pictures[0].std() > 5, "not an empty picture"
    assert run("animate", world.avatar, "--out", tmp_path / "self.mp4", "--camera", "orbit").code == 2


def test_export_ply_opens_and_holds_every_gaussian(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from plyfile import PlyData

    out = tmp_path / "ann.ply"
    assert run("export", world.avatar, "--format", "ply", "--out", out).code == 0
    vertices = PlyData.read(str(out))["vertex"]
    count = json.loads((world.avatar / "avatar.json").read_text())["layout"]["count"]
    assert vertices.count == count
    other = tmp_path / "other.ply"
    assert run("export", world.avatar, "--out", other, "--driver", world.driver.location, "--frame", 2).code == 0
    assert (PlyData.read(str(other))["vertex"]["x"] != vertices["x"]).any()
    named = tmp_path / "named.ply"
    assert run("export", world.avatar, "--out", named, "--driver", f"{world.driver.location}#2").code == 0
    assert named.read_bytes() == other.read_bytes()


def test_gaussian_avatars_is_for_flame_heads(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = run("export", world.avatar, "--format", "gaussian-avatars", "--out", tmp_path / "ga")
    assert result.code == 2
    assert "FLAME" in result.err
    assert not (tmp_path / "ga").exists()


def test_gaussian_avatars_of_a_flame_head(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import numpy as np
    from plyfile import PlyData

    write_flame_pickle(tmp_path / "generic_model.pkl", arrays := flame_like())
    write_template_obj(tmp_path / "template.obj", arrays)
    file = tmp_path / "flame.head.safetensors"
    convert = ["head", "convert", tmp_path / "generic_model.pkl", "--uv", tmp_path / "template.obj", "--out", file]
    assert run(*convert).code == 0
    head = read_head(file)
    start = template_start(head, 16)
    write_avatar(
        tmp_path / "avatar",
        Avatar(
            "ann", HeadReference.of(head), 16, start.layout.fingerprint, StaticAppearance(start.gaussians),
            head.neutral().shape + 0.5, None, head.neutral(), {"config": {}, "clip": {}, "metrics": {}}, "be kind",
        ),
    )  # fmt: skip
    motion = head.neutral(3)
    motion.jaw[:, 0] = torch.tensor([0.0, 0.1, 0.2])
    clip = tiny_clip(
        tmp_path / "clip", instants=3, head=head, params=motion, face_box=None, identity="driver", has_region=False
    )
    command = ["export", tmp_path / "avatar", "--format", "gaussian-avatars", "--head", file]
    assert run(*command, "--driver", clip.location, "--out", tmp_path / "ga").code == 0
    with np.load(tmp_path / "ga" / "flame_param.npz") as parameters:
        assert parameters["jaw_pose"][:, 0] == pytest.approx([0.0, 0.1, 0.2])
        assert parameters["shape"].shape == (300,) and parameters["shape"] == pytest.approx(0.5)
        assert parameters["expr"].shape == (3, 100)
    ply = PlyData.read(str(tmp_path / "ga" / "point_cloud.ply"))
    assert ply["vertex"].count == start.layout.count
    assert (ply["vertex"]["binding_0"] == start.layout.face_index.numpy()).all()
    assert any("be kind" in comment for comment in ply.comments)
    assert run(*command, "--out", tmp_path / "ga").code == 2, "the folder is taken"


def test_resume_of_a_finished_run_is_no_error(world: World, run) -> None:  # type: ignore[no-untyped-def]
    before = (world.avatar / "avatar.json").read_bytes()
    result = run("refine", world.clip.location, "--head", world.head, "--out", world.avatar, *SHORT, "--resume")
    assert result.code == 0 and "already finished" in result.err
    assert (world.avatar / "avatar.json").read_bytes() == before


def test_clips_without_alpha_are_measured_on_black(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bare = tiny_clip(tmp_path / "bare", instants=2, test_from=1, matte_kind="none", identity="ann")
    out = tmp_path / "m.json"
    assert run("evaluate", world.avatar, bare.location, "--out", out).code == 0
    assert json.loads(out.read_text())["background"] == [0, 0, 0]
    result = run("evaluate", world.avatar, bare.location, "--background", "white")
    assert result.code == 2 and "measure it on black" in result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_refinement_goes_on(  # type: ignore[no-untyped-def]
    world: World, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    command = ["refine", world.clip.location, "--head", world.head, *SHORT, "--no-evaluate", "--out", tmp_path / "a"]
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    step = Refinement.step

    def interrupt(refinement: Refinement) -> StepTerms:
        if refinement.iteration == 3:
            signal.raise_signal(number)
        return step(refinement)

    with monkeypatch.context() as patch:
        patch.setattr(Refinement, "step", interrupt)
        done = run(*command)
    assert done.code == 130 and "go on with the same command and --resume" in done.err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert run(*command, "--resume").code == 0
    assert (tmp_path / "a" / "gaussians.safetensors").read_bytes() == (
        world.avatar / "gaussians.safetensors"
    ).read_bytes()


def test_a_head_beside_its_clip_is_found_and_remembered(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(world.clip.location, tmp_path / "clip")
    shutil.copy(world.head, tmp_path / "clip")
    clip, out = tmp_path / "clip", tmp_path / "avatars" / "ann"
    assert run("refine", clip, "--out", out, *SHORT, "--no-evaluate").code == 0
    named = json.loads((out / "avatar.json").read_text())["provenance"]["head_file"]
    assert named == "../../clip/tiny.head.safetensors"
    assert run("animate", out, "--camera", "orbit", "--frames", 1, "--out", tmp_path / "a.mp4").code == 0

    clip.rename(tmp_path / "moved")  # the head goes along with the clip, and lies beside it still
    moved = tmp_path / "moved"
    assert run("export", out, "--out", tmp_path / "a.ply").code == 2
    assert run("export", out, "--out", tmp_path / "a.ply", "--driver", f"{moved}#1").code == 0
    assert run("animate", out, "--driver", moved, "--frames", 1, "--out", tmp_path / "b.mp4").code == 0
    assert run("evaluate", out, moved).code == 0
    assert run("clip", "inspect", moved, "--out", tmp_path / "sheet.png").code == 0
    assert "not checked" not in run("clip", "validate", moved).err


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_to_resume_from(world: World, tmp_path: Path) -> None:
    out, whole = tmp_path / "a", tmp_path / "whole"
    options = ["--head", str(world.head), "--iterations", "600", "--resolution", "40", "--uv-resolution", "16"]
    command = [sys.executable, "-m", "spatialavatar", "refine", world.clip.location, *options, "--no-evaluate", "--out"]
    process = subprocess.Popen([*command, str(out)], stderr=subprocess.PIPE, text=True)
    while not (out / "refine.jsonl").exists():  # written once iterations are under way
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "go on with the same command and --resume" in said and "Traceback" not in said
    assert (out / "checkpoint.safetensors").exists()
    both = [[*command, str(out), "--resume"], [*command, str(whole)]]
    for resumed_or_whole in [subprocess.Popen(one, stderr=subprocess.DEVNULL) for one in both]:
        assert resumed_or_whole.wait(timeout=120) == 0
    assert (out / "gaussians.safetensors").read_bytes() == (whole / "gaussians.safetensors").read_bytes()


def test_refine_goes_on_from_another_avatar(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    command = ["refine", world.clip.location, "--head", world.head, "--init", world.avatar, "--out", tmp_path / "b"]
    assert run(*command, "--iterations", 2, "--resolution", 40, "--no-evaluate").code == 0
    before, after = (json.loads((a / "avatar.json").read_text())["layout"] for a in (world.avatar, tmp_path / "b"))
    assert before == after
    assert "metrics.json" not in files.list_folder(tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["refine", "{clip}", "--head", "none.head.safetensors", "--out", "{tmp}/a"], "none.head.safetensors: no such"),
        (["refine", "{tmp}/none", "--head", "{head}", "--out", "{tmp}/a"], "{tmp}/none"),
        (["refine", "{clip}", "--head", "{clip}/clip.json", "--out", "{tmp}/a"], "not a readable safetensors"),
        (["refine", "{clip}", "--head", "{head}", "--out", "{tmp}/a", "--set", "sed=1"], "did you mean seed?"),
        (["refine", "{clip}", "--head", "{head}", "--out", "{avatar}"], "finished avatar"),
        (["refine", "{clip}", "--head", "{head}", "--out", "{tmp}/papers"], "holds something else"),
        (["refine", "{clip}", "--head", "{head}", "--out", "{tmp}/a", "--init", "{clip}"], "holds no avatar.json"),
        (["refine", "{clip}", "--head", "{head}", "--out", "{tmp}/a", "--device", "cuda:9"], "--device cuda:9"),
        (["evaluate", "{avatar}", "{driver}"], "no frames in split 'test'"),
        (["evaluate", "{avatar}", "{clip}", "--split", "tests"], "expected one of train, test, view, all"),
        (["evaluate", "{clip}", "{clip}"], "holds no avatar.json"),
        (["evaluate", "{avatar}", "{clip}", "--background", "mauve"], "expected white, black or three numbers"),
        (["animate", "{avatar}", "--out", "{tmp}/x.mp4"], "--driver"),
        (["animate", "{avatar}", "--out", "{tmp}/x.gif", "--camera", "orbit"], "written as .mp4"),
        (["animate", "{avatar}", "--out", "{tmp}/x.mp4", "--camera", "orbit", "--frames", "-1"], "--frames"),
        (["animate", "{avatar}", "--out", "{tmp}/x.mp4", "--camera", "orbit", "--resolution", "0"], "--resolution"),
        (["export", "{avatar}", "--frame", "1"], "names an instant of --driver"),
        (["export", "{avatar}", "--driver", "{driver}#1", "--frame", "1"], "names an instant of --driver CLIP"),
        (["export", "{avatar}", "--driver", "{driver}#1", "-f", "gaussian-avatars"], "plays a whole clip"),
        (
            ["refine", "{clip}", "--head", "{head}", "--out", "{tmp}/a", "--init", "templat"],
            "template, generator or an",
        ),
        (["refine", "{clip}", "--head", "{head}", "--out", "{tmp}/a", "--resume", "--force"], "give one of them"),
        (
            [
                "refine",
                "{clip}",
                "--head",
                "{head}",
                "--out",
                "{tmp}/a",
                "--init",
                "{avatar}",
                "--set",
                "uv_resolution=32",
            ],
            "uv_resolution 32: {avatar} has 16",
        ),
        (["export", "{avatar}", "--format", "usd"], "expected one of ply, gaussian-avatars"),
        (["export", "{avatar}", "--driver", "{driver}", "--frame", "3", "--out", "{tmp}/x.ply"], "instants 0..2"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(  # type: ignore[no-untyped-def]
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
    result = run(*(a.format(**places) for a in arguments))
    assert result.code == 2
    last = result.err.strip().splitlines()[-1]
    assert last.lower().startswith("error: ") and expected.format(**places) in last
    assert "Traceback" not in result.err


def test_another_head_is_refused_by_name(world: World, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arrays = {name: getattr(tiny_head(), name).numpy() for name in ARRAYS}
    arrays["template"] = arrays["template"] * 1.1
    other = tmp_path / "other.head.safetensors"
    write_head(other, tiny_head().info, arrays)
    for command in (
        ["refine", world.clip.location, "--head", other, "--out", tmp_path / "a"],
        ["evaluate", world.avatar, world.clip.location, "--head", other],
    ):
        result = run(*command)
        assert result.code == 2 and "head" in result.err.splitlines()[-1]
        assert "Traceback" not in result.err


def test_our_own_faults_exit_1_and_debug_shows_them(  # type: ignore[no-untyped-def]
    world: World, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import spatialavatar.avatar

    def broken(folder: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(spatialavatar.avatar, "read_avatar", broken)
    result = run("evaluate", world.avatar, world.clip.location)
    assert result.code == 1
    assert result.err.strip().startswith("error: internal error: ZeroDivisionError: inside")
    assert "Traceback" in run("--debug", "evaluate", world.avatar, world.clip.location).err


def test_full_disk_is_named(world: World, run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def full(location: object, value: object) -> None:
        raise OSError(28, "No space left on device", str(location))

    monkeypatch.setattr(files, "write_json", full)
    out = tmp_path / "m.json"
    result = run("evaluate", world.avatar, world.clip.location, "--out", out)
    assert result.code == 2
    assert f"{out}: no space left on device" in result.err


def test_doctor_names_every_part(run) -> None:  # type: ignore[no-untyped-def]
    result = run("doctor", "--json")
    findings = {f["subject"]: f for f in json.loads(result.out)}
    assert {"python", "torch", "CUDA device", "gsplat", "CPU splatter", "ffmpeg", "LPIPS weights"} == findings.keys()
    assert result.code == int(any(f["verdict"] == "missing" for f in findings.values()))
    assert findings["torch"]["verdict"] == findings["ffmpeg"]["verdict"] == "ok"


def test_version(run) -> None:  # type: ignore[no-untyped-def]
    from spatialavatar import __version__

    assert run("--version").out.strip() == __version__
