"""How fast shards become training batches, against decoding the same JPEGs and nothing else.

    python benchmarks/stream.py --work DIR

Makes a data set of made-up people with film grain (``--clips`` rows that share the pictures of a few captures), then
in turns: decodes JPEGs of it, prepares parts of batches on one core, and streams batches through Ray with one worker.
Rates are frames a second, the median over ``--rounds``. Then one pass over the whole data set with an object store a
tenth of its size, while memory is sampled. Prints tables and writes ``benchmarks/results/stream-<date>.json``.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import argparse
import cProfile
import logging
import pstats
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import ray
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import arguments, record
from ray_jobs.stream import ray_batches
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.header import FrameIndex
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.synthetic import synthesize_capture
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.head import HeadModel, HeadReference, builtin_head
from spatialavatar.shards import open_shards
from spatialavatar.shards.entry import ShardRecord
from spatialavatar.shards.file import ShardWriter, shard_file
from spatialavatar.shards.manifest import write_manifest
from spatialavatar.shards.records import write_record
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.packed_batch import PackedBatch
from spatialavatar.training.pool import open_pool
from spatialavatar.training.stream import Plan, keep_freed_memory, prepare

GRAIN = 2.0  # standard deviation in grey levels, so that a JPEG has the bytes of a real one
CAPTURES, INSTANTS, CLIPS_PER_SHARD = 4, 32, 32
PIECES = {  # of a profile: function names and what they stand for
    "'acquire' of '_thread.lock'": "waiting for rows and pictures to be read",
    "imdecode": "decoding JPEG and PNG",
    "cvtColor": "order of the channels",
    "pack": "putting batches together",
    "draw_of_sample": "drawing frames",
    "encoded_size": "checking pictures",
}


def captures(head: HeadModel, size: int, matte: str) -> list[TrackedClip]:
    """A few clips in memory."""
    made = []
    for number in range(CAPTURES):
        capture = synthesize_capture(head, identity=number, motion=number, frames=INSTANTS, size=size)
        rng = np.random.default_rng(number)
        frames = []
        for instant in range(INSTANTS):
            image, alpha = capture.render(instant, 0)
            grain = np.clip(image + rng.normal(0, GRAIN, image.shape), 0, 255).astype(np.uint8)
            frames.append(EncodedFrame.from_arrays(grain, alpha if matte == "alpha" else None))

        def read(instant: int, camera: int, frames: list[EncodedFrame] = frames) -> EncodedFrame:
            return frames[instant]

        made.append(
            assemble_clip(
                f"capture {number}",
                identity=capture.identity,
                head=head,
                params=capture.params,
                world_to_camera=capture.world_to_camera,
                intrinsics=capture.intrinsics,
                width=size,
                height=size,
                fps=25.0,
                frames=read,
                matte_kind=matte,  # type: ignore[arg-type]
                face_box=capture.face_box,
            )
        )
    return made


def write_data(folder: Path, head: HeadModel, clips: int, size: int, matte: str) -> None:
    if (folder / "manifest.json").exists():
        return
    made = captures(head, size, matte)
    records = []
    for first in range(0, clips, CLIPS_PER_SHARD):
        name = f"{first:06d}"
        with tempfile.TemporaryDirectory() as scratch:
            writer = ShardWriter(Path(scratch, "shard"), name)
            for number in range(first, min(first + CLIPS_PER_SHARD, clips)):
                writer.add(f"clip{number:06d}", made[number % CAPTURES])
            entries, facts = writer.close()
            target = Path(shard_file(folder, name))
            target.parent.mkdir(parents=True, exist_ok=True)
            writer.local.rename(target)
        one = ShardRecord(name, *facts, HeadReference.of(head), entries, (), "benchmark")
        write_record(folder, one)
        records.append(one)
    write_manifest(folder, records, {"made": "by benchmarks/stream.py"})


def settings(folder: Path, size: int, batch: int, draws: int, steps: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "data": {"shards": str(folder), "memory_gb": 0},
            "generator": {"encoder": {"image_size": size}},
            "resolution": size,
            "batch_size": batch,
            "steps": steps,
            "sampler": {"draws_per_clip": draws},
        }
    )


def frames_in(batches: list[PackedBatch]) -> int:
    return sum(int(batch.arrays["sources.count"].sum()) + len(batch) for batch in batches)


def raw_jpegs(folder: Path, count: int) -> list[bytes]:
    shards = open_shards(folder)
    clips = [shards.clip(number) for number in range(CAPTURES)]
    return [clips[n % CAPTURES].encoded(FrameIndex(n // CAPTURES % INSTANTS, 0)).image for n in range(count)]


def decode_rate(jpegs: list[bytes]) -> float:
    began = time.perf_counter()
    for data in jpegs:
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return len(jpegs) / (time.perf_counter() - began)


def prepare_rate(head: HeadModel, config: TrainConfig, parts: int, profile: cProfile.Profile | None = None) -> float:
    pool = open_pool(config.data, head)
    plan = Plan(config)
    prepare(pool, config, plan[0])  # opens the data set
    began = time.perf_counter()
    if profile is not None:
        profile.enable()
    made = [frames_in(prepare(pool, config, plan[number])) for number in range(1, 1 + parts)]
    if profile is not None:
        profile.disable()
    return sum(made) / (time.perf_counter() - began)


def ray_rate(head: HeadModel, config: TrainConfig, warm_up: int) -> float:
    stream = ray_batches(head, config, workers=1)
    for _ in range(warm_up):
        next(stream)
    began = time.perf_counter()
    made = [frames_in([batch]) for batch in stream]
    return sum(made) / (time.perf_counter() - began)


@contextmanager
def sampled_memory(every: float = 0.25) -> Iterator[list[tuple[float, float]]]:
    """(resident bytes of this process and its workers without shared memory, bytes in the object store)."""
    samples: list[tuple[float, float]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every):
            private = 0
            for process in psutil.process_iter(["cmdline"]):
                words = " ".join(process.info["cmdline"] or [])
                if process.pid == os.getpid() or words.startswith("ray::"):
                    try:
                        memory = process.memory_info()
                        private += memory.rss - memory.shared
                    except psutil.Error:
                        continue
            total = ray.cluster_resources()["object_store_memory"]
            samples.append((private, total - ray.available_resources().get("object_store_memory", 0)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def by_pieces(profile: cProfile.Profile) -> dict[str, float]:
    """Share of the time under the functions of PIECES; they do not nest."""
    stats = pstats.Stats(profile)
    total = sum(row[2] for row in stats.stats.values())  # type: ignore[attr-defined]
    shares = {}
    for name, what in PIECES.items():
        inside = sum(row[3] for key, row in stats.stats.items() if name in key[2])  # type: ignore[attr-defined]
        shares[what] = round(inside / total, 3)
    shares["the rest"] = round(1 - sum(shares.values()), 3)
    return shares


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the data sets; used again")
    parser.add_argument("--clips", type=int, default=800, help="rows of the data set with mattes")
    parser.add_argument("--size", type=int, default=512, help="pixels, stored and trained")
    parser.add_argument("--batch", type=int, default=8, help="samples of a batch")
    parser.add_argument("--draws", type=int, default=4, help="samples from a clip each time that it is read")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each rate")
    parser.add_argument("--store-mb", type=int, default=200, help="object store for the pass over everything")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    keep_freed_memory()  # as the processes that prepare batches do
    head = builtin_head()
    results: dict[str, Any] = {}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=options.store_mb * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    for matte, clips in (("burnt_black", CLIPS_PER_SHARD), ("alpha", options.clips)):
        folder = options.work / f"{matte}-{options.size}"
        write_data(folder, head, clips, options.size, matte)
        results[matte] = rates(folder, head, options)
        for name, value in results[matte].items():
            print(f"{matte:12} {name:40} {value}")
    results["pass over everything"] = whole_pass(options.work / f"alpha-{options.size}", head, options)
    for name, value in results["pass over everything"].items():
        print(f"{name:53} {value}")
    ray.shutdown()
    shown = {name: value for name, value in vars(options).items() if name not in ("work", "out")}
    print(record("stream", {"settings": shown, **results}, options.out))


def rates(folder: Path, head: HeadModel, options: argparse.Namespace) -> dict[str, Any]:
    config = settings(folder, options.size, options.batch, options.draws, steps=48)
    began = time.perf_counter()
    stream = ray_batches(head, config.model_copy(update={"steps": 100_000}), workers=1)
    next(stream)
    first = time.perf_counter() - began
    stream.close()
    jpegs = raw_jpegs(folder, 400)
    decoded, prepared, streamed = [], [], []
    for _ in range(options.rounds):
        decoded.append(decode_rate(jpegs))
        prepared.append(prepare_rate(head, config, parts=40))
        streamed.append(ray_rate(head, config, warm_up=8))
    profile = cProfile.Profile()
    prepare_rate(head, config, parts=40, profile=profile)
    raw = statistics.median(decoded)
    return {
        "kilobytes of a JPEG": round(statistics.mean(len(data) for data in jpegs) / 1e3, 1),
        "raw JPEG decode, frames/s": round(raw, 1),
        "prepared on one core, frames/s": round(statistics.median(prepared), 1),
        "prepared / raw": round(statistics.median(p / d for p, d in zip(prepared, decoded)), 3),
        "Ray, one worker, frames/s": round(statistics.median(streamed), 1),
        "Ray / raw": round(statistics.median(s / d for s, d in zip(streamed, decoded)), 3),
        "first batch, seconds": round(first, 2),
        "shares of the preparing core": by_pieces(profile),
    }


def whole_pass(folder: Path, head: HeadModel, options: argparse.Namespace) -> dict[str, Any]:
    steps = options.clips * options.draws // options.batch
    config = settings(folder, options.size, options.batch, options.draws, steps)
    size = sum(path.stat().st_size for path in (folder / "shards").glob("*.parquet"))
    with sampled_memory() as samples:
        began = time.perf_counter()
        count = sum(frames_in([batch]) for batch in ray_batches(head, config, workers=1))
        seconds = time.perf_counter() - began
    quarter = len(samples) // 4
    private, store = ([sample[i] / 2**20 for sample in samples] for i in (0, 1))
    return {
        "data set, MB": round(size / 2**20),
        "object store, MB": options.store_mb,
        "frames/s": round(count / seconds, 1),
        "process memory, MB, second quarter (max)": round(max(private[quarter : 2 * quarter])),
        "process memory, MB, last quarter (max)": round(max(private[3 * quarter :])),
        "object store in use, MB (max)": round(max(store)),
    }


if __name__ == "__main__":
    main()
