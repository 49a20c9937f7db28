"""Draws by number: Philox words against a pure-Python Philox, independence of order, no two calls alike."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialavatar.training.draws import Purpose, generator_for

WORDS = st.integers(0, 2**64 - 1)
MASK = 2**64 - 1


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Philox4x64-10 as in Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (b >> 64) ^ c1 ^ k0, b & MASK, (a >> 64) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c0, c1, c2, c3


@settings(deadline=None)
@given(WORDS, st.sampled_from(Purpose), st.lists(WORDS, max_size=3))
def test_words_are_philox_of_seed_stream_and_numbers(seed: int, purpose: Purpose, numbers: list[int]) -> None:
    words = generator_for(seed, purpose, *numbers).bit_generator.random_raw(8).tolist()
    key = (seed, int(purpose) + len(numbers) * 2**32)
    upper = (*numbers, 0, 0, 0)[:3]
    assert words == [*philox(key, (1, *upper)), *philox(key, (2, *upper))]  # numpy counts up before it draws


def test_no_two_calls_draw_alike() -> None:
    values = (0, 1, 2, 2**32, 2**32 + 1)  # the large ones fold into small ones where words of 32 bits are counted
    calls = [
        (seed, purpose, *numbers)
        for seed, purpose, count in itertools.product(values, Purpose, range(3))
        for numbers in itertools.product(values, repeat=count)
    ]
    drawn = {generator_for(*call).bit_generator.random_raw() for call in calls}
    assert len(drawn) == len(calls)


def test_order_of_the_calls_is_without_effect() -> None:
    forwards = [generator_for(3, Purpose.SOURCES, n).random() for n in range(50)]
    backwards = [generator_for(3, Purpose.SOURCES, n).random() for n in reversed(range(50))]
    assert forwards == backwards[::-1]


def test_first_draws_of_neighbouring_numbers_are_uniform_and_uncorrelated() -> None:
    first = np.array([generator_for(0, Purpose.SOURCES, n).random() for n in range(20_000)])
    # 5 standard deviations: false alarm 6e-7 each
    assert abs(first.mean() - 0.5) < 5 / np.sqrt(12 * len(first))
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 5 / np.sqrt(len(first))


@pytest.mark.parametrize("arguments", [(-1, Purpose.CLIP), (0, Purpose.CLIP, -1), (2**64, Purpose.CLIP)])
def test_numbers_outside_a_word_are_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="2\\^64"):
        generator_for(*arguments)


def test_a_fourth_number_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 3"):
        generator_for(0, Purpose.CLIP, 1, 2, 3, 4)
