"""What a trial of a sweep does: its training, which goes on where it was, then its generator on held-out people."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import UserCallback
from torch import Tensor

from ray_jobs.train_places import Places
from ray_jobs.tune_board import Ended
from ray_jobs.tune_config import EvaluateConfig, TrialPlan
from ray_jobs.tune_result import ENDED, EVALUATION, read_ended, trial_folder, write_ended
from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.progress import Progress

FORMAT, VERSION = "spatialavatar-trial", 1


@dataclass(frozen=True)
class Trials:
    """All that the trials of a sweep need to know, by their names."""

    out: str  # folder of the sweep
    plans: Mapping[str, TrialPlan]
    places: Mapping[str, Places]  # of those that are still to do
    fingerprints: Mapping[str, str]
    evaluate: EvaluateConfig
    environment: Mapping[str, str]  # variables of the driver that the workers need
    measures: Mapping[str, Any]  # estimators, lpips (hash) and protocol, as evaluations keep them
    lpips: Mapping[str, Tensor] | None  # AlexNet's features


class _OwnLines:
    """The board as a training knows it: what it is told bears the trial's name."""

    def __init__(self, board: Any, name: str) -> None:
        self._board, self._name = board, name

    @property
    def update(self) -> "_OwnLines":
        return self

    def remote(self, progress: Progress | None, messages: Sequence[str]) -> Any:
        return self._board.update.remote(self._name, progress, messages)


def run_trial(values: dict[str, Any], trials: Trials, board: Any) -> None:
    """Ray Tune's function. What the user can put right ends the trial with its reason, and no other."""
    from ray_jobs.training import fit

    os.environ.update(trials.environment)
    name = values["variant"]
    ended = read_ended(trials.out, name, trials.fingerprints[name], trials.measures)
    if ended is None or not ended.final:
        config, places = trials.plans[name].config, trials.places[name]
        try:
            folder = trial_folder(trials.out, name)
            if not _trained(config, folder):  # or workers would start for nothing
                outcome = fit(config, folder, lambda: places, _OwnLines(board, name), [_reports(config.steps)])
                if outcome.error is not None:
                    raise SpatialAvatarError(outcome.error)
            ray.get(board.evaluating.remote(name))
            ended = Ended(evaluation=_evaluated(trials, name)["summary"])
            files.remove(files.join(trials.out, ENDED, f"{name}.json"))
        except (SpatialAvatarError, OSError) as e:
            ended = Ended(failed=str(e))
            write_ended(trials.out, name, trials.fingerprints[name], ended)
    ray.get(board.end.remote(name, ended))


def _trained(config: TrainConfig, folder: str) -> bool:
    """Whether a run has its last checkpoint. Of one that is damaged, the training tells, and makes another."""
    from ray_jobs.training import newest_step
    from spatialavatar.generator.checkpoint import complete_checkpoints
    from spatialavatar.training.checkpoint import read_checkpoint

    if newest_step(folder) < config.steps:
        return False
    try:
        return read_checkpoint(complete_checkpoints(folder)[-1]).state.step == config.steps
    except SpatialAvatarError:
        return False


def _reports(steps: int) -> UserCallback:
    """Held-out PSNR by step, for the scheduler; not of the last step, where there is nothing left to stop."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class Reports(TuneReportCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if metrics[0]["step"] < steps and "held_out_psnr" in metrics[0]:
                super().after_report(run_context, metrics, checkpoint)

    return Reports()


def _evaluated(trials: Trials, name: str) -> dict[str, Any]:
    """The content of a trial's evaluation.json, which then lies in its folder; measured with a worker's resources."""
    from ray.exceptions import RayTaskError

    places = trials.places[name]
    task = ray.remote(evaluate_generator).options(
        num_cpus=places.cpus,
        num_gpus=1 if places.gpu else 0,
        max_retries=2,
        scheduling_strategy="SPREAD",  # not in the place of the trial's own process, which is too small
        runtime_env={"env_vars": dict(trials.environment)},
        name="evaluate",
    )
    folder = trial_folder(trials.out, name)
    try:
        found = ray.get(
            task.remote(trials.plans[name], trials.evaluate, folder, trials.measures["estimators"], trials.lpips)
        )
    except RayTaskError as e:
        raise e.cause if isinstance(e.cause, (SpatialAvatarError, OSError)) else e from None
    report = {"format": FORMAT, "version": VERSION, "config": trials.fingerprints[name]}
    report |= {"measures": trials.measures, **found}
    files.write_json(files.join(folder, EVALUATION), report)
    return report


def evaluate_generator(
    trial: TrialPlan,
    wanted: EvaluateConfig,
    run: str,
    estimators: Mapping[str, str],
    features: Mapping[str, Tensor] | None,
) -> dict[str, Any]:
    """Hash of a run's newest generator, ``summary`` and ``rows`` of what it shows of held-out people, and the clips
    that ``failed``, with their reasons.

    Raises SpatialAvatarError when all of them did, or a store does not answer.
    """
    from spatialavatar.evaluation.estimators import reasons, require_estimators
    from spatialavatar.evaluation.footage import reason_of
    from spatialavatar.evaluation.generator_report import measure_subject, summary
    from spatialavatar.generator.checkpoint import read_generator
    from spatialavatar.losses.perceptual import Lpips
    from spatialavatar.training.pool import open_pool
    from spatialavatar.training.setup import training_head

    config = trial.config
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    head = training_head(config)
    weights = config.generator.encoder.weights
    generator, facts = read_generator(run, head, device, None if weights in ("hub", "random") else weights)
    pool = open_pool(trial.evaluated_on, head, config.phase)
    lpips = None if features is None else Lpips(dict(features), device)
    looked_through = require_estimators(estimators, device)
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for clip in range(min(len(pool), wanted.limit or len(pool))):
        try:
            rows += measure_subject(
                generator,
                pool,
                clip,
                sources=wanted.k,
                targets=wanted.targets,
                resolution=wanted.resolution or config.resolution,
                lpips=lpips,
                estimators=looked_through,
            )
        except StoreError:
            raise
        except Exception as e:  # of this clip; the others may be sound
            failed.append({"clip": pool.name(clip), "reason": reason_of(e)})
    if not rows:
        raise SpatialAvatarError(f"none of {len(failed)} clips could be measured: {failed[0]['reason']}")
    told = {**summary(rows, reasons(estimators, features is not None)), "failed": len(failed)}
    return {"generator": facts.hash, "summary": told, "rows": rows, "failed": failed}
