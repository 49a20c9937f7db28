"""What each setting of the refinement does to the held-out frames: one short run per variant, one table.

    python benchmarks/refine_sweep.py CLIP --head HEAD --variants benchmarks/variants/first_round.yaml
    python benchmarks/refine_sweep.py CLIP --head HEAD --variants benchmarks/variants/anti_spike.yaml --only none \\
        --set iterations=500

A variants file names runs and their --set values; every run starts from the template skin with the same seed. Measured
on the clip's test frames, over white.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import arguments, record
from spatialavatar.avatar import AvatarRenderer
from spatialavatar.clip import open_clip
from spatialavatar.config import load_config
from spatialavatar.evaluation.metrics import Lpips
from spatialavatar.evaluation.self_reenactment import evaluate
from spatialavatar.head import read_head
from spatialavatar.refine import RefineConfig, refine_clip, template_start

TRAINING_FRAMES = 25  # measured beside the held-out ones
COLUMNS = ("psnr", "worst", "ssim", "lpips", "train_psnr", "max_aspect_ratio", "seconds")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("clip", help="folder of a tracked clip with test frames")
    parser.add_argument("--head", required=True, help="its head")
    parser.add_argument(
        "--variants", required=True, type=Path, help="YAML: common: [key=value], runs: {name: [key=value]}"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for every run, after the file's common values"
    )
    parser.add_argument("--only", nargs="*", metavar="RUN", help="these runs of the file")
    parser.add_argument("--name", default="refine_sweep", help="of the record")
    options = parser.parse_args()

    head, clip, lpips = read_head(options.head), open_clip(options.clip), Lpips.find()
    plan = yaml.safe_load(options.variants.read_text())
    rows = {}
    print(f"{'':28}" + "".join(f"{c:>13}" for c in COLUMNS))
    for name, overrides in plan["runs"].items():
        if options.only and name not in options.only:
            continue
        settings = load_config(RefineConfig, None, [*plan.get("common", []), *options.set, *(overrides or [])])
        rows[name] = {"set": overrides or [], **run(clip, head, settings, lpips)}
        cells = (rows[name][c] for c in COLUMNS)
        print(f"{name:28}" + "".join(f"{'-':>13}" if v is None else f"{v:>13.4f}" for v in cells), flush=True)
        results = {"clip": clip.identity, "common": [*plan.get("common", []), *options.set], "runs": rows}
        written = record(options.name, results, options.out)  # after each run: a late crash loses little
    print(written)


def run(clip: Any, head: Any, settings: RefineConfig, lpips: Lpips | None) -> dict[str, float | None]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        avatar = refine_clip(clip, head, template_start(head, settings.uv_resolution), settings, folder, device=device)
        seconds = time.perf_counter() - began
    renderer, white = AvatarRenderer(avatar, head, device), torch.ones(3)
    test = evaluate(renderer, clip, "test", resolution=settings.resolution, background=white, lpips=lpips)
    train = evaluate(
        renderer, clip, "train", resolution=settings.resolution, background=white, lpips=None, limit=TRAINING_FRAMES
    )
    return {
        "psnr": test["psnr"],
        "worst": test["worst_frame"]["psnr"],
        "ssim": test["ssim"],
        "lpips": test["lpips"],
        "train_psnr": train["psnr"],
        "max_aspect_ratio": test["max_aspect_ratio"],
        "seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    main()
