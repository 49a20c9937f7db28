"""What each process of an evaluation does: a few subjects, with instruments that it opens once."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatialavatar.evaluation.subjects import Bench, Subject


@dataclass(frozen=True)
class Opened:
    """What a worker's instruments are known by; it keeps them for its next task."""

    name: str
    reference: Any = field(compare=False)


def measure(group: "tuple[Subject, ...]", opened: Opened) -> "list[dict[str, Any] | str] | Exception":
    """In a worker. What the driver has to tell of comes back as a value."""
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.evaluation.footage import reason_of
    from spatialavatar.processors import use_threads

    use_threads(1)
    try:
        bench = _bench(opened)
    except SpatialAvatarError as e:
        return e
    outcomes: list[dict[str, Any] | str] = []
    for subject in group:
        try:
            outcomes.append(bench.measure(subject))
        except Exception as e:  # of this subject; the others may be sound
            outcomes.append(reason_of(e))
    return outcomes


@lru_cache(maxsize=1)
def _bench(opened: Opened) -> "Bench":
    import ray

    from spatialavatar.evaluation.subjects import Bench

    return Bench(ray.get(opened.reference), "cuda" if ray.get_gpu_ids() else "cpu")
