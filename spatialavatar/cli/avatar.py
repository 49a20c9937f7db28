"""``spatialavatar avatar``: look at saved avatars, make generated ones static."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialavatar.cli.console import DeviceOption, HeadOption, choose_device, locate_head, say

if TYPE_CHECKING:
    from spatialavatar.avatar import Avatar

app = typer.Typer(
    no_args_is_help=True,
    help="""Saved avatars: bake generated ones, show what they are.

    \b
    Example:
      spatialavatar avatar info avatars/anna
    """,
)

Folder = Annotated[str, typer.Argument(metavar="AVATAR", help="An avatar folder.")]


@app.command("bake")
def bake_(
    avatar: Folder,
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder for the static avatar.")],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="CLIP#T", help="The frame whose view and expression it keeps; its reference frame unless given."
        ),
    ] = None,
    head: HeadOption = None,
    device: DeviceOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace what --out holds.")] = False,
) -> None:
    """Make a generated avatar static, as it is at one frame.

    Its Gaussians at that frame are then shown at every frame. CLIP#12 names instant 12, CLIP#12,3 its camera 3.

    \b
    Examples:
      spatialavatar avatar bake avatars/anna --out avatars/anna_static
      spatialavatar avatar bake avatars/anna --at clips/anna#12 --out avatars/anna_at_12
    """
    from spatialavatar.avatar import AvatarRenderer, bake, bake_at_reference, read_avatar, write_avatar
    from spatialavatar.avatar.folder import claim_folder, clear_folder
    from spatialavatar.clip import open_clip
    from spatialavatar.clip.frame_name import frame_name, parse_one_frame
    from spatialavatar.errors import SpatialAvatarError

    subject = read_avatar(avatar)
    if subject.kind == "static":
        raise SpatialAvatarError(f"{avatar}: is static already; only avatars of 'spatialavatar reconstruct' are baked")
    frame = None if at is None else parse_one_frame(at, "--at")
    claim_folder(out, force)  # before any work; what is replaced goes when all input has proved sound
    clip = None if frame is None else open_clip(frame[0])
    hints = subject.head_hints(avatar) + ([] if clip is None else [clip.location])
    found = locate_head(subject.head, head, avatar, hints)
    where = choose_device(device)
    if clip is None or frame is None:
        baked = bake_at_reference(subject, found.head, where, avatar)
    else:
        clip.require_head(found.head)
        renderer = AvatarRenderer(subject, found.head, where, avatar)
        params, camera = clip.params_at(frame[1]), clip.camera(frame[1])
        baked = bake(renderer, params, camera, frame_name(clip, frame[1]))
    clear_folder(out)
    write_avatar(out, with_head_file(baked, found.file, out))
    say(f"{baked.appearance.count} Gaussians at {baked.provenance['baked']['frame']} -> {out}")
    say(baked.licence_note)


@app.command()
def info(
    avatar: Folder,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what an avatar is, its sources and its licence.

    \b
    Example:
      spatialavatar avatar info avatars/anna
    """
    from json import dumps

    from spatialavatar.avatar import read_avatar

    facts = _facts(read_avatar(avatar))
    if json:
        typer.echo(dumps(facts, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        typer.echo(f"{name.replace('_', ' '):20} {'-' if shown in ('', None) else shown}")


def with_head_file(avatar: "Avatar", file: str | None, out: str) -> "Avatar":
    """The avatar, written to ``out``, finds its head there."""
    import dataclasses

    from spatialavatar import files

    named = None if file is None else files.relative(file, out)
    return dataclasses.replace(avatar, provenance={**avatar.provenance, "head_file": named})


def _facts(avatar: "Avatar") -> dict[str, Any]:
    from spatialavatar.avatar import GeneratedAppearance

    provenance, look = avatar.provenance, avatar.appearance
    clip, metrics = provenance.get("clip", {}), provenance.get("metrics", {})
    facts: dict[str, Any] = {"kind": avatar.kind, "identity": avatar.identity}
    if isinstance(look, GeneratedAppearance):
        training = provenance.get("generator", {}).get("training", {})
        facts |= {
            "generator": look.generator_hash,
            "checkpoint": look.generator_file,
            "trained": ", ".join(f"{key} {training[key]}" for key in ("phase", "step") if key in training),
            "features": look.features.shape[-1],
        }
    facts |= {
        "gaussians": look.count,
        "color_channels": look.channels,
        "uv_resolution": avatar.uv_resolution,
        "layout": avatar.layout_fingerprint,
        "head": avatar.head.id,
        "head_hash": avatar.head.hash,
        "source_frames": clip.get("frames", ""),
        "reference_frame": clip.get("reference_frame", ""),
        "start": provenance.get("start", ""),
        "baked": provenance.get("baked", {}).get("frame", ""),
        "iterations": metrics.get("iterations", ""),
        "made_with": f"spatialavatar {provenance.get('spatialavatar', '')}",
        "licence_note": avatar.licence_note,
    }
    return facts
