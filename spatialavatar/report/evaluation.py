"""An evaluation, of a generator on held-out people or of avatars on their clips, in the paper's columns."""

from typing import Any

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.results import FORMAT, REPORT
from spatialavatar.evaluation.table import METRICS, Column
from spatialavatar.report.content import Facts, Problem, Section, Table, counted

LISTED = 200  # subjects
_CASES = Column("cases", "pictures")


def evaluation_section(location: str) -> Section:
    """Raises SpatialAvatarError for a report that cannot be read."""
    where = files.join(location, REPORT)
    found: Any = files.read_json(where)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise SpatialAvatarError(f"{where}: not an evaluation's; run the evaluation again")
    summary, subjects, failed = found["summary"], found["subjects"], found["failed"]
    overall = summary["overall"]
    generator = found["settings"].get("generator") is not None
    what = "generator" if generator else "avatars"
    psnr = overall.get("psnr")
    mean = "the mean of all pictures" if generator else "the mean of the avatars"
    shown = "nothing measured" if psnr is None else f"PSNR {psnr:.2f} dB, {mean}"
    section = Section(f"Evaluation of {what}", location, f"{counted(len(subjects), 'subject')}, {shown}")
    about = {name: str(value) for name, value in found.items() if isinstance(value, str | int | float)}
    section.parts.append(Facts({n: v for n, v in about.items() if n not in ("format", "version")}, where))
    empty = [column for column in METRICS if overall.get(column.key) is None]
    metrics = [column for column in METRICS if column not in empty]
    reasons = {
        why: [c.title for c in empty if summary["reasons"].get(c.key) == why] for why in summary["reasons"].values()
    }
    notes = [f"{', '.join(titles)}: {why}" for why, titles in reasons.items()]
    if generator:
        first = Column("name", "source portraits")
        rows = [{"name": f"K = {k}", **values} for k, values in summary["by_k"].items()]
        rows.append({"name": "all", **overall})
    else:
        first, rows = Column("name", ""), [{"name": "mean of the avatars", **overall}]
    section.parts.append(Table("Self-reenactment", (first, *metrics, _CASES), rows, where, notes))
    more = [f"{len(subjects) - LISTED} more are in {REPORT}"] if len(subjects) > LISTED else []
    ordered = sorted(subjects, key=lambda row: row.get("psnr") or 0.0)
    named = (Column("key", "clip"), Column("identity", "person"))
    section.parts.append(
        Table("By subject, the worst first", (*named, *metrics, _CASES), ordered[:LISTED], where, more)
    )
    for fault in failed:
        section.problems.append(
            Problem(fault["key"], fault["reason"], "left out; the same command tries it again", where)
        )
    return section
