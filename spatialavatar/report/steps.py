"""What was run: one JSON line for each command, written by whoever ran them.

``title``, ``command``, ``began`` (seconds since 1970), ``seconds``, ``exit_code`` and ``log`` (a file beside). A line
without a command is something that happened.
"""

import datetime
from pathlib import PurePosixPath

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.table import Column
from spatialavatar.report.content import Section, Table, counted
from spatialavatar.report.training import read_log

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "title": str,
    "command": str,
    "began": (int, float),
    "seconds": (int, float),
    "exit_code": int,
    "log": str,
}
LATEST = 1e11  # seconds since 1970
COLUMNS = (
    Column("clock", "UTC"),
    Column("title", "step"),
    Column("seconds", "seconds", 0),
    Column("result", "result"),
    Column("command", "command"),
    Column("log", "log"),
)


def read_steps(location: str) -> Section:
    """Raises SpatialAvatarError for a file of something else."""
    lines = read_log(location)
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict):
            raise SpatialAvatarError(f"{location}, line {number}: expected an object with title and command")
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(line.get(name), kind)]
        if wrong:
            raise SpatialAvatarError(f"{location}, line {number}: {wrong[0]} is missing or of another type")
        if not (0 <= line["began"] < LATEST and 0 <= line["seconds"] < LATEST):
            raise SpatialAvatarError(f"{location}, line {number}: began and seconds are times in seconds")
        if ":" in line["log"] or not {"", "/", ".."}.isdisjoint(PurePosixPath(line["log"] or "log").parts):
            raise SpatialAvatarError(f"{location}, line {number}: log is a file beside, or in a folder beside")
    rows = []
    for line in sorted(lines, key=lambda line: line["began"]):
        event = not line["command"]
        clock = datetime.datetime.fromtimestamp(line["began"], datetime.UTC).strftime("%H:%M:%S")
        result = "event" if event else "done" if line["exit_code"] == 0 else f"exit code {line['exit_code']}"
        rows.append({**line, "clock": clock, "result": result, "seconds": None if event else line["seconds"]})
    began = min((line["began"] for line in lines), default=0.0)
    ended = max((line["began"] + line["seconds"] for line in lines), default=0.0)
    commands = sum(bool(line["command"]) for line in lines)
    section = Section("What was run", location, f"{counted(commands, 'command')} in {(ended - began) / 60:.1f} minutes")
    section.parts.append(Table("Steps", COLUMNS, rows, location, mark="result", code="command", file="log"))
    return section
