"""Records of subjects that were never refined."""

from typing import Any

from spatialavatar.fleet.records import AVATARS, RECORD_FORMAT, VERSION, Recipe, Record
from spatialavatar.fleet.subjects import FleetSubject

METRICS: dict[str, Any] = {
    "psnr": 30.0,
    "ssim": 0.9,
    "lpips": 0.1,
    "mse": 0.001,
    "max_aspect_ratio": 4.0,
    "frames": 3,
    "split": "test",
    "worst_psnr": 28.0,
    "tracking_residual": 0.005,
}
NO_METRICS: dict[str, Any] = dict.fromkeys(METRICS)


def record_of(recipe: Recipe, subject: FleetSubject, review: list[str] | None = None, **metrics: Any) -> Record:
    """Of a sound avatar, whose metrics can be others."""
    return {
        "format": RECORD_FORMAT,
        "version": VERSION,
        "id": subject.id,
        "digest": recipe.digest(subject),
        "clip": subject.clip,
        "identity": subject.id,
        "avatar": f"{AVATARS}/{subject.id}.{recipe.digest(subject)[::-1]}",
        "metrics": {**METRICS, **metrics},
        "review": review or [],
        "iterations": 12,
        "seconds": 1.5,
        "attempts": 1,
        "worker": "process 1 on host, CPU",
        "finished": "2026-01-02T03:04:05Z",
        "config_hash": recipe.config_hash,
        "layout_fingerprint": recipe.layout_fingerprint,
        "spatialavatar": "0",
    }
