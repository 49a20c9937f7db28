"""Ray Tune around the trials of a sweep: which run, how many at a time, which are stopped, how each ended."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.train_status import first_line
from ray_jobs.tune_config import TuneConfig
from ray_jobs.tune_places import TRIAL_CPUS
from ray_jobs.tune_result import TUNE, Ended, write_ended
from ray_jobs.tune_trial import Job, run_trial
from spatialavatar import files

CRASHES = 3  # of a trial's own process, or its machine, before the trial has failed
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run keeps its own log
    "RAY_AIR_NEW_OUTPUT": "0",  # a table every half minute
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver has its own
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that is done already reports nothing
}


def interrupted(job: Job, board: Any, at_a_time: int) -> Any:
    """Tune's run of an earlier program, with this many trials at a time, to go on; None when there is none."""
    from ray import tune

    _quiet()
    where = files.join(job.out, TUNE, _name(at_a_time))
    if not tune.Tuner.can_restore(where):
        return None
    return tune.Tuner.restore(where, _trainable(job, board), resume_unfinished=True, restart_errored=True)


def new(sweep: TuneConfig, job: Job, board: Any, at_a_time: int, names: Sequence[str]) -> Any:
    """A run of Tune over these trials; each of them still goes on from its own checkpoints."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    _quiet()
    files.remove(files.join(job.out, TUNE, _name(at_a_time)))
    scheduler = None
    if sweep.search == "asha":
        scheduler = ASHAScheduler(
            time_attr="step",
            metric="held_out_psnr",
            mode="max",
            max_t=max(job.trials[name].config.steps for name in names),
            grace_period=sweep.asha.grace_period,
            reduction_factor=sweep.asha.reduction_factor,
            stop_last_trials=False,  # who came to the end is evaluated
        )
    return tune.Tuner(
        _trainable(job, board),
        param_space={"variant": tune.grid_search(list(names))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=at_a_time,
            trial_name_creator=_variant,
            trial_dirname_creator=_variant,
        ),
        run_config=tune.RunConfig(
            name=_name(at_a_time),
            storage_path=files.join(job.out, TUNE),
            failure_config=tune.FailureConfig(max_failures=CRASHES),
            verbose=0,
        ),
    )


def endings(results: Any, sweep: TuneConfig, job: Job, told: Mapping[str, Ended | None]) -> dict[str, Ended]:
    """How trials ended: as they ``told`` themselves, where None is to be begun anew, or else as Tune knows it."""
    found: dict[str, Ended] = {}
    for result in results:
        name = result.config["variant"]
        if name not in job.places:
            continue
        ended = told.get(name)
        if ended is None and result.error is not None:
            ended = Ended(failed=_reason(result.error))
            write_ended(job.out, name, job.fingerprints[name], ended)
        elif ended is None and name not in told and sweep.search == "asha" and "step" in (result.metrics or {}):
            ended = Ended(stopped=result.metrics["step"], held_out_psnr=result.metrics["held_out_psnr"])
            write_ended(job.out, name, job.fingerprints[name], ended)
        if ended is not None:
            found[name] = ended
    return found


def _trainable(job: Job, board: Any) -> Any:
    from ray import tune

    return tune.with_resources(tune.with_parameters(run_trial, job=job, board=board), {"CPU": TRIAL_CPUS})


def _name(at_a_time: int) -> str:
    """Tune keeps how many trials run at a time with a run: with another number it is another run."""
    return f"{at_a_time}-at-a-time"


def _variant(trial: Any) -> str:
    return str(trial.config["variant"])


def _quiet() -> None:
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def _reason(error: BaseException) -> str:
    """Of a trial whose process ended."""
    cause = getattr(error, "cause", None)
    return first_line(error) if cause is None else f"{type(cause).__name__}: {first_line(cause)}"
