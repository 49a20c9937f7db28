"""``spatialavatar demo``: the main job on built-in data, from a synthetic person to an animated avatar."""

from typing import Annotated, Any

import typer

from spatialavatar import __version__
from spatialavatar.cli.console import DeviceOption, choose_device, progress, say

SIZE = 256  # pixels
UV_RESOLUTION = 128
POSITION_RATE = 2e-4  # metres
FRAMES, HELD_OUT = 64, 12
DRIVER_FRAMES = 75
CAMERAS, HELD_OUT_CAMERA = 5, 2  # on a frontal arc of 120 degrees: 0 before the face, 1 and 2 half way, 3 and 4 outside
IDENTITY, DRIVER = 2, 4  # numbers of the synthetic people
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
    "schedule": {"kind": "linear", "warmup_steps": 25, "end": 0.1},
    "batch_size": 8,
    "resolution": 128,
    "log_every": 10,
    "sheet_every": 1000,
}


def demo(
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Folder for everything.")
    ] = "spatialavatar-demo",
    iterations: Annotated[int, typer.Option(help="Refinement steps.")] = 2000,
    generator_steps: Annotated[
        int, typer.Option(help="Training steps of the small generator; 0 leaves it out.", min=0)
    ] = 250,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds something else.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """See it work on synthetic people: a generator makes an avatar of one portrait, refinement one of a video.

    Metrics, pictures and an animation in about 4 minutes on 2 cores, 2 without the generator.

    \b
    spatialavatar demo --out demo
    spatialavatar demo --out demo --generator-steps 0
    """
    import time

    import numpy as np
    import torch

    from spatialavatar import files
    from spatialavatar.avatar import AvatarRenderer, write_avatar
    from spatialavatar.avatar.animate import driven_frames, write_video
    from spatialavatar.avatar.reconstruct import SourceFrame, load_generator, look_at, reconstruct
    from spatialavatar.clip import FrameIndex, write_synthetic
    from spatialavatar.clip.pictures import encode
    from spatialavatar.clip.synthetic import synthesize_capture
    from spatialavatar.clip.tracked_clip import Split
    from spatialavatar.evaluation.contact_sheet import contact_sheet, titled, to_bytes
    from spatialavatar.evaluation.metrics import Lpips
    from spatialavatar.evaluation.self_reenactment import compare, evaluate, spread
    from spatialavatar.head.builtin import generate_head
    from spatialavatar.head.file import write_head
    from spatialavatar.refine import LearningRates, Progress, RefineConfig, refine_clip, template_start
    from spatialavatar.training import run as training
    from spatialavatar.training.config import TrainConfig

    began = time.perf_counter()
    where = choose_device(device)
    files.claim_output_folder(out, MARKER, force)
    files.write_json(files.join(out, MARKER), {"made_by": f"spatialavatar demo {__version__}"})
    head_file = files.join(out, "builtin.head.safetensors")

    say("1/7 a head: the built-in one, generated")
    head = write_head(head_file, *generate_head())

    say("2/7 a tracked capture of a synthetic person, and one of another to borrow motion from")
    person = synthesize_capture(head, identity=IDENTITY, motion=IDENTITY, frames=FRAMES, size=SIZE, cameras=CAMERAS)
    other = synthesize_capture(head, identity=DRIVER, motion=DRIVER, frames=DRIVER_FRAMES, size=SIZE)
    with progress("rendering", FRAMES * CAMERAS + DRIVER_FRAMES) as update:
        clip = write_synthetic(
            person, head, files.join(out, "clip"), test_from=FRAMES - HELD_OUT, test_cameras=[HELD_OUT_CAMERA],
            progress=lambda done, total: update(done), force=True,
        )  # fmt: skip
        driver = write_synthetic(
            other,
            head,
            files.join(out, "driver"),
            progress=lambda done, total: update(FRAMES * CAMERAS + done),
            force=True,
        )

    one_shot = None
    if generator_steps:
        training_config = TrainConfig.model_validate({**TRAINING, "steps": generator_steps})
        people = training_config.data.synthetic.identities if training_config.data.synthetic else 0
        say(f"3/7 a small generator, trained on {people} other synthetic people (the method's takes days on a GPU)")
        with progress("training", generator_steps) as update:

            def watch(state: training.Progress) -> None:
                update(state.step, f"loss {state.latest['loss']:.4f}" if "loss" in state.latest else "")

            run = files.join(out, "generator")
            training.train(training_config, run, device=where, force=True, observe=watch)
        say("4/7 an avatar from one portrait, in one pass of the generator")
        generation = load_generator(run, head, where)
        portrait = SourceFrame(clip, FrameIndex(PORTRAIT, 0))
        seen = look_at([portrait], head, generation.generator.config.encoder.image_size)
        one_shot_folder = files.join(out, "one-shot")
        one_shot = reconstruct(generation, seen, head_file=head_file, out=one_shot_folder)
        write_avatar(one_shot_folder, one_shot)
    else:
        say("3/7, 4/7 left out: no generator, so no avatar from one portrait")

    say(f"5/7 refinement from the template skin, on {len(clip.split('train'))} images")
    # its tracking is exact, so that less position needs to move than in a real clip (configs/refine.yaml)
    rates = LearningRates(position=POSITION_RATE)
    config = RefineConfig(iterations=iterations, resolution=SIZE, uv_resolution=UV_RESOLUTION, learning_rates=rates)
    avatar_folder = files.join(out, "avatar")
    with progress("refining", iterations) as update:

        def observe(state: Progress) -> None:
            update(state.iteration, f"loss {state.latest['loss']:.4f}" if state.latest else "")

        avatar = refine_clip(
            clip, head, template_start(head, UV_RESOLUTION), config, avatar_folder, head_file=head_file, device=where,
            force=True, observe=observe,
        )  # fmt: skip

    say("6/7 evaluation on frames and on a view that the refinement never saw")
    renderer = AvatarRenderer(avatar, head, where, avatar_folder)
    white = torch.ones(3)
    lpips = Lpips.find(device=where)
    splits: tuple[Split, ...] = ("test", "view")
    reports = {s: evaluate(renderer, clip, s, resolution=SIZE, background=white, lpips=lpips) for s in splits}
    shown = {"refined": (renderer, reports)}
    if one_shot is not None:
        quick = AvatarRenderer(one_shot, head, where, one_shot_folder)
        measured = {s: evaluate(quick, clip, s, resolution=SIZE, background=white, lpips=lpips) for s in splits}
        shown = {"one portrait": (quick, measured), **shown}
    seconds = round(time.perf_counter() - began, 1)
    files.write_json(
        files.join(out, "metrics.json"),
        {
            **reports["test"],
            "held_out_view": reports["view"],
            "one_portrait": shown["one portrait"][1] if one_shot is not None else None,
            "demo_seconds": seconds,
        },
    )
    sheets = []
    for split, label in zip(splits, ("unseen ", "unseen view, ")):
        frames = spread(clip.split(split), SHEET_ROWS)
        rows = {name: list(compare(r, clip, frames, SIZE, white)) for name, (r, _) in shown.items()}
        refined = rows.pop("refined")
        sheets.append(contact_sheet(refined, label, "refined", rows))
    sheet = np.concatenate(sheets, 0)
    files.write_bytes(files.join(out, "contact_sheet.png"), encode(sheet, "png"))

    say("7/7 animation with the other person's motion")
    indices = driver.split("all")
    pictures = driven_frames(renderer, driver.params_at(indices), driver.camera(indices), white)
    with progress("animating", len(indices)) as update:

        def side_by_side():  # type: ignore[no-untyped-def]
            for done, (index, picture) in enumerate(zip(indices, pictures)):
                update(done + 1)
                pair = titled(to_bytes(driver.frame(index).image), "driver"), titled(picture, "avatar")
                yield np.concatenate(pair, 1)

        write_video(files.join(out, "animation.mp4"), side_by_side(), driver.fps)

    print(f"\n{'':28}{'PSNR':>8}{'SSIM':>9}{'LPIPS':>9}{'MSE':>11}")
    for made, (_, measured) in shown.items():
        for split, label in zip(splits, ("unseen frames", "unseen view")):
            r = measured[split]
            perceptual = "-" if r["lpips"] is None else f"{r['lpips']:.4f}"
            print(f"{made + ', ' + label:28}{r['psnr']:>8.2f}{r['ssim']:>9.4f}{perceptual:>9}{r['mse']:>11.6f}")
    trained = reports["test"]
    print(
        f"{trained['iterations']} iterations in {trained['seconds']:.0f} s, {trained['gaussians']} Gaussians, "
        f"aspect ratio at most {trained['max_aspect_ratio']:.2f}, {trained['frames_per_second']:.0f} frames/s\n"
        f"whole demo {time.perf_counter() - began:.0f} s. Look at {out}/contact_sheet.png and {out}/animation.mp4;\n"
        f"the avatar is {out}/avatar, all numbers are in {out}/metrics.json"
    )
