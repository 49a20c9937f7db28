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
        typer.Option(metavar="CLIP", help="Take the expression from this clip, not the reference frame."),
    ] = None,
    frame: Annotated[
        int | None, typer.Option(min=0, help="With --driver, for ply: which instant; 0 if absent.")
    ] = None,
    head: HeadOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write an avatar as a plain 3DGS PLY, or as a GaussianAvatars folder (heads of FLAME's topology only).

    A generated avatar goes out as it looks at its reference frame; 'spatialavatar avatar bake --at' takes another.

    \b
    spatialavatar export avatars/anna --format ply --out anna.ply
    spatialavatar export avatars/anna --format gaussian-avatars --driver clips/anna --out anna_ga
    """
    from spatialavatar import files
    from spatialavatar.avatar import AvatarRenderer, StaticAppearance, bake_at_reference, read_avatar
    from spatialavatar.avatar.animate import orbit_camera, still
    from spatialavatar.avatar.avatar import GAUSSIAN_AVATARS, PLY
    from spatialavatar.avatar.export import write_gaussian_avatars, write_ply
    from spatialavatar.avatar.export.gaussian_avatars import require_flame
    from spatialavatar.clip import open_clip
    from spatialavatar.errors import SpatialAvatarError

    if format not in FORMATS:
        raise SpatialAvatarError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    if frame is not None and (driver is None or format != "ply"):
        raise SpatialAvatarError(f"--frame {frame}: names an instant of --driver, for --format ply")
    subject = read_avatar(avatar)
    model = resolve_head(subject.head, head, avatar, subject.head_hints(avatar))
    subject = bake_at_reference(subject, model, "cpu", avatar)
    assert isinstance(subject.appearance, StaticAppearance)
    renderer = AvatarRenderer(subject, model, "cpu", avatar)
    params = subject.reference_params
    if driver is not None:
        clip = open_clip(driver)
        clip.require_head(model)
        if format == "ply":
            instant = frame or 0
            if instant >= clip.instants:
                raise SpatialAvatarError(f"--frame {frame}: {driver} has frames 0..{clip.instants - 1}")
            params = clip.params[instant]
        else:
            params = clip.params
    comments = [f"SpatialAvatar {subject.identity}", subject.licence_note]
    if format == "ply":
        target = out or files.join(avatar, PLY)
        files.refuse_existing(target, force)
        rest = still(params)
        world = renderer.world(rest, orbit_camera(model(rest)[0], 1, 512))
        write_ply(target, world, comments)
    else:
        require_flame(model)
        target = out or files.join(avatar, GAUSSIAN_AVATARS)
        files.claim_output_folder(target, force=force)
        own = params.with_identity(subject.shape, subject.static_offset)
        write_gaussian_avatars(target, model, renderer.layout, subject.appearance.gaussians, own, comments)
    say(f"{subject.appearance.count} Gaussians -> {target}\n{subject.licence_note}")
