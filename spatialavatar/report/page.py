"""The page: one HTML file that needs no other, with every picture inside and a link to the file behind every number."""

import base64
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from spatialavatar import __version__, files
from spatialavatar.evaluation.table import cell
from spatialavatar.report.content import Facts, Figure, Section, Table

PROBLEMS_LISTED = 50  # of one section
TEMPLATE = Path(__file__).with_name("page.html")


def write_page(out: files.Location, sections: Sequence[Section], title: str = "SpatialAvatar") -> None:
    """Write ``sections`` in their order, under an overview of all and a list of everything that went wrong.

    Links to sources are relative to the page where both lie on this machine; of others the URL is shown.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"data": _as_data, "kind": _kind, "cell": lambda row, column: cell(column, row)}
    template = environment.from_string(TEMPLATE.read_text())
    page = os.fspath(out)
    html = template.render(
        title=title,
        sections=[(f"s{number}", section) for number, section in enumerate(sections)],
        listed=PROBLEMS_LISTED,
        link=lambda source: _link(page, source),
        beside=lambda source, name: _link(page, files.join(os.path.dirname(source) or ".", name)),
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )
    files.write_bytes(out, html.encode())


def _kind(part: Facts | Table | Figure) -> str:
    return type(part).__name__


def _as_data(figure: Figure) -> str:
    kind = {"svg": "svg+xml"}.get(figure.kind, figure.kind)
    return f"data:image/{kind};base64,{base64.b64encode(figure.data).decode()}"


def _link(page: str, source: str) -> tuple[str, str | None]:
    """What is shown of a source, and the link to it."""
    if not (files.is_local(page) and files.is_local(source)):
        return source, None
    folder = Path(files.local_path(page)).resolve().parent
    path = Path(files.local_path(source))
    shown = Path(os.path.relpath(path.parent.resolve() / path.name, folder)).as_posix()
    return shown, None if "*" in shown else f"./{quote(shown)}"
