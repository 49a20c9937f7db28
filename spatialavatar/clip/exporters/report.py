"""What an exporter says when it is done."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportReport:
    files: int  # written
    notes: tuple[str, ...] = ()  # what the format could not hold, in numbers
