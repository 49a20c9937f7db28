"""``spatialavatar demo``: the main job on built-in data, from a synthetic person to an animated avatar."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialavatar import __version__
from spatialavatar.cli.console import DeviceOption, choose_device, progress, say

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import UInt8

    from spatialavatar.avatar import Avatar, AvatarRenderer
    from spatialavatar.clip import TrackedClip
    from spatialavatar.clip.tracked_clip import Split
    from spatialavatar.head import HeadModel
    from spatialavatar.refine import RefineConfig
    from spatialavatar.training.config import TrainConfig

SIZE = 256  # pixels
UV_RESOLUTION = 128
POSITION_RATE = 2e-4  # metres
FRAMES, HELD_OUT = 64, 12
DRIVER_FRAMES = 75
CAMERAS, HELD_OUT_CAMERA = 5, 2  # on a frontal arc of 120 degrees: 0 before the face, 1 and 2 half way, 3 and 4 outside
IDENTITY, DRIVER = 2, 4  # numbers of the synthetic people
CLIP, OTHER, GENERATOR, ONE_SHOT, AVATAR = "clip", "driver", "generator", "one-shot", "avatar"  # folders in --out
METRICS, SHEET, VIDEO = "metrics.json", "contact_sheet.png", "animation.mp4"
SPLITS: "dict[Split, str]" = {"test": "unseen frames", "view": "unseen view"}
MARKER = "demo.json"  # says that a folder is an earlier demo's
SHEET_ROWS = 3  # of each split
PORTRAIT = 0  # the frame that the generator sees
# a generator small enough to be trained on the way: configs/dev/phase1.yaml on fewer people
TRAINING: dict[str, Any] = {
    "generator": {
        "uv_resolution": 64,
        "facing": True,
        "encoder": {
            "weights": "random",
            "frozen": False,
            "backbone": "vit_small_patch16_dinov3",
            "architecture": {"embed_dim": 96, "depth": 4, "num_heads": 3},
            "image_size": 128,
            "dpt_channels": 32,
            "feature_channels": 16,
        },
        "unet": {"channels": 16, "max_channels": 96, "style_channels": 64},
        "decoder": {"hidden_channels": 32, "residual_hidden": 64},
    },
    "data": {"synthetic": {"identities": 150, "first_identity": 10, "instants": 12}},
    "held_out": {"synthetic": {"identities": 8, "first_identity": 100_000, "instants": 12}},
    "held_out_samples": 8,
    "loss": {"lambda_lp": 0.0},
    "optimizer": {"learning_rate": 4e-3, "lr_decay": 0.65},
    "batch_size": 8,
    "resolution": 128,
    "log_every": 10,
    "sheet_every": 1000,
}
WARM_UP = 25  # steps at most, and a tenth of a shorter training


@dataclass(frozen=True)
class Studio:
    """What the stages share."""

    out: str
    device: "torch.device"
    head: "HeadModel"
    head_file: str

    def path(self, name: str) -> str:
        return f"{self.out.rstrip('/')}/{name}"


@dataclass(frozen=True)
class Shown:
    """An avatar, measured."""

    renderer: "AvatarRenderer"
    reports: "dict[Split, dict[str, Any]]"


def demo(
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Folder for everything.")
    ] = "spatialavatar-demo",
    iterations: Annotated[int, typer.Option(min=0, help="Refinement steps.")] = 2000,
    generator_steps: Annotated[
        int, typer.Option(min=0, help="Training steps of the small generator; 0 leaves it out.")
    ] = 250,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds something else.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """See it work, on synthetic people.

    A generator makes an avatar of one portrait, refinement one of a video. Metrics, pictures and an animation in under
    5 minutes on 2 cores, 2 without the generator.

    \b
    Examples:
      spatialavatar demo --out demo
      spatialavatar demo --out demo --generator-steps 0
    """
    import time

    from spatialavatar import files
    from spatialavatar.head.builtin import generate_head
    from spatialavatar.head.file import write_head

    began = time.perf_counter()
    training, refinement = _training(generator_steps), _refinement(iterations)
    where = choose_device(device)
    _claim(out, force)

    say("1/7 a head: the built-in one, generated")
    head_file = files.join(out, "builtin.head.safetensors")
    studio = Studio(out, where, write_head(head_file, *generate_head()), head_file)
    say("2/7 a tracked capture of a synthetic person, and one of another to borrow motion from")
    clip, driver = _film(studio)
    one_shot = None
    if training is None:
        say("3/7, 4/7 left out: no generator, so no avatar from one portrait")
        for stale in (GENERATOR, ONE_SHOT):
            files.remove(studio.path(stale))
    else:
        people = training.data.synthetic.identities if training.data.synthetic else 0
        say(f"3/7 a small generator, trained on {people} other synthetic people (the method's takes days on a GPU)")
        _train(studio, training)
        say("4/7 an avatar from one portrait, in one pass of the generator")
        one_shot = _from_one_portrait(studio, clip)
    say(f"5/7 refinement from the template skin, on {len(clip.split('train'))} images")
    refined = _refine(studio, clip, refinement)
    say("6/7 evaluation on frames and on a view that the refinement never saw")
    shown = _measure(studio, clip, refined, one_shot)
    _write_metrics(studio, shown, time.perf_counter() - began)
    _write_sheet(studio, clip, shown)
    say("7/7 animation with the other person's motion")
    _animate(studio, shown["refined"].renderer, driver)
    _print(studio, shown, time.perf_counter() - began)


def _training(steps: int) -> "TrainConfig | None":
    from spatialavatar.training.config import TrainConfig

    if not steps:
        return None
    schedule = {"kind": "linear", "warmup_steps": min(WARM_UP, steps // 10), "end": 0.1}
    return TrainConfig.model_validate({**TRAINING, "schedule": schedule, "steps": steps})


def _refinement(iterations: int) -> "RefineConfig":
    from spatialavatar.refine import LearningRates, RefineConfig

    # its tracking is exact, so that less position needs to move than in a real clip (configs/refine.yaml)
    rates = LearningRates(position=POSITION_RATE)
    return RefineConfig(iterations=iterations, resolution=SIZE, uv_resolution=UV_RESOLUTION, learning_rates=rates)


def _claim(out: str, force: bool) -> None:
    """Raises SpatialAvatarError for a folder that is no earlier demo's; with ``force``, where that loses something."""
    from spatialavatar import files
    from spatialavatar.errors import SpatialAvatarError

    names = files.list_folder(out)
    taken = [name for name in names if name in (CLIP, OTHER, GENERATOR, ONE_SHOT, AVATAR, METRICS, SHEET, VIDEO)]
    if force and taken and MARKER not in names:
        raise SpatialAvatarError(
            f"{out}: holds {', '.join(taken)}, which belong to no demo and would be lost; name another folder or "
            "move them away"
        )
    files.claim_output_folder(out, MARKER, force)
    files.write_json(files.join(out, MARKER), {"made_by": f"spatialavatar demo {__version__}"})


def _film(studio: Studio) -> "tuple[TrackedClip, TrackedClip]":
    """The person's capture, and another's."""
    from spatialavatar.clip import write_synthetic
    from spatialavatar.clip.synthetic import synthesize_capture

    head = studio.head
    person = synthesize_capture(head, identity=IDENTITY, motion=IDENTITY, frames=FRAMES, size=SIZE, cameras=CAMERAS)
    other = synthesize_capture(head, identity=DRIVER, motion=DRIVER, frames=DRIVER_FRAMES, size=SIZE)
    with progress("rendering", FRAMES * CAMERAS + DRIVER_FRAMES) as update:
        clip = write_synthetic(
            person, head, studio.path(CLIP), test_from=FRAMES - HELD_OUT, test_cameras=[HELD_OUT_CAMERA],
            progress=lambda done, total: update(done), force=True,
        )  # fmt: skip
        driver = write_synthetic(
            other, head, studio.path(OTHER), progress=lambda done, total: update(FRAMES * CAMERAS + done), force=True
        )
    return clip, driver


def _train(studio: Studio, config: "TrainConfig") -> None:
    from spatialavatar.training.progress import Progress
    from spatialavatar.training.run import train

    with progress("training", config.steps) as update:

        def watch(state: Progress) -> None:
            update(state.step, f"loss {state.latest['loss']:.4f}" if "loss" in state.latest else "")

        train(config, studio.path(GENERATOR), device=studio.device, force=True, observe=watch)


def _from_one_portrait(studio: Studio, clip: "TrackedClip") -> "Avatar":
    from spatialavatar.avatar import write_avatar
    from spatialavatar.avatar.reconstruct import load_generator, look_at, reconstruct
    from spatialavatar.avatar.source_frames import SourceFrame
    from spatialavatar.clip import FrameIndex

    loaded = load_generator(studio.path(GENERATOR), studio.head, studio.device)
    portrait = SourceFrame(clip, FrameIndex(PORTRAIT, 0))
    seen = look_at([portrait], studio.head, loaded.generator.config.encoder.image_size)
    folder = studio.path(ONE_SHOT)
    avatar = reconstruct(loaded, seen, head_file=studio.head_file, out=folder)
    write_avatar(folder, avatar)
    return avatar


def _refine(studio: Studio, clip: "TrackedClip", config: "RefineConfig") -> "Avatar":
    from spatialavatar.refine import Progress, refine_clip, template_start

    with progress("refining", config.iterations) as update:

        def watch(state: Progress) -> None:
            update(state.iteration, f"loss {state.latest['loss']:.4f}" if state.latest else "")

        return refine_clip(
            clip, studio.head, template_start(studio.head, config.uv_resolution), config, studio.path(AVATAR),
            head_file=studio.head_file, device=studio.device, force=True, observe=watch,
        )  # fmt: skip


def _measure(studio: Studio, clip: "TrackedClip", refined: "Avatar", one_shot: "Avatar | None") -> dict[str, Shown]:
    import torch

    from spatialavatar.avatar import AvatarRenderer
    from spatialavatar.evaluation.metrics import Lpips
    from spatialavatar.evaluation.self_reenactment import evaluate

    lpips, white = Lpips.find(device=studio.device), torch.ones(3)
    made = {} if one_shot is None else {"one portrait": (ONE_SHOT, one_shot)}
    shown = {}
    for name, (folder, avatar) in (made | {"refined": (AVATAR, refined)}).items():
        renderer = AvatarRenderer(avatar, studio.head, studio.device, studio.path(folder))
        reports = {s: evaluate(renderer, clip, s, resolution=SIZE, background=white, lpips=lpips) for s in SPLITS}
        shown[name] = Shown(renderer, reports)
    return shown


def _write_metrics(studio: Studio, shown: dict[str, Shown], seconds: float) -> None:
    from spatialavatar import files

    metrics = {
        **shown["refined"].reports["test"],
        "held_out_view": shown["refined"].reports["view"],
        "one_portrait": shown["one portrait"].reports if "one portrait" in shown else None,
        "demo_seconds": round(seconds, 1),
    }
    files.write_json(studio.path(METRICS), metrics)


def _write_sheet(studio: Studio, clip: "TrackedClip", shown: dict[str, Shown]) -> None:
    import numpy as np
    import torch

    from spatialavatar import files
    from spatialavatar.clip.pictures import encode
    from spatialavatar.evaluation.contact_sheet import contact_sheet
    from spatialavatar.evaluation.self_reenactment import compare, spread

    sheets = []
    for split, label in zip(SPLITS, ("unseen ", "unseen view, ")):
        frames = spread(clip.split(split), SHEET_ROWS)
        rows = {name: list(compare(s.renderer, clip, frames, SIZE, torch.ones(3))) for name, s in shown.items()}
        refined = rows.pop("refined")
        sheets.append(contact_sheet(refined, label, "refined", rows))
    files.write_bytes(studio.path(SHEET), encode(np.concatenate(sheets, 0), "png"))


def _animate(studio: Studio, renderer: "AvatarRenderer", driver: "TrackedClip") -> None:
    import numpy as np
    import torch

    from spatialavatar.avatar.animate import driven_frames, write_video
    from spatialavatar.sheets import titled, to_bytes

    indices = driver.split("all")
    pictures = driven_frames(renderer, driver.params_at(indices), driver.camera(indices), torch.ones(3))
    with progress("animating", len(indices)) as update:

        def side_by_side() -> "Iterator[UInt8[np.ndarray, 'H W 3']]":
            for done, (index, picture) in enumerate(zip(indices, pictures)):
                update(done + 1)
                pair = titled(to_bytes(driver.frame(index).image), "driver"), titled(picture, "avatar")
                yield np.concatenate(pair, 1)

        write_video(studio.path(VIDEO), side_by_side(), driver.fps)


def _print(studio: Studio, shown: dict[str, Shown], seconds: float) -> None:
    print(f"\n{'':28}{'PSNR':>8}{'SSIM':>9}{'LPIPS':>9}{'MSE':>11}")
    for made, measured in shown.items():
        for split, label in SPLITS.items():
            r = measured.reports[split]
            perceptual = "-" if r["lpips"] is None else f"{r['lpips']:.4f}"
            print(f"{made + ', ' + label:28}{r['psnr']:>8.2f}{r['ssim']:>9.4f}{perceptual:>9}{r['mse']:>11.6f}")
    trained = shown["refined"].reports["test"]
    print(
        f"{trained['iterations']} iterations in {trained['seconds']:.0f} s, {trained['gaussians']} Gaussians, "
        f"aspect ratio at most {trained['max_aspect_ratio']:.2f}, {trained['frames_per_second']:.0f} frames/s\n"
        f"whole demo {seconds:.0f} s. Look at {studio.path(SHEET)} and {studio.path(VIDEO)};\n"
        f"the avatar is {studio.path(AVATAR)}, all numbers are in {studio.path(METRICS)}"
    )
