"""``python -m ray_jobs.ingest``: thousands of trackers' folders, or clips, into a data set of shards.

The library does the work (spatialavatar/shards/ingest.py); this spreads its groups over a Ray cluster. A group is a
task that is never restarted by Ray: a crash is looked at here, so that one source that ends its process costs a few
repeats and not the whole run.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_jobs.command import output_folder, run

if TYPE_CHECKING:
    from spatialavatar.head.model import HeadModel
    from spatialavatar.shards.convert import Converted
    from spatialavatar.shards.ingest import Work
    from spatialavatar.shards.ingest_config import IngestConfig
    from spatialavatar.shards.plan import Group

CRASHES = 2  # of a group before it is taken apart, and of a single clip before it is rejected
STORE_TRIES = 3  # of a group whose store does not answer, before it is left for another run
SECONDS_BETWEEN_LOOKS = 1.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def ingest(
    source: Annotated[
        str, typer.Option(metavar="URL", help="Folder above the trackers' folders or clips, at any depth.")
    ],
    output: Annotated[str, typer.Option(metavar="URL", help="Folder of the data set.")],
    head: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The head of the clips; absent: the built-in one, for our own clips."),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="What wrote the folders; auto looks at their files, clip is our own.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes at work; one for each CPU when absent.")
    ] = None,
    identity_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="Its first group, found in a folder's path, is who is seen, e.g. '^([^/]+)/'."
        ),
    ] = None,
    licence: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the pictures, kept as a note.")] = None,
    fps: Annotated[
        float | None, typer.Option(metavar="RATE", help="When the tool's files do not say, or say it wrongly.")
    ] = None,
    test_last: Annotated[
        int, typer.Option(metavar="N", min=0, help="Keep the last N instants of each clip for testing.")
    ] = 0,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Keep for testing what the tool's own files do.")
    ] = False,
    tracking: Annotated[
        str | None, typer.Option(metavar="URL", help="NeRSemble: the folder that VHAP exported.")
    ] = None,
    drop_dynamic_offsets: Annotated[
        bool, typer.Option("--drop-dynamic-offsets", help="VHAP: without the offsets of every frame.")
    ] = False,
    image_format: Annotated[
        str, typer.Option(metavar="keep|jpg", help="jpg writes PNG images as JPEG of quality 95.")
    ] = "keep",
    max_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=8, max=8192, help="Reduce larger pictures to this longer side.")
    ] = None,
    max_bad_frames: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0, max=1, help="Of a clip's frames, how many may have tracking that misses the face."
        ),
    ] = 0.05,
    clips_per_shard: Annotated[
        int, typer.Option(metavar="N", min=1, help="Clips in a file, which one process makes.")
    ] = 16,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N folders, for a trial.")
    ] = None,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Try again what earlier runs rejected.")
    ] = False,
    minutes_per_clip: Annotated[
        float, typer.Option(metavar="N", min=0.1, help="A clip that takes longer counts as one that crashes.")
    ] = 30.0,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to join; RAY_ADDRESS, or one of its own.")
    ] = None,
) -> None:
    """Convert tracked videos into shards, many at once.

    Source and output are folders or URLs such as s3://bucket/folder. Run the same command again to go on after an
    interruption, or when there are new folders: what is done stays. A broken clip stops nothing; it is listed in
    OUTPUT/rejected.jsonl with its reason.

    \b
    Examples:
      # on this machine, on all of its CPUs
      python -m ray_jobs.ingest --source tracked/ --output shards/ --head flame2020.head.safetensors \\
          --licence "consent form of 2024" --test-last 350
      # on a cluster, from S3 to S3 (credentials by the usual AWS variables)
      ray job submit --working-dir . -- python -m ray_jobs.ingest --source s3://lab/tracked \\
          --output s3://lab/shards --format vhap --head s3://lab/flame2023.head.safetensors \\
          --identity-pattern '^([0-9]+)_' --image-format jpg --max-size 512
      # clips of our own, folders with clip.json
      python -m ray_jobs.ingest --source clips/ --output shards/ --format clip
    """
    from pydantic import ValidationError

    from ray_jobs.connect import connect
    from spatialavatar import files
    from spatialavatar.cli.console import progress, say
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.shards.ingest import Count, finish, prepare
    from spatialavatar.shards.ingest_config import IngestConfig

    try:
        config = IngestConfig(
            source=files.absolute(source),
            output=output_folder(output, "", "--output"),
            format=format,
            head=head,
            licence=licence,
            identity_pattern=identity_pattern,
            fps=fps,
            test_last=test_last,
            keep_split=keep_split,
            drop_dynamic_offsets=drop_dynamic_offsets,
            tracking=None if tracking is None else files.absolute(tracking),
            image_format=image_format,  # type: ignore[arg-type]
            max_size=max_size,
            max_bad_frames=max_bad_frames,
            clips_per_shard=clips_per_shard,
            limit=limit,
        )
    except ValidationError as e:
        first = e.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise SpatialAvatarError(f"{option} {first['input']}: {first['msg'].lower()}") from None

    def found(count: int) -> None:
        if count % 1000 == 0:
            say(f"{count} folders found")

    work = prepare(config, retry_rejected, found)
    count = Count(work)
    if work.groups:
        connect(address, workers)
        began = time.monotonic()
        with progress("ingesting", count.total) as update:
            for converted in on_ray(work, workers, minutes_per_clip):
                count.add(converted)
                rate = count.frames / (time.monotonic() - began)
                update(count.done, f"{rate:.0f} frames/s, {count.rejected} rejected", count.total)
    summary = finish(work, count)
    new = f"{summary.converted} new" if summary.converted else "nothing new"
    typer.echo(f"{output}: {summary.clips} clips, {new}")
    if summary.rejected:
        typer.echo(f"{summary.rejected} rejected, with reasons in {output.rstrip('/')}/rejected.jsonl")
    if summary.left:
        raise SpatialAvatarError(
            f"{summary.left} clips are left over ({count.problems[0]}); run the same command again"
        )


def on_ray(work: "Work", workers: int | None = None, minutes_per_clip: float = 30.0) -> Iterator["Converted"]:
    """Convert every group on the cluster that this process is connected to, one to a CPU at a time.

    A group whose process ends is tried once more and then taken apart; a clip that ends its process as often is
    rejected. A group whose store does not answer waits, and in the end comes back with its problem. Raises what else
    goes wrong in a task, such as a full disk.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    from spatialavatar.errors import StoreError
    from spatialavatar.shards.convert import Converted, quarantine
    from spatialavatar.shards.plan import singles

    task = ray.remote(_convert).options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD", name="ingest")
    head = ray.put(work.head)
    waiting = deque(work.groups)
    running: dict[Any, tuple[Group, set[str]]] = {}
    crashes: Counter[str] = Counter()
    tries: Counter[str] = Counter()
    try:
        while waiting or running:
            at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(running) < at_once:
                group = waiting.popleft()
                running[task.remote(group, work.config, head, minutes_per_clip)] = group, _nodes()
            ready, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_LOOKS)
            for ref in ready:
                group, nodes = running.pop(ref)
                try:
                    outcome = ray.get(ref)
                except RayTaskError:
                    raise
                except RayError as e:
                    if nodes - _nodes():  # a machine is gone: nothing says that it was the group
                        waiting.appendleft(group)
                        continue
                    crashes[group.name] += 1
                    parts = singles(group, work.settings)
                    if crashes[group.name] < CRASHES:
                        waiting.appendleft(group)
                    elif len(parts) > 1:
                        waiting.extendleft(reversed(parts))
                        yield Converted(group, further=tuple(parts))
                    else:
                        reason = f"ended the process that read it {CRASHES} times: "
                        reason += (
                            "it takes more memory than there is"
                            if isinstance(e, OutOfMemoryError)
                            else f"a crash of a reader, too little memory, or more than {minutes_per_clip:g} minutes"
                        )
                        yield Converted(group, quarantine(group, work.config, work.head, reason))
                    continue
                if isinstance(outcome, StoreError):
                    tries[group.name] += 1
                    if tries[group.name] < STORE_TRIES:
                        waiting.append(group)
                    else:
                        yield Converted(group, problem=str(outcome))
                elif isinstance(outcome, Exception):
                    raise outcome
                else:
                    waiting.extendleft(reversed(outcome.further))
                    yield outcome
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def _convert(
    group: "Group", config: "IngestConfig", head: "HeadModel", minutes_per_clip: float
) -> "Converted | Exception":
    """In a worker. What the driver has to decide on comes back as a value."""
    import faulthandler

    import cv2
    import torch

    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.shards.convert import convert

    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    def begin(key: str) -> None:
        # ends this process when the next call does not come in time, even out of code that never returns
        faulthandler.dump_traceback_later(60 * minutes_per_clip, exit=True, file=2)

    try:
        return convert(group, config, head, begin)
    except (SpatialAvatarError, OSError) as e:
        return e
    finally:
        faulthandler.cancel_dump_traceback_later()


def _nodes() -> set[str]:
    """Machines that are alive."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


if __name__ == "__main__":
    run(app, "ray_jobs.ingest")
