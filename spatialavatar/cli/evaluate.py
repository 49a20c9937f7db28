"""``spatialavatar evaluate``: an avatar against frames of its clip."""

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from spatialavatar.cli.console import (
    DeviceOption,
    HeadOption,
    choose_device,
    parse_background,
    progress,
    resolve_head,
)

if TYPE_CHECKING:
    import torch

    from spatialavatar.avatar import Avatar
    from spatialavatar.clip import TrackedClip
    from spatialavatar.clip.tracked_clip import Split
    from spatialavatar.head import HeadModel

SHEET_ROWS = 6


def evaluate(
    avatar: Annotated[str, typer.Argument(metavar="AVATAR", help="An avatar folder.")],
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="A tracked clip of the same person.")],
    split: Annotated[str, typer.Option(help="test, train, view (held-out cameras) or all.")] = "test",
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FILE", help="Write the report as JSON.")] = None,
    sheet: Annotated[str | None, typer.Option(metavar="PNG", help="Write a picture: target | avatar | error.")] = None,
    resolution: Annotated[
        int | None, typer.Option(min=16, help="Pixels of the longer side; what it was made at unless given.")
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(help="Behind both pictures: white (black for clips without alpha), black, or r,g,b."),
    ] = None,
    lpips_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="AlexNet features for LPIPS (see 'spatialavatar doctor').")
    ] = None,
    head: HeadOption = None,
    device: DeviceOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Measure an avatar against frames of a clip.

    PSNR, SSIM, LPIPS and MSE over the held-out frames, the largest aspect ratio, and frames per second.

    \b
    Example:
      spatialavatar evaluate avatars/anna clips/anna --out metrics.json --sheet sheet.png
    """
    from spatialavatar import files
    from spatialavatar.avatar import read_avatar
    from spatialavatar.clip import open_clip
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.evaluation.self_reenactment import SPLITS

    if split not in SPLITS:
        raise SpatialAvatarError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    for target in (out, sheet):
        if target is not None:
            files.refuse_existing(target, force)
    subject = read_avatar(avatar)
    footage = open_clip(clip)
    model = resolve_head(subject.head, head, avatar, [*subject.head_hints(avatar), footage.location])
    print_report(
        report(
            subject,
            model,
            footage,
            cast("Split", split),
            folder=avatar,
            out=out,
            sheet=sheet,
            resolution=resolution,
            background=None if background is None else parse_background(background),
            lpips_weights=lpips_weights,
            device=choose_device(device),
        )
    )


def report(
    avatar: "Avatar",
    head: "HeadModel",
    clip: "TrackedClip",
    split: "Split",
    *,
    folder: str,
    out: str | None = None,
    sheet: str | None = None,
    resolution: int | None = None,
    background: "torch.Tensor | None" = None,
    lpips_weights: str | None = None,
    device: "torch.device",
    limit: int | None = None,
) -> dict[str, Any]:
    """Evaluate the avatar of ``folder``, write what is asked for, and return the report."""
    from spatialavatar import files
    from spatialavatar.avatar import AvatarRenderer
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.evaluation.metrics import Lpips
    from spatialavatar.evaluation.self_reenactment import background_for, compare, spread
    from spatialavatar.evaluation.self_reenactment import evaluate as measure

    renderer = AvatarRenderer(avatar, head, device, folder)
    behind = background_for(clip) if background is None else background
    if clip.matte_kind != "alpha" and behind.any():
        raise SpatialAvatarError(f"{clip.location}: has no alpha (matte: {clip.matte_kind}); measure it on black")
    size = resolution or avatar.provenance["config"]["resolution"]
    lpips = Lpips.find(lpips_weights, device)
    with progress("evaluating", min(len(clip.split(split)), limit or 10**9)) as update:
        result = measure(
            renderer, clip, split, resolution=size, background=behind, lpips=lpips, limit=limit,
            observe=lambda done, total: update(done),
        )  # fmt: skip
    if out is not None:
        files.write_json(out, result)
    if sheet is not None:
        from spatialavatar.clip.pictures import encode
        from spatialavatar.evaluation.contact_sheet import contact_sheet

        frames = spread(clip.split(split), SHEET_ROWS)
        picture = contact_sheet(list(compare(renderer, clip, frames, size, behind)))
        files.write_bytes(sheet, encode(picture, "png"))
    return result


def print_report(result: dict[str, Any]) -> None:
    """A short table on stdout."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    worst = result["worst_frame"]
    print(
        f"{result['identity']} on {result['frames']} {result['split']} frames of {result['clip']} "
        f"at {result['resolution']} pixels"
    )
    print(f"  PSNR    {shown(result['psnr'], '.2f')} dB (worst {worst['psnr']:.2f} dB, frame {worst['instant']})")
    print(f"  SSIM    {shown(result['ssim'], '.4f')}")
    print(f"  LPIPS   {shown(result['lpips'], '.4f')}")
    print(f"  MSE     {shown(result['mse'], '.6f')}")
    print(f"  aspect  {result['max_aspect_ratio']:.2f} at most")
    print(f"  speed   {result['frames_per_second']:.1f} frames/s")
