"""What a sweep can be told, and the trainings that come of it; configs/tune/lambda_sp.yaml explains each value."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from spatialavatar.config import Config, load_config
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.generator_report import METRICS, SOURCES, TARGETS
from spatialavatar.evaluation.held_out import MOST_SOURCES
from spatialavatar.evaluation.sweep_folder import short_names
from spatialavatar.training.config import DataConfig, TrainConfig

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,-]{0,99}")


class Variant(Config):
    name: str  # of its folder and its row
    set: dict[str, Any] = Field(default_factory=dict)  # the training's values that it changes, by key


class AshaConfig(Config):
    """Asynchronous successive halving (Li et al. 2020) on the held-out PSNR, which is known every sheet_every steps."""

    grace_period: int = Field(10_000, ge=1)  # steps that every trial gets
    reduction_factor: float = Field(4.0, gt=1)  # at this multiple of steps, one in as many goes on


class EvaluateConfig(Config):
    """What a trained variant is measured on."""

    data: dict[str, Any] | None = None  # as held_out of a training, which must not know them; None: its held_out
    k: tuple[int, ...] = SOURCES  # numbers of source portraits, all in one mean
    targets: int = Field(TARGETS, ge=1)  # frames to show of each clip, for each K
    resolution: int | None = Field(None, ge=16)  # pixels of the longer side; None: the training's
    limit: int | None = Field(None, ge=1)  # only the first of the clips

    @model_validator(mode="after")
    def _possible_sources(self) -> "EvaluateConfig":
        if not self.k or not all(1 <= k <= MOST_SOURCES for k in self.k):
            raise ValueError(f"evaluate.k: expected numbers in 1..{MOST_SOURCES}")
        return self


class TuneConfig(Config):
    train: str  # YAML of the training that is varied
    set: dict[str, Any] = Field(default_factory=dict)  # values of it that all trials share, by key
    grid: dict[str, list[Any]] = Field(default_factory=dict)  # values by key: every combination is a trial
    variants: tuple[Variant, ...] = ()  # or the trials one by one
    search: Literal["grid", "asha"] = "grid"  # asha: all start, those that fall behind are stopped
    asha: AshaConfig = AshaConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    paper: dict[str, dict[str, float]] = Field(default_factory=dict)  # metrics by variant, shown beside ours
    concurrent: int | None = Field(None, ge=1)  # trials at a time; None: as many as the cluster has room for

    @model_validator(mode="after")
    def _one_kind_of_trials(self) -> "TuneConfig":
        if bool(self.grid) == bool(self.variants):
            raise ValueError("give either grid, values by key, or variants, a list of name and set")
        for metric in (metric for numbers in self.paper.values() for metric in numbers):
            if metric not in METRICS:
                raise ValueError(f"paper: no metric {metric}; there are {', '.join(METRICS)}")
        return self


@dataclass(frozen=True)
class TrialPlan:
    """One training of a sweep."""

    name: str
    values: dict[str, Any]  # what it changes, by key
    config: TrainConfig
    evaluated_on: DataConfig


def plan_trials(sweep: TuneConfig, where: str) -> list[TrialPlan]:
    """The trainings of a sweep, each with its whole configuration; ``where`` the sweep was read is for messages.

    Raises SpatialAvatarError for a key or a value that is not a training's, names that cannot be, two that are one, and
    for nobody, or people of the training, to evaluate on.
    """
    variants = list(sweep.variants) or list(_combinations(sweep.grid, where))
    for variant in variants:
        if not _SAFE.fullmatch(variant.name):
            raise SpatialAvatarError(
                f"{where}: a variant named {variant.name!r}; a folder bears its name: at most 100 of A-Z a-z 0-9 . _ = "
                ", and -"
            )
    names = [variant.name for variant in variants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpatialAvatarError(f"{where}: two variants named {twice[0]}; give each a name of its own")
    if unknown := sorted(set(sweep.paper) - set(names)):
        raise SpatialAvatarError(f"{where}: paper.{unknown[0]}: no such variant; there are {', '.join(names)}")
    load_config(TrainConfig, sweep.train, _overrides(sweep, Variant(name="none"), where))
    trials = []
    for variant in variants:
        values = dict(_flat(variant.set, where))
        try:
            config = load_config(TrainConfig, sweep.train, _overrides(sweep, variant, where))
        except SpatialAvatarError as e:
            raise SpatialAvatarError(f"{where}: variant {variant.name}: {e}") from None
        trials.append(TrialPlan(variant.name, values, config, _held_out(sweep, variant, config, where)))
    longest = max(trial.config.steps for trial in trials)
    if sweep.search == "asha" and sweep.asha.grace_period >= longest:
        raise SpatialAvatarError(
            f"{where}: asha.grace_period is {sweep.asha.grace_period} steps, but no training has more than {longest}; "
            "make it shorter"
        )
    return trials


def _held_out(sweep: TuneConfig, variant: Variant, config: TrainConfig, where: str) -> DataConfig:
    """Whom a variant is evaluated on: held apart from its training by the same rules as the training's held_out."""
    if sweep.evaluate.data is not None:
        overrides = [*_overrides(sweep, variant, where), f"held_out={json.dumps(sweep.evaluate.data)}"]
        try:
            config = load_config(TrainConfig, sweep.train, overrides)
        except SpatialAvatarError as e:
            raise SpatialAvatarError(f"{where}: evaluate.data, as held_out of variant {variant.name}: {e}") from None
    if config.held_out is None:
        raise SpatialAvatarError(
            f"{where}: nobody to evaluate on: name people that are not trained on, as evaluate.data or as the "
            "training's held_out"
        )
    return config.held_out


def varied_keys(trials: Sequence[TrialPlan]) -> list[str]:
    return list(dict.fromkeys(key for trial in trials for key in trial.values))


def _combinations(grid: Mapping[str, list[Any]], where: str) -> Iterator[Variant]:
    keys = list(grid)
    for key, listed in grid.items():
        if not listed:
            raise SpatialAvatarError(f"{where}: grid.{key} has no values; give it a list")
    shown = short_names(keys)
    for values in itertools.product(*grid.values()):
        name = ",".join(f"{shown[key]}={_text(value)}" for key, value in zip(keys, values))
        yield Variant(name=name, set=dict(zip(keys, values)))


def _text(value: Any) -> str:
    """A value as part of a file's name."""
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "none"


def _flat(values: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys as a.b, which --set set.a.b=1 makes nested."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise SpatialAvatarError(f"{where}: {key!r} is not a key of a training's configuration")
        if isinstance(value, dict) and value:
            yield from _flat(value, where, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _overrides(sweep: TuneConfig, variant: Variant, where: str) -> list[str]:
    return [f"{key}={json.dumps(value)}" for part in (sweep, variant) for key, value in _flat(part.set, where)]
