"""What a run made, in one table: summary.parquet, summary.md, and sheet.jpg with the worst and the best."""

import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from spatialavatar import __version__, files
from spatialavatar.clip.pictures import encode
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.table import Column, table
from spatialavatar.fleet.ledger import Case
from spatialavatar.fleet.records import THUMBNAIL, Recipe, Record
from spatialavatar.fleet.subjects import Listing, Refused
from spatialavatar.sheets import stacked, titled

TABLE, MARKDOWN, SHEET = "summary.parquet", "summary.md", "sheet.jpg"
SHOWN = 6  # worst, and as many of the best, in the sheet
LISTED = 500  # rows of the Markdown table; the Parquet table has all
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("outcome", pa.string()),  # done, review, failed, refused, left, or missing: not finished yet
        ("reason", pa.string()),
        ("psnr", pa.float64()),  # dB
        ("worst_psnr", pa.float64()),  # dB, of the worst frame
        ("ssim", pa.float64()),
        ("lpips", pa.float64()),
        ("mse", pa.float64()),
        ("max_aspect_ratio", pa.float64()),
        ("tracking_residual", pa.float64()),  # share of the image's longer side
        ("split", pa.string()),  # the frames that were measured
        ("frames", pa.int64()),
        ("iterations", pa.int64()),
        ("seconds", pa.float64()),  # spent optimising; of a batch the subject's share
        ("attempts", pa.int64()),
        ("worker", pa.string()),
        ("finished", pa.string()),
        ("avatar", pa.string()),  # folder in the output
        ("clip", pa.string()),
    ]
)
COLUMNS = (
    Column("id", "subject"),
    Column("outcome", "outcome"),
    Column("psnr", "PSNR", 2),
    Column("worst_psnr", "worst frame", 2),
    Column("ssim", "SSIM", 3),
    Column("lpips", "LPIPS", 3),
    Column("max_aspect_ratio", "aspect ratio", 2),
    Column("tracking_residual", "tracking", 4),
    Column("seconds", "seconds", 1),
    Column("attempts", "attempts"),
    Column("worker", "worker"),
    Column("reason", "reason"),
)
OUTCOMES = ("failed", "refused", "left", "missing", "review", "done")

Row = dict[str, Any]


def row_of(record: Record) -> Row:
    row: Row = {"outcome": "review" if record["review"] else "done", "reason": "; ".join(record["review"])}
    names = set(SCHEMA.names)
    row |= {name: value for name, value in record.items() if name in names}
    return row | {name: value for name, value in record["metrics"].items() if name in names}


def row_of_failed(case: Case, outcome: str = "failed") -> Row:
    """Of a subject that has no record; what a store did counts for those that are left for it alone."""
    last = case.failures[-1] if case.failures else None
    attempts = len(case.failures)
    if outcome == "left":
        last, attempts = case.store_failure or last, attempts + case.stores
    row: Row = {"id": case.subject.id, "clip": case.subject.clip, "outcome": outcome, "attempts": attempts}
    return row | ({"reason": last.reason, "worker": last.worker, "finished": last.time} if last else {})


def rows_of(listing: Listing, finished: Mapping[str, Record], others: Mapping[str, tuple[str, Case]]) -> list[Row]:
    """A row for all that are listed: of their record, or of the outcome and the tries of ``others``, by id."""
    rows = []
    for subject in listing.subjects:
        if subject.id in finished:
            rows.append(row_of(finished[subject.id]))
        else:
            outcome, case = others.get(subject.id, ("missing", Case(subject)))
            rows.append(row_of_failed(case, outcome))
    return rows + [row_of_refused(refused) for refused in listing.refused]


def ordered(rows: Iterable[Row]) -> list[Row]:
    """What needs a look first, the worst of it before the rest."""
    return sorted(rows, key=lambda row: (OUTCOMES.index(row["outcome"]), row.get("psnr") or 0.0, row["id"]))


def row_of_refused(refused: Refused) -> Row:
    return {"id": refused.id, "outcome": "refused", "reason": refused.reason, "attempts": 0}


def heading(state: str, subjects: str, recipe: Recipe, more: Mapping[str, str]) -> dict[str, str]:
    """What is said of a fleet as a whole, ``more`` before the program's version."""
    return {
        "state": state,
        "subjects": subjects,
        "settings": f"{recipe.config_hash[:12]}, layout {recipe.layout_fingerprint[:12]}",
        **more,
        "program": f"spatialavatar {__version__}",
    }


def write_summary(out: files.Location, rows: Sequence[Row], above: Mapping[str, Any]) -> None:
    """Table, page and sheet; ``above`` is what stands over the page's table."""
    rows = ordered(rows)
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), buffer, compression="zstd")
    files.write_bytes(files.join(out, TABLE), buffer.getvalue())
    files.write_bytes(files.join(out, MARKDOWN), _page(rows, above).encode())
    sheet = contact_sheet(out, [row for row in rows if row["outcome"] in ("done", "review")])
    if sheet is not None:
        files.write_bytes(files.join(out, SHEET), encode(sheet, "jpg"))


def means(rows: Sequence[Row]) -> dict[str, float | None]:
    """Of the finished subjects, by metric."""
    finished = [row for row in rows if row["outcome"] in ("done", "review")]
    names = ("psnr", "ssim", "lpips", "mse", "max_aspect_ratio", "tracking_residual", "seconds")
    found: dict[str, float | None] = {}
    for name in names:
        values = [row[name] for row in finished if row.get(name) is not None]
        found[name] = float(np.mean(values)) if values else None
    return found


def contact_sheet(out: files.Location, rows: Sequence[Row]) -> UInt8[np.ndarray, "H W 3"] | None:
    """Thumbnails of the worst and the best of finished subjects by PSNR; None when there are none."""
    ranked = sorted((row for row in rows if row.get("psnr") is not None), key=lambda row: (row["psnr"], row["id"]))
    half = (len(ranked) + 1) // 2
    worst, best = ranked[: min(SHOWN, half)], ranked[half:][-SHOWN:][::-1]
    with ThreadPoolExecutor(2 * SHOWN) as pool:
        pictures = list(pool.map(lambda row: _thumbnail(out, row), [*worst, *best]))
    strips = [
        titled(picture, f"{'worst' if number < len(worst) else 'best'}: {row['id']}, {row['psnr']:.2f} dB")
        for number, (row, picture) in enumerate(zip([*worst, *best], pictures))
        if picture is not None
    ]
    return stacked(strips) if strips else None


def _thumbnail(out: files.Location, row: Row) -> UInt8[np.ndarray, "H W 3"] | None:
    try:
        data = files.read_bytes(files.join(out, row["avatar"], THUMBNAIL))
    except SpatialAvatarError:  # taken away since
        return None
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    return None if picture is None else np.ascontiguousarray(picture[..., ::-1])


def _page(rows: Sequence[Row], above: Mapping[str, Any]) -> str:
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES}
    lines = ["# Fleet", "", ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or "nobody"]
    lines += ["", *(f"- {name}: {value}" for name, value in above.items()), ""]
    shown = {name: value for name, value in means(rows).items() if value is not None}
    if shown:
        mean = {"id": "mean of the finished", **shown}
        lines += [table(COLUMNS[:1] + COLUMNS[2:9], [mean])]
    in_lines = [{**row, "reason": " ".join((row.get("reason") or "").split())} for row in rows[:LISTED]]
    more = len(rows) - LISTED
    return "\n".join([*lines, table(COLUMNS, in_lines)]) + (f"\n{more} more are in {TABLE}.\n" if more > 0 else "")
