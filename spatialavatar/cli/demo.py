"""``spatialavatar demo``: the main job on built-in data, from a synthetic person to an animated avatar."""

from typing import Annotated

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


def demo(
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Folder for everything.")
    ] = "spatialavatar-demo",
    iterations: Annotated[int, typer.Option(help="Refinement steps.")] = 2000,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds something else.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """See it work: synthetic capture -> refined avatar -> metrics, pictures, animation. About 2 minutes on 2 cores.

    \b
    spatialavatar demo --out demo
    """
    import time

    import numpy as np
    import torch

    from spatialavatar import files
    from spatialavatar.avatar import AvatarRenderer
    from spatialavatar.avatar.animate import driven_frames, write_video
    from spatialavatar.clip import write_synthetic
    from spatialavatar.clip.pictures import encode
    from spatialavatar.clip.synthetic import synthesize_capture
    from spatialavatar.clip.tracked_clip import Split
    from spatialavatar.evaluation.contact_sheet import contact_sheet, titled, to_bytes
    from spatialavatar.evaluation.metrics import Lpips
    from spatialavatar.evaluation.self_reenactment import compare, evaluate, spread
    from spatialavatar.head.builtin import generate_head
    from spatialavatar.head.file import write_head
    from spatialavatar.refine import LearningRates, Progress, RefineConfig, refine_clip, template_start

    began = time.perf_counter()
    where = choose_device(device)
    files.claim_output_folder(out, MARKER, force)
    files.write_json(files.join(out, MARKER), {"made_by": f"spatialavatar demo {__version__}"})
    head_file = files.join(out, "builtin.head.safetensors")

    say("1/5 a head: the built-in one, generated")
    head = write_head(head_file, *generate_head())

    say("2/5 a tracked capture of a synthetic person, and one of another to borrow motion from")
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

    say(f"3/5 refinement from the template skin, on {len(clip.split('train'))} images")
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

    say("4/5 evaluation on frames and on a view that the refinement never saw")
    renderer = AvatarRenderer(avatar, head, where, avatar_folder)
    white = torch.ones(3)
    lpips = Lpips.find(device=where)
    splits: tuple[Split, ...] = ("test", "view")
    reports = {s: evaluate(renderer, clip, s, resolution=SIZE, background=white, lpips=lpips) for s in splits}
    seconds = round(time.perf_counter() - began, 1)
    files.write_json(
        files.join(out, "metrics.json"), {**reports["test"], "held_out_view": reports["view"], "demo_seconds": seconds}
    )
    sheets = [
        contact_sheet(list(compare(renderer, clip, spread(clip.split(s), SHEET_ROWS), SIZE, white)), name)
        for s, name in zip(splits, ("unseen ", "unseen view, "))
    ]
    sheet = np.concatenate(sheets, 0)
    files.write_bytes(files.join(out, "contact_sheet.png"), encode(sheet, "png"))

    say("5/5 animation with the other person's motion")
    indices = driver.split("all")
    pictures = driven_frames(renderer, driver.params_at(indices), driver.camera(indices), white)
    with progress("animating", len(indices)) as update:

        def side_by_side():  # type: ignore[no-untyped-def]
            for done, (index, picture) in enumerate(zip(indices, pictures)):
                update(done + 1)
                shown = titled(to_bytes(driver.frame(index).image), "driver"), titled(picture, "avatar")
                yield np.concatenate(shown, 1)

        write_video(files.join(out, "animation.mp4"), side_by_side(), driver.fps)

    print(f"\n{'':18}{'PSNR':>8}{'SSIM':>9}{'LPIPS':>9}{'MSE':>11}")
    for split, name in zip(splits, ("unseen frames", "unseen view")):
        r = reports[split]
        perceptual = "-" if r["lpips"] is None else f"{r['lpips']:.4f}"
        print(f"{name:18}{r['psnr']:>8.2f}{r['ssim']:>9.4f}{perceptual:>9}{r['mse']:>11.6f}")
    trained = reports["test"]
    print(
        f"{trained['iterations']} iterations in {trained['seconds']:.0f} s, {trained['gaussians']} Gaussians, "
        f"aspect ratio at most {trained['max_aspect_ratio']:.2f}, {trained['frames_per_second']:.0f} frames/s\n"
        f"whole demo {time.perf_counter() - began:.0f} s. Look at {out}/contact_sheet.png and {out}/animation.mp4;\n"
        f"the avatar is {out}/avatar, all numbers are in {out}/metrics.json"
    )
