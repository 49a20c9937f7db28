"""``python -m ray_jobs.tune``: many trainings that differ in some values, and a table of what came of them."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_jobs.command import output_folder, run

if TYPE_CHECKING:
    from ray_jobs.tune_board import Ended, SweepStatus
    from ray_jobs.tune_config import TrialPlan, TuneConfig
    from ray_jobs.tune_places import Room
    from ray_jobs.tune_trial import Trials
    from spatialavatar.cli.console import Update

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_ANSWER = 20.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def tune(
    config: Annotated[str, typer.Option("--config", "-c", metavar="FILE", help="YAML as configs/tune/lambda_sp.yaml.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="URL", help="Folder of the sweep, where all machines can write."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value of FILE, set.KEY of all trainings; may be repeated."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At a time; as many as there is room for unless given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start over, and replace what --out holds.")] = False,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to join; RAY_ADDRESS, or one of its own.")
    ] = None,
) -> None:
    """Train variants of a generator, measure each on held-out people, and compare.

    Leaves in OUT table.md and table.csv (PSNR, SSIM, LPIPS, CSIM, AED, APD and AKD of every variant, the paper's beside
    them), sweep.png (held-out PSNR by step), and under trials/ a training run for each variant. The same command goes
    on after an interruption: trained variants stay, the others go on from their checkpoints. A variant that fails has
    a row with its reason, and stops no other.

    \b
    Examples:
      # on this machine, small
      python -m ray_jobs.tune --config configs/dev/tune/base_lr.yaml --out runs/sweep
      # the paper's Table 8 on a cluster, two GPUs for each of four trials at a time
      ray job submit --working-dir . -- python -m ray_jobs.tune --config configs/tune/lambda_sp.yaml \\
          --set set.phase1_checkpoint=s3://lab/runs/phase1 --set set.data.shards.url=s3://lab/nersemble \\
          --set evaluate.data.shards.url=s3://lab/celebv-hq --set set.head=s3://lab/flame2023.head.safetensors \\
          --set set.distributed.workers=2 --trials 4 --out s3://lab/sweeps/lambda_sp
      # other values, shorter, those that fall behind stopped early
      python -m ray_jobs.tune --config configs/tune/lambda_jac.yaml --set 'grid={loss.lambda_jac: [0.05, 0.1, 0.2]}' \\
          --set set.steps=50000 --set search=asha --set asha.grace_period=5000 --out runs/lambda_jac
    """
    from ray_jobs.tune_config import TuneConfig, plan_trials
    from spatialavatar.cli.train import default_folder
    from spatialavatar.config import load_config

    overrides = [*(set_ or []), *([] if trials is None else [f"concurrent={trials}"])]
    sweep = load_config(TuneConfig, config, overrides)
    plans = [_located(plan) for plan in plan_trials(sweep, config)]
    _tune(sweep, plans, output_folder(out, default_folder(config)), force, address)


def _located(plan: "TrialPlan") -> "TrialPlan":
    """With locations that mean the same to a worker."""
    from ray_jobs.training import absolute

    evaluated_on = absolute(plan.config.model_copy(update={"held_out": plan.evaluated_on})).held_out
    assert evaluated_on is not None
    return replace(plan, config=absolute(plan.config), evaluated_on=evaluated_on)


def _tune(sweep: "TuneConfig", plans: "Sequence[TrialPlan]", out: str, force: bool, address: str | None) -> None:
    from ray_jobs.connect import connect, local_cpus
    from ray_jobs.training import check_input, worker_environment
    from ray_jobs.tune_places import find_room
    from ray_jobs.tune_result import (
        MARKDOWN,
        begin,
        claim_sweep,
        fingerprint,
        read_ended,
        trial_folder,
        write_result,
    )
    from ray_jobs.tune_trial import Trials
    from spatialavatar import files
    from spatialavatar.cli.console import say
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.evaluation.estimators import offered_names
    from spatialavatar.evaluation.subjects import PROTOCOL, lpips_hash
    from spatialavatar.generator.checkpoint import complete_checkpoints
    from spatialavatar.losses.lpips_weights import load_alexnet_features
    from spatialavatar.training.pool import open_pool
    from spatialavatar.training.setup import training_head

    for plan in plans:
        if plan.evaluated_on != plan.config.held_out:  # which is looked at below
            open_pool(plan.evaluated_on, training_head(plan.config), plan.config.phase)
        started = not force and bool(complete_checkpoints(trial_folder(out, plan.name)))
        check_input(plan.config, started)
    claim_sweep(out, sweep, plans, force)
    features, estimators = load_alexnet_features(), offered_names()
    measures = {"estimators": estimators, "lpips": lpips_hash(features), "protocol": PROTOCOL}
    prints = {plan.name: fingerprint(plan, sweep) for plan in plans}
    found = {} if force else {name: read_ended(out, name, prints[name], measures) for name in prints}
    ended = {name: end for name, end in found.items() if end is not None}
    todo = [plan for plan in plans if plan.name not in ended or not ended[plan.name].final]
    if todo:
        connect(address, local_cpus(max(plan.config.distributed.workers for plan in todo)))
        room = find_room([plan.config for plan in todo], sweep.concurrent, say)
    begin(out, sweep, plans, force)
    if todo:
        say(_described(plans, todo, room, out))
        places = {plan.name: place for plan, place in zip(todo, room.places)}
        trials = Trials(
            out,
            {plan.name: plan for plan in plans},
            places,
            prints,
            sweep.evaluate,
            worker_environment(),
            measures,
            features,
        )
        ended |= _run(sweep, trials, room.trials, ended)
    rows = write_result(out, sweep, plans, ended)
    typer.echo(files.read_bytes(files.join(out, MARKDOWN)).decode())
    failures = [end.failed for end in ended.values() if end.failed is not None]
    if not any(end.evaluation for end in ended.values()):
        first_reason = f" ({failures[0]})" if failures else ""
        raise SpatialAvatarError(f"{out}: none of {len(rows)} variants has a result{first_reason}; table.md says why")
    new = f"{len(todo)} new" if todo else "nothing new"
    typer.echo(f"{out}: {len(rows)} variants, {new}" + (f", {len(failures)} failed" if failures else ""))


def _described(plans: "Sequence[TrialPlan]", todo: "Sequence[TrialPlan]", room: "Room", out: str) -> str:
    """What will be done."""
    places = room.places[0]
    kind = "GPU" if places.gpu else "CPU"
    done = f", {len(plans) - len(todo)} of them done" if len(todo) < len(plans) else ""
    at_a_time = f"{room.trials} at a time"
    if room.trials == 1:
        at_a_time = "one at a time (the cluster has no room for more, or no more are left or wanted)"
    return (
        f"{len(plans)} variants{done}, {at_a_time}, each with {places.workers} {kind} worker(s) and "
        f"{places.data_workers * places.workers} CPU(s) preparing batches -> {out}"
    )


def _run(sweep: "TuneConfig", trials: "Trials", at_a_time: int, before: "Mapping[str, Ended]") -> "dict[str, Ended]":
    """How the trials without an end came to one, beside one line of progress."""
    from ray_jobs.tune_board import sweep_board
    from ray_jobs.tune_search import crashed, tuner
    from spatialavatar.cli.console import progress

    board = sweep_board()
    with progress("variants", len(trials.plans)) as update:
        results = _watched(tuner(sweep, trials, board, at_a_time), board, _Line(update, before))
    told = _look(board).ended
    return told | crashed(results, trials, told)


class _Line:
    """What stands beside the bar: who is at work, and the best so far."""

    def __init__(self, update: "Update", before: "Mapping[str, Ended]") -> None:
        self._update = update
        self._before = {name: end for name, end in before.items() if end.final}

    def __call__(self, status: "SweepStatus") -> None:
        ended = {**self._before, **status.ended}
        psnr = {name: end.evaluation["overall"]["psnr"] for name, end in ended.items() if end.evaluation}
        parts = [
            f"{name} {'evaluating' if name in status.evaluating else f'{now.step}/{now.steps}'}"
            for name, now in status.progress.items()
            if name not in ended
        ]
        if psnr:
            best = max(psnr, key=lambda name: psnr[name])
            parts.append(f"best {best}: {psnr[best]:.2f} dB")
        elif status.held_out:
            best = max(status.held_out, key=lambda name: status.held_out[name])
            parts.append(f"best so far {best}: {status.held_out[best]:.2f} dB held out")
        self._update(len(ended), "; ".join(parts) or "waiting for workers")


def _watched(tuner: Any, board: Any, line: _Line) -> Any:
    """Tune's results. Ctrl-C and SIGTERM let Tune end its trials before they interrupt the program."""
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, line, over), name="progress", daemon=True)
    watcher.start()
    try:
        with _interruption() as interrupted:
            results = tuner.fit()
    finally:
        over.set()
        watcher.join()
    if interrupted():
        raise KeyboardInterrupt
    return results


def _watch(board: Any, line: _Line, over: threading.Event) -> None:
    from ray.exceptions import RayError

    from spatialavatar.cli.console import say

    last = False
    while not last:
        last = over.wait(SECONDS_BETWEEN_LOOKS)
        try:
            status = _look(board)
        except RayError:
            continue  # the cluster is going down, and Tune ends with that
        for message in status.messages:
            say(f"warning: {message}")
        line(status)


@contextmanager
def _interruption() -> "Iterator[Callable[[], bool]]":
    """Ctrl-C and SIGTERM become the signal on which Tune stops in good order; a second one interrupts at once."""
    from spatialavatar.cli.console import say

    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say("stopping; the trials' checkpoints stay (press again to stop at once)")
        signal.raise_signal(signal.SIGUSR1)

    def at_once(*_: object) -> None:  # until Tune listens
        raise KeyboardInterrupt

    handlers = {signal.SIGINT: ask, signal.SIGTERM: ask, signal.SIGUSR1: at_once}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _look(board: Any) -> "SweepStatus":
    import ray

    status: SweepStatus = ray.get(board.read.remote(), timeout=SECONDS_TO_ANSWER)
    return status


if __name__ == "__main__":
    run(app, "ray_jobs.tune")
