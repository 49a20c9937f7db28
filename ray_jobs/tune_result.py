"""What is kept of a sweep in its folder (spatialavatar/evaluation/sweep_folder.py), and the tables made of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ray_jobs.tune_board import Ended
from ray_jobs.tune_config import TrialPlan, TuneConfig, varied_keys
from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.evaluation.sweep_folder import (
    CSV,
    ENDED,
    EVALUATION,
    MARKDOWN,
    PLOT,
    SWEEP,
    TRIALS,
    TUNE,
    short_names,
)
from spatialavatar.evaluation.table import METRICS, VARIANT, Column, csv_table, table
from spatialavatar.training.checkpoint import HARMLESS
from spatialavatar.training.folder import LOG

PARTS = (TRIALS, ENDED, TUNE, MARKDOWN, CSV, PLOT, SWEEP)
COMPARED = ("search", "asha", "evaluate")  # what else makes a sweep, beside its trials


def claim_sweep(out: str, sweep: TuneConfig, trials: Sequence[TrialPlan], force: bool) -> None:
    """Raises SpatialAvatarError when ``out`` holds something else or, without ``force``, another sweep."""
    names = files.list_folder(out)
    taken = [name for name in PARTS if name in names]
    if taken and SWEEP not in names:
        raise SpatialAvatarError(f"{out}: holds {taken[0]}, but no {SWEEP}; name another folder")
    files.claim_output_folder(out, SWEEP, force)
    if SWEEP in names and not force:
        changed = _difference(_kept(files.join(out, SWEEP)), _content(sweep, trials))
        if changed:
            raise SpatialAvatarError(
                f"{out}: holds another sweep ({changed}); go on with the one it was started with, name another folder, "
                "or start over with --force"
            )


def begin(out: str, sweep: TuneConfig, trials: Sequence[TrialPlan], force: bool) -> None:
    """Write down what the sweep is; ``force`` removes the one before."""
    if force:
        for part in PARTS:
            files.remove(files.join(out, part))
    content = yaml.safe_dump(_content(sweep, trials), sort_keys=False)
    files.write_bytes(files.join(out, SWEEP), content.encode())


def _content(sweep: TuneConfig, trials: Sequence[TrialPlan]) -> dict[str, Any]:
    return {
        "sweep": sweep.model_dump(mode="json"),
        "trials": {trial.name: _settings(trial) for trial in trials},
    }


def _settings(trial: TrialPlan) -> dict[str, Any]:
    return {**trial.config.model_dump(mode="json"), "evaluated_on": trial.evaluated_on.model_dump(mode="json")}


def fingerprint(trial: TrialPlan, sweep: TuneConfig) -> str:
    """Of all that a trial's evaluation follows from."""
    text = json.dumps(
        [_decisive(_settings(trial)), sweep.evaluate.model_dump(mode="json", exclude={"data"})], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def trial_folder(out: str, name: str) -> str:
    return files.join(out, TRIALS, name)


def read_ended(out: str, name: str, expected: str, measures: Mapping[str, Any]) -> Ended | None:
    """How a trial ended in an earlier run, None when it did not; ``expected`` is its fingerprint.

    An evaluation by other ``measures`` is none.
    """
    found = _json(files.join(trial_folder(out, name), EVALUATION), expected)
    if found is not None and found.get("measures") == measures:
        return Ended(evaluation=found["summary"])
    found = _json(files.join(out, ENDED, f"{name}.json"), expected)
    if found is None:
        return None
    return Ended(**{part: found.get(part) for part in ("stopped", "held_out_psnr", "failed")})


def write_ended(out: str, name: str, config: str, ended: Ended) -> None:
    """Of a trial without an evaluation; ``config`` is its fingerprint."""
    told = {"config": config, "stopped": ended.stopped, "held_out_psnr": ended.held_out_psnr, "failed": ended.failed}
    files.write_json(files.join(out, ENDED, f"{name}.json"), told)


def read_curve(out: str, name: str) -> list[tuple[int, float]]:
    """Step and held-out PSNR (dB) of a trial's log."""
    where = files.join(trial_folder(out, name), LOG)
    if not files.exists(where):
        return []
    lines = [json.loads(line) for line in files.read_bytes(where).decode().splitlines()]
    return [(line["step"], line["held_out_psnr"]) for line in lines if "held_out_psnr" in line]


def write_result(
    out: str, sweep: TuneConfig, trials: Sequence[TrialPlan], ended: Mapping[str, Ended]
) -> list[dict[str, Any]]:
    """Tables and picture; returns the rows."""
    from ray_jobs.tune_plot import draw

    curves = {trial.name: read_curve(out, trial.name) for trial in trials}
    keys = short_names(varied_keys(trials))
    rows, reasons, notes = [], {}, []  # type: ignore[var-annotated]
    for trial in trials:
        end = ended.get(trial.name, Ended(failed="was not finished"))
        row: dict[str, Any] = {"variant": trial.name, **{f"set.{key}": _value(trial, key) for key in keys}}
        if curves[trial.name]:
            row["held_out_psnr"] = curves[trial.name][-1][1]
        if end.evaluation is not None:
            row |= end.evaluation["overall"]
            if count := end.evaluation["failed"]:
                reasons_in = files.join(TRIALS, trial.name, EVALUATION)
                notes.append(f"{trial.name}: {count} clips could not be measured, with reasons in {reasons_in}")
            reasons |= end.evaluation["reasons"]
        elif end.stopped is not None:
            row["held_out_psnr"] = end.held_out_psnr
            row["note"] = f"stopped at step {end.stopped}"
            notes.append(f"{trial.name}: stopped at step {end.stopped}, where others were better; not evaluated")
        else:
            row["note"] = "failed"
            notes.append(f"{trial.name}: {' '.join(str(end.failed).split())}")
        row |= {f"paper.{metric}": value for metric, value in sweep.paper.get(trial.name, {}).items()}
        rows.append(row)
    columns = [VARIANT, *(Column(f"set.{key}", shown) for key, shown in keys.items()), *METRICS]
    columns.append(Column("held_out_psnr", "held-out PSNR in training", 2))
    told = {metric for numbers in sweep.paper.values() for metric in numbers}
    columns += [Column(f"paper.{m.key}", f"{m.title} (paper)", m.decimals) for m in METRICS if m.key in told]
    if any("note" in row for row in rows):
        columns.append(Column("note", "note"))
    text = table(columns, rows, reasons) + "".join(f"\n{note}\n" for note in notes)
    files.write_bytes(files.join(out, MARKDOWN), text.encode())
    files.write_bytes(files.join(out, CSV), csv_table(columns, rows).encode())
    files.write_bytes(files.join(out, PLOT), draw(curves, rows))
    return rows


def _value(trial: TrialPlan, key: str) -> Any:
    value: Any = trial.config.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else value


def _json(where: str, expected: str) -> dict[str, Any] | None:
    """A small file of this very trial; None without one, or one that is damaged or of another configuration."""
    if not files.exists(where):
        return None
    try:
        found = files.read_json(where)
    except StoreError:
        raise
    except SpatialAvatarError:
        return None
    return found if isinstance(found, dict) and found.get("config") == expected else None


def _kept(where: str) -> Any:
    try:
        return yaml.safe_load(files.read_bytes(where))
    except yaml.YAMLError:
        raise SpatialAvatarError(f"{where}: not valid YAML; start over with --force") from None


def _difference(then: Any, now: dict[str, Any]) -> str:
    """The first value that is another one, of those on which a result depends."""
    if not (isinstance(then, dict) and all(isinstance(then.get(part), dict) for part in now)):
        return f"its {SWEEP} is not a sweep's"
    for name in {**then["trials"], **now["trials"]}:  # what a trial does says more than what it was made of
        if name not in then["trials"] or name not in now["trials"]:
            return f"{name} only {'there' if name in then['trials'] else 'here'}"
        if found := _first_change(then["trials"][name], now["trials"][name]):
            return f"{name}: {found}"
    return _first_change(*({part: kept["sweep"].get(part) for part in COMPARED} for kept in (then, now)))


def _first_change(then: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = _decisive(then), _decisive(now)
    for key in {**old, **new}:
        if key not in old or key not in new:
            return f"{key} only {'there' if key in old else 'here'}"
        if old[key] != new[key]:
            return f"{key}: {old[key]} there, {new[key]} here"
    return ""


def _decisive(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted key, without those that change nothing that is computed."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = prefix + name
        if isinstance(value, dict) and value and key not in HARMLESS:
            found |= _decisive(value, f"{key}.")
        elif key not in HARMLESS and key != "evaluate.data":  # which stands, resolved, in each trial
            found[key] = value
    return found
