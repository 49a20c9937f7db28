"""``spatialavatar shards``: look at an ingested data set and check it."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialavatar.cli.console import progress, resolve_head, say, tell_faults

if TYPE_CHECKING:
    from spatialavatar.head import HeadModel
    from spatialavatar.shards import ShardSet

app = typer.Typer(
    no_args_is_help=True,
    help="""Ingested data sets: say what is in them, verify, sample.

    \b
    Example:
      spatialavatar shards info shards/
    """,
)

Url = Annotated[str, typer.Argument(metavar="URL", help="A data set's folder, or its URL in a store.")]
Head = Annotated[
    str | None, typer.Option("--head", metavar="FILE", help="The clips' head; not needed for the built-in head.")
]


@app.command()
def info(
    url: Url, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")] = False
) -> None:
    """Say what a data set holds.

    Reads its manifest only, so it answers at once.

    \b
    Examples:
      spatialavatar shards info s3://bucket/faces
      spatialavatar shards info shards/faces --json
    """
    from spatialavatar.shards import open_shards
    from spatialavatar.shards.report import summary

    found = summary(open_shards(url))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, text in _lines(found):
        typer.echo(f"{name:<12}{text}".rstrip())


@app.command()
def verify(url: Url, head: Head = None) -> None:
    """List every fault of a data set.

    Reads every byte: sums, headers, arrays, whether pictures decode and mattes fit, whether cameras see the head; and
    with the head, whether it falls where the face is. Each fault with its clip. Exit code 2 when there are any.

    \b
    Example:
      spatialavatar shards verify s3://bucket/faces --head flame2020.head.safetensors
    """
    from spatialavatar.shards import open_shards, report

    shards = open_shards(url)
    model = _find_head(shards, head)
    with progress("checking", len(shards)) as update:
        faults = report.verify(shards, model, lambda done, of: update(done))
    tell_faults(url, faults, f"no faults in {len(shards)} clips")


@app.command()
def sample(
    url: Url,
    out: Annotated[str, typer.Option("--out", "-o", metavar="PNG", help="The picture to write.")],
    clips: Annotated[int, typer.Option(metavar="N", min=1, max=200, help="Clips to show.")] = 12,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Another number shows other clips.")] = 0,
    head: Annotated[
        str | None, typer.Option("--head", metavar="FILE", help="Draw this head, posed, over every frame.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier picture.")] = False,
) -> None:
    """Draw a contact sheet of some clips.

    Four frames of each, on grey where there is a matte; with --head, mesh and landmarks over them.

    \b
    Examples:
      spatialavatar shards sample s3://bucket/faces --out faces.png
      spatialavatar shards sample s3://bucket/faces --seed 1 --head flame2020.head.safetensors --out tracking.png
    """
    from spatialavatar import files
    from spatialavatar.clip.pictures import encode
    from spatialavatar.shards import open_shards
    from spatialavatar.shards.sheet import sample_sheet

    files.refuse_existing(out, force)
    shards = open_shards(url)
    model = resolve_head(shards.head, head, url, []) if head else None
    files.write_bytes(out, encode(sample_sheet(shards, model, clips, seed), "png"))
    typer.echo(f"{out}: {min(clips, len(shards))} of {len(shards)} clips")


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A table of two columns."""

    def counts(name: str, unit: str = "") -> Iterator[tuple[str, str]]:
        first = name
        for value, count in found[name].items():
            yield first, f"{' '.join(value.split())}{unit}" + (f" ({count:,})" if count < found["clips"] else "")
            first = ""

    yield "data set", found["location"]
    yield "identities", f"{found['identities']:,}"
    several = "" if found["shards"] == 1 else "s"
    yield "clips", f"{found['clips']:,} in {found['shards']:,} shard{several}, {_size(found['bytes'])}"
    yield "frames", f"{found['frames']:,}, {found['train_frames']:,} of them to train on"
    if found["bad_frames"]:
        yield "", f"{found['bad_frames']:,} whose tracking misses the face, as --max-bad-frames allowed"
    hours = _hours(found["hours"])
    if found["camera_hours"] > 1.001 * found["hours"]:
        hours += f", {_hours(found['camera_hours'])} counted by camera"
    yield "hours", hours
    yield from counts("resolutions")
    yield from counts("cameras")
    yield from counts("fps")
    yield from counts("mattes")
    if found["with_region"]:
        yield "regions", f"{found['with_region']:,} clips say which pixels count"
    head = found["head"]
    yield "head", f"{head['id']} ({head['hash'][:12]}), {' '.join(head['licence'].split())}"
    yield from counts("tools")
    yield from counts("licences")
    yield "rejected", f"{found['rejected']:,}" + (", listed in rejected.jsonl" if found["rejected"] else "")
    for reason, count in list(found["reasons"].items())[:10]:
        yield "", f"{count:,} x {reason}"[:200]
    if len(found["reasons"]) > 10:
        yield "", f"and {len(found['reasons']) - 10} more reasons"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}"


def _size(count: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _find_head(shards: "ShardSet", given: str | None) -> "HeadModel | None":
    """The clips' head where it can be found; else a line that says what goes unchecked."""
    from spatialavatar.errors import SpatialAvatarError

    try:
        return resolve_head(shards.head, given, shards.location, [shards.location])
    except SpatialAvatarError as e:
        if given is not None:
            raise
        say(f"not checked: whether the posed head and its landmarks fit the pictures; {e}")
        return None
