"""Samplers: frequencies against exact probabilities, distinctness, the difficulty score, and draws by number.

Seeds are fixed. ``assert_frequencies`` alarms falsely with probability ALARM at most for a seed that is drawn anew.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Hashable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from spatialavatar.clip import FrameIndex
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.training.config import SamplerConfig
from spatialavatar.training.samplers import (
    ClipFacts,
    Draw,
    clip_of,
    difficulty,
    draw_monocular,
    draw_multi_view,
    softmax,
    temperature_at,
)

ALARM = 1e-4
CONFIG = SamplerConfig()
MONOCULAR, MULTI_VIEW = "monocular", "multi-view"


def facts(instants: int = 6, cameras: int = 1, seed: int = 0, spread: float = 0.5) -> ClipFacts:
    """Random axes and expressions; all instants and cameras usable."""
    rng = np.random.default_rng(seed)
    views = np.array([0.0, 0.0, 1.0]) + spread * rng.normal(size=(instants, cameras, 3))
    views /= np.linalg.norm(views, axis=-1, keepdims=True)
    expression = rng.normal(size=(instants, 5))
    return ClipFacts(views, expression, tuple(range(instants)), tuple(range(cameras)), "data/someone")


def rejected(counts: Counter, probabilities: dict[Hashable, float]) -> list[Hashable]:
    """Outcomes whose count is out of the exact binomial bounds, at ALARM shared between all outcomes."""
    assert sum(probabilities.values()) == pytest.approx(1)
    draws = counts.total()
    unexpected = [outcome for outcome in counts if outcome not in probabilities]
    return unexpected + [
        outcome
        for outcome, probability in probabilities.items()
        if binomtest(counts[outcome], draws, probability).pvalue < ALARM / len(probabilities)
    ]


def assert_frequencies(counts: Counter, probabilities: dict[Hashable, float]) -> None:
    assert not rejected(counts, probabilities)


def draws_of(draw: Callable[[int], Draw], count: int) -> list[Draw]:
    return [draw(number) for number in range(count)]


def first_source_probabilities(clip: ClipFacts, temperature: float) -> dict[tuple[int, int], float]:
    """P(target, source[0]) from the formula in method.md, spelled out one number at a time."""
    n = len(clip.instants)
    joint: dict[tuple[int, int], float] = {}
    for target in range(n):
        others = [t for t in range(n) if t != target]
        angle = {t: float(np.arccos(clip.view_direction[t, 0] @ clip.view_direction[target, 0])) for t in others}
        distance = {t: float(np.sqrt(((clip.expression[t] - clip.expression[target]) ** 2).sum())) for t in others}
        mean_angle, mean_distance = sum(angle.values()) / (n - 1), sum(distance.values()) / (n - 1)
        weight = {
            t: float(np.exp((0.5 * angle[t] / mean_angle + 0.5 * distance[t] / mean_distance) / temperature))
            for t in others
        }
        for t in others:
            joint[target, t] = weight[t] / sum(weight.values()) / n
    return joint


# ---- Phase 1


def test_source_count_is_uniform() -> None:
    drawn = draws_of(lambda n: draw_monocular(facts(), n, 1, CONFIG, 1.0), 4000)
    assert_frequencies(Counter(len(d.sources) for d in drawn), dict.fromkeys((1, 2, 3, 4), 0.25))


def test_few_frames_lower_the_source_count() -> None:
    drawn = draws_of(lambda n: draw_monocular(facts(3), n, 2, CONFIG, 1.0), 4000)
    assert_frequencies(Counter(len(d.sources) for d in drawn), {1: 0.25, 2: 0.75})


def test_target_is_uniform() -> None:
    drawn = draws_of(lambda n: draw_monocular(facts(), n, 3, CONFIG, 0.5), 4000)
    assert_frequencies(Counter(d.target.instant for d in drawn), dict.fromkeys(range(6), 1 / 6))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_first_source_follows_the_softmax_of_the_difficulty(temperature: float) -> None:
    clip = facts()
    clip.expression[0] += 5.0  # one frame apart from the others tells temperatures apart
    drawn = draws_of(lambda n: draw_monocular(clip, n, 4, CONFIG, temperature), 8000)
    counts = Counter((d.target.instant, d.sources[0].instant) for d in drawn)
    assert_frequencies(counts, first_source_probabilities(clip, temperature))
    assert rejected(counts, first_source_probabilities(clip, 2 * temperature))


def test_other_sources_are_uniform_whatever_the_first() -> None:
    config = SamplerConfig(max_sources=3)
    drawn = [d for n in range(9000) if len((d := draw_monocular(facts(5), n, 5, config, 0.3)).sources) == 3]
    tails = []
    for d in drawn:
        rest = sorted(set(range(5)) - {d.target.instant, d.sources[0].instant})
        tails.append(tuple(rest.index(source.instant) for source in d.sources[1:]))
    assert_frequencies(Counter(tails), dict.fromkeys(itertools.permutations(range(3), 2), 1 / 6))


def test_low_temperature_takes_the_hardest_frame() -> None:
    clip = facts()
    for number in range(200):
        drawn = draw_monocular(clip, number, 6, CONFIG, 1e-3)
        target = drawn.target.instant
        scores = difficulty(
            clip.view_direction[target, 0], clip.expression[target], clip.view_direction[:, 0], clip.expression
        )
        assert drawn.sources[0].instant == int(np.argmax(scores))


def test_high_temperature_is_uniform() -> None:
    drawn = draws_of(lambda n: draw_monocular(facts(), n, 7, CONFIG, 1e6), 4000)
    counts = Counter((d.target.instant, d.sources[0].instant) for d in drawn)
    assert_frequencies(counts, dict.fromkeys(itertools.permutations(range(6), 2), 1 / 30))


def test_cameras_of_a_take_are_uniform_and_one_to_a_sample() -> None:
    drawn = draws_of(lambda n: draw_monocular(facts(6, 3), n, 8, CONFIG, 1.0), 3000)
    assert all({source.camera for source in d.sources} == {d.target.camera} for d in drawn)
    assert_frequencies(Counter(d.target.camera for d in drawn), dict.fromkeys(range(3), 1 / 3))


def test_a_take_is_scored_by_the_axes_of_the_drawn_camera() -> None:
    """Camera 0 sees instant 2 from afar, camera 1 instant 1; expressions say nothing."""
    ahead, aside = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
    views = np.array([[ahead, ahead], [ahead, aside], [aside, ahead]])
    clip = ClipFacts(views, np.zeros((3, 4)), (0, 1, 2), (0, 1))
    for number in range(100):
        drawn = draw_monocular(clip, number, 0, CONFIG, 1e-3)
        if drawn.target.instant == 0:
            assert drawn.sources[0].instant == 2 - drawn.target.camera


@pytest.mark.parametrize("instants", [(), (5,)])
def test_a_clip_without_a_pair_of_frames_is_refused_by_name(instants: tuple[int, ...]) -> None:
    clip = facts(8)
    short = ClipFacts(clip.view_direction, clip.expression, instants, (0,), "data/short")
    with pytest.raises(SpatialAvatarError, match=rf"data/short: {len(instants)} usable instant.*at least 2 instants"):
        draw_monocular(short, 0, 0, CONFIG, 1.0)


# ---- the score


def test_score_by_hand() -> None:
    views = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])  # 0, 90 and 180 degrees off: mean 90
    expressions = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])  # 5, 0 and 1 away: mean 2
    score = difficulty(np.array([0.0, 0.0, 1.0]), np.zeros(2), views, expressions)
    np.testing.assert_allclose(score, [0.5 * 5 / 2, 0.5 * 1, 0.5 * 2 + 0.5 * 1 / 2], rtol=1e-12)


@pytest.mark.parametrize("rounding", [0.0, 1e-9])
def test_a_part_without_differences_is_zero(rounding: float) -> None:
    axis = np.array([0.6, 0.0, 0.8])
    axes = axis + rounding * np.random.default_rng(0).normal(size=(3, 3))
    expressions = np.array([[1.0], [2.0], [3.0]])
    np.testing.assert_allclose(difficulty(axis, np.zeros(1), axes, expressions), [0.25, 0.5, 0.75], rtol=1e-12)
    assert (difficulty(axis, np.ones(1), axes, np.ones((3, 1))) == 0).all()
    np.testing.assert_allclose(softmax(np.zeros(3), 0.5), 1 / 3)


def test_softmax_bears_large_scores() -> None:
    np.testing.assert_allclose(softmax(np.array([0.0, 1.0, 1e4]), 1e-3), [0, 0, 1])


def test_temperature_falls_over_the_first_quarter() -> None:
    assert temperature_at(0.0, CONFIG) == 2.0
    assert temperature_at(0.125, CONFIG) == 1.25
    assert [temperature_at(progress, CONFIG) for progress in (0.25, 0.6, 1.0)] == [0.5] * 3
    assert temperature_at(0.0, SamplerConfig(temperature_share=0)) == 0.5
    assert temperature_at(0.5, SamplerConfig(temperature_share=1)) == 1.25


# ---- Phase 2


def across_time(drawn: Draw) -> bool:
    return len({frame.instant for frame in (drawn.target, *drawn.sources)}) > 1


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_draws_across_time(share: float) -> None:
    config = SamplerConfig(cross_time=share)
    drawn = draws_of(lambda n: draw_multi_view(facts(6, 4), n, 10, config), 4000)
    counts = Counter(across_time(d) for d in drawn)
    assert_frequencies(counts, {True: share, False: 1 - share})
    for kind in counts:  # K is uniform within either; four cameras leave three sources
        sources = Counter(len(d.sources) for d in drawn if across_time(d) == kind)
        assert_frequencies(sources, dict.fromkeys((1, 2, 3, 4), 0.25) if kind else {1: 0.25, 2: 0.25, 3: 0.5})


def test_across_cameras_every_instant_and_pair_of_cameras_is_as_likely() -> None:
    config = SamplerConfig(cross_time=0, max_sources=3)
    drawn = draws_of(lambda n: draw_multi_view(facts(3, 4), n, 11, config), 6000)
    assert_frequencies(Counter(d.target.instant for d in drawn), dict.fromkeys(range(3), 1 / 3))
    pairs = Counter((d.target.camera, d.sources[-1].camera) for d in drawn)
    assert_frequencies(pairs, dict.fromkeys(itertools.permutations(range(4), 2), 1 / 12))


def test_across_time_every_pair_of_instants_and_cameras_is_as_likely() -> None:
    config = SamplerConfig(cross_time=1, max_sources=3)
    drawn = draws_of(lambda n: draw_multi_view(facts(4, 3), n, 12, config), 8000)
    pairs = Counter((d.target.instant, d.sources[-1].instant) for d in drawn)
    assert_frequencies(pairs, dict.fromkeys(itertools.permutations(range(4), 2), 1 / 12))
    several = Counter((d.target.camera, d.sources[0].camera, d.sources[1].camera) for d in drawn if len(d.sources) == 2)
    assert_frequencies(several, dict.fromkeys(itertools.product(range(3), repeat=3), 1 / 27))
    single = Counter((d.target.camera, d.sources[0].camera) for d in drawn if len(d.sources) == 1)
    assert_frequencies(single, {(camera, camera): 1 / 3 for camera in range(3)})


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_one_camera_is_always_across_time_and_one_instant_across_cameras(share: float) -> None:
    config = SamplerConfig(cross_time=share)
    for number in range(100):
        assert across_time(draw_multi_view(facts(5, 1), number, 13, config))
        assert not across_time(draw_multi_view(facts(1, 5), number, 13, config))


@pytest.mark.parametrize(("instants", "cameras"), [(1, 1), (0, 4), (4, 0)])
def test_neither_cameras_nor_instants_is_refused_by_name(instants: int, cameras: int) -> None:
    with pytest.raises(SpatialAvatarError, match=rf"data/someone: {instants} usable .* {cameras} camera"):
        draw_multi_view(facts(instants, cameras), 0, 0, CONFIG)


# ---- both


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 11), min_size=2, max_size=12, unique=True),
    st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
    st.integers(1, 8),
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    st.floats(0, 1),
)
def test_frames_are_usable_distinct_and_as_many_as_possible(
    instants: list[int], cameras: list[int], max_sources: int, seed: int, number: int, share: float
) -> None:
    whole = facts(12, 5)
    clip = ClipFacts(whole.view_direction, whole.expression, tuple(instants), tuple(cameras))
    config = SamplerConfig(max_sources=max_sources, cross_time=share)
    for drawn in (draw_monocular(clip, number, seed, config, 1.0), draw_multi_view(clip, number, seed, config)):
        frames = [drawn.target, *drawn.sources]
        assert 1 <= len(drawn.sources) <= max_sources
        assert {frame.instant for frame in frames} <= set(instants)
        assert {frame.camera for frame in frames} <= set(cameras)
        assert all(type(value) is int for frame in frames for value in frame)
        distinct_instants = len({frame.instant for frame in frames})
        if distinct_instants == 1:
            assert len({frame.camera for frame in frames}) == len(frames)
        else:
            assert distinct_instants == len(frames)
            assert len(frames) > 2 or len({frame.camera for frame in frames}) == 1


def drawn_frames(kind: str, numbers: list[int]) -> list[list[tuple[int, int]]]:
    """Draws of some sample numbers as plain lists."""
    frames = []
    for number in numbers:
        clip = facts(7, 3, seed=clip_of(number, 5, 21))
        if kind == MONOCULAR:
            drawn = draw_monocular(clip, number, 21, CONFIG, temperature_at(number / 400, CONFIG))
        else:
            drawn = draw_multi_view(clip, number, 21, CONFIG)
        frames.append([tuple(frame) for frame in (drawn.target, *drawn.sources)])
    return frames


@pytest.mark.parametrize("kind", [MONOCULAR, MULTI_VIEW])
def test_draws_depend_on_their_number_alone(kind: str) -> None:
    unbroken = drawn_frames(kind, list(range(201)))
    assert drawn_frames(kind, list(range(100, 201))) == unbroken[100:]
    assert drawn_frames(kind, list(range(200, -1, -1)))[::-1] == unbroken
    assert len({tuple(frames) for frames in unbroken}) > 100  # and differ from one another


def test_every_process_and_release_draws_the_same() -> None:
    """Recorded draws: a run that is resumed by another release goes on with what it would have seen."""
    numbers = [150, 9, 3000]
    assert drawn_frames(MONOCULAR, numbers) == [
        [(3, 0), (4, 0), (1, 0)],
        [(3, 1), (6, 1), (2, 1)],
        [(6, 2), (1, 2), (5, 2)],
    ]
    assert drawn_frames(MULTI_VIEW, numbers) == [
        [(0, 0), (2, 0), (4, 0)],
        [(3, 1), (3, 2), (3, 0)],
        [(6, 2), (6, 1), (6, 0)],
    ]


def test_seeds_differ() -> None:
    one, other = ([draw_monocular(facts(), n, seed, CONFIG, 1.0) for n in range(20)] for seed in (0, 1))
    assert one != other
    assert isinstance(one[0].target, FrameIndex)


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 1000), st.integers(0, 2**32))
def test_every_clip_once_an_epoch(clips: int, epoch: int, seed: int) -> None:
    numbers = range(epoch * clips, (epoch + 1) * clips)
    assert sorted(clip_of(number, clips, seed) for number in numbers) == list(range(clips))


def test_epochs_have_orders_of_their_own() -> None:
    order = [clip_of(number, 4, 5) for number in range(4 * 3000)]
    permutations = Counter(zip(*(order[k::4] for k in range(4))))
    assert_frequencies(permutations, dict.fromkeys(itertools.permutations(range(4)), 1 / 24))
