"""What scheduling a fleet costs: 10,000 subjects with stub work on 8 workers, and going on with a run of that size.

    python benchmarks/fleet.py --work DIR

The stub sleeps for 50 ms in the place of a refinement and writes a record; everything else is the real thing: manifest,
listing, ledger, pool of Ray actors, records on the local disk, status, summary. The ideal is the stub's time over the
workers. Measured while all workers are up, between a tenth and nine tenths of the run; their start is told beside it.
Then nine tenths of the records stay, and the run is started again: the seconds from the program's start until its first
new subject is handed to a worker. Last, a million subjects and 1,000 workers without a cluster: the driver's own
bookkeeping, with outcomes that come at once, which tells what the loop can take and what memory it needs. Writes
``benchmarks/results/fleet-<date>.json``.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import arguments, record
from spatialavatar.fleet.config import FleetConfig
from spatialavatar.fleet.pipeline import Job, Outcome, Timing
from spatialavatar.fleet.records import RECORD_FORMAT, RECORDS, VERSION, Recipe, write_record
from spatialavatar.fleet.run import FleetRun, Selection
from spatialavatar.fleet.status import Status
from spatialavatar.fleet.subjects import read_subjects

ROOT = Path(__file__).parents[1]
SIMULATED_WORKERS = 1000
RECIPE = Recipe("stub", "stub")


class StubWork:
    """Sleeps where others refine."""

    def __init__(self, given: tuple[str, float], device: Any, uploads: ThreadPoolExecutor) -> None:
        self._out, self._seconds = given

    def prepare(self, job: Job) -> Job:
        return job

    def optimise(self, batch: list[Job], stop: Any) -> tuple[list[Any], Timing]:
        time.sleep(self._seconds * len(batch))
        return list(batch), Timing(len(batch), None, 0.0)

    def deliver(self, job: Job, result: Any) -> dict[str, Any]:
        kept = self.record(job)
        write_record(self._out, job.name, kept)
        return kept

    def record(self, job: Job) -> dict[str, Any]:
        return {
            "format": RECORD_FORMAT,
            "version": VERSION,
            "id": job.subject.id,
            "digest": RECIPE.digest(job.subject),
            "clip": job.subject.clip,
            "avatar": f"avatars/{job.subject.id}.0",
            "metrics": {"psnr": 30.0, "ssim": 0.9, "lpips": 0.1, "mse": 0.001, "max_aspect_ratio": 8.0},
            "review": [],
            "iterations": 0,
            "seconds": self._seconds,
            "attempts": job.attempts,
            "worker": "stub",
        }

    def progress(self) -> float:
        return 0.0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One run of the driver in this process."""
    import ray

    from ray_jobs.refine_pool import Pool

    config = FleetConfig.model_validate(
        {
            "subjects": str(options.work / "subjects.jsonl"),
            "output": str(options.work / "out"),
            "workers": {"most": options.workers, "cpus": 1, "batch": options.batch},
        }
    )
    began = time.perf_counter()
    fleet = FleetRun(config, RECIPE, read_subjects(config.subjects), Selection())
    fleet.begin()
    read = time.perf_counter()
    ray.init(address="local", num_cpus=options.workers, log_to_driver=False, logging_level=logging.ERROR)
    connected = time.perf_counter()
    seen: list[tuple[float, int, int]] = []
    first_given: list[float] = []
    before = fleet.done
    give = FleetRun.jobs_of

    def noting(self: FleetRun, cases: Any) -> list[Job]:
        first_given.append(time.perf_counter()) if not first_given else None
        return give(self, cases)

    FleetRun.jobs_of = noting  # type: ignore[method-assign]

    def observe(status: Status) -> None:
        seen.append((time.perf_counter(), status.done, status.workers))

    busy = time.process_time()
    Pool(fleet, StubWork, (config.output, options.seconds), observe).go()
    busy = time.process_time() - busy
    ended = time.perf_counter()
    told = fleet.finish("finished", alone=True)
    finished = time.perf_counter()
    ray.shutdown()
    todo = told.status.total - before
    steady = [s for s in seen if 0.1 * todo <= s[1] - before <= 0.9 * todo and s[2] == options.workers]
    rate = (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0]) if len(steady) > 1 else None
    ideal = options.workers / options.seconds
    return {
        "finished_before": before,
        "subjects": todo,
        "seconds": round(ended - began, 2),
        "seconds_to_read_manifest_and_records": round(read - began, 2),
        "seconds_to_start_ray": round(connected - read, 2),
        "seconds_to_first_subject": round(first_given[0] - began, 2),
        "seconds_for_summary": round(finished - ended, 2),
        "subjects_per_second": None if rate is None else round(rate, 2),
        "ideal_subjects_per_second": round(ideal, 2),
        "overhead": None if rate is None else round(1 - rate / ideal, 4),
        "driver_cpu_milliseconds_for_a_subject": round(1000 * busy / todo, 2),
        "driver_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


def simulated(options: argparse.Namespace) -> dict[str, Any]:
    """The driver's side alone: manifest, ledger, outcomes and summary of many subjects, 1,000 of them out at a time."""
    config = FleetConfig(subjects=str(options.work / "subjects.jsonl"), output=str(options.work / "out"))
    began = time.perf_counter()
    fleet = FleetRun(config, RECIPE, read_subjects(config.subjects), Selection())
    fleet.begin()
    read = time.perf_counter()
    stub = StubWork((config.output, 0.0), None, None)  # type: ignore[arg-type]
    out = fleet.ledger.take(SIMULATED_WORKERS)
    while out:
        for job in fleet.jobs_of(out):
            fleet.settle(Outcome(job.subject.id, "done", record=stub.record(job)), "stub")
        fleet.tick()
        out = fleet.ledger.take(SIMULATED_WORKERS)
    settled = time.perf_counter()
    told = fleet.finish("finished", alone=False)
    return {
        "subjects": told.status.done,
        "workers": SIMULATED_WORKERS,
        "seconds_to_read_manifest": round(read - began, 2),
        "microseconds_for_a_subject": round(1e6 * (settled - read) / told.status.done, 1),
        "seconds_for_summary": round(time.perf_counter() - settled, 2),
        "driver_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


def write_manifest(folder: Path, subjects: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = (json.dumps({"id": f"s{n:07d}", "clip": f"clips/s{n:07d}"}) + "\n" for n in range(subjects))
    (folder / "subjects.jsonl").write_text("".join(rows))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for manifest and records, which are removed")
    parser.add_argument("--subjects", type=int, default=10_000, help="of the manifest")
    parser.add_argument("--workers", type=int, default=8, help="processes that work on them")
    parser.add_argument("--batch", type=int, default=1, help="subjects that a worker takes at once")
    parser.add_argument("--seconds", type=float, default=0.05, help="that the stub takes for a subject")
    parser.add_argument("--simulate", type=int, default=1_000_000, help="subjects without a cluster; 0: none")
    parser.add_argument("--once", choices=("run", "simulated"), help=argparse.SUPPRESS)  # a part of it, as JSON
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if options.once:
        print(json.dumps({"run": run, "simulated": simulated}[options.once](options)))
        return
    write_manifest(options.work, options.subjects)

    def driver(part: str) -> dict[str, Any]:
        command = [sys.executable, __file__, *sys.argv[1:], "--once", part]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print("\n".join(f"  {name}: {value}" for name, value in told.items()), flush=True)
        return told

    print("whole run")
    whole = driver("run")
    kept = sorted((options.work / "out" / RECORDS).iterdir())
    for file in kept[:: max(1, len(kept) // (options.subjects // 10))]:
        file.unlink()
    print("nine tenths finished")
    rest = driver("run")
    results: dict[str, Any] = {"whole": whole, "resumed": rest}
    if options.simulate:
        print("simulated")
        write_manifest(options.work, options.simulate)
        results["simulated"] = driver("simulated")
    shutil.rmtree(options.work)
    settings = {"workers": options.workers, "batch": options.batch, "seconds_of_a_subject": options.seconds}
    print(record("fleet", {"settings": settings, **results}, options.out))


if __name__ == "__main__":
    main()
