"""``python -m ray_jobs.train``: the generator's training over the workers of a Ray cluster, or of this machine."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from ray_jobs.command import output_folder, run

if TYPE_CHECKING:
    from ray_jobs.train_places import Places
    from ray_jobs.train_worker import Outcome
    from spatialavatar.training.config import TrainConfig
    from spatialavatar.training.progress import Progress

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_STOP = 60.0  # for workers that do a step to hear that they shall stop
SECONDS_TO_END = 20.0  # for Ray to tell how a training ended, once it has

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def train(
    config: Annotated[str, typer.Option("--config", "-c", metavar="FILE", help="YAML as configs/phase1.yaml.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="URL", help="Folder of the run, where all machines can write; runs/NAME."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Training processes, one for each GPU; distributed.workers.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of the file's.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other value; may be repeated.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start over, and replace what --out holds.")] = False,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to join; RAY_ADDRESS, or one of its own.")
    ] = None,
) -> None:
    """Train a generator with Ray and DeepSpeed, on one machine or many.

    The same command goes on with a run that was stopped, killed or lost its machines, with any number of workers:
    batches, and what is made of them, depend on the configuration alone.

    \b
    Examples:
      # on this machine, on its GPU or its CPUs
      python -m ray_jobs.train --config configs/dev/phase1.yaml --out runs/phase1
      python -m ray_jobs.train --config configs/dev/phase2.yaml --set phase1_checkpoint=runs/phase1 --out runs/phase2
      # on a cluster, eight GPUs, all files on S3 (credentials by the usual AWS variables or roles)
      ray job submit --working-dir . -- python -m ray_jobs.train --config configs/phase1.yaml \\
          --set data.shards.url=s3://lab/celebv-hq --out s3://lab/runs/phase1 --workers 8

    Large models on small cards: --set distributed.zero_stage=2. Ctrl-C, or 'ray job stop', stops with a checkpoint.
    The run's folder is that of 'spatialavatar train', and so are its tools: tensorboard, reconstruct, model summary.
    """
    from spatialavatar.cli.train import default_folder
    from spatialavatar.config import load_config
    from spatialavatar.training.config import TrainConfig

    overrides = list(set_ or [])
    overrides += [] if steps is None else [f"steps={steps}"]
    overrides += [] if workers is None else [f"distributed.workers={workers}"]
    settings = load_config(TrainConfig, config, overrides)
    folder = output_folder(out, default_folder(config))
    _train(settings, folder, force, address)


def _train(settings: "TrainConfig", folder: str, force: bool, address: str | None) -> None:
    from ray_jobs.connect import connect, local_cpus
    from ray_jobs.train_places import find_places, held_by_others
    from ray_jobs.training import absolute, check
    from spatialavatar import files
    from spatialavatar.cli.console import say
    from spatialavatar.cli.train import plan
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.training.folder import CONFIG, PARTS

    settings = absolute(settings)
    check(settings, folder, force)
    connect(address, local_cpus(settings.distributed.workers))
    places = find_places(settings, say)
    if force:
        for part in (*PARTS, CONFIG):
            files.remove(files.join(folder, part))
    say(plan(settings, _described(settings, places), folder))
    if held := held_by_others(places):
        say(f"{held}; waiting for it")
    outcome = _watched(settings, folder)
    if outcome.error is not None:
        raise SpatialAvatarError(outcome.error)
    if outcome.stopped:
        say(f"stopped after step {outcome.step} with a checkpoint; the same command goes on")
        raise typer.Exit(130)
    typer.echo(f"{folder}: {outcome.step} steps, checkpoint {outcome.checkpoint}")


def _watched(settings: "TrainConfig", folder: str) -> "Outcome":
    """The training beside one line of progress; Ctrl-C and SIGTERM ask it to stop."""
    import ray
    from ray.exceptions import RayError

    from ray_jobs.train_places import find_places
    from ray_jobs.train_status import status_board
    from ray_jobs.training import fit_in_thread
    from spatialavatar.cli.console import clean_stop, progress, say
    from spatialavatar.cli.train import Speed

    board = status_board()
    speed = Speed(settings)
    latest: Progress | None = None
    asked: float | None = None  # when
    with clean_stop("step") as stop_requested, progress("training", settings.steps) as update:
        thread, ended = fit_in_thread(settings, folder, lambda: find_places(settings), board)
        while thread.is_alive():
            thread.join(SECONDS_BETWEEN_LOOKS)
            if stop_requested() and asked is None:
                board.stop.remote()
                asked = time.monotonic()
            try:
                status = ray.get(board.read.remote(), timeout=SECONDS_TO_END)
            except RayError:
                continue  # the cluster is going down, and the training ends with that
            for message in status.messages:
                say(f"warning: {message}")
            if status.progress is None:
                update(0, "waiting for workers")
            elif latest is None or status.progress.step != latest.step:
                latest = status.progress
                update(latest.step, speed.note(latest))
                asked = time.monotonic() if asked else None
            if asked is None or status.stopping:
                continue
            if status.progress is None or time.monotonic() - asked > SECONDS_TO_STOP:
                raise KeyboardInterrupt  # no worker is there to hear it; the newest checkpoint is as good as ever
    (outcome,) = ended
    if isinstance(outcome, BaseException):
        raise outcome
    final: Outcome = outcome
    return final


def _described(settings: "TrainConfig", places: "Places") -> str:
    kind = "GPU" if places.gpu else "CPU"
    each = settings.batch_size // places.workers
    return (
        f"{places.workers} {kind} worker(s) (ZeRO {settings.distributed.zero_stage}), {each} samples each, "
        f"{places.data_workers * places.workers} CPU(s) preparing batches,"
    )


if __name__ == "__main__":
    run(app, "ray_jobs.train")
