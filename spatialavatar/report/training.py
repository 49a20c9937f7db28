"""A training run: what was trained, its curves, how fast it was, and its last picture."""

import json
from statistics import median
from typing import Any

import yaml

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.report.content import Facts, Figure, Section
from spatialavatar.report.curves import Curve, draw
from spatialavatar.training.folder import CONFIG, LOG, SHEETS

TERMS = "its terms, before their weights"
# of a line; what is not here is a term
NO_TERMS = {"step", "loss", "mse", "gradient_norm", "learning_rate", "seconds", "performance"}


def training_section(location: str) -> Section:
    """Raises SpatialAvatarError for a run whose log or configuration cannot be read."""
    config = read_yaml(files.join(location, CONFIG))
    lines = read_log(files.join(location, LOG))
    losses = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "held_out_psnr" in line]
    if not losses:
        raise SpatialAvatarError(f"{files.join(location, LOG)}: no step in it yet; wait for the run's first lines")
    last, phase = losses[-1], config.get("phase", 1)
    shown = f"held-out PSNR {held_out[-1]['held_out_psnr']:.2f} dB" if held_out else f"loss {last['loss']:.3f}"
    section = Section(
        f"Training, Phase {phase}",
        location,
        f"{last['step']} of {config.get('steps', '?')} steps, {shown}",
    )
    settings: dict[str, str] = {
        name: str(config[name]) for name in ("steps", "batch_size", "resolution", "seed") if name in config
    }
    section.parts.append(Facts(settings, files.join(location, CONFIG)))
    section.parts.append(Facts(_facts(lines), files.join(location, LOG)))
    panels: dict[str, dict[str, Curve]] = {"loss": {"loss": series(losses, "loss")}}
    terms = {name: series(losses, name) for name in last if name not in NO_TERMS}
    if terms := {name: curve for name, curve in terms.items() if any(value for _, value in curve)}:
        panels[TERMS] = terms
    if held_out:
        panels["held-out PSNR (dB)"] = {"": series(held_out, "held_out_psnr")}
    drawn = draw(panels, logarithmic=[TERMS])
    section.parts.append(Figure("Losses (means between two lines of the log) and held-out PSNR", drawn, "svg",
                                files.join(location, LOG)))  # fmt: skip
    sheets = sorted(name for name in files.list_folder(files.join(location, SHEETS)) if name.endswith(".png"))
    if sheets:
        where = files.join(location, SHEETS, sheets[-1])
        step = int(sheets[-1].removesuffix(".png").rpartition("-")[2])
        title = f"Held-out people at step {step:,}: sources | target | render"
        section.parts.append(Figure(title, files.read_bytes(where), "png", where))
    return section


def _facts(lines: list[dict[str, Any]]) -> dict[str, str]:
    losses = [line for line in lines if "loss" in line]
    rates = [line["performance"]["samples_per_second"] for line in losses if "performance" in line]
    waiting = [line["performance"]["data_seconds"] for line in losses if "performance" in line]
    held_out = [line["held_out_psnr"] for line in lines if "held_out_psnr" in line]
    facts = {
        "steps taken": f"{losses[-1]['step']:,}",
        "loss": f"{losses[0]['loss']:.3f} at step {losses[0]['step']}, {losses[-1]['loss']:.3f} at the last",
        "time in steps": f"{losses[-1]['seconds']:.0f} s",
    }
    if held_out:
        facts["held-out PSNR"] = f"{held_out[0]:.2f} dB first, {held_out[-1]:.2f} dB last, {max(held_out):.2f} dB best"
    if rates:
        facts["throughput"] = f"{median(rates):.1f} samples/s (median), waiting {1000 * median(waiting):.0f} ms a step"
    return facts


def series(lines: list[dict[str, Any]], name: str, over: str = "step") -> Curve:
    return [(line[over], line[name]) for line in lines if name in line]


def read_log(where: str) -> list[dict[str, Any]]:
    """Lines of a JSON-lines log; a last line that a killed writer left unfinished does not count."""
    found = []
    lines = files.read_bytes(where).decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise SpatialAvatarError(f"{where}, line {number}: not JSON; restore the file") from None
    return found


def read_yaml(where: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(files.read_bytes(where))
    except yaml.YAMLError:
        raise SpatialAvatarError(f"{where}: not valid YAML; restore the file") from None
    if not isinstance(value, dict):
        raise SpatialAvatarError(f"{where}: expected 'key: value' lines; restore the file")
    return value
