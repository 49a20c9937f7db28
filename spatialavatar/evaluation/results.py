"""The folder of an evaluation: a small file for each measured subject, and what is told of all of them.

    OUT/subjects/NAME-01234567.json    what was measured of a subject, and of what (its fingerprint)
    OUT/evaluation.json                settings, means, every subject's means, what could not be measured and why
    OUT/table.md, OUT/table.csv        the means as a table

A subject's file is written when it is measured, so that an evaluation goes on where it stopped. What failed has no
file: the next run tries it again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from spatialavatar import files
from spatialavatar.clip.header import safe_identity
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.evaluation.footage import Fault
from spatialavatar.evaluation.generator_report import means, summary
from spatialavatar.evaluation.subjects import Settings, Subject
from spatialavatar.evaluation.table import COLUMNS, csv_table, table

FORMAT = "spatialavatar-evaluation"
VERSION = 1
SUBJECTS = "subjects"  # folder
REPORT, MARKDOWN, CSV = "evaluation.json", "table.md", "table.csv"

Result = dict[str, Any]


def claim_results(out: files.Location, force: bool) -> None:
    """Make ``out`` ready: an earlier evaluation may be there. Raises SpatialAvatarError for what else is."""
    files.claim_output_folder(out, SUBJECTS, force)


def forget(out: files.Location, subjects: Sequence[Subject]) -> None:
    """Remove what was measured of these subjects."""
    there = set(files.list_folder(files.join(out, SUBJECTS)))
    for name in {_file(subject) for subject in subjects} & there:
        files.remove(files.join(out, SUBJECTS, name))


def finished(out: files.Location, subjects: Sequence[Subject], settings: Settings) -> dict[str, Result]:
    """What an earlier run measured of these subjects, under the same settings, by key."""
    there = set(files.list_folder(files.join(out, SUBJECTS)))
    found: dict[str, Result] = {}
    for subject in subjects:
        name = _file(subject)
        if name not in there:
            continue
        try:
            result = files.read_json(files.join(out, SUBJECTS, name))
        except StoreError:
            raise
        except SpatialAvatarError:  # damaged: measured again
            continue
        if isinstance(result, dict) and result.get("fingerprint") == subject.fingerprint(settings):
            found[subject.key] = result
    return found


def write_result(out: files.Location, subject: Subject, settings: Settings, measured: dict[str, Any]) -> Result:
    """Keep what was measured of a subject; returns it as it is kept."""
    result = {
        "format": FORMAT,
        "version": VERSION,
        "key": subject.key,
        "identity": subject.clip.identity,
        "fingerprint": subject.fingerprint(settings),
        **measured,
    }
    files.write_json(files.join(out, SUBJECTS, _file(subject)), result)
    return result


def write_report(
    out: files.Location,
    about: Mapping[str, Any],
    settings: Settings,
    results: Mapping[str, Result],
    faults: Sequence[Fault],
    reasons: Mapping[str, str],
) -> dict[str, Any]:
    """Write report and tables, and return the report; ``about`` says what was evaluated on what.

    The means of a generator are over its cases, those of avatars over avatars, whatever the order of measuring.
    """
    ordered = [results[key] for key in sorted(results)]
    if settings.generator is not None:
        whole = summary([row for result in ordered for row in result["rows"]], reasons)
        listed = [{**_named(result), **means(result["rows"])} for result in ordered]
        rows = [{"variant": f"K = {k}", **values} for k, values in whole["by_k"].items()]
        rows.append({"variant": "all", **whole["overall"]})
    else:
        listed = [{**_named(r), **means([r["report"]]), "cases": r["report"]["frames"]} for r in ordered]
        overall = {**means(listed), "cases": sum(row["cases"] for row in listed)}
        whole = {"overall": overall, "reasons": {name: why for name, why in reasons.items() if overall[name] is None}}
        rows = [{"variant": row["key"], **row} for row in listed] + [{"variant": "mean", **overall}]
    report = {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "settings": asdict(settings),
        "summary": whole,
        "subjects": listed,
        "failed": [asdict(fault) for fault in sorted(faults, key=lambda fault: fault.key)],
    }
    files.write_bytes(files.join(out, MARKDOWN), table(COLUMNS, rows, reasons).encode())
    files.write_bytes(files.join(out, CSV), csv_table(COLUMNS, rows).encode())
    files.write_json(files.join(out, REPORT), report)
    return report


def _named(result: Result) -> dict[str, str]:
    return {"key": result["key"], "identity": result["identity"]}


def _file(subject: Subject) -> str:
    digest = hashlib.sha256(subject.key.encode()).hexdigest()
    return f"{safe_identity(subject.key)}-{digest[:8]}.json"
