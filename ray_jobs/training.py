"""A training on Ray: checks, workers, restarts. ``ray_jobs.train`` runs one, ``ray_jobs.tune`` many.

Ray Train starts the workers and notices when one is lost. All of them then start again, on the machines that are there
by now, and the library's run goes on from its own newest checkpoint, whoever wrote it. A training whose workers are
lost again and again is given up only when no checkpoint came in between.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.cluster import first_line, free_now
from ray_jobs.train_places import Places
from ray_jobs.train_worker import Outcome, work
from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import complete_checkpoints
from spatialavatar.losses.lpips_weights import WEIGHTS_VARIABLE, require_alexnet_features
from spatialavatar.training.config import DataConfig, TrainConfig
from spatialavatar.training.folder import claim_run
from spatialavatar.training.optimization import learning_rate_factor
from spatialavatar.training.pool import open_pool
from spatialavatar.training.setup import find_parent, training_head
from spatialavatar.training.stream import Share

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # by which Ray Train is told
LEAST_START_TIMEOUT = 60.0  # seconds that workers wait for what other jobs hold
ENVIRONMENT = {  # of the workers
    "OMP_WAIT_POLICY": "passive",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray Data keeps the CPUs of a stream whose worker was killed for 180 s: those that start again would wait for them
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
}


def absolute(config: TrainConfig) -> TrainConfig:
    """The configuration with locations that mean the same to a worker, whose working folder is another one."""

    def of_data(data: DataConfig | None) -> DataConfig | None:
        if data is None:
            return None
        shards = data.shards and data.shards.model_copy(update={"url": files.absolute(data.shards.url)})
        clips = tuple(files.absolute(clip) for clip in data.clips)
        return data.model_copy(update={"shards": shards, "clips": clips})

    changes: dict[str, Any] = {"data": of_data(config.data), "held_out": of_data(config.held_out)}
    for name in ("head", "phase1_checkpoint"):
        location = getattr(config, name)
        changes[name] = None if location is None else files.absolute(location)
    encoder = config.generator.encoder
    if encoder.weights not in ("hub", "random"):
        encoder = encoder.model_copy(update={"weights": files.absolute(encoder.weights)})
        changes["generator"] = config.generator.model_copy(update={"encoder": encoder})
    return config.model_copy(update=changes)


def check(config: TrainConfig, out: str, force: bool) -> None:
    """What is wrong with the input or the folder, before any worker starts. Raises SpatialAvatarError."""
    check_input(config, started=not force and bool(complete_checkpoints(out)))
    claim_run(out, resume=not force, force=force, parent=config.phase1_checkpoint)


def check_input(config: TrainConfig, started: bool) -> None:
    """What is wrong with the input; writes nothing. A run that has ``started`` needs nothing of Phase 1 any more.

    Raises SpatialAvatarError.
    """
    Share(0, config.distributed.workers).rows(config.batch_size)
    learning_rate_factor(0, config.steps, config.schedule)
    head = training_head(config)
    parent = None if started else find_parent(config)
    if parent is not None:
        where, facts = parent
        facts.head.require(head, where)
    for data in (config.data, config.held_out):
        if data is not None:
            open_pool(data, head, config.phase)
    if config.loss.lambda_lp > 0:
        require_alexnet_features(None)


def fit(
    config: TrainConfig,
    out: str,
    find: Callable[[], Places],
    board: Any,
    callbacks: "Sequence[UserCallback]" = (),
) -> Outcome:
    """Train, or go on with the run in ``out``, until it ends, stops as asked, or cannot go on.

    ``find`` tells where the workers start, each time they do: machines come and go. ``callbacks`` hear of the log's
    newest line whenever held-out people are looked at (``sheet_every``).

    Raises SpatialAvatarError when workers are lost too often, or ``find`` does.
    """
    failures = 0
    while True:
        before = newest_step(out)
        trainer = _trainer(config, out, find(), board, callbacks)
        try:
            outcome: Outcome = trainer.fit().return_value  # type: ignore[attr-defined]
            return outcome
        except Exception as e:  # Ray's own, of several bases
            failures = 1 if newest_step(out) > before else failures + 1
            loss = _loss(e)
            if failures > config.distributed.max_failures:
                raise SpatialAvatarError(
                    f"{out}: the workers ended {failures} time(s) without a new checkpoint, the last time {loss}; "
                    "Ray's dashboard has their logs, and the same command goes on"
                ) from e
            board.update.remote(None, [f"{loss}; all start again from the newest checkpoint"])


def _trainer(
    config: TrainConfig, out: str, places: Places, board: Any, callbacks: "Sequence[UserCallback]"
) -> "TorchTrainer":
    """One start of the workers, after whose loss there is no other."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ[START_TIMEOUT] = str(max(LEAST_START_TIMEOUT, config.distributed.wait_seconds))
    return TorchTrainer(
        work,  # type: ignore[arg-type]  # Ray declares version 1, and runs version 2
        train_loop_config={
            "config": config.model_dump_json(),
            "out": out,
            "gpu": places.gpu,
            "data_workers": places.data_workers,
            "board": board,
            "report": bool(callbacks),
        },
        scaling_config=ScalingConfig(
            num_workers=places.workers, use_gpu=places.gpu, resources_per_worker=places.resources
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=f"{Path(out).name}-{hashlib.sha256(out.encode()).hexdigest()[:8]}",
            # Ray's own notes; nothing of ours
            storage_path=str(Path(tempfile.gettempdir()) / f"spatialavatar-ray-{os.getuid()}"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),  # type: ignore[call-arg]
            worker_runtime_env={"env_vars": worker_environment()},
            callbacks=list(callbacks),  # type: ignore[arg-type]
        ),
        torch_config=TorchConfig(backend="nccl" if places.gpu else "gloo"),
    )


def _loss(error: Exception) -> str:
    """Who was lost, and why."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if failures:
        ranks = sorted(failures)
        lost = f"worker {ranks[0]} was" if len(ranks) == 1 else f"workers {', '.join(map(str, ranks))} were"
        return f"{lost} lost ({first_line(failures[ranks[0]])})"
    cause = getattr(error, "controller_failure", error)
    if type(cause).__name__ == "WorkerGroupStartupTimeoutError":
        return f"the workers found no room ({free_now()} are free, other jobs hold the rest)"
    return f"the workers did not start ({first_line(cause)})"


def worker_environment() -> dict[str, str]:
    """Variables that workers get of this process, with locations that mean the same to them."""
    weights = os.environ.get(WEIGHTS_VARIABLE)
    return ENVIRONMENT | ({WEIGHTS_VARIABLE: files.absolute(weights)} if weights else {})


def fit_in_thread(*arguments: Any) -> tuple[threading.Thread, list[Any]]:
    """``fit`` beside the main thread, which is then free for signals; its outcome or exception is in the list."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(fit(*arguments))
        except BaseException as e:
            ended.append(e)

    thread = threading.Thread(target=run, name="training", daemon=True)
    thread.start()
    return thread, ended


def newest_step(out: str) -> int:
    """Of a run's complete checkpoints; 0 without any."""
    return max((int(step.rpartition("-")[2]) for step in complete_checkpoints(out)), default=0)
