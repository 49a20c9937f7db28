"""Per-subject refinement (method.md section 4)."""

from spatialavatar.refine.batch import Prepared, Progress, Refined, StopRefinement, prepare, refine_batch
from spatialavatar.refine.config import AntiSpike, LearningRates, RefineConfig
from spatialavatar.refine.loop import Refinement, StepTerms
from spatialavatar.refine.run import finished_avatar, refine_clip
from spatialavatar.refine.start import Start, avatar_start, generator_start, template_start
from spatialavatar.refine.subject import Subject

__all__ = [
    "AntiSpike",
    "LearningRates",
    "Prepared",
    "Progress",
    "RefineConfig",
    "Refined",
    "Refinement",
    "Start",
    "StepTerms",
    "StopRefinement",
    "Subject",
    "avatar_start",
    "finished_avatar",
    "generator_start",
    "prepare",
    "refine_batch",
    "refine_clip",
    "template_start",
]
