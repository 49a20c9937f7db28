"""A sweep: its table beside the paper's numbers, curves of all trials, and what failed or was stopped."""

import csv
import io

from spatialavatar import files
from spatialavatar.evaluation.sweep_folder import CSV, ENDED, SWEEP, TRIALS, short_names
from spatialavatar.evaluation.table import METRICS, Column
from spatialavatar.report.content import Figure, Problem, Section, Table, counted
from spatialavatar.report.curves import Curve, draw
from spatialavatar.report.training import read_log, read_yaml, series
from spatialavatar.training.folder import LOG


def sweep_section(location: str) -> Section:
    """Raises SpatialAvatarError for files that cannot be read; a sweep at work has no table yet."""
    trials = list(read_yaml(files.join(location, SWEEP)).get("trials") or {})
    where = files.join(location, CSV)
    rows = []
    if files.exists(where):
        rows = list(csv.DictReader(io.StringIO(files.read_bytes(where).decode())))
    measured = [row for row in rows if row.get("psnr")]
    best = max(measured, key=lambda row: float(row["psnr"]), default=None)
    shown = f", best {best['variant']}: {best['psnr']} dB" if best else "" if rows else "; at work, or stopped"
    section = Section("Sweep", location, f"{len(measured)} of {counted(len(trials), 'variant')} measured{shown}")
    if rows:
        titles = {column.key: column.title for column in METRICS}
        keys = [key for key in rows[0] if any(row[key] for row in rows)]
        shorter = short_names([key.removeprefix("set.") for key in keys if key.startswith("set.")])
        columns = [Column(key, _title(key, titles, shorter)) for key in keys]
        empty = [title for key, title in titles.items() if key not in keys]
        notes = [f"not measured: {', '.join(empty)} (table.md says why)"] if empty else []
        section.parts.append(Table("Variants", columns, rows, where, notes))
    logs = {name: files.join(location, TRIALS, name, LOG) for name in trials}
    lines = {name: read_log(log) for name, log in logs.items() if files.exists(log)}
    panels: dict[str, dict[str, Curve]] = {}
    for title, key in (("loss", "loss"), ("held-out PSNR (dB)", "held_out_psnr")):
        curves = {name: series(found, key) for name, found in lines.items()}
        if curves := {name: curve for name, curve in curves.items() if curve}:
            panels[title] = curves
    if panels:
        source = files.join(location, TRIALS, "*", LOG)
        section.parts.append(Figure("All variants by step", draw(panels), "svg", source))
    for row in rows:
        if row.get("note") == "failed":
            told = files.join(location, ENDED, f"{row['variant']}.json")
            reason = str(files.read_json(told)["failed"]) if files.exists(told) else "table.md has the reason"
            handling = "the others went on; the same command tries it again"
            section.problems.append(Problem(row["variant"], reason, handling, told if files.exists(told) else where))
    return section


def _title(key: str, titles: dict[str, str], shorter: dict[str, str]) -> str:
    if key.startswith("paper."):
        return f"{titles[key.removeprefix('paper.')]} (paper)"
    shown = {"held_out_psnr": "held-out PSNR in training"} | titles
    return shown.get(key) or shorter.get(key.removeprefix("set."), key)
