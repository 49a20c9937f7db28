"""``spatialavatar avatar``: look at saved avatars, make generated ones static."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialavatar.cli.console import DeviceOption, HeadOption, choose_device, resolve_head, say

if TYPE_CHECKING:
    from spatialavatar.avatar import Avatar

app = typer.Typer(no_args_is_help=True, help="Saved avatars: bake generated ones, show what they are.")

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
    """Make a generated avatar static: its Gaussians at one frame, for every frame.

    A frame is named CLIP#12 for instant 12, CLIP#12,3 for camera 3 of several.

    \b
    spatialavatar avatar bake avatars/anna --out avatars/anna_static
    spatialavatar avatar bake avatars/anna --at clips/anna#12 --out avatars/anna_at_12
    """
    from spatialavatar.avatar import AvatarRenderer, bake, bake_at_reference, read_avatar, write_avatar
    from spatialavatar.avatar.frame_name import frame_name, parse_one_frame
    from spatialavatar.clip import open_clip
    from spatialavatar.errors import SpatialAvatarError

    subject = read_avatar(avatar)
    if subject.kind == "static":
        raise SpatialAvatarError(f"{avatar}: is static already; only avatars of 'spatialavatar reconstruct' are baked")
    frame = None if at is None else parse_one_frame(at, "--at")
    model = resolve_head(subject.head, head, avatar, subject.head_hints(avatar))
    where = choose_device(device)
    if frame is None:
        baked = bake_at_reference(subject, model, where, avatar)
    else:
        clip = open_clip(frame[0])
        clip.require_head(model)
        renderer = AvatarRenderer(subject, model, where, avatar)
        params, camera = clip.params_at(frame[1]), clip.camera(frame[1])
        baked = bake(renderer, params, camera, frame_name(clip, frame[1]))
    claim_avatar_folder(out, force)
    write_avatar(out, moved(baked, avatar, out))
    say(f"{baked.appearance.count} Gaussians at {baked.provenance['baked']['frame']} -> {out}")
    say(baked.licence_note)


@app.command()
def info(
    avatar: Folder,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what an avatar is, what it was made from, and its licence.

    \b
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


def claim_avatar_folder(out: str, force: bool) -> None:
    """Raises SpatialAvatarError when ``out`` holds what must not be replaced; removes what an earlier avatar left."""
    from spatialavatar import files
    from spatialavatar.avatar.avatar import GAUSSIAN_AVATARS, PLY
    from spatialavatar.refine import METRICS, claim_folder
    from spatialavatar.refine.checkpoint import FILE
    from spatialavatar.refine.run import LOG

    claim_folder(out, force=force)
    for stale in (FILE, LOG, METRICS, PLY, GAUSSIAN_AVATARS):
        files.remove(files.join(out, stale))


def moved(avatar: "Avatar", folder: str, out: str) -> "Avatar":
    """The avatar read from one folder, written to another, finds its head as before."""
    import dataclasses

    from spatialavatar import files

    named = avatar.provenance.get("head_file")
    if named is None:
        return avatar
    place = avatar.head_hints(folder)[-1]
    return dataclasses.replace(avatar, provenance={**avatar.provenance, "head_file": files.relative(place, out)})


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
