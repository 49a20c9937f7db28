"""What each training worker does: the library's run on this worker's share of every batch."""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from ray_jobs.deepspeed_engine import DeepSpeedEngine, import_deepspeed
from ray_jobs.gauges import Gauges
from ray_jobs.train_status import Reporter
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.processors import usable_cpus
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.group import Distributed, unanimous
from spatialavatar.training.progress import Progress, StopTraining
from spatialavatar.training.run import train


@dataclass(frozen=True)
class Outcome:
    """How a training ended, other than by the loss of a worker, which is an exception."""

    step: int
    checkpoint: str | None = None  # of its last step
    stopped: bool = False  # as asked, with a checkpoint
    error: str | None = None  # what the user can put right: trying again would not help


def work(settings: dict[str, Any]) -> Outcome:
    """Ray Train's function; ``settings``: config (JSON of TrainConfig), out, gpu, data_workers, board, report."""
    import ray.train
    import ray.train.torch

    from ray_jobs.stream import ray_batches

    config = TrainConfig.model_validate_json(settings["config"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if settings["gpu"] else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, usable_cpus() // context.get_local_world_size()))
    group = Distributed(device)
    reporter = Reporter(settings["board"]) if group.share.rank == 0 else None
    gauges = Gauges("train", "a training", "run", settings["out"]) if reporter else None
    library = logging.getLogger("spatialavatar")
    if reporter:
        library.addHandler(reporter)
    step = 0
    told: dict[str, Any] = {}

    def observe(progress: Progress) -> None:
        nonlocal step, told
        step = progress.step
        if progress.latest is not told:
            told = progress.latest
            if gauges:
                gauges.set(_flat(told))
        # by the step alone: all workers meet in it. It waits for Ray Train's controller, so not for every line
        if settings["report"] and step and (step % config.sheet_every == 0 or step == config.steps):
            ray.train.report({**_flat(progress.latest), "step": step})
        if reporter:
            reporter(progress)

    try:
        unanimous(group, lambda: import_deepspeed(device))
        saved = train(
            config,
            settings["out"],
            device=device,
            resume=True,
            observe=observe,
            group=group,
            make_engine=DeepSpeedEngine,
            stream=lambda head, first: ray_batches(head, config, first, group.share, workers=settings["data_workers"]),
            again="",
        )
        return Outcome(step, saved)
    except StopTraining:
        return Outcome(step, stopped=True)
    except (SpatialAvatarError, OSError) as e:
        return Outcome(step, error=str(e))
    finally:
        if reporter:
            library.removeHandler(reporter)
            reporter.flush_to(None)


def _flat(line: dict[str, Any]) -> dict[str, float]:
    """A line of the log with its performance beside the rest."""
    return {name: value for name, value in line.items() if name != "performance"} | line.get("performance", {})
