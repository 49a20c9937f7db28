"""The reference frame: the most closed mouth, earliest on ties, seeded among the quiet."""

from dataclasses import replace

import torch

from spatialavatar.clip.reference_frame import mouth_openness, reference_frame
from spatialavatar.head import HeadParams
from tests.builders.clips import tiny_head


def params(jaw: list[float], mouth: list[float]) -> HeadParams:
    neutral = tiny_head().neutral(len(jaw))
    expression = neutral.expression.clone()
    expression[:, 0] = torch.tensor(mouth)  # the tiny head's mouth-opening code
    expression[:, 2] = 5.0  # a smile opens no mouth
    rotation = torch.stack([torch.tensor(jaw), -0.5 * torch.tensor(jaw), torch.zeros(len(jaw))], -1)
    return replace(neutral, expression=expression, jaw=rotation)


def test_openness_adds_jaw_and_mouth_codes() -> None:
    openness = mouth_openness(tiny_head(), params([0.2, 0.0], [0.1, 0.4]))
    torch.testing.assert_close(openness, torch.tensor([0.2 + 0.1 + 0.1, 0.4]))


def test_smallest_openness_earliest_on_ties() -> None:
    assert reference_frame(tiny_head(), params([0.2, 0.02, 0.1, 0.02], [0.0, 0.0, 0.0, 0.0])) == 1
    # the jaw is most closed in frame 1, but its expression holds the mouth open
    assert reference_frame(tiny_head(), params([0.2, 0.0, 0.1, 0.1], [0.0, 0.9, 0.0, 0.0])) == 2


def test_below_the_noise_a_seeded_frame_of_the_quietest_tenth() -> None:
    jaw = [0.5] * 40
    quiet = [3, 17, 21, 38]
    for k, frame in enumerate(quiet):
        jaw[frame] = 1e-4 * k
    chosen = {reference_frame(tiny_head(), params(jaw, [0.0] * 40), seed) for seed in range(60)}
    assert chosen == set(quiet)
    assert reference_frame(tiny_head(), params(jaw, [0.0] * 40), 5) == reference_frame(
        tiny_head(), params(jaw, [0.0] * 40), 5
    )
