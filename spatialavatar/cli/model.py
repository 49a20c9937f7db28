"""``spatialavatar model``: look into generators."""

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from spatialavatar.cli.console import HeadOption, resolve_head, say

if TYPE_CHECKING:
    from spatialavatar.training.config import TrainConfig
    from spatialavatar.training.summary import Summary

WIDTH = 100  # of lines of text

app = typer.Typer(
    no_args_is_help=True,
    help="""Generators: size, cost and memory.

    \b
    Example:
      spatialavatar model summary --config configs/phase1.yaml
    """,
)


@app.callback()
def _group() -> None:
    """Keeps ``summary`` a subcommand."""


@app.command()
def summary(
    config: Annotated[
        str | None, typer.Option("--config", "-c", metavar="FILE", help="YAML of a training, as configs/phase1.yaml.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="CKPT", help="A training run, one of its checkpoints, or generator.safetensors."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of a training step; the configuration's.")
    ] = None,
    sources: Annotated[int, typer.Option(min=1, help="Portraits of each person, K.")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="With --config: any other value.")
    ] = None,
    ops: Annotated[bool, typer.Option("--ops", help="Name the operations that the FLOPs leave out.")] = False,
    head: HeadOption = None,
) -> None:
    """Parameters, FLOPs and memory of a generator.

    By module. Needs no weights and no network.

    \b
    Examples:
      spatialavatar model summary --config configs/phase1.yaml
      spatialavatar model summary --config configs/phase2.yaml --sources 4 --batch-size 6
      spatialavatar model summary --checkpoint runs/phase1
    """
    from spatialavatar.config import load_config
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.generator.checkpoint import read_facts
    from spatialavatar.generator.generator import Generator
    from spatialavatar.training.config import TrainConfig
    from spatialavatar.training.setup import training_head
    from spatialavatar.training.summary import summarize

    if (config is None) == (checkpoint is None):
        raise SpatialAvatarError("model summary: give either --config FILE or --checkpoint CKPT")
    training: TrainConfig | None
    if checkpoint is None:
        overrides = [*(set_ or []), *([] if head is None else [f"head={head}"])]
        training = load_config(TrainConfig, config, overrides)
        architecture, model = training.generator, training_head(training)
    else:
        if set_:
            raise SpatialAvatarError("--set changes a configuration; a checkpoint is as it is")
        facts = read_facts(checkpoint)
        training = _training_of(checkpoint)
        hints = [training.head] if training is not None and training.head is not None else []
        architecture, model = facts.config, resolve_head(facts.head, head, checkpoint, hints)
        say(f"{checkpoint}: generator {facts.hash[:12]}, {_origin(facts.training)}")
    if batch_size is not None:
        if training is None:
            raise SpatialAvatarError(
                f"--batch-size {batch_size}: {checkpoint} lies outside its training run, so nothing says what training "
                "takes; name the run, or give --config"
            )
        training = training.model_copy(update={"batch_size": batch_size})
    print(table(summarize(Generator(architecture, model, pretrained=False), sources, training), ops))


def _training_of(checkpoint: str) -> "TrainConfig | None":
    """The configuration that a checkpoint was trained with; None beside a file that was taken out of its run."""
    from spatialavatar import files
    from spatialavatar.errors import SpatialAvatarError, in_short
    from spatialavatar.generator.checkpoint import COMPLETE, find_generator
    from spatialavatar.training.config import TrainConfig

    record = files.join(find_generator(checkpoint).rpartition("/")[0] or ".", COMPLETE)
    if not files.exists(record):
        return None
    try:
        return TrainConfig.model_validate(files.read_json(record)["config"])
    except (ValueError, KeyError, TypeError) as e:
        reason = in_short(e)
        raise SpatialAvatarError(
            f"{record}: holds no configuration that this program reads ({reason}); use the program that wrote it"
        ) from None


def _origin(training: dict[str, object]) -> str:
    return f"phase {training.get('phase', '?')}, step {training.get('step', '?')}"


def table(found: "Summary", ops: bool = False) -> str:
    """The summary as lines of text; with ``ops`` what fvcore has no rule for, by name."""
    rows = [("module", "parameters", "trained", "GFLOPs", "kept MiB", "output")]
    for part in found.parts:
        rows.append(
            (
                part.name,
                f"{part.parameters:,}",
                "frozen" if part.parameters and not part.trainable else f"{part.trainable:,}",
                f"{part.flops / 1e9:.2f}",
                "" if found.training is None else f"{part.activations / 2**20:.0f}",
                part.output,
            )
        )
    totals = [sum(getattr(part, key) for part in found.parts) for key in ("parameters", "trainable", "flops")]
    kept = "" if found.training is None else f"{sum(part.activations for part in found.parts) / 2**20:.0f}"
    rows.append(("in all", f"{totals[0]:,}", f"{totals[1]:,}", f"{totals[2] / 1e9:.2f}", kept, ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]).rstrip()
        for row in rows
    ]
    lines.append("")
    lines.append(f"{found.gaussians:,} Gaussians; one person of {found.sources} source(s)")
    rest = f"; {len(found.uncounted)} kinds of operations are not counted (--ops)" if found.uncounted else ""
    lines.append(f"FLOPs: fvcore's count, a multiply-add once{'' if ops else rest}")
    if found.uncounted and ops:
        lines += textwrap.wrap(f"not counted: {', '.join(found.uncounted)}", WIDTH, subsequent_indent="  ")
    if found.training is not None:
        lines.append("kept: what one training sample keeps for the backward pass")
        memory = found.training
        parts = [f"{name} {_gib(size)}" for name, size in (memory.fixed | {"kept": memory.activations}).items()]
        most = memory.total - memory.activations + memory.most_activations
        lines.append(f"training at batch {memory.batch_size}, {memory.precision}: {_gib(memory.total)} GiB")
        lines.append(f"  = {' + '.join(parts)}")
        lines.append(f"  {_gib(most)} GiB for a batch whose samples all have the most sources")
    lines.append(
        f"inference of one person: {_gib(found.inference.total)} GiB = weights {_gib(found.inference.weights)} + "
        f"working memory {_gib(found.inference.working)}"
    )
    lines.append("The allocator's reserve and the kernels' own workspace come on top.")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
