"""The summary of an output, made of what lies there: without a cluster, after a killed driver, while a run goes on."""

from dataclasses import dataclass, field

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.config import FleetConfig
from spatialavatar.fleet.ledger import Case
from spatialavatar.fleet.records import FAILURES, RECORDS, Recipe, Record, id_in, listed, read_failures, read_records
from spatialavatar.fleet.settings import FORMAT, SETTINGS, VERSION
from spatialavatar.fleet.status import now, read_status, state_of
from spatialavatar.fleet.subjects import FleetSubject, Listing, read_subjects
from spatialavatar.fleet.summary import Row, heading, ordered, rows_of, write_summary


@dataclass
class Report:
    config: FleetConfig
    recipe: Recipe
    rows: list[Row] = field(default_factory=list)  # in the order of the summary
    notes: list[str] = field(default_factory=list)  # what it lacks, and why


def read_report(out: files.Location) -> Report:
    """A row for each subject on the list; where the list cannot be read from here, for each that has a file.

    Raises SpatialAvatarError: no fleet there, settings that cannot be read, a store that does not answer.
    """
    report = Report(*_settings(out))
    try:
        listing = read_subjects(report.config.subjects, report.config.allow)
    except SpatialAvatarError as e:
        report.notes.append(f"subjects that were not tried yet are left out, for their list cannot be read: {e}")
        report.rows = _rows_of_files(out, report)
        return report
    subjects = {report.recipe.name(subject): subject for subject in listing.subjects}
    records = _records(out, listed(out, RECORDS) & subjects.keys(), report)
    finished = {record["id"]: record for record in records.values()}
    tried = read_failures(out, (listed(out, FAILURES) & subjects.keys()) - records.keys())
    others = {
        id_in(name): ("failed" if given_up else "missing", Case(subjects[name], tries))
        for name, (tries, given_up) in tried.items()
    }
    report.rows = ordered(rows_of(listing, finished, others))
    return report


def write_report(out: files.Location) -> Report:
    """Table, page and sheet anew. Raises SpatialAvatarError as ``read_report``."""
    report = read_report(out)
    try:
        state = state_of(read_status(out))
    except SpatialAvatarError:
        state = "unknown"
    told = heading(
        state, report.config.subjects or "none", report.recipe, {"written": f"{now()}, from the records"}
    ) | {f"note {n}": note for n, note in enumerate(report.notes[:10], 1)}
    write_summary(out, report.rows, told)
    return report


def _settings(out: files.Location) -> tuple[FleetConfig, Recipe]:
    where = files.join(out, SETTINGS)
    if not files.exists(where):
        raise SpatialAvatarError(f"{out}: no fleet there, it holds no {SETTINGS}; give the --output of a run")
    value = files.read_json(where)
    try:
        if (value["format"], value["version"]) != (FORMAT, VERSION):
            raise ValueError("another format")
        config = FleetConfig.model_validate(value["config"])
        return config, Recipe(str(value["config_hash"]), str(value["layout_fingerprint"]))
    except (KeyError, TypeError, ValueError):  # pydantic's errors are among them
        raise SpatialAvatarError(f"{where}: not the settings of a fleet of version {VERSION}; restore it") from None


def _records(out: files.Location, names: set[str], report: Report) -> dict[str, Record]:
    """Those that can be read, by name; of the others a note."""
    found = {}
    for name, record in read_records(out, names):
        if isinstance(record, SpatialAvatarError):
            report.notes.append(str(record))
        else:
            found[name] = record
    return found


def _rows_of_files(out: files.Location, report: Report) -> list[Row]:
    """Without the list of subjects: of each id the newest record that these settings made, else its newest failure."""
    recipe = (report.recipe.config_hash, report.recipe.layout_fingerprint)
    finished: dict[str, Record] = {}
    for record in _records(out, listed(out, RECORDS), report).values():
        same = (record.get("config_hash"), record.get("layout_fingerprint")) == recipe
        before = finished.get(record["id"], {})
        if same and record.get("finished", "") >= before.get("finished", ""):
            finished[record["id"]] = record
    others: dict[str, tuple[str, Case]] = {}
    for name, (tries, given_up) in read_failures(out, listed(out, FAILURES)).items():
        id = id_in(name)
        before_tries = others[id][1].failures if id in others else []
        if tries and id not in finished and tries[-1].time >= (before_tries[-1].time if before_tries else ""):
            others[id] = ("failed" if given_up else "missing", Case(FleetSubject(id, ""), tries))
    subjects = [FleetSubject(id, "") for id in sorted(finished.keys() | others.keys())]
    return ordered(rows_of(Listing(tuple(subjects), (), ""), finished, others))
