"""``spatialavatar report``: one HTML page about folders of results."""

from typing import Annotated

import typer


def report(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="URL...", help="Folders of data sets, trainings, sweeps, fleets, evaluations or avatars, in order."
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="HTML", help="The page to write.")],
    title: Annotated[str, typer.Option(metavar="TEXT", help="Above the page.")] = "SpatialAvatar",
    steps: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What was run, a JSON line for each command (docs/end_to_end.md)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier page.")] = False,
) -> None:
    """Write one page about what was made.

    Curves, tables in the paper's columns, pictures of the worst and the best, throughput, what failed and how it was
    handled, each with the file that it was read from. The page is one HTML file that opens in any browser.

    \b
    Examples:
      spatialavatar report runs/phase1 --out phase1.html
      spatialavatar report shards/ runs/phase1 runs/phase2 runs/sweep fleet/ --title Spring --out spring.html
      spatialavatar report s3://lab/fleet --out fleet.html
    """
    from spatialavatar import files
    from spatialavatar.report import read_section, read_steps, write_page
    from spatialavatar.report.content import counted

    files.refuse_existing(out, force)
    sections = [read_section(folder) for folder in folders]
    if steps is not None:
        sections.insert(0, read_steps(steps))
    write_page(out, sections, title)
    problems = sum(len(section.problems) for section in sections)
    typer.echo(f"{out}: {counted(len(sections), 'section')}, {counted(problems, 'problem')} told of")
