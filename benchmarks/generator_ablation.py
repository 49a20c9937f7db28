"""What each part of the generator's training is worth, in the small: short runs of both phases, one table.

    python benchmarks/generator_ablation.py --work DIR

Every variant changes configs/dev/phase1.yaml and phase2.yaml by --set values alone. Variants that differ in Phase 2
only share their Phase 1. Measured on held-out people over white: monocular clips (what Phase 1 taught, and Phase 2 may
make forget) and takes of 16 cameras. A finished run under DIR is used again. Prints a table and writes
``benchmarks/results/generator_ablation-<date>.json``.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.generator_learning import CONFIGS, TARGETS, finish, held_out
from benchmarks.record import arguments, record
from spatialavatar.config import load_config
from spatialavatar.evaluation.held_out import batches_of, cases, from_sources, measure
from spatialavatar.generator.checkpoint import read_generator
from spatialavatar.head import builtin_head
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.training.config import TrainConfig

NO_RESIDUAL = "generator.decoder.residual=false"
NO_JACOBIAN = "loss.lambda_jac=0"
# name: (values for both phases, values for Phase 2 alone)
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "full": ([], []),
    "without residual head": ([NO_RESIDUAL], []),
    "without Jacobian penalty": ([NO_JACOBIAN], []),
    "without anchor": ([], ["loss.lambda_sp=0"]),
    "without cross-time samples": ([], ["sampler.cross_time=0"]),
    "without anchor and cross-time": ([], ["loss.lambda_sp=0", "sampler.cross_time=0"]),
    "Phase 1 alone": ([], []),
}
POOLS = {"monocular": (1, 12), "take": (16, 4)}  # cameras, instants
SOURCES = (1, 4)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--phase1-steps", type=int, default=200, help="training steps of Phase 1")
    parser.add_argument("--phase2-steps", type=int, default=80, help="training steps of Phase 2")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="these variants")
    options = parser.parse_args()

    rows: dict[str, Any] = {}
    for name, (both, second) in VARIANTS.items():
        if options.only and name not in options.only:
            continue
        first_run = options.work / "-".join(["phase1", *both])
        first = load_config(TrainConfig, CONFIGS / "phase1.yaml", [*both, f"steps={options.phase1_steps}"])
        finish(first, first_run)
        run = first_run
        if name != "Phase 1 alone":
            run = options.work / "-".join(["phase2", *both, *second])
            values = [*both, *second, f"steps={options.phase2_steps}", f"phase1_checkpoint={first_run}"]
            finish(load_config(TrainConfig, CONFIGS / "phase2.yaml", values), run)
        rows[name] = {"set": [*both, *second], **quality(run, first)}
        results = {"steps": [options.phase1_steps, options.phase2_steps], "variants": rows}
        written = record("generator_ablation", results, options.out)  # a late crash loses little
    print(written)


def quality(run: Path, config: TrainConfig) -> dict[str, Any]:
    head = builtin_head()
    generator, _ = read_generator(run, head)
    lpips, size = Lpips.find(), config.generator.encoder.image_size
    found: dict[str, Any] = {}
    for name, (cameras, instants) in POOLS.items():
        pool = held_out(cameras, instants)
        for k in SOURCES:
            batches = batches_of(pool, cases(pool, k, TARGETS), size, config.resolution)
            values = measure(from_sources(generator), generator, batches, lpips)
            found[f"{name}, K = {k}"] = {metric: round(float(v.double().mean()), 4) for metric, v in values.items()}
    cells = "  ".join(f"{name} {metrics['psnr']:.2f}" for name, metrics in found.items())
    print(f"{run.name:60} {cells}", flush=True)
    return found


if __name__ == "__main__":
    main()
