"""Training on Ray with DeepSpeed against the plain loop in one process, and two workers against one.

    python benchmarks/training.py --work DIR

Runs the small Phase 1 on a few made-up people, whose frames fit into memory, as 'spatialavatar train' and as
'python -m ray_jobs.train' in turns, ``--rounds`` times. Samples a second are those of the run's own log, the median
over its lines after a warm-up. Prints a table and writes ``benchmarks/results/training-<date>.json``.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import arguments, record

ROOT = Path(__file__).parents[1]
WARM_UP = 20  # steps: kernels, caches, frames that are made for the first time
LINE = 5  # steps between lines of the log
RAY = ["-m", "ray_jobs.train"]
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "plain loop": (["-m", "spatialavatar", "train"], []),
    "Ray, 1 worker, ZeRO 0": (RAY, []),
    "Ray, 1 worker, ZeRO 1": (RAY, ["--set", "distributed.zero_stage=1"]),
    "Ray, 2 workers, ZeRO 0": (RAY, ["--workers", "2"]),
    "Ray, 2 workers, ZeRO 2": (RAY, ["--workers", "2", "--set", "distributed.zero_stage=2"]),
}
SETTINGS = {
    "data.synthetic.identities": 8,
    "data.memory_gb": 4,
    "held_out": "null",
    "held_out_samples": 1,
    "log_every": LINE,
    "checkpoint_every": 100_000,
    "sheet_every": 100_000,
}


def run(program: list[str], options: list[str], steps: int, out: Path) -> dict[str, float]:
    """One training; medians of its log after the warm-up."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, *program, "--config", str(ROOT / "configs/dev/phase1.yaml"), "--out", str(out)]
    command += ["--steps", str(steps), *options]
    for key, value in SETTINGS.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    shown = [line["performance"] for line in lines if "loss" in line and line["step"] > WARM_UP]
    names = ("samples_per_second", "step_seconds", "data_seconds", "memory_gib")
    return {name: statistics.median(line[name] for line in shown) for name in names}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs, which are removed")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--steps", type=int, default=60, help=f"of each training; the first {WARM_UP} do not count")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(options.rounds):
        for name, (program, extra) in VARIANTS.items():
            found[name].append(run(program, extra, options.steps, options.work / "run"))
            print(f"round {number + 1}, {name}: {found[name][-1]['samples_per_second']:.2f} samples/s", flush=True)
    shutil.rmtree(options.work / "run", ignore_errors=True)
    plain = found["plain loop"]
    results: dict[str, Any] = {}
    for name, rounds in found.items():
        # of the same round: the machine's speed wanders
        ratios = [one["samples_per_second"] / other["samples_per_second"] for one, other in zip(rounds, plain)]
        results[name] = {key: round(statistics.median(r[key] for r in rounds), 4) for key in rounds[0]}
        results[name] |= {"of_plain_loop": round(statistics.median(ratios), 4), "rounds": rounds}
        print(
            f"{name:24s} {results[name]['samples_per_second']:6.2f} samples/s  {results[name]['of_plain_loop']:.2f} of "
            f"the plain loop  {1000 * results[name]['data_seconds']:.0f} ms for data  "
            f"{results[name]['memory_gib']:.2f} GiB a process"
        )
    settings = {"steps": options.steps, "warm_up": WARM_UP, "batch_size": 8, **SETTINGS}
    print(record("training", {"settings": settings, "variants": results}, options.out))


if __name__ == "__main__":
    main()
