"""What an exporter says when it is done."""

from dataclasses import dataclass

from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.head import flame
from spatialavatar.head.model import HeadModel


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what was lost on the way."""

    files: int  # written
    notes: tuple[str, ...] = ()  # what the format could not hold, in numbers


def common_notes(clip: TrackedClip, head: HeadModel) -> list[str]:
    """What none of the tools' formats holds."""
    notes = []
    if len(head.faces) not in (flame.FACES, flame.FACES + flame.TEETH_FACES):
        notes.append(f"the head '{head.info.id}' is no FLAME: programs that pose FLAME will show another face")
    for held, what in ((clip.has_region, "regions of interest"), (clip.landmarks is not None, "landmarks")):
        if held:
            notes.append(f"{what} are not held")
    notes.append(f"the frame rate ({clip.fps:g}) is not held; give it by --fps when importing")
    return notes
