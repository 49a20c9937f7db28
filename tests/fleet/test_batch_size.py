"""How many subjects share a worker: by made-up workers whose speed and memory are known."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialavatar.fleet.batch_size import FULL, LAPSE, BatchSizes


def sizes_of(
    sizes: BatchSizes,
    seconds: Callable[[int], float],
    memory: Callable[[int], float] = lambda size: 0.0,
    rounds: int = 8,
) -> list[int]:
    """The sizes that a worker is given, one after another; one that takes more than all memory fails."""
    given = []
    for _ in range(rounds):
        size = sizes.next("gpu")
        given.append(size)
        if memory(size) > 1:
            sizes.out_of_memory("gpu", size)
        else:
            sizes.note("gpu", size, seconds(size), memory(size))
    return given


def test_one_first_then_twice_as_many_as_long_as_that_is_faster() -> None:
    assert sizes_of(BatchSizes(None, 32), lambda size: 1 / size) == [1, 2, 4, 8, 16, 32, 32, 32]


def test_no_more_than_allowed() -> None:
    assert sizes_of(BatchSizes(None, 6), lambda size: 1 / size) == [1, 2, 4, 6, 6, 6, 6, 6]
    assert sizes_of(BatchSizes(None, 1), lambda size: 1 / size, rounds=3) == [1, 1, 1]


def test_it_stops_where_more_are_not_faster() -> None:
    """And goes back to what was fastest."""
    assert sizes_of(BatchSizes(None, 32), {1: 4.0, 2: 2.0, 4: 2.1}.__getitem__) == [1, 2, 4, 2, 2, 2, 2, 2]
    assert sizes_of(BatchSizes(None, 32), {1: 4.0, 2: 5.0}.__getitem__, rounds=4) == [1, 2, 1, 1]


def test_a_little_faster_is_no_reason_to_go_on() -> None:
    """A batch that is hardly better is kept, a larger one not tried; a clear gain is followed."""
    assert sizes_of(BatchSizes(None, 32), {1: 1.0, 2: 0.96}.__getitem__, rounds=4) == [1, 2, 2, 2]
    assert sizes_of(BatchSizes(None, 32), {1: 1.0, 2: 0.94, 4: 0.93}.__getitem__, rounds=5) == [1, 2, 4, 4, 4]


def test_it_stops_where_memory_would_not_suffice() -> None:
    """Seen ahead from its growth, of which a part does not depend on the batch."""
    given = sizes_of(BatchSizes(None, 64), lambda size: 1 / size, lambda size: 0.3 + 0.05 * size)
    assert given == [1, 2, 4, 8, 8, 8, 8, 8]  # 16 would take 1.1
    tight = sizes_of(BatchSizes(None, 64), lambda size: 1 / size, lambda size: 0.45 * size, rounds=4)
    assert tight == [1, 1, 1, 1] and FULL < 2 * 0.45


def test_out_of_memory() -> None:
    """Half of that size is tried, and no more."""
    jumps = lambda size: 0.1 if size < 5 else 2.0  # noqa: E731
    assert sizes_of(BatchSizes(None, 64), lambda size: 1 / size, jumps) == [1, 2, 4, 8, 4, 4, 4, 4]
    larger_later = BatchSizes(None, 64)
    larger_later.out_of_memory("gpu", 4)
    larger_later.out_of_memory("gpu", 9)
    assert sizes_of(larger_later, lambda size: 1 / size, rounds=4) == [1, 2, 2, 2]


def test_a_subject_too_large_alone_says_nothing_of_others() -> None:
    sizes = BatchSizes(None, 8)
    sizes.out_of_memory("gpu", 1)
    assert sizes_of(sizes, lambda size: 1 / size, rounds=4) == [1, 2, 4, 8]
    sizes.out_of_memory("gpu", 1)
    assert sizes.next("gpu") == 8


def test_one_clip_that_was_too_large_is_forgotten() -> None:
    """After batches that went well; another failure begins the time anew."""
    sizes = BatchSizes(None, 8)
    assert sizes_of(sizes, lambda size: 1 / size, rounds=4) == [1, 2, 4, 8]
    sizes.out_of_memory("gpu", 8)
    assert set(sizes_of(sizes, lambda size: 1 / size, rounds=LAPSE - 1)) == {4}
    sizes.out_of_memory("gpu", 4)
    assert set(sizes_of(sizes, lambda size: 1 / size, rounds=LAPSE)) == {2}
    assert sizes.next("gpu") == 8


def test_a_fixed_size_is_given_up_only_for_memory() -> None:
    sizes = BatchSizes(5, 8)
    assert sizes_of(sizes, lambda size: float(size), lambda size: 0.99, rounds=3) == [5, 5, 5]
    sizes.out_of_memory("gpu", 5)
    assert sizes.next("gpu") == 2
    assert BatchSizes(20, 8).next("gpu") == 20  # the largest is for those that are tried out


def test_kinds_of_workers_are_apart() -> None:
    sizes = BatchSizes(None, 8)
    assert sizes_of(sizes, lambda size: 1 / size, rounds=3) == [1, 2, 4]
    sizes.out_of_memory("gpu", 4)
    assert sizes.next("CPU") == 1
    sizes.note("CPU", 1, 1.0, 0.1)
    assert sizes.next("CPU") == 2 and sizes.next("gpu") == 2


def test_the_best_of_several_measurements_counts() -> None:
    """The first batch of a worker is slow, for kernels are built; and its memory is that of the largest."""
    sizes = BatchSizes(None, 4)
    sizes.note("gpu", 1, 1.0, 0.1)
    sizes.note("gpu", 2, 9.0, 0.1)
    assert sizes.next("gpu") == 1
    sizes.note("gpu", 2, 0.5, 0.5)
    sizes.note("gpu", 2, 0.7, 0.2)
    assert sizes.next("gpu") == 2  # 0.4 for each further one: four would take 1.3


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 9),
            st.sampled_from(["memory", "note"]),
            st.floats(0.01, 10),
            st.floats(0, 1.2),
        ),
        max_size=12,
    ),
    st.one_of(st.none(), st.integers(1, 12)),
    st.integers(1, 12),
)
def test_whatever_is_measured_a_size_is_possible(
    events: list[tuple[int, str, float, float]], fixed: int | None, largest: int
) -> None:
    sizes, too_large = BatchSizes(fixed, largest), []
    for size, event, seconds, memory in events:
        if event == "memory":
            sizes.out_of_memory("gpu", size)
            too_large += [size] if size > 1 else []
        else:
            sizes.note("gpu", size, seconds, memory)
        following = sizes.next("gpu")
        assert 1 <= following <= (largest if fixed is None else fixed)
        assert all(following <= size // 2 for size in too_large)


@pytest.mark.parametrize("largest", [1, 3, 8])
def test_small_batches_at_the_end_do_not_confuse(largest: int) -> None:
    """The last subjects are shared out in odd numbers."""
    sizes = BatchSizes(None, largest)
    sizes_of(sizes, lambda size: 1 / size)
    for size in (1, 2, 3):
        sizes.note("gpu", size, 1 / size, 0.0)
    assert sizes.next("gpu") == largest
