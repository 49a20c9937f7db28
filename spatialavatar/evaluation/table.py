"""Tables of results, as Markdown and CSV: PSNR in dB with two decimals, the other metrics with three."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """A row is a dictionary; its value under ``key`` stands in this column."""

    key: str
    title: str
    decimals: int | None = None  # None: as it is, text


VARIANT = Column("variant", "variant")
METRICS = (
    Column("psnr", "PSNR", 2),
    Column("ssim", "SSIM", 3),
    Column("lpips", "LPIPS", 3),
    Column("csim", "CSIM", 3),
    Column("aed", "AED", 3),
    Column("apd", "APD", 3),
    Column("akd", "AKD", 3),
)
COLUMNS = (VARIANT, *METRICS)


def table(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], reasons: Mapping[str, str] | None = None
) -> str:
    """Markdown, ending with a line break. What a row lacks, or has as None, is an empty cell.

    ``reasons`` says why by column; a note under the table gives those of columns with an empty cell.
    """
    lines = [
        [column.title for column in columns],
        ["---" if column.decimals is None else "---:" for column in columns],
        *([cell(column, row).replace("|", "\\|") for column in columns] for row in rows),
    ]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    notes: dict[str, list[str]] = {}
    for column in columns:
        if column.key in (reasons or {}) and any(row.get(column.key) is None for row in rows):
            notes.setdefault((reasons or {})[column.key], []).append(column.title)
    return text + "".join(f"\n{', '.join(titles)}: {reason}\n" for reason, titles in notes.items())


def csv_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """The same cells as CSV, under the columns' keys."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.key for column in columns])
    writer.writerows([cell(column, row) for column in columns] for row in rows)
    return out.getvalue()


def cell(column: Column, row: Mapping[str, Any]) -> str:
    """The text of a row's value in a column; empty where it has none."""
    value = row.get(column.key)
    if value is None:
        return ""
    return str(value) if column.decimals is None else f"{value:.{column.decimals}f}"
