"""What is delivered without a person's look: an avatar within the bounds of the gate."""

from collections.abc import Mapping
from typing import Any

import torch

from spatialavatar.clip import TrackedClip
from spatialavatar.fleet.config import Gate
from spatialavatar.head import HeadModel

_FRAMES_AT_ONCE = 32  # posed together


def review(gate: Gate, metrics: Mapping[str, Any]) -> list[str]:
    """Why a person should look at an avatar; empty when it is within all bounds. What was not measured passes."""
    bounds = (
        ("psnr", "PSNR", gate.min_psnr, "dB", True),
        ("max_aspect_ratio", "aspect ratio", gate.max_aspect_ratio, "", False),
        ("tracking_residual", "tracking residual", gate.max_tracking_residual, "of the image", False),
    )
    reasons = []
    for key, name, bound, unit, least in bounds:
        value = metrics.get(key)
        if value is None or bound is None:
            continue
        if not (value >= bound if least else value <= bound):  # NaN is within no bound
            side = "least" if least else "most"
            reasons.append(" ".join(f"{name} {value:.4g} {unit}, at {side} {bound:g} is delivered".split()))
    return [reason.replace(" ,", ",") for reason in reasons]


def tracking_residual(clip: TrackedClip, head: HeadModel) -> float | None:
    """Mean distance of the clip's landmarks from those of its posed meshes, as a share of the image's longer side.

    Over all frames and cameras. None where the clip has no landmarks, others than the head, or never all found.
    """
    if clip.landmarks is None or clip.landmarks.shape[2] != len(head.landmark_faces):
        return None
    head, total, count = head.on("cpu"), 0.0, 0
    frames = clip.split("all")
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        chunk = frames[start : start + _FRAMES_AT_ONCE]
        tracked = torch.stack([clip.landmarks[t, c] for t, c in chunk]).double()
        with torch.no_grad():
            points = head.landmarks(head(clip.params_at(chunk)))
        distance = (clip.camera(chunk).project(points)[0].double() - tracked).norm(dim=-1)
        found = torch.isfinite(distance)
        total += float(distance[found].sum())
        count += int(found.sum())
    return total / count / max(clip.width, clip.height) if count else None
