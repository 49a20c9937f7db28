"""``spatialavatar export``: an avatar for other programs."""

from typing import Annotated

import typer

from spatialavatar.cli.console import HeadOption, resolve_head, say

FORMATS = ("ply", "gaussian-avatars")


def export(
    avatar: Annotated[str, typer.Argument(metavar="AVATAR", help="An avatar folder.")],
    format: Annotated[str, typer.Option("--format", "-f", help="ply (any splat viewer) or gaussian-avatars.")] = "ply",
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="File (ply) or folder; inside the avatar's folder unless given.")
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(
            metavar="CLIP|CLIP#T", help="Take the expression from this clip (for ply: a frame of it, else the first)."
        ),
    ] = None,
    frame: Annotated[int | None, typer.Option(min=0, help="The same as CLIP#T: which instant of --driver.")] = None,
    head: HeadOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write an avatar for other programs.

    As a plain 3DGS PLY, or as a GaussianAvatars folder (heads of FLAME's topology only). A generated avatar goes out as
    it looks at its reference frame; 'spatialavatar avatar bake --at' takes another.

    \b
    Examples:
      spatialavatar export avatars/anna --format ply --out anna.ply
      spatialavatar export avatars/anna --driver clips/ben#12 --out anna_as_ben.ply
      spatialavatar export avatars/anna --format gaussian-avatars --driver clips/anna --out anna_ga
    """
    from spatialavatar import files
    from spatialavatar.avatar import AvatarRenderer, StaticAppearance, bake_at_reference, read_avatar
    from spatialavatar.avatar.animate import still
    from spatialavatar.avatar.export import write_gaussian_avatars, write_ply
    from spatialavatar.avatar.export.gaussian_avatars import require_flame
    from spatialavatar.avatar.folder import GAUSSIAN_AVATARS, PLY
    from spatialavatar.clip import FrameIndex, open_clip
    from spatialavatar.clip.frame_name import parse_frame_name
    from spatialavatar.errors import SpatialAvatarError

    if format not in FORMATS:
        raise SpatialAvatarError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    footage, named = (None, None) if driver is None else parse_frame_name(driver)
    if frame is not None and (footage is None or named is not None or format != "ply"):
        raise SpatialAvatarError(f"--frame {frame}: names an instant of --driver CLIP, for --format ply")
    if named is not None and format != "ply":
        raise SpatialAvatarError(f"--driver {driver}: a {format} export plays a whole clip; leave out #{named.instant}")
    subject = read_avatar(avatar)
    clip = None if footage is None else open_clip(footage)
    hints = subject.head_hints(avatar) + ([] if clip is None else [clip.location])
    model = resolve_head(subject.head, head, avatar, hints)
    subject = bake_at_reference(subject, model, "cpu", avatar)
    assert isinstance(subject.appearance, StaticAppearance)
    renderer = AvatarRenderer(subject, model, "cpu", avatar)
    params = subject.reference_params
    if clip is not None:
        clip.require_head(model)
        params = clip.params_at(named or FrameIndex(frame or 0, 0)) if format == "ply" else clip.params
    comments = [f"SpatialAvatar {subject.identity}", subject.licence_note]
    if format == "ply":
        target = out or files.join(avatar, PLY)
        files.refuse_existing(target, force)
        write_ply(target, renderer.posed(subject.appearance.gaussians, still(params)), comments)
    else:
        require_flame(model)
        target = out or files.join(avatar, GAUSSIAN_AVATARS)
        files.claim_output_folder(target, force=force)
        own = params.with_identity(subject.shape, subject.static_offset)
        write_gaussian_avatars(target, model, renderer.layout, subject.appearance.gaussians, own, comments)
    say(f"{subject.appearance.count} Gaussians -> {target}\n{subject.licence_note}")
