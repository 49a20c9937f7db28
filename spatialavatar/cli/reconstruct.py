"""``spatialavatar reconstruct``: one to four portraits become an avatar in one pass of a trained generator."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from spatialavatar.cli.console import DeviceOption, choose_device, locate_head, say

if TYPE_CHECKING:
    from spatialavatar.avatar.source_frames import SourceFrame
    from spatialavatar.head.reference import FoundHead

SHAPE_TOLERANCE = 1e-4  # in shape codes: what else differs was tracked as another shape
MOST_OF_A_CLIP = 4  # frames of a whole clip unless told otherwise


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
    k: Annotated[
        int | None, typer.Option("--k", min=1, max=4, help="Frames to take of each whole clip; 4 unless given.")
    ] = None,
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
    """Make an avatar of one to four portraits, in one pass.

    \b
    Examples:
      spatialavatar reconstruct clips/anna#12 --checkpoint runs/phase2 --out avatars/anna
      spatialavatar reconstruct clips/anna --k 4 --checkpoint runs/phase2 --out avatars/anna --preview anna.png

    A whole clip gives its reference frame, the one with the mouth most closed, and frames whose views are far apart.
    The avatar needs its head model to be shown, the checkpoint no more. 'spatialavatar refine --init AVATAR' goes on
    from it.
    """
    import time

    from spatialavatar import files
    from spatialavatar.avatar import AvatarRenderer, write_avatar
    from spatialavatar.avatar.folder import claim_folder, clear_folder
    from spatialavatar.avatar.reconstruct import load_generator, look_at
    from spatialavatar.avatar.reconstruct import reconstruct as pass_once
    from spatialavatar.clip.header import IDENTITY_RULE, is_identity, safe_identity
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.generator.checkpoint import read_facts

    began = time.perf_counter()
    if identity is not None and not is_identity(identity):
        raise SpatialAvatarError(
            f"--identity {identity!r}: expected {IDENTITY_RULE}; for one, --identity {safe_identity(identity)}"
        )
    where = choose_device(device)
    facts = read_facts(checkpoint)
    claim_folder(out, force)  # before any work; what is replaced goes when all input has proved sound
    if preview is not None:
        files.refuse_existing(preview, force)
    size = facts.config.encoder.image_size
    frames, found, whole = _sources(source, head, k, size)
    model = found.head
    _require_one_person(frames, identity)
    portraits = look_at(frames, model, size)
    say(f"sources: {', '.join(frame.name for frame in frames)}")
    reads = time.perf_counter()
    loaded = load_generator(checkpoint, model, where, encoder_weights)
    reading = time.perf_counter() - reads
    reference = 0 if whole else None  # a whole clip's own comes first
    avatar = pass_once(loaded, portraits, identity=identity, reference=reference, head_file=found.file, out=out)
    clear_folder(out)
    write_avatar(out, avatar)
    if preview is not None:
        from spatialavatar.clip.pictures import encode
        from spatialavatar.evaluation.contact_sheet import preview_sheet

        picture = preview_sheet(AvatarRenderer(avatar, model, where, out), portraits.sources)
        files.write_bytes(preview, encode(picture, "png"))
        say(f"preview -> {preview}")
    seconds = avatar.provenance["metrics"]["seconds"]
    say(
        f"{avatar.appearance.count} Gaussians of {avatar.identity} in {seconds:.2f} s on {where} "
        f"({reading:.1f} s to read the generator, {time.perf_counter() - began:.1f} s in all) -> {out}"
    )
    say(avatar.licence_note)


def _sources(
    named: Sequence[str], head_file: str | None, k: int | None, size: int
) -> tuple[list["SourceFrame"], "FoundHead", bool]:
    """The frames that are meant, their head, and whether they are one whole clip's.

    Raises SpatialAvatarError for what cannot be meant.
    """
    from spatialavatar.avatar.source_frames import SourceFrame, choose_frames
    from spatialavatar.clip import open_clip
    from spatialavatar.clip.frame_name import parse_frame_name
    from spatialavatar.errors import SpatialAvatarError

    parsed = [parse_frame_name(text) for text in named]
    if k is not None and all(index is not None for _, index in parsed):
        raise SpatialAvatarError(f"--k {k}: says how many frames of a whole clip are taken, but all sources are frames")
    clips = {location: open_clip(location) for location, _ in parsed}
    first = clips[parsed[0][0]]
    hints = list(dict.fromkeys(clip.location for clip in clips.values()))
    found = locate_head(first.head, head_file, parsed[0][0], hints)
    frames: list[SourceFrame] = []
    for location, index in parsed:
        clip = clips[location]
        clip.require_head(found.head)
        if index is None:
            frames += choose_frames(clip, found.head, k or MOST_OF_A_CLIP, size)
        else:
            frames.append(SourceFrame(clip, index))
    names = [frame.name for frame in frames]
    for name in names:
        if names.count(name) > 1:
            raise SpatialAvatarError(f"{name}: is named as a source twice; name another frame")
    return frames, found, len(parsed) == 1 and parsed[0][1] is None


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
            first = frames[0].clip.location
            say(f"{frame.clip.location}: tracked with another shape; the avatar takes that of {first}")
            return
