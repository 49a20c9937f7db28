"""``spatialavatar clip``: make tracked clips, check them, look at them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from spatialavatar.cli.console import Update, progress, resolve_head, say, tell_faults

if TYPE_CHECKING:
    from spatialavatar.head import HeadModel

app = typer.Typer(
    no_args_is_help=True,
    help="""Tracked clips: import, synthesize, validate, inspect, export.

    \b
    Example:
      spatialavatar clip import tracked/anna --head flame2020.head.safetensors --out clips/anna
    """,
)

Clip = Annotated[str, typer.Argument(metavar="CLIP", help="A clip's folder (or URL).")]
Out = Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="The clip's folder; made when absent.")]
Head = Annotated[str, typer.Option("--head", metavar="FILE", help="The head that the clip was tracked with.")]
TestLast = Annotated[int, typer.Option(metavar="N", min=0, help="Keep the last N instants for testing.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the clip in --out, or write beside other files there.")]


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The folder (or URL) that the tracker wrote.")],
    head: Head,
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="DIR", help="The clip's folder, or that of several; made when absent."),
    ],
    format: Annotated[
        str,
        typer.Option(
            metavar="auto|gagavatar-track|imavatar|vhap|nersemble|npz",
            help="What wrote SRC; auto looks at its files. imavatar is SplattingAvatar's too, vhap GaussianAvatars'.",
        ),
    ] = "auto",
    test_last: TestLast = 0,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Keep for testing what the tool's own files keep.")
    ] = False,
    identity: Annotated[str | None, typer.Option(metavar="NAME", help="Who is seen; SRC's name when absent.")] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Licence of the pictures, kept as a note.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(metavar="N", help="Instants in a second; needed where SRC does not say it (else 25) or is wrong."),
    ] = None,
    tracking: Annotated[
        str | None, typer.Option(metavar="DIR", help="nersemble: the folder that VHAP exported, if not SRC/vhap.")
    ] = None,
    drop_dynamic_offsets: Annotated[
        bool,
        typer.Option("--drop-dynamic-offsets", help="vhap: import although the mesh also moves vertex by vertex."),
    ] = False,
    force: Force = False,
) -> None:
    """Import a tracker's result as a clip.

    Cameras, codes and the head's size come out in one convention, whatever the tool's own is. Pictures are copied as
    they are, except where the tool put them on a background that its matte can undo.

    SRC is, for gagavatar-track, the folder with img_lmdb/ and optim.pkl; for imavatar, that with flame_params.json; for
    vhap, that with transforms.json and flame_param/; for nersemble, a sequence's or a participant's, with the export of
    VHAP in SEQ/vhap or where --tracking says.

    \b
    Examples:
      spatialavatar clip import tracked/anna --head flame2020.head.safetensors --out clips/anna --test-last 350
      spatialavatar clip import vhap/306 --head flame2023.head.safetensors --out clips/306 --keep-split
      spatialavatar clip import nersemble/030/sequences/EMO-1-shout+laugh --tracking vhap/030_EMO-1 \\
          --head flame2023.head.safetensors --out clips/030
    """
    from spatialavatar.clip.header import IDENTITY_RULE, is_identity, safe_identity
    from spatialavatar.clip.importers import ImportOptions, import_clips
    from spatialavatar.clip.replacing import refuse_existing_clip
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.head.file import read_head

    if identity is not None and not is_identity(identity):
        raise SpatialAvatarError(
            f"--identity {identity!r}: expected {IDENTITY_RULE}; for one, --identity {safe_identity(identity)}"
        )
    if keep_split and test_last:
        raise SpatialAvatarError("--keep-split takes the tool's test set, --test-last makes one: give one of them")
    if fps is not None and not fps > 0:
        raise SpatialAvatarError(f"--fps {fps:g}: expected a positive number")
    if tracking is not None and format not in ("auto", "nersemble"):
        raise SpatialAvatarError(f"--tracking {tracking}: belongs to --format nersemble, not to {format}")
    refuse_existing_clip(out, force)
    options = ImportOptions(
        identity=identity,
        licence=licence,
        fps=fps,
        test_last=test_last,
        keep_split=keep_split,
        tracking=tracking,
        drop_dynamic_offsets=drop_dynamic_offsets,
    )
    with _progress("importing") as update:
        clips = import_clips(source, out, read_head(head), format, options, progress=update, force=force)
    for clip in clips:
        typer.echo(_summary(clip))
        say(f"read from {clip.source.tool}: {clip.source.note}")


@app.command()
def export(
    clip: Clip,
    format: Annotated[
        str, typer.Option(metavar="vhap|gagavatar-track", help="Whose layout; vhap is GaussianAvatars'.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="The folder to write; made when absent.")],
    head: Annotated[
        str | None, typer.Option("--head", metavar="FILE", help="The clip's head; not needed for the built-in head.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that holds files, over those of an earlier export.")
    ] = False,
) -> None:
    """Write a clip for other programs.

    As the folder that their tracker would have written: GaussianAvatars trains on vhap's, GAGAvatar is driven by
    gagavatar-track's. What the layout cannot hold is said in numbers.

    \b
    Examples:
      spatialavatar clip export clips/anna --format vhap --head flame2023.head.safetensors --out anna_vhap
      spatialavatar clip export clips/anna --format gagavatar-track --head flame2020.head.safetensors --out anna_gaga
    """
    from spatialavatar.clip.exporters import export_clip, refuse_export
    from spatialavatar.clip.tracked_clip import open_clip

    refuse_export(format, out, force)
    opened = open_clip(clip)
    model = resolve_head(opened.head, head, clip, [opened.location])
    with _progress("exporting") as update:
        report = export_clip(opened, format, out, model, progress=update, force=force)
    for note in report.notes:
        say(f"note: {note}")
    typer.echo(
        f"{out}: {opened.identity} for {format}, {opened.instants} instants x {opened.cameras} cameras at "
        f"{opened.width} x {opened.height}, {report.files} files"
    )


@app.command()
def synthesize(
    out: Out,
    head: Annotated[
        str | None, typer.Option("--head", metavar="FILE", help="A head file; the built-in head when absent.")
    ] = None,
    identity: Annotated[int, typer.Option(metavar="N", min=0, help="Number of the person: shape and colours.")] = 0,
    motion: Annotated[int, typer.Option(metavar="N", min=0, help="Number of the performance.")] = 0,
    frames: Annotated[int, typer.Option(metavar="N", min=1, max=999999, help="Instants.")] = 100,
    size: Annotated[int, typer.Option(metavar="PIXELS", min=8, max=8192, help="Width and height.")] = 256,
    cameras: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Cameras, all of every instant.")] = 1,
    test_last: TestLast = 0,
    test_cameras: Annotated[
        str, typer.Option(metavar="N,N", help="Cameras kept for testing, counted from 0, e.g. 3,7.")
    ] = "",
    force: Force = False,
) -> None:
    """Render a made-up person as a clip.

    Its parameters are exact. Needs no data and no download.

    Without --head the clip names the built-in head, the one that 'spatialavatar head generate' writes.

    \b
    Examples:
      spatialavatar clip synthesize --identity 1 --frames 60 --test-last 10 --out clips/made-up
      spatialavatar clip synthesize --cameras 8 --test-cameras 3,7 --out clips/stage
    """
    from spatialavatar.clip.replacing import refuse_existing_clip
    from spatialavatar.clip.synthetic import synthesize_capture
    from spatialavatar.clip.writer import write_synthetic
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.head import builtin_head, read_head

    if test_last >= frames:
        raise SpatialAvatarError(f"--test-last {test_last} leaves nothing to train on, expected less than {frames}")
    held_out = sorted(set(_numbers(test_cameras, "--test-cameras")))
    if held_out and not (held_out[0] >= 0 and held_out[-1] < cameras and len(held_out) < cameras):
        raise SpatialAvatarError(
            f"--test-cameras {test_cameras}: there are cameras 0..{cameras - 1}, one at least must be left "
            "to train on; add some with --cameras"
        )
    refuse_existing_clip(out, force)
    model = read_head(head) if head else builtin_head()
    capture = synthesize_capture(model, identity=identity, motion=motion, frames=frames, size=size, cameras=cameras)
    with _progress("rendering") as update:
        clip = write_synthetic(
            capture,
            model,
            out,
            test_from=frames - test_last if test_last else None,
            test_cameras=held_out,
            progress=update,
            force=force,
        )
    typer.echo(_summary(clip))


@app.command()
def validate(
    clip: Clip,
    head: Annotated[
        str | None, typer.Option("--head", metavar="FILE", help="The clip's head; not needed for the built-in head.")
    ] = None,
) -> None:
    """List every fault of a clip.

    Each with file, frame and field. Exit code 2 when there are any.

    \b
    Example:
      spatialavatar clip validate clips/anna --head flame2020.head.safetensors
    """
    from spatialavatar.clip.validate import validate_clip
    from spatialavatar.head.file import read_head

    model = read_head(head) if head else _find_head(clip)
    with _progress("checking") as update:
        faults = validate_clip(clip, model, update)
    tell_faults(clip, faults)


@app.command()
def inspect(
    clip: Clip,
    out: Annotated[str, typer.Option("--out", "-o", metavar="PNG", help="The picture to write.")],
    head: Annotated[
        str | None, typer.Option("--head", metavar="FILE", help="The clip's head; not needed for the built-in head.")
    ] = None,
    frames: Annotated[
        str | None, typer.Option(metavar="N,N", help="Instants to show; four spread over the clip when absent.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier picture.")] = False,
) -> None:
    """Draw a clip's tracking over some of its frames.

    Mesh, landmarks, axes, face box and matte, to see whether they are right.

    \b
    Example:
      spatialavatar clip inspect clips/anna --head flame2020.head.safetensors --frames 0,10,20 --out anna.png
    """
    from spatialavatar import files
    from spatialavatar.clip.inspect import inspect_clip
    from spatialavatar.clip.tracked_clip import open_clip

    files.refuse_existing(out, force)
    chosen = None if frames is None else _numbers(frames, "--frames")
    opened = open_clip(clip)
    shown = inspect_clip(opened, resolve_head(opened.head, head, clip, [opened.location]), out, chosen)
    typer.echo(f"{out}: {len(shown)} frames")


def _find_head(clip: str) -> "HeadModel | None":
    """The clip's head where it can be found; else a line that says what goes unchecked."""
    from spatialavatar.clip.header import check_header, read_header_json
    from spatialavatar.clip.tracked_clip import clip_folder
    from spatialavatar.errors import SpatialAvatarError

    _, header = check_header(read_header_json(clip_folder(clip)))
    if header is None:  # a fault that is listed, and nothing else can be checked
        return None
    unchecked = "not checked: code and vertex counts, whether the posed head and its landmarks fit the pictures"
    if not header.head.hash:
        say(f"{unchecked}; clip.json does not say which head it is, name one with --head")
        return None
    try:
        return resolve_head(header.head, None, clip, [clip_folder(clip)])
    except SpatialAvatarError as e:
        say(f"{unchecked}; {e}")
        return None


def _summary(clip: object) -> str:
    from spatialavatar.clip.tracked_clip import TrackedClip

    assert isinstance(clip, TrackedClip)
    counts = {name: len(clip.split(name)) for name in ("train", "test", "view")}
    return (
        f"{clip.location}: {clip.identity}, {clip.instants} instants x {clip.cameras} cameras at {clip.width} x "
        f"{clip.height}, {counts['train']} train, {counts['test']} test, {counts['view']} held-out-view frames"
    )


def _numbers(text: str, option: str) -> list[int]:
    from spatialavatar.errors import SpatialAvatarError

    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise SpatialAvatarError(f"{option} '{text}': expected numbers with commas between, e.g. 0,10,20") from None


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Progress of work that learns its length as it starts."""
    with ExitStack() as stack:
        started: list[Update] = []

        def update(done: int, of: int) -> None:
            if not started:
                started.append(stack.enter_context(progress(title, of)))
            started[0](done)

        yield update
