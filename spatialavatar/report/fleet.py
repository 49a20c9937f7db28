"""A fleet of refinements: how many, how fast, how good, who needs a look, and what was done about failures."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.table import Column
from spatialavatar.fleet.status import FILE as STATUS
from spatialavatar.fleet.status import read_status, state_of
from spatialavatar.fleet.summary import COLUMNS as SUMMARY
from spatialavatar.fleet.summary import SCHEMA, SHEET, TABLE, Row, means
from spatialavatar.report.content import Facts, Figure, Problem, Section, Table, counted

LISTED = 200  # rows of the page's table; those that need a look come first
COLUMNS = (  # the summary's, without what problems tell, and with what the paper's Table 4 has
    *(column for column in SUMMARY if column.key not in ("worker", "reason")),
    Column("mse", "MSE", 5),
)
NUMBERS = tuple(column for column in COLUMNS if column.decimals is not None)
HANDLED = {
    "failed": "given up after {attempts} attempts; --retry-failed tries it again, the others went on",
    "refused": "its row of the list was passed over",
    "left": "its store did not answer; the same command tries it again",
    "review": "refined and kept, marked for a person's look",
}


def fleet_section(location: str) -> Section:
    """Raises SpatialAvatarError for a run without a summary yet."""
    where = files.join(location, TABLE)
    if not files.exists(where):
        raise SpatialAvatarError(f"{location}: no {TABLE} yet; write it with: spatialavatar fleet report {location}")
    rows = _rows(where)
    status, source = read_status(location), files.join(location, STATUS)
    finished = [row for row in rows if row["outcome"] in ("done", "review")]
    mean = means(rows)
    quality = f", mean PSNR {mean['psnr']:.2f} dB" if mean["psnr"] is not None else ""
    section = Section("Fleet", location, f"{len(finished):,} of {counted(len(rows), 'subject')} refined{quality}")
    facts = {
        "state": f"{state_of(status)}, as of {status.updated}",
        "subjects": f"{status.total}: {status.done} done ({status.review} to review), {status.failed} failed or "
        f"refused, {status.left} left",
        "workers lost": f"{status.workers_lost}",
    }
    if status.subjects_per_hour is not None:
        facts["throughput"] = f"{status.subjects_per_hour:.0f} subjects/h"
    if status.optimising is not None:
        facts["workers' time in iterations"] = f"{100 * status.optimising:.0f} %"
    if len(finished) != status.done:
        facts["table below"] = "of another moment than these numbers; 'spatialavatar fleet report' writes it anew"
    section.parts.append(Facts(facts, source))
    if finished:
        section.parts.append(
            Table("Means of the refined", [c for c in NUMBERS if mean.get(c.key) is not None], [mean], where)
        )
    more = [f"{len(rows) - LISTED} more are in {TABLE}"] if len(rows) > LISTED else []
    section.parts.append(Table("Subjects", COLUMNS, rows[:LISTED], where, more, mark="outcome"))
    sheet = files.join(location, SHEET)
    if files.exists(sheet):
        title = "The worst and the best: frame | avatar | error | avatar from the side"
        section.parts.append(Figure(title, files.read_bytes(sheet), "jpeg", sheet))
    if status.workers_lost:
        what = f"{counted(status.workers_lost, 'worker')} lost"
        handling = "what it held is given out again, on from its checkpoints; attempts are in the table"
        section.problems.append(Problem(what, "the process, or its machine, ended", handling, source))
    if missing := sum(row["outcome"] == "missing" for row in rows):
        handling = "the same command goes on with them"
        section.problems.append(Problem(counted(missing, "subject"), "not finished yet", handling, where))
    for row in rows:
        if row["outcome"] in HANDLED:
            handling = HANDLED[row["outcome"]].format(attempts=row["attempts"])
            section.problems.append(Problem(row["id"], row["reason"] or row["outcome"], handling, where))
    return section


def _rows(where: str) -> list[Row]:
    try:
        table: Any = pq.read_table(io.BytesIO(files.read_bytes(where)))
        return list(table.select(SCHEMA.names).to_pylist())
    except (pa.ArrowException, KeyError):
        raise SpatialAvatarError(
            f"{where}: not a fleet's table; write it anew with 'spatialavatar fleet report'"
        ) from None
