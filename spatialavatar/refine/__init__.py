"""Per-subject refinement (method.md section 4)."""

from spatialavatar.avatar.reference_frame import mouth_openness, reference_frame
from spatialavatar.refine.config import AntiSpike, LearningRates, RefineConfig
from spatialavatar.refine.loop import Refinement, StepTerms
from spatialavatar.refine.run import (
    METRICS,
    Progress,
    Start,
    StopRefinement,
    avatar_start,
    claim_folder,
    generator_start,
    is_finished,
    refine_clip,
    template_start,
)
from spatialavatar.refine.subject import Subject

__all__ = [
    "METRICS",
    "AntiSpike",
    "LearningRates",
    "Progress",
    "RefineConfig",
    "Refinement",
    "Start",
    "StepTerms",
    "StopRefinement",
    "Subject",
    "avatar_start",
    "claim_folder",
    "generator_start",
    "is_finished",
    "mouth_openness",
    "reference_frame",
    "refine_clip",
    "template_start",
]
