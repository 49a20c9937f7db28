"""Self-reenactment: an avatar driven by held-out frames of its own subject, against the pixels (method.md section 5).

Both pictures are composited over one background: the target with its matte, the render with its splatted alpha; outside
the region of interest both show the background. Metrics are taken over the whole picture.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.avatar import AvatarRenderer
from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.tracked_clip import Split
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.estimators import METRICS as FACE_METRICS
from spatialavatar.evaluation.estimators import Estimators
from spatialavatar.evaluation.metrics import mean, mse, psnr, ssim
from spatialavatar.losses.perceptual import LPIPS_LEAST_SIZE, Lpips
from spatialavatar.losses.photometric import composite, composite_rendering
from spatialavatar.refine.anti_spike import max_aspect_ratio

SPLITS: tuple[Split, ...] = get_args(Split)
METRICS = ("psnr", "ssim", "lpips", "mse")
TRAINING_FRAMES = 20  # measured of a clip that holds none out


@dataclass(frozen=True)
class Comparison:
    """One frame: what was there and what the avatar shows, over the same background."""

    index: FrameIndex
    target: Float[Tensor, "H W 3"]
    render: Float[Tensor, "H W 3"]
    seconds: float  # to decode (a generated avatar), pose and render
    aspect_ratio: float  # largest of the Gaussians shown


def compare(
    renderer: AvatarRenderer,
    clip: TrackedClip,
    frames: Sequence[FrameIndex],
    resolution: int,
    background: Float[Tensor, " 3"],
) -> Iterator[Comparison]:
    """Render each frame at ``resolution`` pixels on the longer side, on the renderer's device."""
    width, height = clip.size_at(resolution)
    behind = background.to(renderer.device)[None]
    for index in frames:
        frame = clip.frame(index, width, height)
        region = frame.region.to(renderer.device)[None]
        coverage = frame.matte.to(renderer.device)[None] * region
        target = composite(frame.image.to(renderer.device)[None], coverage, behind)
        began = time.perf_counter()
        params, camera = clip.params_at(index), clip.camera(index).resized(width, height)
        local = renderer.gaussians_for(params, camera)
        rendering = renderer.show(local, params, camera)
        if renderer.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        render = composite_rendering(rendering.features, rendering.alpha, region, behind).clamp(0, 1)
        yield Comparison(index, target[0], render[0], seconds, max_aspect_ratio(local.log_scale))


def evaluate(
    renderer: AvatarRenderer,
    clip: TrackedClip,
    split: Split,
    *,
    resolution: int,
    background: Float[Tensor, " 3"],
    lpips: Lpips | None,
    estimators: Estimators | None = None,
    limit: int | None = None,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The metrics report, plain JSON: means, the worst frame, and every frame.

    ``limit`` takes that many frames, evenly spread over the split. LPIPS is null without weights, or on pictures too
    small for it. With ``estimators`` the report has their metrics, too, null where they find no face. Raises
    SpatialAvatarError when the split holds no frames or the clip was tracked with another head.
    """
    clip.require_head(renderer.head)
    frames = clip.split(split)
    if not frames:
        raise SpatialAvatarError(
            f"{clip.location}: no frames in split {split!r} (test_from {clip.test_from}, "
            f"test cameras {clip.test_cameras}); choose another with --split"
        )
    frames = spread(frames, limit)
    if min(clip.size_at(resolution)) < LPIPS_LEAST_SIZE:
        lpips = None
    per_frame: list[dict[str, Any]] = []
    seconds, aspect_ratios = [], []
    for done, c in enumerate(compare(renderer, clip, frames, resolution, background)):
        a, b = c.render[None], c.target[None]
        values = {"psnr": psnr(a, b), "ssim": ssim(a, b), "mse": mse(a, b)}
        row: dict[str, Any] = {"instant": c.index.instant, "camera": c.index.camera}
        row |= {name: float(value) for name, value in values.items()}
        row["lpips"] = None if lpips is None else float(lpips(a, b))
        if estimators is not None:
            compared = {name: math.nan if v is None else float(v) for name, v in estimators.compare(a, b).items()}
            row |= {name: value if math.isfinite(value) else None for name, value in compared.items()}
        per_frame.append(row)
        seconds.append(c.seconds)
        aspect_ratios.append(c.aspect_ratio)
        observe(done + 1, len(frames))
    provenance = renderer.avatar.provenance
    trained = provenance.get("metrics", {})
    seconds.sort()
    return {
        "identity": renderer.avatar.identity,
        "kind": renderer.avatar.kind,
        "clip": clip.identity,
        "split": split,
        "frames": len(frames),
        "resolution": resolution,
        "background": [round(float(x), 4) for x in background],
        **{name: mean(row[name] for row in per_frame) for name in (*METRICS, *FACE_METRICS) if name in per_frame[0]},
        "max_aspect_ratio": max(aspect_ratios),
        "iterations": trained.get("iterations"),
        "seconds": trained.get("seconds"),
        "peak_memory_gib": trained.get("peak_memory_gib"),
        "frames_per_second": round(1 / max(seconds[len(seconds) // 2], 1e-9), 2),
        "gaussians": renderer.avatar.appearance.count,
        "worst_frame": min(per_frame, key=lambda row: row["psnr"]),
        "per_frame": per_frame,
    }


def measured_frames(clip: TrackedClip, limit: int | None = None) -> tuple[Split, int | None]:
    """What an avatar is measured on unless told otherwise: the held-out frames, else some of those it was trained on.

    The split, and how many of its frames at most.
    """
    if clip.split("test"):
        return "test", limit
    return "train", min(TRAINING_FRAMES, limit or TRAINING_FRAMES)


def background_for(clip: TrackedClip) -> Float[Tensor, " 3"]:
    """Behind both pictures unless told otherwise: white, and black where no alpha tells person from background."""
    return torch.ones(3) if clip.matte_kind == "alpha" else torch.zeros(3)


def spread(frames: Sequence[FrameIndex], limit: int | None) -> list[FrameIndex]:
    """At most ``limit`` of the frames, evenly spread, the first among them."""
    if limit is None or len(frames) <= limit:
        return list(frames)
    return [frames[i * len(frames) // limit] for i in range(limit)]
