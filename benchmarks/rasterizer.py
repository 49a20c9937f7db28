"""Time of the splatter, forward and backward, by stage: the CPU backend, the torch reference, and gsplat on CUDA.

    python benchmarks/rasterizer.py

The scene is a synthetic head: Gaussians on an ellipsoid, flat along the normal, as wide as their spacing, which fill
60 % of the picture. Prints a table and writes ``benchmarks/results/rasterizer-<date>.json``. Times are wall
milliseconds, the median and the minimum over ``--repeats`` runs; the reference runs ``--reference-repeats`` times.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import math
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import arguments, record
from benchmarks.timing import Stopwatch
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.cpu import backend, binning
from spatialavatar.splat.cpu.projection import camera_parameters
from spatialavatar.splat.cpu.runtime import kernel_guard
from spatialavatar.splat.gaussians import WorldGaussians
from spatialavatar.splat.rasterize import Backend, rasterize

ATTRIBUTES = ("means", "quats", "scales", "colors", "opacities")
SCENES = {"256/14.5K": (256, 14_543, 3), "512/58K": (512, 58_173, 3), "512/58K/C32": (512, 58_173, 32)}


def head(size: int, count: int, channels: int, seed: int = 0) -> tuple[WorldGaussians, Camera]:
    """Gaussians on an ellipsoid of a head's size, one metre in front of a camera, in random order."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(count, generator=generator) + 0.5
    polar, turn = torch.arccos(1 - 2 * index / count), math.pi * (1 + math.sqrt(5)) * index
    direction = torch.stack([turn.cos() * polar.sin(), turn.sin() * polar.sin(), polar.cos()], -1)
    axes = torch.tensor([0.085, 0.12, 0.10])
    means = direction * axes * (1 + 0.02 * torch.randn(count, 1, generator=generator))
    spacing = math.sqrt(4 * math.pi * 0.0102 / count)  # square root of the surface per Gaussian
    scales = spacing * (0.7 + 0.8 * torch.rand(count, 3, generator=generator)) * torch.tensor([1.0, 1.0, 0.3])
    normal = torch.nn.functional.normalize(direction / axes, dim=-1)
    # the quaternion that turns z into the normal
    quats = torch.stack([1 + normal[:, 2], -normal[:, 1], normal[:, 0], torch.zeros(count)], -1)
    colors = torch.rand(count, channels, generator=generator)
    opacities = 0.3 + 0.6 * torch.rand(count, generator=generator)
    pose = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    pose[2, 3] = 1
    focal = math.sqrt(0.6 * size * size / (math.pi * 0.085 * 0.12))
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    values = (means, quats, scales, colors, opacities)
    gaussians = WorldGaussians(*[v[None].contiguous().requires_grad_() for v in values])
    return gaussians, Camera(pose[None], intrinsics[None], size, size)


def time_backend(
    name: Backend, gaussians: WorldGaussians, camera: Camera, repeats: int, warm_up: int = 1
) -> dict[str, dict[str, float]]:
    """Forward and backward through ``rasterize`` and autograd."""
    watch = Stopwatch(gaussians.means.device, warm_up)
    leaves = [getattr(gaussians, attribute) for attribute in ATTRIBUTES]
    for _ in range(repeats + warm_up):
        with watch.measure("forward"):
            rendering = rasterize(gaussians, camera, backend=name)
        gradients = torch.ones_like(rendering.features), torch.ones_like(rendering.alpha)
        with watch.measure("backward"):
            torch.autograd.grad((rendering.features, rendering.alpha), leaves, gradients)
        watch.lap()
    median, least = watch.totals()
    return summary(watch) | {"total": {"median_ms": median, "min_ms": least}}


def time_cpu_stages(gaussians: WorldGaussians, camera: Camera, repeats: int) -> dict[str, dict[str, float]]:
    """The kernels one by one."""
    watch = Stopwatch(torch.device("cpu"), warm_up=1)
    attributes = [getattr(gaussians, attribute)[0].detach().numpy() for attribute in ATTRIBUTES]
    parameters = camera_parameters(camera, 0)
    features = np.empty((camera.height, camera.width, attributes[3].shape[1]), np.float32)
    v_features, v_alpha = np.ones_like(features), np.ones(features.shape[:2], np.float32)
    gradients = [np.zeros_like(a) for a in attributes]
    for _ in range(repeats + 1):
        with kernel_guard():
            with watch.measure("projection"):
                records, columns = backend.project(attributes, parameters)
            with watch.measure("depth sort"):
                order = binning.depth_order(records, columns)
            with watch.measure("binning"):
                tiles = binning.tile_lists(order, records, columns, camera.width, camera.height)
            with watch.measure("compositing"):
                forward = backend.composite(attributes[3], parameters, records, tiles, features)
            with watch.measure("compositing backward"):
                rows = backend.composite_backward(forward, features, v_features, v_alpha)
            with watch.measure("projection backward"):
                backend.project_backward(attributes, forward, rows, gradients)
        watch.lap()
    return summary(watch)


def summary(watch: Stopwatch) -> dict[str, dict[str, float]]:
    least = watch.minima()
    return {stage: {"median_ms": median, "min_ms": least[stage]} for stage, median in watch.medians().items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=list(SCENES), help="pixels/Gaussians")
    parser.add_argument("--repeats", type=int, default=20, help="timed repetitions")
    parser.add_argument("--reference-repeats", type=int, default=1, help="of the slow torch reference; 0 leaves it out")
    options = parser.parse_args()

    results: dict[str, Any] = {"threads": {"numba": numba.get_num_threads(), "torch": torch.get_num_threads()}}
    for label in options.scenes:
        gaussians, camera = head(*SCENES[label])
        scene: dict[str, Any] = {"cpu": time_backend("cpu", gaussians, camera, options.repeats)}
        scene["cpu by stage"] = time_cpu_stages(gaussians, camera, options.repeats)
        if options.reference_repeats and SCENES[label][2] == 3:
            scene["reference"] = time_backend("reference", gaussians, camera, options.reference_repeats, warm_up=0)
            ratio = scene["reference"]["total"]["median_ms"] / scene["cpu"]["total"]["median_ms"]
            scene["times faster than the reference"] = round(ratio, 1)
        if torch.cuda.is_available():
            on_gpu = [getattr(gaussians, attribute).detach().cuda().requires_grad_() for attribute in ATTRIBUTES]
            scene["gsplat"] = time_backend("gsplat", WorldGaussians(*on_gpu), camera.to("cuda"), options.repeats, 5)
        results[label] = scene
        for part, stages in scene.items():
            if isinstance(stages, dict):
                for stage, times in stages.items():
                    print(f"{label:12} {part:14} {stage:22} {times['median_ms']:10.2f} {times['min_ms']:10.2f} ms")
    print(record("rasterizer", results, options.out))


if __name__ == "__main__":
    main()
