"""How many subjects share a worker: as many as its memory holds, as long as more of them are faster.

A batch gives every subject the avatar that it would get alone, so sizes can be tried out while the work goes on: one
subject first, then twice as many, as long as that is faster for each and the memory, which grows in proportion,
suffices. A size that runs out of memory is halved for a while, not for good: one long clip says little of the rest.
"""

from dataclasses import dataclass, field

FASTER = 0.95  # a larger batch must take at most this share of the time for each subject
FULL = 0.85  # share of the memory that may be in use
LAPSE = 20  # batches that went well, after which a size that ran out of memory may be tried again


@dataclass
class _Kind:
    """What is known of one kind of worker."""

    seconds: dict[int, float] = field(default_factory=dict)  # for an iteration of one subject, by size of batch
    memory: dict[int, float] = field(default_factory=dict)  # share in use at most
    too_large: int | None = None  # the smallest size that ran out of memory lately
    since: int = 0  # batches that went well after that


class BatchSizes:
    def __init__(self, fixed: int | None, largest: int) -> None:
        self._fixed, self._largest = fixed, largest
        self._kinds: dict[str, _Kind] = {}

    def note(self, kind: str, size: int, seconds: float, memory: float) -> None:
        """A batch of ``size`` took ``seconds`` for an iteration of each, and the share ``memory`` of all there is."""
        known = self._kinds.setdefault(kind, _Kind())
        known.seconds[size] = min(seconds, known.seconds.get(size, seconds))
        known.memory[size] = max(memory, known.memory.get(size, memory))
        known.since += 1
        if known.since >= LAPSE:
            known.too_large = None

    def out_of_memory(self, kind: str, size: int) -> None:
        """A batch of ``size`` did not fit. A subject that is too large alone says nothing of others together."""
        if size == 1:
            return
        known = self._kinds.setdefault(kind, _Kind())
        known.too_large, known.since = min(size, known.too_large or size), 0

    def next(self, kind: str) -> int:
        """For the next batch on a worker of this kind."""
        known = self._kinds.setdefault(kind, _Kind())
        most = self._largest if self._fixed is None else self._fixed
        if known.too_large is not None:
            most = min(most, known.too_large // 2)
        if self._fixed is not None:
            return most
        tried = sorted(size for size in known.seconds if size <= most)
        if not tried:
            return 1
        best = min(tried, key=lambda size: known.seconds[size])
        if best != tried[-1] or best == most:
            return best
        if len(tried) > 1 and known.seconds[best] > FASTER * known.seconds[tried[-2]]:
            return best
        larger = min(2 * best, most)
        per_subject = known.memory[best] / best if len(tried) < 2 else _slope(known.memory, tried[-2], best)
        return larger if known.memory[best] + (larger - best) * per_subject <= FULL else best


def _slope(memory: dict[int, float], a: int, b: int) -> float:
    return max(0.0, (memory[b] - memory[a]) / (b - a))
