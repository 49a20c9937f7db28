"""Time of the feed-forward generator: one reconstruction by pieces, and one training step by pieces.

    python benchmarks/generator.py
    python benchmarks/generator.py --full

One forward reconstruction at full size (512-pixel sources, ViT-B, 256 texels, random weights) for K = 1 and 4, and the
training step of configs/dev/phase1.yaml; with ``--full`` a few steps of configs/phase1.yaml and configs/phase2.yaml on
synthetic people, too. With CUDA also bf16 and torch.compile. Prints tables and writes
``benchmarks/results/generator-<date>.json``. The paper's numbers beside them are in ``published.py``.

A piece is bound by arithmetic as far as its GFLOP/s come near those of a plain matrix product on the same machine.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import contextlib
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.utils import clip_grad_norm_

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import published
from benchmarks.record import arguments, record
from benchmarks.timing import Stopwatch, cuda_peak_gib, timed
from spatialavatar.config import load_config
from spatialavatar.generator import GeneratorConfig
from spatialavatar.generator.generator import Generator
from spatialavatar.head import HeadModel
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.splat.binding import bind
from spatialavatar.splat.rasterize import rasterize
from spatialavatar.training import step
from spatialavatar.training.config import DataConfig, SyntheticData, TrainConfig
from spatialavatar.training.packed_batch import make_batch
from spatialavatar.training.pool import open_pool
from spatialavatar.training.setup import anchor_at, build_module, training_head
from spatialavatar.training.summary import made_up_batch, summarize
from spatialavatar.training.trainer import Trainer

CONFIGS = Path(__file__).parents[1] / "configs"
FULL_PEOPLE = {"phase1.yaml": {"cameras": 1}, "phase2.yaml": {"cameras": 16}}
WARM_UP = 2


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="timed reconstructions of each kind")
    parser.add_argument("--steps", type=int, default=10, help="timed training steps of the dev configuration")
    parser.add_argument("--full", action="store_true", help="train at full size, too")
    parser.add_argument("--full-steps", type=int, default=3, help="timed training steps at full size")
    parser.add_argument("--full-batch", type=int, help="samples of such a step; 1, with CUDA 8")
    parser.add_argument(
        "--small", action="store_true", help="the dev configuration in place of full size: does it run?"
    )
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dev = load_config(TrainConfig, CONFIGS / "dev" / "phase1.yaml")
    head = training_head(dev)
    results: dict[str, Any] = {"device": str(device), "matmul_gflops": round(matmul_gflops(device), 1)}
    architecture = dev.generator if options.small else full_size().generator
    results["reconstruction"] = reconstructions(architecture, head, device, options.repeats)
    results["training"] = {"dev": training(dev, head, device, options.steps)}
    if options.full:
        batch = options.full_batch or (8 if device.type == "cuda" else 1)
        for name in FULL_PEOPLE:
            results["training"][name] = training(full_size(name, batch), head, device, options.full_steps)
            if device.type == "cuda":
                compiled = full_size(name, batch).model_copy(update={"compile": True})
                results["training"][f"{name}, compiled"] = training(compiled, head, device, options.full_steps)
    show(results)
    print(record("generator", results, options.out))


def full_size(name: str = "phase1.yaml", batch: int = 1) -> TrainConfig:
    """The paper's configuration with what is at hand: random encoder weights, synthetic people."""
    config = load_config(TrainConfig, CONFIGS / name, ["generator.encoder.weights=random", "phase1_checkpoint=null"])
    people = SyntheticData(identities=4, instants=8, **FULL_PEOPLE[name])
    return config.model_copy(update={"data": DataConfig(synthetic=people), "batch_size": batch})


def reconstructions(config: GeneratorConfig, head: HeadModel, device: torch.device, repeats: int) -> dict[str, Any]:
    """One person's portraits to an avatar shown in one frame, K = 1 and 4."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(config, head, pretrained=False)
    flops = {k: {part.name: part.flops for part in summarize(generator, k).parts} for k in (1, 4)}
    generator = generator.to(device).eval()
    results: dict[str, Any] = {}
    for k in flops:
        results[f"K = {k}"] = pieces_of(generator, k, device, repeats, flops[k])
        if device.type == "cuda":
            results[f"K = {k}, bf16"] = pieces_of(generator, k, device, repeats, flops[k], half=True)
    if device.type == "cuda":
        for part in (generator.encoder, generator.dpt, generator.unet):
            part.compile(dynamic=True)
        for k in flops:
            for half in (False, True):
                name = f"K = {k}, {'bf16, ' if half else ''}compiled"
                results[name] = pieces_of(generator, k, device, repeats, {}, half)
    return results


def pieces_of(
    generator: Generator,
    sources: int,
    device: torch.device,
    repeats: int,
    flops: dict[str, float],  # none of a compiled generator, which has no pieces
    half: bool = False,
) -> dict[str, Any]:
    side = generator.config.encoder.image_size
    batch = made_up_batch(generator, [sources], side).to(device)
    watch = Stopwatch(device, WARM_UP)
    modules = {"encoder": generator.encoder, "dpt": generator.dpt, "unet": generator.unet} if flops else {}
    target, head = batch.target, generator.head

    @torch.no_grad()
    def reconstruct() -> None:
        with watch.measure("warp and pool" if flops else "encode"), mixed(device, half):
            features = generator.encode(batch.sources)
        with watch.measure("decode"), mixed(device, half):
            decoded = generator.decode(features, target.params, target.camera)
        with watch.measure("posing, bind, splat"):
            vertices = head(target.params)
            world = bind(decoded.gaussians, vertices, head.faces, generator.layout.face_index.to(device))
            rasterize(world, target.camera)

    with watch.attached(modules):
        for _ in range(repeats + WARM_UP):
            reconstruct()
            watch.lap()
    times = watch.medians()
    work = {"encoder": "encoder", "dpt": "dpt", "unet": "unet", "decode": "decoder.heads"}
    return {
        "milliseconds": times,
        "total_ms": watch.totals()[0],
        # fvcore counts a multiply-add once
        "gflops": {name: round(2 * flops[part] / times[name] / 1e6, 1) for name, part in work.items() if part in flops},
        "peak_memory_gib": cuda_peak_gib(device),
    }


def training(config: TrainConfig, head: HeadModel, device: torch.device, steps: int) -> dict[str, Any]:
    """Steps of one configuration, each piece in turn; in a run, batches are prepared beside the step."""
    lpips = config.loss.lambda_lp > 0 and Lpips.find() is not None
    loss = config.loss.model_copy(update={"lambda_lp": config.loss.lambda_lp if lpips else 0.0})
    config = config.model_copy(update={"loss": loss})
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        generator = Generator(config.generator, head)
    anchor = anchor_at(generator) if loss.lambda_sp > 0 else None
    module = build_module(config, generator, anchor, device).train()
    trainer = Trainer(module, config)
    pool = open_pool(config.data, head)
    watch = Stopwatch(device, WARM_UP)
    render = step.render

    def measured_render(*arguments: Any) -> Any:
        with watch.measure("splat"):
            return render(*arguments)

    trained = [p for p in module.parameters() if p.requires_grad]
    # a compiled module would compile the watch's hooks, too
    inner = {} if config.compile else {"encoder": generator.encoder}
    pieces = {**inner, "generator": generator}
    with patch.object(step, "render", measured_render), watch.attached(pieces):
        for number in range(steps + WARM_UP):
            with watch.measure("data"):
                batch = make_batch(pool, number, config).to(device)
            trainer.optimizer.zero_grad(set_to_none=True)
            with watch.measure("loss"):
                objective = module(batch)
            with watch.measure("backward"):
                objective.loss.backward()
            with watch.measure("optimizer"):
                clip_grad_norm_(trained, config.optimizer.clip_norm)
                trainer.optimizer.step()
                trainer.scheduler.step()
            watch.lap()
    times = watch.medians()
    step_ms, _ = watch.totals(without="data")
    return {
        "batch_size": config.batch_size,
        "precision": config.precision,
        "compiled": config.compile,
        "gradient_checkpointing": config.gradient_checkpointing,
        "lpips": lpips,
        "milliseconds": times,
        "step_ms": step_ms,
        # one thread prepares batches while the step runs; with no core to spare they take turns
        "samples_per_second": {
            "data beside the step": round(1e3 * config.batch_size / max(step_ms, times["data"]), 2),
            "in turns": round(1e3 * config.batch_size / (step_ms + times["data"]), 2),
        },
        "peak_memory_gib": cuda_peak_gib(device),
    }


def mixed(device: torch.device, half: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()


def matmul_gflops(device: torch.device, side: int = 2048) -> float:
    """Of a plain float32 matrix product: what arithmetic this machine gives at best."""
    a = torch.rand(side, side, device=device)
    _, least = timed(lambda: a @ a, 5, device, warm_up=0)
    return 2 * side**3 / least / 1e6


def show(results: dict[str, Any]) -> None:
    print(f"on {results['device']}, matrix product {results['matmul_gflops']} GFLOP/s")
    for name, row in results["reconstruction"].items():
        paper = f"{published.AVATAR_MILLISECONDS:.0f} ms, RTX 3090"
        print(f"\nreconstruction, {name}: {row['total_ms']:.1f} ms (paper: {paper})")
        for piece, value in row["milliseconds"].items():
            rate = f"{row['gflops'][piece]:10.1f} GFLOP/s" if piece in row["gflops"] else ""
            print(f"  {piece:24}{value:12.2f} ms{rate}")
    target = published.LEAST_SAMPLES_PER_SECOND
    for name, row in results["training"].items():
        beside, turns = row["samples_per_second"].values()
        print(
            f"\ntraining, {name}: batch {row['batch_size']}, {row['precision']}: step {row['step_ms']:.0f} ms, "
            f"{beside} samples/s ({turns} where data waits its turn; paper: at least {target:.1f} on an H100 NVL)"
        )
        for piece, value in row["milliseconds"].items():
            print(f"  {piece:24}{value:12.2f} ms")


if __name__ == "__main__":
    main()
