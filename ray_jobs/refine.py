"""``python -m ray_jobs.refine``: thousands of subjects, each refined into an avatar by a pool of workers.

The library refines (spatialavatar/fleet); this puts it on a Ray cluster (refine_pool.py, refine_worker.py).
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_jobs.command import Interrupted, output_folder, run

if TYPE_CHECKING:
    import torch

    from spatialavatar.fleet.config import FleetConfig
    from spatialavatar.fleet.status import State, Status
    from spatialavatar.fleet.subjects import Listing
    from spatialavatar.fleet.work import Instruments, RefineWork
    from spatialavatar.head.reference import FoundHead

CLIPS_ASKED = 20  # for the head that they were tracked with, before none is found

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def refine(
    subjects: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Manifest (.parquet, .csv, .jsonl: id, clip), folder above clips, or shards."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "--out", metavar="URL", help="Folder for all results.")] = (
        None
    ),
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML with any of the values of configs/fleet.yaml.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="CKPT", help="Training run or generator that makes the starts; else the template skin."),
    ] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="The encoder's weights, when not where they were at training.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The head of the clips; the built-in one, and one beside them, is found."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Folder that a manifest may name clips in, beside its own; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Skip what is finished, or make all of it again.")
    ] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what earlier runs gave up.")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="ID", help="This subject alone; may be repeated.")] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most; as many as the cluster has room for when absent.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="B", min=1, help="Subjects on a worker at once; by memory and speed when absent."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other value; may be repeated.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to join; RAY_ADDRESS, or one of its own.")
    ] = None,
) -> None:
    """Refine avatars of many people at once.

    Of each: read the clip, start from the generator or the template skin, refine, measure on the held-out frames,
    write avatar, metrics and a thumbnail under OUTPUT/avatars. OUTPUT/summary.md, summary.parquet and sheet.jpg tell of
    all. A subject that fails is tried again, then set aside with its reason; an avatar outside the gate's bounds is
    marked for review. Run the same command again to go on after an interruption, or when there are new subjects.
    'spatialavatar fleet status OUTPUT' looks at it from anywhere.

    \b
    Examples:
      # on this machine, small and quick
      python -m ray_jobs.refine --config configs/dev/fleet.yaml --subjects clips/ --output fleet
      # on a cluster, from S3 to S3 (credentials by the usual AWS variables or roles)
      ray job submit --working-dir . -- python -m ray_jobs.refine --config configs/fleet.yaml \\
          --subjects s3://lab/subjects.parquet --allow s3://lab/clips --output s3://lab/fleet \\
          --head s3://lab/flame2023.head.safetensors --checkpoint s3://lab/runs/phase2
      # what was given up, and one subject alone
      python -m ray_jobs.refine --subjects s3://lab/shards --output s3://lab/fleet --retry-failed
      python -m ray_jobs.refine --subjects s3://lab/shards --output s3://lab/fleet --only anna --only ben
    """
    from ray_jobs.connect import connect
    from ray_jobs.gauges import Gauges
    from spatialavatar import files
    from spatialavatar.cli.console import progress, say
    from spatialavatar.config import load_config
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.fleet.config import FleetConfig, holds_credentials
    from spatialavatar.fleet.run import FleetRun, Selection, chosen
    from spatialavatar.fleet.status import line, public
    from spatialavatar.fleet.subjects import read_subjects
    from spatialavatar.processors import usable_cpus

    named: dict[str, Any] = {
        "subjects": subjects,
        "output": output,
        "checkpoint": checkpoint,
        "encoder_weights": encoder_weights,
    }
    named |= {"head": head, "workers.most": workers, "workers.batch": batch}
    given = [*(set_ or []), *(f"{key}={value}" for key, value in named.items() if value is not None)]
    settings = load_config(FleetConfig, config, given)
    if not settings.subjects or not settings.output:
        raise SpatialAvatarError("--subjects URL and --output URL are needed, or both in --config")
    places: dict[str, Any] = {"output": output_folder(settings.output, "", "--output")}
    places["allow"] = [files.absolute(folder) for folder in [*settings.allow, *(allow or [])]]
    if any(holds_credentials(folder) for folder in allow or []):
        raise SpatialAvatarError("--allow: holds a user or password; credentials come from the environment")
    for name in ("subjects", "head", "checkpoint"):
        place = getattr(settings, name)
        places[name] = place if place is None else files.absolute(place)
    if settings.encoder_weights not in (None, "hub"):
        places["encoder_weights"] = files.absolute(str(settings.encoder_weights))
    settings = FleetConfig.model_validate({**settings.model_dump(), **places})
    listing = read_subjects(settings.subjects, settings.allow)
    for refused in listing.refused[:3]:
        say(f"passed over: {refused.id}: {refused.reason}")
    if len(listing.refused) > 3:
        say(f"and {len(listing.refused) - 3} more, which the summary lists")
    selection = Selection(tuple(only or ()), retry_failed, not resume)
    chosen(listing, selection.only)
    if settings.encoder_weights is not None and settings.checkpoint is None:
        raise SpatialAvatarError("--encoder-weights is for --checkpoint")
    work = instruments(settings, listing)
    fleet = FleetRun(work.config, work.recipe, listing, selection)
    if fleet.done:
        say(f"{fleet.done} of {fleet.total} are finished already")
    state: State = "finished"
    if not fleet.ledger.open:
        fleet.know_all()
    if fleet.open:
        connect(address, usable_cpus())  # before another run in the same output has to end for this one
    fleet.begin()
    if fleet.open:
        gauges = Gauges("fleet", "a fleet", "fleet", settings.output)
        try:
            from ray_jobs.refine_pool import Pool

            with progress("refining", fleet.total, estimate=False) as update:

                def observe(status: "Status") -> None:
                    update(status.done, line(status), status.total)
                    gauges.set(public(status))

                Pool(fleet, make_work, work, observe, say).go()
        except KeyboardInterrupt:
            state = "stopped"
        except Exception:
            with contextlib.suppress(SpatialAvatarError, OSError):  # the reason is the error that there is
                fleet.finish("failed", alone=False)
            raise
    told = fleet.finish(state, alone=state == "finished")
    for note in told.notes:
        say(note)
    status = told.status
    review = f", {status.review} of them to review" if status.review else ""
    typer.echo(f"{settings.output}: {status.done} of {status.total} done, {told.new} new{review}")
    if status.failed:
        typer.echo(f"{status.failed} given up or refused, with reasons in {settings.output}/summary.md")
    if state == "stopped":
        if not resume:
            raise Interrupted("go on without --no-resume, which would start over")
        raise KeyboardInterrupt
    if status.left:
        raise SpatialAvatarError(
            f"{status.left} subjects are left, because their store did not answer; run the same command again"
        )


def instruments(settings: "FleetConfig", listing: "Listing") -> "Instruments":
    """What every worker gets. Raises SpatialAvatarError: no head, a generator of another head."""
    from spatialavatar.evaluation.subjects import lpips_hash
    from spatialavatar.fleet.config import config_hash
    from spatialavatar.fleet.records import Recipe
    from spatialavatar.fleet.work import Instruments
    from spatialavatar.generator.checkpoint import PackedGenerator, find_generator, read_facts, read_weights
    from spatialavatar.head import build_layout
    from spatialavatar.losses.lpips_weights import load_alexnet_features

    generator = None
    if settings.checkpoint is not None:
        where = find_generator(settings.checkpoint)
        facts = read_facts(where)
        if settings.encoder_weights is not None:
            facts = facts.with_encoder(settings.encoder_weights, where)
        generator = PackedGenerator(where, facts, read_weights(where, facts))
        resolution = facts.config.uv_resolution
        settings = settings.model_copy(
            update={"refine": settings.refine.model_copy(update={"uv_resolution": resolution})}
        )
    found = _head(settings, listing)
    if generator is not None:
        generator.facts.head.require(found.head, generator.where)
    features = load_alexnet_features(settings.evaluation.lpips_weights)
    layout = build_layout(found.head, settings.refine.uv_resolution)
    made_by = None if generator is None else generator.facts.hash
    recipe = Recipe(config_hash(settings, made_by, lpips_hash(features)), layout.fingerprint)
    return Instruments(settings, recipe, found.head, found.file, generator, features)


def make_work(instruments: "Instruments", device: "torch.device", uploads: ThreadPoolExecutor) -> "RefineWork":
    """In a worker."""
    from spatialavatar.fleet.work import RefineWork

    return RefineWork(instruments, device, uploads)


def _head(settings: "FleetConfig", listing: "Listing") -> "FoundHead":
    """The given head, or the one that the first readable clip was tracked with."""
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.fleet.subjects import clip_head
    from spatialavatar.head import read_head
    from spatialavatar.head.reference import FoundHead, locate_head

    if settings.head is not None:
        return FoundHead(read_head(settings.head), settings.head)
    problem: Exception | None = None
    for subject in listing.subjects[:CLIPS_ASKED]:
        try:
            reference, folder = clip_head(subject)
        except SpatialAvatarError as e:
            problem = problem or e
            continue
        return locate_head(reference, subject.clip, [folder])
    raise SpatialAvatarError(f"no head can be found, for no clip can be read ({problem}); name it with --head")


if __name__ == "__main__":
    run(app, "ray_jobs.refine")
