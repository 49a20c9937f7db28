"""``spatialavatar train``: the feed-forward generator, trained in one process."""

import math
import shlex
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from spatialavatar.cli.console import (
    DeviceOption,
    choose_device,
    clean_stop,
    one_of_resume_and_force,
    progress,
    say,
)

if TYPE_CHECKING:
    from spatialavatar.training.config import TrainConfig
    from spatialavatar.training.progress import Progress

SPEED_STEPS = 20  # over which samples/s is averaged
CLIPS_NAMED = 3  # in the plan; of more, the number is said


def train(
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML as configs/phase1.yaml; the run's own with --resume.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="RUN", help="Folder for the run; runs/ and FILE's name unless given."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of the file's.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other value; may be repeated.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run in --out.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out holds.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a generator: portraits in, avatars out.

    In two phases, on 2 CPU cores in minutes (configs/dev) or as the paper (configs/phase1.yaml, configs/phase2.yaml).
    Ctrl-C stops with a checkpoint, from which --resume goes on.

    \b
    Examples:
      spatialavatar train --config configs/dev/phase1.yaml --out runs/phase1
      spatialavatar train --config configs/dev/phase2.yaml --set phase1_checkpoint=runs/phase1 --out runs/phase2
      spatialavatar train --resume --out runs/phase1
      spatialavatar train --config configs/dev/phase1.yaml --set loss.lambda_jac=0 --out runs/no-jacobian

    Without --config, --resume takes the configuration that the run was started with. With it, FILE must say the same
    but for what is logged, shown and saved. A run that has no checkpoint yet starts from the beginning.
    """
    from spatialavatar import files
    from spatialavatar.config import load_config
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.training.config import TrainConfig
    from spatialavatar.training.folder import CONFIG
    from spatialavatar.training.progress import StopTraining
    from spatialavatar.training.run import train as train_generator

    one_of_resume_and_force(resume, force)
    if config is None and (out is None or not resume):
        raise SpatialAvatarError(
            "train: which configuration? Start with --config configs/dev/phase1.yaml, or go on with --resume --out RUN"
        )
    folder = out if out is not None else default_folder(str(config))
    own = files.join(folder, CONFIG)
    if config is None and not files.exists(own):
        raise SpatialAvatarError(
            f"{folder}: no training run here (no {CONFIG}); name the folder of the run to go on with"
        )
    overrides = [*(set_ or []), *([] if steps is None else [f"steps={steps}"])]
    settings = load_config(TrainConfig, config or own, overrides)
    where = choose_device(device)
    state: Progress | None = None
    try:
        with (
            _no_empty_folder(folder),
            clean_stop("step") as stop_requested,
            progress("training", settings.steps) as update,
        ):
            status = Speed(settings)

            def observe(now: "Progress") -> None:
                nonlocal state
                if state is None:  # the run has checked its input and begins
                    say(plan(settings, str(where), folder))
                state = now
                update(now.step, status.note(now))
                if stop_requested() and now.step < now.steps:
                    raise StopTraining

            saved = train_generator(settings, folder, device=where, resume=resume, force=force, observe=observe)
    except StopTraining:
        again = f"spatialavatar train --resume --out {shlex.quote(folder)}"
        again += "" if device == "auto" else f" --device {device}"
        say(f"stopped after step {state.step if state else 0} with a checkpoint; go on with: {again}")
        raise typer.Exit(130) from None
    say(_outcome(settings, folder, saved, state.seconds if state else 0.0, status.held_out))


def default_folder(config: str) -> str:
    """``runs/phase1`` for configs/phase1.yaml, ``runs/dev-phase1`` for configs/dev/phase1.yaml."""
    path = PurePosixPath(config)
    group = path.parent.name
    return f"runs/{path.stem}" if group in ("", "..", "configs") else f"runs/{group}-{path.stem}"


@contextmanager
def _no_empty_folder(folder: str) -> Iterator[None]:
    """Where a run fails before it writes anything, no folder is left that was not there before."""
    from spatialavatar import files

    stood = files.is_folder(folder)
    try:
        yield
    finally:
        if not stood and files.is_folder(folder) and not files.list_folder(folder):
            files.remove(folder)


class Speed:
    """What stands beside the progress bar."""

    def __init__(self, config: "TrainConfig") -> None:
        self._samples = config.batch_size
        self._recent: deque[tuple[int, float]] = deque(maxlen=SPEED_STEPS + 1)
        self.held_out: float | None = None  # dB

    def note(self, state: "Progress") -> str:
        self._recent.append((state.step, state.seconds))
        self.held_out = state.latest.get("held_out_psnr", self.held_out)
        parts = []
        if "loss" in state.latest:
            parts.append(f"loss {state.latest['loss']:.4f}")
        if state.latest.get("mse", 0) > 0:
            parts.append(f"{-10 * math.log10(state.latest['mse']):.1f} dB")
        if self.held_out is not None:
            parts.append(f"held out {self.held_out:.1f} dB")
        (first, began), (last, now) = self._recent[0], self._recent[-1]
        if now > began:
            parts.append(f"{(last - first) * self._samples / (now - began):.1f} samples/s")
        return ", ".join(parts)


def plan(config: "TrainConfig", device: str, out: str) -> str:
    """What will be done, in two lines."""
    kind = {1: "monocular", 2: "multi-view"}[config.phase]
    synthetic = config.data.synthetic
    places = config.data.clips
    listed = ", ".join(places[:CLIPS_NAMED])
    if len(places) > CLIPS_NAMED:
        listed += f" and {len(places) - CLIPS_NAMED} more"
    if synthetic:
        data = f"{synthetic.identities} synthetic people"
    else:
        data = f"clips in {listed}" if config.data.shards is None else f"the shards in {config.data.shards.url}"
    start = f", from {config.phase1_checkpoint}" if config.phase1_checkpoint else ""
    return (
        f"phase {config.phase} ({kind}){start} on {data}\n"
        f"{config.steps} steps of {config.batch_size} samples at {config.resolution} pixels in {config.precision} "
        f"on {device} -> {out}"
    )


def _outcome(config: "TrainConfig", out: str, checkpoint: str, seconds: float, held_out: float | None) -> str:
    from spatialavatar.training.folder import LOG, SHEETS, TENSORBOARD

    run, curves = shlex.quote(out), shlex.quote(f"{out}/{TENSORBOARD}")
    quality = "" if held_out is None else f", held-out PSNR {held_out:.2f} dB"
    lines = [
        f"{config.steps} steps in {seconds:.0f} s{quality} -> {out}",
        f"  checkpoint   {checkpoint}",
        f"  pictures     {out}/{SHEETS} (sources | target | render)",
        f"  metrics      {out}/{LOG}; tensorboard --logdir {curves}",
        "next:",
        f"  spatialavatar reconstruct CLIP#0 --checkpoint {run} --out avatar",
    ]
    if config.phase == 1:
        parent = shlex.quote(f"phase1_checkpoint={out}")
        lines.append(f"  spatialavatar train --config .../phase2.yaml --set {parent} --out runs/phase2")
    return "\n".join(lines)
