"""Time and memory of the refinement: one iteration by stage, the whole loop, and the finished avatar's frame rate.

    python benchmarks/refinement.py

Runs on a synthetic capture of the built-in head with preloaded frames, at 256 pixels with 128 texels (16 K Gaussians)
and at 512 with 256 (65 K). Prints a table and writes ``benchmarks/results/refinement-<date>.json``. The torch
reference of the same iteration runs in the same process for the ratio. With CUDA the same script measures gsplat.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import arguments, record
from benchmarks.timing import cuda_peak_gib, timed
from spatialavatar.avatar import Avatar, AvatarRenderer
from spatialavatar.avatar.avatar import StaticAppearance
from spatialavatar.clip import TrackedClip, write_synthetic
from spatialavatar.clip.synthetic import synthesize_capture
from spatialavatar.head import HeadModel, HeadReference, UVLayout, builtin_head
from spatialavatar.losses.aspect import aspect_loss
from spatialavatar.losses.photometric import photometric_loss, photometric_loss_torch
from spatialavatar.refine import RefineConfig, Refinement, Subject, template_start
from spatialavatar.refine.parameters import to_gaussians
from spatialavatar.splat.binding import bind, bind_torch
from spatialavatar.splat.gaussians import LocalGaussians
from spatialavatar.splat.rasterize import rasterize

SIZES = ((256, 128), (512, 256))  # pixels, texels
FRAMES = 24


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--iterations", type=int, default=150, help="timed iterations of each size")
    parser.add_argument("--reference-iterations", type=int, default=1, help="of the torch reference; 0 leaves it out")
    parser.add_argument("--batch", type=int, default=4, help="subjects in the batched run at the largest size")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = builtin_head()
    results: dict[str, Any] = {"device": str(device), "sizes": {}}
    for pixels, texels in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            clips = captures(head, folder, pixels, options.batch if pixels == SIZES[-1][0] else 1)
            results["sizes"][f"{pixels}"] = measure(head, clips, pixels, texels, device, options)
    for pixels, row in results["sizes"].items():
        print(f"\n{pixels} pixels, {row['gaussians']} Gaussians: median (minimum) ms")
        for name, (median, least) in row["milliseconds"].items():
            print(f"  {name:28}{median:10.2f} ({least:.2f})")
        print(f"  {'10,000 iterations':28}{row['seconds_for_10000_iterations']:8.0f} s")
        print(f"  {'frames/s with posing':28}{row['frames_per_second']:8.0f}")
        print(f"  {'peak memory':28}{row['peak_memory_gib']} GiB")
    print(record("refinement", results, options.out))


def captures(head: HeadModel, folder: str, pixels: int, count: int) -> list[TrackedClip]:
    return [
        write_synthetic(
            synthesize_capture(head, identity=i, motion=i, frames=FRAMES, size=pixels), head, f"{folder}/{i}"
        )
        for i in range(count)
    ]


def measure(
    head: HeadModel,
    clips: list[TrackedClip],
    pixels: int,
    texels: int,
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, Any]:
    config = RefineConfig(resolution=pixels, uv_resolution=texels)
    head = head.on(device)
    start = template_start(head, texels)
    layout = start.layout

    def refinement(chosen: list[TrackedClip]) -> Refinement:
        subjects = [Subject(clip, head, pixels, 4e9, device) for clip in chosen]
        for subject in subjects:
            subject.preload()
        run = Refinement(subjects, head, layout, LocalGaussians.cat([start.gaussians] * len(chosen)), config)
        run.iterations = [config.anti_spike.aspect_from] * len(chosen)  # every part of the loop is at work from here on
        return run

    run = refinement(clips[:1])
    times = {"whole iteration": timed(run.step, options.iterations, device)}
    if len(clips) > 1:
        batch = refinement(clips)
        times[f"whole iteration, {len(clips)} subjects"] = timed(batch.step, max(10, options.iterations // 4), device)
    peak = peak_memory_gib(device)  # before the torch reference, which takes far more
    renderer = AvatarRenderer(finished(run, head, layout, texels, clips[0]), head, device)
    params, camera = clips[0].params[:1], clips[0].camera(clips[0].split("all")[:1])
    frame = timed(lambda: renderer.image(params, camera), options.iterations, device)
    times |= stages(run, head, layout.face_index, device, options)
    return {
        "gaussians": layout.count,
        "milliseconds": times,
        "seconds_for_10000_iterations": round(times["whole iteration"][0] * 10, 1),
        "frames_per_second": round(1000 / frame[0], 1),
        "peak_memory_gib": peak,
    }


def stages(
    run: Refinement, head: HeadModel, face_index: torch.Tensor, device: torch.device, options: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Forward and backward of each stage on its own, from the current state."""
    view, background = run.subjects[0].view(0), torch.full((1, 3), 0.5, device=device)
    local = LocalGaussians(**{n: t.detach().requires_grad_() for n, t in run.gaussians().tensors().items()})
    world = bind(local, view.vertices, head.faces, face_index)
    leaves = type(world)(**{n: t.detach().requires_grad_() for n, t in vars(world).items()})
    rendering = rasterize(leaves, view.camera)
    pictures = type(rendering)(rendering.features.detach().requires_grad_(), rendering.alpha.detach().requires_grad_())
    target = view.target(background)

    def whole(placed: Callable[..., Any], loss: Callable[..., Any], backend: Any) -> None:
        shown = rasterize(placed(local, view.vertices, head.faces, face_index), view.camera, backend=backend)
        loss(shown, view.target(background), view.region, background).total.sum().backward()

    measured: dict[str, Callable[[], object]] = {
        "target": lambda: run.subjects[0].view(0).target(background),
        "parameters to Gaussians": lambda: total(to_gaussians(run.parameters[0], run._rest_scale)).backward(),
        "bind": lambda: total(bind(local, view.vertices, head.faces, face_index)).backward(),
        "rasterize forward": lambda: no_grad(lambda: rasterize(leaves, view.camera)),
        "rasterize forward + backward": lambda: rasterize(leaves, view.camera).features.sum().backward(),
        "photometric loss": lambda: photometric_loss(pictures, target, view.region, background).total.sum().backward(),
        "aspect loss": lambda: aspect_loss(leaves, view.camera, 1.0).sum().backward(),
        "Adam": run.optimizers[0].step,
        "clamp": lambda: run._clamp(0),
    }
    times = {name: timed(call, options.iterations, device) for name, call in measured.items()}
    if options.reference_iterations:
        reference = lambda: whole(bind_torch, photometric_loss_torch, "reference")  # noqa: E731
        fused = lambda: whole(bind, photometric_loss, "auto")  # noqa: E731
        times["bind, splat, loss: fused"] = timed(fused, options.iterations, device)
        times["bind, splat, loss: torch"] = timed(reference, options.reference_iterations, device, warm_up=0)
    return times


def peak_memory_gib(device: torch.device) -> dict[str, float]:
    """Of the process since its start, and of the device since the last call."""
    process = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    cuda = cuda_peak_gib(device)
    return {"process": process} if cuda is None else {"process": process, "cuda": cuda}


def total(gaussians: Any) -> torch.Tensor:
    return torch.stack([t.sum() for t in vars(gaussians).values() if t.requires_grad]).sum()


def no_grad(call: Callable[[], object]) -> None:
    with torch.no_grad():
        call()


def finished(run: Refinement, head: HeadModel, layout: UVLayout, texels: int, clip: TrackedClip) -> Avatar:
    return Avatar(
        identity=clip.identity,
        head=HeadReference.of(head),
        uv_resolution=texels,
        layout_fingerprint=layout.fingerprint,
        appearance=StaticAppearance(run.gaussians()[0]),
        shape=clip.params.shape[:1],
        static_offset=None,
        reference_params=clip.params[0],
        provenance={},
        licence_note="",
    )


if __name__ == "__main__":
    main()
