"""``python -m ray_jobs.evaluate``: a generator on held-out people, or many avatars on their own clips.

The library does the work (spatialavatar/evaluation/subjects.py, results.py); this spreads the subjects over a Ray
cluster, a few to a task. Ray restarts no task: a crash is looked at here, so that one subject that ends its process
costs a few repeats and not the whole run.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from ray_jobs.command import output_folder, run
from ray_jobs.evaluate_worker import Opened, measure

if TYPE_CHECKING:
    from spatialavatar.evaluation.subjects import Instruments, Subject
    from spatialavatar.head import HeadModel, HeadReference

CRASHES = 3  # of a subject's process, or its machine, before the subject is left out
PER_TASK = 4  # subjects; fewer where that would leave workers without one
SECONDS_BETWEEN_LOOKS = 1.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def evaluate(
    data: Annotated[
        str, typer.Option(metavar="URL", help="Data set of shards, or a folder above several, or above clips.")
    ],
    out: Annotated[str, typer.Option(metavar="URL", help="Folder for the results.")],
    checkpoint: Annotated[
        str | None, typer.Option(metavar="CKPT", help="A training run, one of its checkpoints, or a generator's file.")
    ] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="The encoder's weights, when not where they were at training.")
    ] = None,
    avatars: Annotated[
        str | None, typer.Option(metavar="URL", help="Instead: an avatar's folder, or one above several.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The head of the clips; the built-in one, and one beside them, is found."),
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="all|train|held_out", help="Which people of the data, as in training.")
    ] = "all",
    held_out_share: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="Of the people, as in training.")
    ] = 0.02,
    k: Annotated[
        str, typer.Option("--k", metavar="K,K", help="A generator's numbers of source portraits, each a table row.")
    ] = "1,2,3,4",
    targets: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Frames to show of each clip: 8, of an avatar all, unless given."),
    ] = None,
    split: Annotated[str, typer.Option(help="An avatar's frames: test, train, view (held-out cameras) or all.")] = (
        "test"
    ),
    resolution: Annotated[
        int | None, typer.Option(metavar="N", min=16, help="Pixels of the longer side; as trained unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of sources and targets.")] = 0,
    lpips_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="AlexNet features for LPIPS (see 'spatialavatar doctor').")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes at work; one for each GPU, or CPU, when absent.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N subjects, for a trial.")] = (
        None
    ),
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to join; RAY_ADDRESS, or one of its own.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again what is there already.")] = False,
) -> None:
    """Measure a generator, or avatars, on many people at once.

    PSNR, SSIM, LPIPS, CSIM, AED, APD and AKD; the last four with estimators that other packages bring. Leaves in OUT
    evaluation.json, table.md, table.csv and a small file for each subject under subjects/. Run the same command again
    to go on after an interruption, or when there are new clips: what is measured stays. A broken clip stops nothing;
    it is listed in evaluation.json with its reason. Paths are folders or URLs such as s3://bucket/folder.

    \b
    Examples:
      # a generator on the people that its training held out, on this machine
      python -m ray_jobs.evaluate --checkpoint runs/phase2 --data shards/ --part held_out --out results/phase2
      # on a cluster, each person by one and by four portraits, 16 frames shown of each
      ray job submit --working-dir . -- python -m ray_jobs.evaluate --checkpoint s3://lab/runs/phase2 \\
          --data s3://lab/shards --part held_out --head s3://lab/flame2023.head.safetensors \\
          --k 1,4 --targets 16 --out s3://lab/results/phase2
      # refined avatars on the test frames of their own clips, found by who is seen
      python -m ray_jobs.evaluate --avatars avatars/ --data clips/ --out results/avatars
    """
    from ray_jobs.connect import connect
    from spatialavatar import files
    from spatialavatar.cli.console import progress
    from spatialavatar.clip.tracked_clip import Split
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.evaluation.estimators import offered_names, reasons
    from spatialavatar.evaluation.footage import Fault, Part, find_footage
    from spatialavatar.evaluation.generator_report import TARGETS
    from spatialavatar.evaluation.results import claim_results, finished, forget, write_report, write_result
    from spatialavatar.evaluation.subjects import (
        Instruments,
        Settings,
        avatar_subjects,
        generator_subjects,
        lpips_hash,
    )
    from spatialavatar.generator.checkpoint import PackedGenerator, find_generator, read_facts, read_weights
    from spatialavatar.losses.lpips_weights import load_alexnet_features

    if (checkpoint is None) == (avatars is None):
        raise SpatialAvatarError("give either --checkpoint, a generator, or --avatars, a folder of them")
    for name, value, choices in (("--part", part, get_args(Part)), ("--split", split, get_args(Split))):
        if value not in choices:
            raise SpatialAvatarError(f"{name} {value}: expected one of {', '.join(choices)}")
    if encoder_weights is not None and checkpoint is None:
        raise SpatialAvatarError("--encoder-weights is for --checkpoint")
    sources = _sources(k)
    results_in = output_folder(out, "")
    facts = where = None
    if checkpoint is not None:
        where = find_generator(files.absolute(checkpoint))
        facts = read_facts(where)
        if encoder_weights is not None:
            weights = encoder_weights if encoder_weights == "hub" else files.absolute(encoder_weights)
            facts = facts.with_encoder(weights, where)
    footage = find_footage(files.absolute(data), cast(Part, part), held_out_share)
    reference = facts.head if facts is not None else footage.clips[0].head if footage.clips else None
    if reference is None:
        raise _nothing(footage.location, footage.faults)
    model = _head(reference, head, str(where or footage.location), footage.location)
    footage.require(model)
    if facts is not None:
        subjects, faults = generator_subjects(footage, model)
    else:
        subjects, faults = avatar_subjects(files.absolute(avatars or ""), footage)
    subjects = subjects[:limit]
    if not subjects:
        raise _nothing(footage.location, faults)

    features = load_alexnet_features(lpips_weights)
    estimators = offered_names()
    settings = Settings(
        generator=None if facts is None else facts.hash,
        sources=sources if facts is not None else (),
        targets=TARGETS if targets is None and facts is not None else targets,
        split=cast(Split, split),
        resolution=resolution if facts is None else resolution or _trained_at(facts),
        seed=seed,
        lpips=lpips_hash(features),
        estimators=tuple(sorted(estimators.items())),
    )
    claim_results(results_in, force)
    if force:
        forget(results_in, subjects)
    results = finished(results_in, subjects, settings)
    todo = [subject for subject in subjects if subject.key not in results]
    if todo:
        generator = None
        if facts is not None and where is not None:
            generator = PackedGenerator(where, facts, read_weights(where, facts))
        instruments = Instruments(settings, footage, model, generator, features)
        connect(address, workers)
        failed = 0
        with progress("evaluating", len(subjects)) as update:
            update(len(results))
            for subject, measured in on_ray(instruments, todo, workers):
                if isinstance(measured, str):
                    faults.append(Fault(subject.key, measured))
                    failed += 1
                else:
                    results[subject.key] = write_result(results_in, subject, settings, measured)
                update(len(results) + failed, f"{failed} failed" if failed else "")
    if not results:
        raise _nothing(footage.location, faults)
    about = {"checkpoint": where, "avatars": None if avatars is None else files.absolute(avatars)}
    about |= {"data": footage.location, "part": part}
    write_report(results_in, about, settings, results, faults, reasons(estimators, features is not None))
    new = f"{len(results) - (len(subjects) - len(todo))} new" if todo else "nothing new"
    typer.echo(f"{results_in}: {len(results)} subjects, {new}")
    if faults:
        typer.echo(f"{len(faults)} could not be measured, with reasons in {results_in}/evaluation.json")


def on_ray(
    instruments: "Instruments", subjects: "Sequence[Subject]", workers: int | None = None
) -> "Iterator[tuple[Subject, dict[str, Any] | str]]":
    """What is measured of each subject (``Bench.measure``) or why it is not, as they come, on the cluster that this
    process is connected to: one task to a GPU where there are any, else to a CPU.

    A task whose process ends is taken apart; a subject that ends its process, or loses its machine, ``CRASHES`` times
    is left out. Raises SpatialAvatarError for instruments that a machine cannot use, and what else goes wrong in a
    task.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    from spatialavatar.errors import SpatialAvatarError

    gpus = ray.cluster_resources().get("GPU", 0) >= 1
    task = ray.remote(measure).options(
        num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0, scheduling_strategy="SPREAD", name="evaluate"
    )
    reference = ray.put(instruments)
    opened = Opened(reference.hex(), reference)
    size = min(PER_TASK, max(1, len(subjects) // (2 * _at_once(workers, gpus))))
    waiting = deque((tuple(subjects[start : start + size]), 0) for start in range(0, len(subjects), size))
    running: dict[Any, tuple[tuple[Subject, ...], int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _at_once(workers, gpus):
                group, crashes = waiting.popleft()
                running[task.remote(group, opened)] = group, crashes
            ready, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_LOOKS)
            for ref in ready:
                group, crashes = running.pop(ref)
                try:
                    outcomes = ray.get(ref)
                except RayTaskError:
                    raise
                except RayError as e:
                    if len(group) > 1:
                        waiting.extendleft(((subject,), 0) for subject in reversed(group))
                    elif crashes + 1 < CRASHES:
                        waiting.append((group, crashes + 1))
                    else:
                        what = "it takes more memory than there is"
                        if not isinstance(e, OutOfMemoryError):
                            what = "a crash, too little memory, or machines that were lost"
                        yield group[0], f"ended the process that measured it {CRASHES} times: {what}"
                    continue
                if isinstance(outcomes, SpatialAvatarError):
                    raise outcomes
                yield from zip(group, outcomes, strict=True)
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def _at_once(workers: int | None, gpus: bool) -> int:
    import ray

    return workers or max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))


def _sources(text: str) -> tuple[int, ...]:
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.evaluation.held_out import MOST_SOURCES

    parts = text.split(",")
    if not all(part.strip() in map(str, range(1, MOST_SOURCES + 1)) for part in parts):
        raise SpatialAvatarError(f"--k {text}: expected numbers of portraits in 1..{MOST_SOURCES}, as 1,4")
    return tuple(sorted({int(part) for part in parts}))


def _head(reference: "HeadReference", given: str | None, what: str, data: str) -> "HeadModel":
    from spatialavatar.cli.console import resolve_head

    return resolve_head(reference, given, what, [data])


def _trained_at(facts: Any) -> int:
    return int(facts.training.get("resolution", facts.config.encoder.image_size))


def _nothing(data: str, faults: Sequence[Any]) -> Exception:
    from spatialavatar.errors import SpatialAvatarError

    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    why = f": {faults[0].reason}{more}" if faults else ""
    return SpatialAvatarError(f"{data}: nothing to evaluate{why}")


if __name__ == "__main__":
    run(app, "ray_jobs.evaluate")
