"""Who a synthetic person is: colours, hair, brows, stubble and freckles, drawn from the identity number alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_SKIN = np.array(
    [[0.93, 0.74, 0.65], [0.87, 0.66, 0.55], [0.76, 0.55, 0.42], [0.60, 0.40, 0.29], [0.42, 0.27, 0.19]], np.float32
)
_HAIR = np.array(
    [
        [0.06, 0.05, 0.05],
        [0.15, 0.09, 0.06],
        [0.30, 0.18, 0.10],
        [0.58, 0.43, 0.24],
        [0.42, 0.17, 0.08],
        [0.55, 0.54, 0.53],
    ],
    np.float32,
)
_IRIS = np.array(
    [[0.22, 0.12, 0.06], [0.34, 0.21, 0.10], [0.30, 0.36, 0.18], [0.28, 0.42, 0.54], [0.40, 0.46, 0.48]], np.float32
)


@dataclass(frozen=True)
class Person:
    """The draws that make a person; lengths in mm."""

    skin: Float[np.ndarray, " 3"]
    hair: Float[np.ndarray, " 3"]
    iris: Float[np.ndarray, " 3"]
    lips: float  # 0: like the skin, 1: red
    hair_style: str  # "bald", "buzz", "short", "full", "afro"
    hair_length: float
    hairline_shift: float  # towards the crown
    brow_thickness: float
    stubble: float  # 0..1
    freckles: float  # 0..1
    seed: int


def draw_person(identity: int) -> Person:
    """The same person for the same number, everywhere."""
    rng = np.random.Generator(np.random.PCG64([identity, 11]))
    tone = rng.random() * 3.6
    low = int(tone)
    skin = _SKIN[low] + (tone - low) * (_SKIN[low + 1] - _SKIN[low])
    skin = skin * (1 + 0.012 * np.clip(rng.standard_normal(3), -2, 2).astype(np.float32))
    dark = tone > 2.2
    hair = _HAIR[int(rng.random() * (2.4 if dark else 6))] * np.float32(0.85 + 0.3 * rng.random())
    iris = _IRIS[int(rng.random() * (2 if dark else 5))] * np.float32(0.85 + 0.3 * rng.random())
    style = ("short", "full", "short", "buzz", "afro" if dark else "full", "bald")[int(rng.random() * 6)]
    length = {"bald": 0.0, "buzz": 2.0, "short": 9.0, "full": 17.0, "afro": 30.0}[style] * (0.85 + 0.3 * rng.random())
    return Person(
        skin=skin.astype(np.float32),
        hair=hair.astype(np.float32),
        iris=iris.astype(np.float32),
        lips=0.35 + 0.55 * rng.random(),
        hair_style=style,
        hair_length=length,
        hairline_shift=-3.0 + 12.0 * rng.random() ** 2,
        brow_thickness=0.75 + 0.5 * rng.random(),
        stubble=max(0.0, 1.7 * rng.random() - 0.8),
        freckles=max(0.0, 1.8 * rng.random() - 1.1) if tone < 1.6 else 0.0,
        seed=1000 + 37 * identity,
    )
