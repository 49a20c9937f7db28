"""A fleet at useful size: a tracked clip cut into subjects, and ten made-up people, from S3 to S3.

    python benchmarks/fleet_run.py --clip CLIP --head HEAD --work DIR

``--clip`` is a tracked clip with its ``--head``; without them the made-up people alone are refined, on the built-in
head. The store is a real S3 API on loopback; the fleet is ``python -m ray_jobs.refine`` on this machine. Leaves summary
and sheet in ``--work``, and writes ``benchmarks/results/fleet_run-<date>.json``: numbers alone.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import arguments, record
from spatialavatar import files
from spatialavatar.clip import open_clip
from spatialavatar.head import builtin_head, read_head
from tests.builders.fleet import pieces_of, synthetic_people
from tests.builders.store import FaultyStore, environment

ROOT = Path(__file__).parents[1]
METRICS = ("psnr", "worst_psnr", "ssim", "lpips", "max_aspect_ratio", "tracking_residual", "seconds")


def summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over subjects, and the range of PSNR."""
    found: dict[str, Any] = {"subjects": len(rows), "to_review": sum(row["outcome"] == "review" for row in rows)}
    for name in METRICS:
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = round(statistics.median(values), 4) if values else None
    return found | {"psnr_range": [round(f(row["psnr"] for row in rows), 2) for f in (min, max)]}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clip", help="folder of a tracked clip")
    parser.add_argument("--head", help="its head")
    parser.add_argument("--work", type=Path, required=True, help="folder for summary and sheet")
    parser.add_argument("--pieces", type=int, default=4, help="subjects that the clip is cut into")
    parser.add_argument("--frames", type=int, default=60, help="of each subject, a fifth of them held out")
    parser.add_argument("--people", type=int, default=10, help="made-up people")
    parser.add_argument("--size", type=int, default=256, help="pixels; half as many texels")
    parser.add_argument("--iterations", type=int, default=1500, help="of each refinement")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    held_out = options.frames // 5
    with FaultyStore() as store, environment(store.environment):
        bucket = store.new_bucket()
        head = read_head(options.head) if options.head else builtin_head()
        if options.clip:
            pieces_of(open_clip(options.clip), f"{bucket}/subjects", options.pieces, options.frames, held_out)
        synthetic_people(head, f"{bucket}/subjects", options.people, options.frames, options.size, held_out)
        command = [sys.executable, "-m", "ray_jobs.refine", "--subjects", f"{bucket}/subjects"]
        command += ["--output", f"{bucket}/out", *(("--head", options.head) if options.head else ())]
        shown = {"iterations": options.iterations, "resolution": options.size, "uv_resolution": options.size // 2}
        for key, value in shown.items():
            command += ["--set", f"refine.{key}={value}"]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.perf_counter() - began
        table = files.read_bytes(f"{bucket}/out/summary.parquet")
        status = json.loads(files.read_bytes(f"{bucket}/out/status.json"))
        options.work.mkdir(parents=True, exist_ok=True)
        for name in ("summary.md", "summary.parquet", "sheet.jpg"):
            (options.work / name).write_bytes(files.read_bytes(f"{bucket}/out/{name}"))
    rows = pq.read_table(io.BytesIO(table)).to_pylist()
    finished = [row for row in rows if row["outcome"] in ("done", "review")]
    results: dict[str, Any] = {
        "settings": {**shown, "frames": options.frames, "held_out": held_out},
        "finished": len(finished),
        "failed": status["failed"],
        "seconds": round(seconds, 1),
        "subjects_per_hour": None if status["subjects_per_hour"] is None else round(status["subjects_per_hour"], 1),
        "optimising": round(status["optimising"], 4),
        "workers": status["workers"],
        "made-up people": summed_up([row for row in finished if row["id"].startswith("person")]),
    }
    if options.clip:
        results["pieces of a tracked clip"] = summed_up([row for row in finished if row["id"].startswith("piece")])
    print(json.dumps(results, indent=2))
    print(record("fleet_run", results, options.out))


if __name__ == "__main__":
    main()
