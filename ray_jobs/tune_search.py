"""Ray Tune around the trials of a sweep: how many at a time, which are stopped, which crashed.

Tune's own state is never read again. A sweep goes on from what lies in the folders of its trials: checkpoints, curves,
and how those that ended did.
"""

import logging
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from ray_jobs.cluster import first_line
from ray_jobs.tune_config import AshaConfig, TuneConfig
from ray_jobs.tune_places import TRIAL_CPUS
from ray_jobs.tune_result import TUNE, Ended, read_curve, write_ended
from ray_jobs.tune_trial import Trials, run_trial
from spatialavatar import files
from spatialavatar.errors import StoreError

CRASHES = 3  # of a trial's own process, or its machine, before the trial has failed
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run keeps its own log
    "RAY_AIR_NEW_OUTPUT": "0",  # a table every half minute
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver has its own
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that is done already reports nothing
}

NOBODY: Any = None  # in place of Tune's controller, which ASHA does not use


class Halving(ASHAScheduler):
    """ASHA by the held-out PSNR. It knows how all trials stood before this program, and writes down whom it stops."""

    def __init__(self, config: AshaConfig, trials: Trials, board: Any) -> None:
        super().__init__(
            time_attr="step",
            metric="held_out_psnr",
            mode="max",
            max_t=max(trial.config.steps for trial in trials.plans.values()),
            grace_period=config.grace_period,
            reduction_factor=config.reduction_factor,
            stop_last_trials=False,  # who came to the end is evaluated
        )
        self._trials, self._board = trials, board
        for name in trials.plans:
            super().on_trial_add(NOBODY, _named(name))
            for step, psnr in read_curve(trials.out, name):
                super().on_trial_result(NOBODY, _named(name), {"step": step, "held_out_psnr": psnr})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name, trials = _variant(trial), self._trials
        action: str = super().on_trial_result(tune_controller, _named(name), result)
        if action == TrialScheduler.STOP:
            ended = Ended(stopped=result["step"], held_out_psnr=result["held_out_psnr"])
            self._board.end.remote(name, ended)
            try:
                write_ended(trials.out, name, trials.fingerprints[name], ended)
            except StoreError as e:
                self._board.update.remote(name, None, [f"stopped, which another program will not know: {e}"])
        return action

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Every trial is known from the start."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its last report was heard already."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """What it reported stays."""


def tuner(sweep: TuneConfig, trials: Trials, board: Any, at_a_time: int) -> Any:
    """A run of Tune over the trials that are still to do; each goes on from its own checkpoints."""
    from ray import tune

    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    files.remove(files.join(trials.out, TUNE))
    trainable = tune.with_parameters(run_trial, trials=trials, board=board)
    return tune.Tuner(
        tune.with_resources(trainable, {"CPU": TRIAL_CPUS}),
        param_space={"variant": tune.grid_search(list(trials.places))},
        tune_config=tune.TuneConfig(
            scheduler=Halving(sweep.asha, trials, board) if sweep.search == "asha" else None,
            max_concurrent_trials=at_a_time,
            trial_name_creator=_variant,
            trial_dirname_creator=_variant,
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=trials.out,
            failure_config=tune.FailureConfig(max_failures=CRASHES),
            verbose=0,
        ),
    )


def crashed(results: Any, trials: Trials, told: Mapping[str, Ended]) -> dict[str, Ended]:
    """The trials that have not ``told`` how they ended, because their own process did."""
    found: dict[str, Ended] = {}
    for result in results:
        name = result.config["variant"]
        if result.error is not None and name not in told:
            found[name] = Ended(failed=_reason(result.error))
            write_ended(trials.out, name, trials.fingerprints[name], found[name])
    return found


def _named(name: str) -> Any:
    """A trial as ASHA knows it: by its variant, which is the same in every program."""
    return SimpleNamespace(trial_id=name)


def _variant(trial: Any) -> str:
    return str(trial.config["variant"])


def _reason(error: BaseException) -> str:
    """Of a trial whose process ended."""
    cause = getattr(error, "cause", None)
    return first_line(error) if cause is None else f"{type(cause).__name__}: {first_line(cause)}"
