"""``spatialavatar fleet``: look at a fleet's output folder, from anywhere and without a cluster."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from spatialavatar.cli.console import say

if TYPE_CHECKING:
    from spatialavatar.fleet.status import Status

SECONDS_BETWEEN_LOOKS = 5.0  # with --watch

app = typer.Typer(
    no_args_is_help=True,
    help="""How a fleet of refinements stands, and what it made.

    \b
    Example:
      spatialavatar fleet status s3://bucket/fleet --watch
    """,
)

Url = Annotated[str, typer.Argument(metavar="URL", help="The --output of a fleet: a folder, or its URL in a store.")]


class Show(Protocol):
    def __call__(self, lines: list[str]) -> None: ...


@app.command()
def status(
    url: Url,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until the run ends.")] = False,
) -> None:
    """Say how a run stands, or ended.

    Reads the file that the run keeps for this, so it answers at once. Of a run that has said nothing for two minutes it
    tells what lies in the folder now. With --json and --watch each look is a line.

    \b
    Examples:
      spatialavatar fleet status s3://bucket/fleet
      spatialavatar fleet status s3://bucket/fleet --watch
      spatialavatar fleet status fleet --json | jq .done
    """
    try:
        with _screen(as_json) as show:
            while True:
                found, gone = _look(url)
                show([_as_json(found, gone, watch)] if as_json else _as_lines(url, found, gone))
                if not watch or gone or found.state != "running":
                    return
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def report(url: Url) -> None:
    """Write the summary anew, of what is finished now.

    A run writes summary.md, summary.parquet and sheet.jpg when it ends; this does, while it goes on or when it was
    killed. Reads every record, and the list of subjects where this machine can; else it leaves out whom no file tells
    of.

    \b
    Example:
      spatialavatar fleet report s3://bucket/fleet
    """
    from spatialavatar.fleet.report import write_report
    from spatialavatar.fleet.summary import MARKDOWN, OUTCOMES

    written = write_report(url)
    _warn(written.notes)
    counts = {outcome: sum(row["outcome"] == outcome for row in written.rows) for outcome in OUTCOMES}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    typer.echo(f"{url.rstrip('/')}/{MARKDOWN}: {told or 'nobody'}")


@app.command("list")
def list_(
    url: Url,
    outcome: Annotated[
        list[str] | None,
        typer.Option(metavar="OUTCOME", help="failed, refused, left, missing, review or done; may be repeated."),
    ] = None,
) -> None:
    """Print a line for each subject: id, outcome, PSNR, reason.

    Separated by tabs, for scripts; those that need a look first, the worst of them before the rest. review: outside the
    gate's bounds; left: the store did not answer; missing: not finished yet; refused: the list names no usable clip.

    \b
    Examples:
      spatialavatar fleet list s3://bucket/fleet --outcome failed --outcome review
      spatialavatar fleet list fleet --outcome review | cut -f 1
    """
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.fleet.report import read_report
    from spatialavatar.fleet.summary import OUTCOMES

    for name in outcome or ():
        if name not in OUTCOMES:
            raise SpatialAvatarError(f"--outcome {name}: expected {', '.join(OUTCOMES[:-1])} or {OUTCOMES[-1]}")
    found = read_report(url)
    _warn(found.notes)
    for row in found.rows:
        if not outcome or row["outcome"] in outcome:
            psnr = "" if row.get("psnr") is None else f"{row['psnr']:.2f}"
            typer.echo("\t".join(_plain(text) for text in (row["id"], row["outcome"], psnr, row.get("reason") or "")))


def _look(url: str) -> tuple["Status", bool]:
    from spatialavatar.fleet.status import is_gone, read_status

    found = read_status(url)
    return found, is_gone(found)


def _as_lines(url: str, status: "Status", gone: bool) -> list[str]:
    from spatialavatar.fleet.status import as_text, counted

    lines = [_plain(line) for line in as_text(status)]
    if gone:
        there = counted(url)
        lines.append(f"in the folder now: {there['records']} finished, {there['failures']} with failures")
    return lines


def _as_json(status: "Status", gone: bool, one_line: bool) -> str:
    from dataclasses import asdict

    from spatialavatar.fleet.status import silence

    told = {**asdict(status), "seconds_silent": silence(status), "gone": gone}
    return json.dumps(told, indent=None if one_line else 2)


@contextmanager
def _screen(as_json: bool) -> Iterator[Show]:
    """Where looks are shown: in a terminal one over the other, elsewhere below each other when they differ."""
    if sys.stdout.isatty() and not as_json:
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False) as live:
            yield lambda lines: live.update(Text("\n".join(lines)), refresh=True)
        return

    shown: list[str] = []

    def show(lines: list[str]) -> None:
        nonlocal shown
        if lines != shown:
            for line in [*([""] if shown and not as_json else []), *lines]:
                typer.echo(line)
            sys.stdout.flush()
            shown = lines

    yield show


def _warn(notes: list[str], most: int = 5) -> None:
    for note in notes[:most]:
        say(_plain(note))
    if len(notes) > most:
        say(f"and {len(notes) - most} more of the kind, which summary.md lists")


def _plain(text: str) -> str:
    """On one line, without what a terminal would act on."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
