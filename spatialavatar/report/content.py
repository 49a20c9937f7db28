"""What a page of results consists of before it is HTML: sections of facts, tables, figures, each with its source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from spatialavatar.evaluation.table import Column


@dataclass(frozen=True)
class Facts:
    """Names and values, for people; all read from ``source``."""

    values: Mapping[str, str]
    source: str


@dataclass(frozen=True)
class Table:
    """Rows as ``evaluation.table`` has them.

    ``mark``, ``code`` and ``file`` are keys of columns: of words that are coloured (done, failed), of commands, and of
    files beside the source.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    source: str
    notes: Sequence[str] = ()
    mark: str | None = None
    code: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class Figure:
    title: str
    data: bytes
    kind: Literal["png", "jpeg", "svg"]
    source: str  # what it is, or was drawn from


@dataclass(frozen=True)
class Problem:
    """Something that went wrong, and how it was handled."""

    what: str
    reason: str
    handling: str
    source: str


@dataclass
class Section:
    """One folder of results. ``headline`` is its line in the overview."""

    title: str
    location: str
    headline: str
    parts: list[Facts | Table | Figure] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def counted(number: int, one: str, several: str = "") -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
