"""``spatialavatar animate``: a moving picture of an avatar."""

from typing import Annotated

import typer

from spatialavatar.cli.console import (
    BackgroundOption,
    DeviceOption,
    HeadOption,
    choose_device,
    parse_background,
    progress,
    resolve_head,
    say,
)


def animate(
    avatar: Annotated[str, typer.Argument(metavar="AVATAR", help="An avatar folder.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="MP4", help="The video to write.")],
    driver: Annotated[
        str | None, typer.Option(metavar="CLIP", help="Whose expression and pose; any clip of the same head model.")
    ] = None,
    camera: Annotated[
        str, typer.Option(help="driver (as camera 0 of the clip saw it) or orbit (swing round the head).")
    ] = "driver",
    frames: Annotated[int | None, typer.Option(min=1, help="At most this many frames.")] = None,
    resolution: Annotated[
        int | None, typer.Option(min=16, help="Pixels of the longer side; what it was made at unless given.")
    ] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, help="Frames per second; the driver's unless given.")] = None,
    background: BackgroundOption = "white",
    head: HeadOption = None,
    device: DeviceOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Animate an avatar with the motion of a clip.

    The clip may show the same person or another. Of several cameras, camera 0 is the one that sees the avatar.

    \b
    Examples:
      spatialavatar animate avatars/anna --driver clips/ben --out anna_as_ben.mp4
      spatialavatar animate avatars/anna --camera orbit --out anna_around.mp4
    """
    import time

    from spatialavatar import files
    from spatialavatar.avatar import AvatarRenderer, read_avatar
    from spatialavatar.avatar.animate import driven_frames, orbit_camera, still, write_video
    from spatialavatar.clip import open_clip
    from spatialavatar.errors import SpatialAvatarError

    if camera not in ("driver", "orbit"):
        raise SpatialAvatarError(f"--camera {camera}: expected driver or orbit")
    if driver is None and camera == "driver":
        raise SpatialAvatarError("name the clip that drives the avatar with --driver, or turn it with --camera orbit")
    files.refuse_existing(out, force)
    subject = read_avatar(avatar)
    clip = None if driver is None else open_clip(driver)
    hints = subject.head_hints(avatar) + ([] if clip is None else [clip.location])
    model = resolve_head(subject.head, head, avatar, hints)
    renderer = AvatarRenderer(subject, model, choose_device(device), avatar)
    size = resolution or subject.provenance["config"]["resolution"]
    rate = fps or subject.provenance["clip"]["fps"]
    if clip is None:
        count = frames or 100
        params = subject.reference_params[[0] * count]
    else:
        clip.require_head(model)
        indices = [index for index in clip.split("all") if index.camera == 0][:frames]
        count, rate = len(indices), fps or clip.fps
        if clip.cameras > 1 and camera == "driver":
            say(f"{driver}: as camera 0 of its {clip.cameras} sees it")
        params = clip.params_at(indices)
    if clip is None or camera == "orbit":
        params = still(params)
        own = renderer.avatar
        rest = renderer.head(renderer.head.neutral().with_identity(own.shape, own.static_offset))[0]
        cameras = orbit_camera(rest, count, size)
    else:
        cameras = clip.camera(indices).resized(*clip.size_at(size))
    with progress("animating", count) as update:
        began = time.perf_counter()

        def counted():  # type: ignore[no-untyped-def]
            for done, picture in enumerate(driven_frames(renderer, params, cameras, parse_background(background))):
                update(done + 1)
                yield picture

        written = write_video(out, counted(), rate)
        seconds = time.perf_counter() - began
    say(f"{written} frames in {seconds:.1f} s ({written / seconds:.1f} frames/s with encoding) -> {out}")
