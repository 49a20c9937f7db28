"""A generator on people that it was not trained on: rows of one subject at a time, their means (method.md section 5).

Self-reenactment: K sources of a person, and the same person at other frames. A row is a plain dictionary for a case;
which process measures a subject, and beside which others, changes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation import estimators as face
from spatialavatar.evaluation.estimators import Estimators
from spatialavatar.evaluation.held_out import MOST_SOURCES, batches_of, cases_of, from_first_sources, measure
from spatialavatar.evaluation.metrics import mean
from spatialavatar.generator.generator import Generator
from spatialavatar.losses.perceptual import LPIPS_LEAST_SIZE, Lpips
from spatialavatar.training.pool import ClipPool

METRICS = ("psnr", "ssim", "lpips", *face.METRICS)
SOURCES = tuple(range(1, MOST_SOURCES + 1))  # K
TARGETS = 8  # frames of a clip that are shown, for each K

Row = dict[str, Any]


def measure_subject(
    generator: Generator,
    pool: ClipPool,
    clip: int,
    *,
    sources: Sequence[int] = SOURCES,
    targets: int = TARGETS,
    resolution: int,
    lpips: Lpips | None = None,
    estimators: Estimators | None = None,
    seed: int = 0,
    identity: str | None = None,
    number: int | None = None,
) -> list[Row]:
    """The cases of a clip for every K in ``sources``: identity, k, instant and camera of the target, ``METRICS``.

    Frames are those of ``held_out.cases``, all outside the clip's own test set; they are drawn by ``number``, the
    clip's place in the pool unless given. ``identity`` is the clip's name in the pool unless given. A metric is None
    without its network, in pictures too small for LPIPS, or where an estimator finds no face.

    Raises SpatialAvatarError: a K that is not 1..4, a clip too short to show anything, a frame that cannot be read.
    """
    for k in sources:
        if not 1 <= k <= MOST_SOURCES:
            raise SpatialAvatarError(f"K = {k} sources; 1..{MOST_SOURCES} are expected")
    if resolution < LPIPS_LEAST_SIZE:
        lpips = None
    size, rows = generator.config.encoder.image_size, []
    for k in sources:
        listed = cases_of(pool, clip, k, targets, seed, clip if number is None else number)
        if not listed:
            raise SpatialAvatarError(
                f"{pool.name(clip)}: too short to show anything, it takes {MOST_SOURCES + 1} frames outside the test "
                "set; leave it out"
            )
        batches = batches_of(pool, listed, size, resolution)
        found = measure(from_first_sources(generator), generator, batches, lpips, estimators)
        for i, case in enumerate(listed):
            row: Row = {
                "identity": pool.name(clip) if identity is None else identity,
                "k": k,
                "instant": case.target.instant,
                "camera": case.target.camera,
            }
            rows.append(row | {name: _finite(float(found[name][i])) if name in found else None for name in METRICS})
    return rows


def measure_pool(generator: Generator, pool: ClipPool, **options: Any) -> list[Row]:
    """``measure_subject`` for every clip of a pool, in this process."""
    return [row for clip in range(len(pool)) for row in measure_subject(generator, pool, clip, **options)]


def summary(rows: Sequence[Row], reasons: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Means over the cases that have a value, of all (``overall``) and for each K (``by_k``), plain JSON.

    ``reasons`` (``estimators.reasons``) are kept for the metrics that no case has.
    """
    overall = means(rows)
    ks = sorted({row["k"] for row in rows})
    return {
        "overall": overall,
        "by_k": {str(k): means([row for row in rows if row["k"] == k]) for k in ks},
        "reasons": {name: why for name, why in (reasons or {}).items() if overall[name] is None},
    }


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The number of rows, and the mean of each metric over those that have it; None where none has."""
    return {"cases": len(rows), **{name: mean(row.get(name) for row in rows) for name in METRICS}}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
