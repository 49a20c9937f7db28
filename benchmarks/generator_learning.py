"""Does the generator learn, and does it look at its sources? Both phases on synthetic people, measured on unseen ones.

    python benchmarks/generator_learning.py --work DIR

Trains configs/dev/phase1.yaml and phase2.yaml under DIR (what is finished there is used, what is not goes on), then
measures on held-out people, over white:

- the template skin, the mean of the training avatars, and the generator fed another person's portrait: what an
  avatar is worth that does not know the person;
- K = 1 to 4 portraits, the same targets for each;
- one portrait shown again (seen), with another expression from the same camera, and from other cameras;
- refinement that starts from the generator against one that starts from the template skin.

Prints tables and writes ``benchmarks/results/generator_learning-<date>.json``, and a picture of the curves beside it.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import arguments, record
from spatialavatar.avatar import Avatar, AvatarRenderer
from spatialavatar.avatar.avatar import StaticAppearance
from spatialavatar.avatar.bake import bake_at_reference
from spatialavatar.avatar.reconstruct import SourceFrame, load_generator, look_at, reconstruct
from spatialavatar.clip import FrameIndex, TrackedClip, write_synthetic
from spatialavatar.clip.synthetic import synthesize_capture
from spatialavatar.config import load_config
from spatialavatar.evaluation.held_out import Case, Show, batches_of, cases, from_sources, measure
from spatialavatar.evaluation.metrics import Lpips
from spatialavatar.evaluation.self_reenactment import evaluate
from spatialavatar.generator.checkpoint import complete_checkpoints, read_facts, read_generator
from spatialavatar.generator.decoder import Decoded
from spatialavatar.generator.generator import Generator
from spatialavatar.head import HeadModel, builtin_head
from spatialavatar.refine import AntiSpike, LearningRates, RefineConfig, template_start
from spatialavatar.refine.loop import Refinement
from spatialavatar.refine.subject import Subject
from spatialavatar.splat.gaussians import LocalGaussians
from spatialavatar.training.batch import Batch
from spatialavatar.training.config import DataConfig, SyntheticData, TrainConfig
from spatialavatar.training.folder import LOG
from spatialavatar.training.pool import ClipPool, open_pool
from spatialavatar.training.progress import Progress
from spatialavatar.training.run import train

CONFIGS = Path(__file__).parents[1] / "configs" / "dev"
PEOPLE, FIRST = 24, 100_000  # held out: numbers that no training draws
TARGETS = 4  # of each person
AVERAGED = 64  # training people behind the mean avatar
REFINED, ITERATIONS, EVERY = 3, 1000, 100
CLIP_FRAMES, CLIP_TEST = 60, 15


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--phase1", type=Path, default=CONFIGS / "phase1.yaml", help="configuration of Phase 1")
    parser.add_argument("--phase2", type=Path, default=CONFIGS / "phase2.yaml", help="configuration of Phase 2")
    options = parser.parse_args()

    first, second = options.work / "phase1", options.work / "phase2"
    one = load_config(TrainConfig, options.phase1)
    finish(one, first)
    two = load_config(TrainConfig, options.phase2, [f"phase1_checkpoint={first}"])
    finish(two, second)

    head, lpips = builtin_head(), Lpips.find()
    results: dict[str, Any] = {"training": {"phase1": history(first), "phase2": history(second)}}
    for name, run, config in (("after_phase1", first, one), ("after_phase2", second, two)):
        generator, facts = read_generator(run, head)
        print(f"{name}: generator {facts.hash[:12]}")
        results[name] = quality(generator, config, head, lpips)
    results["refinement"] = refinement(second, head, options.work, two.resolution)
    written = record("generator_learning", results, options.out)
    plot(results, written.with_suffix(".png"))
    print(written)


def finish(config: TrainConfig, run: Path) -> None:
    """Train, or go on with a training, until the configured number of steps; what is finished stays as it is.

    A Phase-2 run that goes on from another Phase-1 generator than the present one starts over. Raises
    SpatialAvatarError for a run of another configuration.
    """
    resume = bool(complete_checkpoints(run))
    if resume and config.phase1_checkpoint is not None:
        parent = read_facts(run).training["parent"]
        resume = parent is not None and parent["generator"] == read_facts(config.phase1_checkpoint).hash

    def observe(progress: Progress) -> None:
        if progress.step % 100 == 0 and progress.latest:
            latest = progress.latest
            print(f"{run.name} step {progress.step}: loss {latest['loss']:.4f}, {progress.seconds:.0f} s", flush=True)

    train(config, run, resume=resume, force=True, observe=observe)


def history(run: Path) -> dict[str, Any]:
    """The curve of a training: mean PSNR of the training batches and of the held-out samples by step."""
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    return {
        "steps": training[-1]["step"],
        "seconds": training[-1]["seconds"],
        "step": [line["step"] for line in training],
        "loss": [round(line["loss"], 5) for line in training],
        "mse": [round(line["mse"], 6) for line in training],
        "held_out": {line["step"]: line["held_out_psnr"] for line in lines if "held_out_psnr" in line},
    }


def held_out(cameras: int, instants: int) -> ClipPool:
    data = SyntheticData(identities=PEOPLE, first_identity=FIRST, instants=instants, cameras=cameras)
    return open_pool(DataConfig(synthetic=data), builtin_head())


def quality(generator: Generator, config: TrainConfig, head: HeadModel, lpips: Lpips | None) -> dict[str, Any]:
    size, resolution = config.generator.encoder.image_size, config.resolution
    own = from_sources(generator)

    def row(name: str, pool: ClipPool, listed: Sequence[Case], show: Show) -> dict[str, float]:
        values = measure(show, generator, batches_of(pool, listed, size, resolution), lpips)
        means = {metric: round(float(v.double().mean()), 4) for metric, v in values.items()}
        print(f"  {name:34}" + "  ".join(f"{metric} {value:.4f}" for metric, value in means.items()), flush=True)
        return means

    clips = held_out(1, 12)
    single = cases(clips, 1, TARGETS)
    swapped = [dataclasses.replace(case, portrayed=(case.clip + 1) % len(clips)) for case in single]
    table = {
        "template skin": row("template skin", clips, single, skin_alone(generator)),
        "mean of training avatars": row(
            "mean of training avatars", clips, single, mean_avatar(generator, config, head)
        ),
        "another person's portrait": row("another person's portrait", clips, swapped, own),
    }
    for k in range(1, 5):
        table[f"K = {k}"] = row(f"K = {k}", clips, cases(clips, k, TARGETS), own)

    takes = held_out(16, 4)
    from_front = [FrameIndex(0, 0)]
    seen, expression, view = [], [], []
    for clip in range(len(takes)):
        seen.append(Case(clip, tuple(from_front), from_front[0]))
        expression += [Case(clip, tuple(from_front), FrameIndex(t, 0)) for t in (1, 2, 3)]
        view += [Case(clip, tuple(from_front), FrameIndex(0, c)) for c in (1, 2, 5, 6, 9, 10)]
    table["K = 1, the portrait itself"] = row("K = 1, the portrait itself", takes, seen, own)
    table["K = 1, another expression"] = row("K = 1, another expression", takes, expression, own)
    table["K = 1, another view"] = row("K = 1, another view", takes, view, own)
    for k in (1, 4):
        table[f"take, K = {k}"] = row(f"take, K = {k}", takes, cases(takes, k, TARGETS), own)
    return table


def skin_alone(generator: Generator) -> Show:
    """What an untrained generator shows."""
    decoder = generator.decoder
    skin = LocalGaussians(
        decoder.skin_position, decoder.skin_rotation, decoder.skin_log_scale, decoder.skin_color, decoder.skin_opacity
    )

    def show(batch: Batch) -> Decoded:
        rows = {n: t.expand(batch.sources.batch, *t.shape) for n, t in skin.tensors().items()}
        gaussians = LocalGaussians(**rows)
        return Decoded(gaussians, gaussians.position, gaussians.log_scale, {}, None)

    return show


def mean_avatar(generator: Generator, config: TrainConfig, head: HeadModel) -> Show:
    """The mean over training people of what the generator makes of a portrait of each, for every driver."""
    pool = open_pool(config.data, head)
    listed = [case for case in cases(pool, 1, 1)[:AVERAGED]]
    with torch.no_grad():
        features = torch.cat(
            [generator.encode(b.sources) for b in batches_of(pool, listed, config.generator.encoder.image_size, 32)]
        )

    def show(batch: Batch) -> Decoded:
        people = len(features)
        means = []
        for b in range(batch.sources.batch):
            rows = [b] * people
            decoded = generator.decode(features, batch.target.params[rows], batch.target.camera[rows])
            means.append({name: t.mean(0, keepdim=True) for name, t in decoded.gaussians.tensors().items()})
        gaussians = LocalGaussians(**{name: torch.cat([m[name] for m in means]) for name in means[0]})
        return Decoded(gaussians, gaussians.position, gaussians.log_scale, {}, None)

    return show


def refinement(run: Path, head: HeadModel, work: Path, resolution: int) -> list[dict[str, Any]]:
    """Held-out PSNR by iteration of two refinements of unseen people: from the template skin, from the generator.

    The generator's has half the iterations, its own cosine included.
    """
    generation = load_generator(run, head)
    out = []
    for person in range(FIRST, FIRST + REFINED):
        capture = synthesize_capture(
            head, identity=person, motion=person, frames=CLIP_FRAMES, size=resolution, test_last=CLIP_TEST
        )
        clip = write_synthetic(capture, head, work / f"clip-{person}", force=True)
        frames = [SourceFrame(clip, FrameIndex(t, 0)) for t in spread(CLIP_FRAMES - CLIP_TEST, 4)]
        avatar = reconstruct(generation, look_at(frames, head, generation.generator.config.encoder.image_size))
        generated = bake_at_reference(avatar, head)
        skin = template_start(head, avatar.uv_resolution).gaussians
        template = dataclasses.replace(generated, appearance=StaticAppearance(skin))
        curves = {
            "template": refine(clip, head, template, resolution, ITERATIONS),
            "generator": refine(clip, head, generated, resolution, ITERATIONS // 2),
        }
        goal = curves["template"][-1]["psnr"]
        reached = next((p["iteration"] for p in curves["generator"] if p["psnr"] >= goal), None)
        out.append({"person": person, "goal": goal, "reached_at": reached, "of": ITERATIONS, **curves})
        print(f"  refinement of {person}: template {goal:.2f} dB after {ITERATIONS}, generator there at {reached}")
    return out


def spread(count: int, chosen: int) -> list[int]:
    return [round(i * (count - 1) / (chosen - 1)) for i in range(chosen)]


def refine(
    clip: TrackedClip, head: HeadModel, start: Avatar, resolution: int, iterations: int
) -> list[dict[str, float]]:
    rates = LearningRates(position=2e-4)  # the demo's, for tracking that is exact
    soon = iterations // 20  # as 500 of the method's 10,000
    spikes = AntiSpike(scale_freeze_iterations=soon, clamp_from=soon, aspect_from=soon)
    config = RefineConfig(iterations=iterations, resolution=resolution, learning_rates=rates, anti_spike=spikes)
    assert isinstance(start.appearance, StaticAppearance)
    subject = Subject(clip, head, resolution, 4e9, torch.device("cpu"))
    layout = template_start(head, start.uv_resolution).layout
    loop = Refinement([subject], head, layout, start.appearance.gaussians, config)
    curve = []

    def point() -> None:
        avatar = dataclasses.replace(start, appearance=StaticAppearance(loop.gaussians()))
        renderer = AvatarRenderer(avatar, head, "cpu")
        report = evaluate(renderer, clip, "test", resolution=resolution, background=torch.ones(3), lpips=None)
        curve.append({"iteration": loop.iteration, "psnr": round(report["psnr"], 4)})

    point()
    loop.run(lambda terms: point() if loop.iteration % EVERY == 0 else None)
    return curve


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    start = 0
    for phase in ("phase1", "phase2"):
        curve = results["training"][phase]
        steps = [start + int(s) for s in curve["held_out"]]
        left.plot(steps, list(curve["held_out"].values()), marker="o", label=f"{phase}, its own held-out samples")
        start += curve["steps"]
    left.set(xlabel="training step", ylabel="PSNR (dB), random background", title="Training on synthetic people")
    left.legend()
    for name in ("template", "generator"):
        curves = [entry[name] for entry in results["refinement"]]
        iterations = [p["iteration"] for p in curves[0]]
        right.plot(
            iterations,
            [statistics.mean(c[i]["psnr"] for c in curves) for i in range(len(iterations))],
            marker="o",
            label=f"from the {name}",
        )
    right.set(xlabel="refinement iteration", ylabel="held-out PSNR (dB)", title="Refinement of unseen people")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
