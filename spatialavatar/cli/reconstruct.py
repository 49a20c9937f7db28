"""``spatialavatar reconstruct``: one to four portraits become an avatar in one pass of a trained generator."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from spatialavatar.cli.console import DeviceOption, choose_device, resolve_head, say

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

    from spatialavatar.avatar import AvatarRenderer
    from spatialavatar.avatar.reconstruct import Portraits, SourceFrame
    from spatialavatar.head import HeadModel

SHAPE_TOLERANCE = 1e-4  # in shape codes: what else differs was tracked as another shape
OTHER_VIEWS = (0, 1, 2, 6)  # eighths of the orbit that a preview shows: front, three quarters, either side


def reconstruct(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Frames of tracked clips as clips/anna#12 (camera 3: #12,3), or whole clips."
        ),
    ],
    checkpoint: Annotated[
        str, typer.Option(metavar="CKPT", help="A training run, one of its checkpoints, or a generator's file.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="AVATAR", help="Folder for the avatar.")],
    head: Annotated[
        str | None,
        typer.Option(
            "--head", metavar="FILE", help="The head that the clips were tracked with; the built-in one is found."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, max=4, help="Frames to take of each whole clip.")] = 4,
    identity: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who it is, also where clips of several names show this person.")
    ] = None,
    preview: Annotated[
        str | None, typer.Option(metavar="PNG", help="Write a picture: sources, renders from there, other views.")
    ] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="The encoder's weights, when not where they were at training.")
    ] = None,
    device: DeviceOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace what --out holds, and an existing preview.")] = False,
) -> None:
    """Reconstruct an avatar from one to four frames of a person, without any optimisation.

    \b
    spatialavatar reconstruct clips/anna#12 --checkpoint runs/phase2 --out avatars/anna
    spatialavatar reconstruct clips/anna --k 4 --checkpoint runs/phase2 --out avatars/anna --preview anna.png

    A whole clip gives the training frame that shows most of the face, and others whose views are far apart. The avatar
    needs its head model to be shown, the checkpoint no more. 'spatialavatar refine --init AVATAR' goes on from it.
    """
    import time

    from spatialavatar import files
    from spatialavatar.avatar import AvatarRenderer, write_avatar
    from spatialavatar.avatar.reconstruct import load_generator, look_at
    from spatialavatar.avatar.reconstruct import reconstruct as pass_once
    from spatialavatar.cli.avatar import claim_avatar_folder
    from spatialavatar.generator.checkpoint import read_facts
    from spatialavatar.refine import claim_folder

    began = time.perf_counter()
    where = choose_device(device)
    facts = read_facts(checkpoint)
    claim_folder(out, force=force)  # before any work; what is replaced goes when all input has proved sound
    if preview is not None:
        files.refuse_existing(preview, force)
    frames, model = _sources(source, head, k)
    _require_one_person(frames, identity)
    portraits = look_at(frames, model, facts.config.encoder.image_size)
    say(f"sources: {', '.join(frame.name for frame in frames)}")
    loaded = time.perf_counter()
    generation = load_generator(checkpoint, model, where, encoder_weights)
    reading = time.perf_counter() - loaded
    avatar = pass_once(generation, portraits, identity=identity, head_file=head, out=out)
    claim_avatar_folder(out, force)
    write_avatar(out, avatar)
    if preview is not None:
        from spatialavatar.clip.pictures import encode

        picture = preview_sheet(AvatarRenderer(avatar, model, where, out), portraits)
        files.write_bytes(preview, encode(picture, "png"))
        say(f"preview -> {preview}")
    seconds = avatar.provenance["metrics"]["seconds"]
    say(
        f"{avatar.appearance.count} Gaussians of {avatar.identity} in {seconds:.2f} s on {where} "
        f"({reading:.1f} s to read the generator, {time.perf_counter() - began:.1f} s in all) -> {out}"
    )
    say(avatar.licence_note)


def preview_sheet(renderer: "AvatarRenderer", portraits: "Portraits") -> "UInt8[np.ndarray, 'H W 3']":
    """Three rows: the sources as the generator saw them, the avatar from there, the avatar from elsewhere; on black."""
    import numpy as np
    import torch

    from spatialavatar.avatar.animate import orbit_camera, still
    from spatialavatar.evaluation.contact_sheet import titled, to_bytes

    sources, black = portraits.sources, torch.zeros(3)
    size = sources.camera.width
    own = renderer.avatar
    rest = renderer.head(renderer.head.neutral().with_identity(own.shape, own.static_offset))[0]
    orbit = orbit_camera(rest, 8, size)
    seen = [titled(to_bytes(image.movedim(0, -1)), f"source {i + 1}") for i, image in enumerate(sources.images[0])]
    again = [
        titled(to_bytes(renderer.image(sources.params[i], sources.camera[i], black)[0]), f"avatar at source {i + 1}")
        for i in range(len(seen))
    ]
    posed = still(own.reference_params)
    around = [titled(to_bytes(renderer.image(posed, orbit[i], black)[0]), "another view") for i in OTHER_VIEWS]
    rows = [np.concatenate(cells, 1) for cells in (seen, again, around)]
    widest = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(padded, 0)


def _sources(named: Sequence[str], head_file: str | None, k: int) -> tuple[list["SourceFrame"], "HeadModel"]:
    """The frames that are meant, and their head. Raises SpatialAvatarError for what cannot be meant."""
    from spatialavatar.avatar.frame_name import parse_frame_name
    from spatialavatar.avatar.reconstruct import SourceFrame, choose_frames, with_a_face
    from spatialavatar.clip import open_clip
    from spatialavatar.errors import SpatialAvatarError

    parsed = [parse_frame_name(text) for text in named]
    clips = {location: open_clip(location) for location, _ in parsed}
    first = clips[parsed[0][0]]
    model = resolve_head(first.head, head_file, parsed[0][0], [first.folder])
    frames = []
    for location, index in parsed:
        clip = clips[location]
        clip.require_head(model)
        frames += (
            choose_frames(clip, model, with_a_face(clip, model), k) if index is None else [SourceFrame(clip, index)]
        )
    names = [frame.name for frame in frames]
    for name in names:
        if names.count(name) > 1:
            raise SpatialAvatarError(f"{name}: is named as a source twice; name another frame")
    return frames, model


def _require_one_person(frames: Sequence["SourceFrame"], identity: str | None) -> None:
    from spatialavatar.errors import SpatialAvatarError

    people = list(dict.fromkeys(frame.clip.identity for frame in frames))
    if len(people) > 1 and identity is None:
        raise SpatialAvatarError(
            f"the sources show {len(people)} people ({', '.join(people)}); an avatar is of one: name frames of one of "
            "them, or say with --identity NAME that they are the same person"
        )
    shape = frames[0].clip.params.shape[0]
    for frame in frames[1:]:
        if float((frame.clip.params.shape[0] - shape).abs().max()) > SHAPE_TOLERANCE:
            say(f"{frame.clip.folder}: tracked with another shape; the avatar takes that of {frames[0].clip.folder}")
            return
