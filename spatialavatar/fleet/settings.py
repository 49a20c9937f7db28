"""``fleet.json``: what the avatars of an output are made with, which a second run must share."""

from typing import Any

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.config import FleetConfig
from spatialavatar.fleet.records import Recipe
from spatialavatar.refine.config import HARMLESS

SETTINGS = "fleet.json"
FORMAT = "spatialavatar-fleet"
VERSION = 1
_SAME = ("format", "version", "config_hash", "layout_fingerprint")
_MAY_DIFFER = ("gate.", "attempts.", "workers.", "subjects", "output", "allow", "head", "evaluation.lpips_weights")


def settings_of(config: FleetConfig, recipe: Recipe) -> dict[str, Any]:
    """What is kept of a run's settings; plain JSON."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "config_hash": recipe.config_hash,
        "layout_fingerprint": recipe.layout_fingerprint,
        "config": config.model_dump(mode="json"),
    }


def claim_output(out: files.Location, settings: dict[str, Any], replace: bool) -> None:
    """Raises SpatialAvatarError: an output of other settings, unless they are to ``replace`` them, or a folder of
    something else."""
    where = files.join(out, SETTINGS)
    if not files.exists(where):
        files.claim_output_folder(out, SETTINGS)
    elif not replace:
        before = files.read_json(where)
        if not isinstance(before, dict) or any(before.get(key) != settings[key] for key in _SAME):
            raise SpatialAvatarError(
                f"{out}: was made with other settings ({_difference(before, settings)}); name another --output, "
                "or make all of it again with --no-resume, without --only"
            )


def _difference(before: Any, settings: dict[str, Any]) -> str:
    """Which settings are others, in a few words."""
    if not isinstance(before, dict) or not isinstance(before.get("config"), dict):
        return f"no readable {SETTINGS}"
    old, new = _flat(before["config"]), _flat(settings["config"])
    ignored = (*_MAY_DIFFER, *(f"refine.{key}" for key in HARMLESS))
    names = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    named = [f"{key}: {old.get(key)} then, {new.get(key)} now" for key in names if not key.startswith(ignored)]
    return "; ".join(named[:3]) or "another head, generator, LPIPS weights or version of this program"


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, content in value.items():
        found |= _flat(content, f"{prefix}{key}.") if isinstance(content, dict) else {prefix + key: content}
    return found
