"""Random draws that are functions of (seed, purpose, numbers) alone (method.md section 3).

Philox-4x64 (Salmon et al. 2011) is a bijection from (key, counter) to random words. The key holds the seed and the
purpose, the upper counter words hold the numbers, and the lowest word counts the draws made, so that two different
calls never share a word. Nothing depends on rank, worker, time or order: a run that resumes at sample n draws what an
unbroken run draws there.
"""

from enum import IntEnum

import numpy as np

MAX_NUMBERS = 3  # counter words beside the one that counts draws
_WORD = 1 << 64


class Purpose(IntEnum):
    """What a draw is for. A value, once given, keeps its meaning: old runs resume by it."""

    CLIP = 1  # numbers: epoch
    SOURCES = 2  # sample
    BACKGROUND = 3  # sample
    HELD_OUT = 4  # clip
    AUGMENT = 5  # sample


def generator_for(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """A generator of its own for up to three numbers (sample, epoch ...); it costs about 7 microseconds.

    Raises ValueError for more numbers, and for a seed or number outside 0 .. 2^64 - 1.
    """
    if len(numbers) > MAX_NUMBERS:
        raise ValueError(f"{len(numbers)} numbers for one draw; at most {MAX_NUMBERS} fit")
    if any(not 0 <= value < _WORD for value in (seed, *numbers)):
        raise ValueError(f"seed and numbers of a draw must be in 0 .. 2^64 - 1, got {(seed, *numbers)}")
    key = np.array([seed, purpose | len(numbers) << 32], np.uint64)  # (5,) and (5, 0) are different draws
    counter = np.zeros(1 + MAX_NUMBERS, np.uint64)
    counter[1 : 1 + len(numbers)] = numbers
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
