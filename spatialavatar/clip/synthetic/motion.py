"""Motion of a synthetic person: speech, blinks, brows, smiles, gaze and head turns, as smooth functions of time.

Every curve is a sum of sinusoids or of bumps whose numbers come from the motion's seed; a frame's value does not depend
on how many frames are asked for.
"""

import numpy as np
import torch
from jaxtyping import Float

from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams

Curve = Float[np.ndarray, " T"]


def draw_shape(head: HeadModel, identity: int) -> Float[torch.Tensor, "1 S"]:
    """Shape codes of an identity: within about two standard deviations, so that everyone looks human."""
    rng = np.random.Generator(np.random.PCG64([identity, 23]))
    codes = np.clip(rng.standard_normal(head.shape_codes), -2.0, 2.0)
    order = np.arange(head.shape_codes)
    codes *= np.where(order < 22, 0.75, np.where(order < 80, 0.45, 0.2))
    return torch.from_numpy(codes.astype(np.float32))[None]


def draw_motion(head: HeadModel, identity: int, motion: int, frames: int, fps: float, swing: float = 0.0) -> HeadParams:
    """Parameters of T frames: the shape of ``identity`` moving by ``motion``. Radians and metres.

    ``swing``: degrees by which the whole person turns to either side and back, about ten seconds each time, as on a
    swivel chair, under the small turns of the head of a talking person.
    """
    rng = np.random.Generator(np.random.PCG64([motion, 37]))
    t = np.arange(frames) / fps
    degrees = np.pi / 180

    # phrases of speech with pauses between; syllables within
    talking = _soft(_waves(rng, t, (0.16, 0.29, 0.45)) + 0.35, 0.25)
    syllable = 0.5 + 0.5 * np.sin(2 * np.pi * 3.4 * t + 2.2 * _waves(rng, t, (0.7, 1.1)) + 6.28 * rng.random())
    loud = 0.55 + 0.45 * _waves(rng, t, (0.8, 1.7))
    jaw = 0.012 + 0.17 * talking * syllable * np.clip(loud, 0.15, 1.0)
    yawn = _bumps(rng, t, every=9.0, width=0.55)
    jaw = np.maximum(jaw, 0.30 * yawn)
    round_lips = talking * np.clip(_waves(rng, t, (1.3, 2.1)), 0, 1)
    part_lips = talking * np.clip(_waves(rng, t, (1.9, 2.7)), 0, 1)
    smile = np.clip(1.25 * _bumps(rng, t, every=4.5, width=0.9) + 0.15 * _waves(rng, t, (0.11,)), 0, 1.4)
    raise_brows = np.clip(0.9 * _bumps(rng, t, every=3.7, width=0.45), 0, 1)
    frown = np.clip(0.9 * _bumps(rng, t, every=6.5, width=0.7), 0, 1) * (1 - raise_brows)
    blink = _blinks(rng, t)

    yaw = degrees * 25 * _waves(rng, t, (0.10, 0.23, 0.41))
    pitch = degrees * (10 * _waves(rng, t, (0.13, 0.31, 0.6)) + 1.5 * talking * np.sin(2 * np.pi * 1.1 * t))
    roll = degrees * 6 * _waves(rng, t, (0.09, 0.27))
    turn = np.stack([pitch, yaw, roll], -1)
    gaze_yaw = degrees * 14 * _saccades(rng, t) - 0.35 * yaw
    gaze_pitch = degrees * 7 * _saccades(rng, t) - 0.35 * pitch
    gaze = np.stack([gaze_pitch, gaze_yaw, 0 * t], -1)
    lids = np.clip(blink + 0.9 * np.clip(gaze_pitch, -0.1, 0.25) - 0.12 * raise_brows, -0.12, 1.0)

    tilt = rng.standard_normal(6) * 0.12  # nobody is symmetric
    expression = np.zeros((frames, head.expression_codes))
    named = {
        "blink_left": lids,
        "blink_right": lids,
        "smile_left": smile * (1 + tilt[0]),
        "smile_right": smile * (1 - tilt[0]),
        "squint_left": 0.7 * smile + 0.4 * frown,
        "squint_right": 0.7 * smile + 0.4 * frown,
        "mouth_open_lips": 0.7 * part_lips,
        "pucker": 0.75 * round_lips * (1 - 0.6 * np.clip(smile, 0, 1)),
        "brow_raise_left": raise_brows * (1 + tilt[1]),
        "brow_raise_right": raise_brows * (1 - tilt[1]),
        "brow_frown": frown,
        "lip_stretch": 0.4 * talking * _waves(rng, t, (1.5, 2.3)),
        "mouth_left": 0.25 * _waves(rng, t, (0.33, 0.9)),
        "cheek_puff_left": 0.6 * _bumps(rng, t, every=11.0, width=0.5),
        "cheek_puff_right": 0.6 * _bumps(rng, t, every=13.0, width=0.5),
        "sneer_left": 0.6 * _bumps(rng, t, every=9.0, width=0.4),
        "frown_left": 0.5 * frown,
        "frown_right": 0.5 * frown,
    }
    names = head.info.expression_names
    known = [name for name in named if name in names]
    for name in known:
        expression[:, names.index(name)] = named[name]
    if not known:  # codes without a meaning that we know: mild smooth variation of the leading ones
        for code in range(min(12, head.expression_codes)):
            expression[:, code] = 0.6 * _waves(rng, t, (0.21, 0.47, 1.3))
    shift = 0.004 * np.stack([_waves(rng, t, (0.15, 0.4)) for _ in range(3)], -1)

    body = np.zeros((frames, 3))
    if swing:
        body = degrees * swing * _swing(motion, t)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))

    return HeadParams(
        shape=draw_shape(head, identity).expand(frames, -1).contiguous(),
        expression=tensor(expression),
        global_rotation=tensor(0.35 * turn + body),
        neck=tensor(0.65 * turn),
        jaw=tensor(np.stack([jaw, 0.03 * talking * _waves(rng, t, (0.9,)), 0 * t], -1)),
        eyes=tensor(np.concatenate([gaze, gaze], -1)),
        translation=tensor(shift),
    )


def _swing(motion: int, t: Curve) -> Float[np.ndarray, "T 3"]:
    """Pitch, yaw and roll of a turn from side to side: yaw from -1 to 1 and back in 8 to 12 seconds."""
    rng = np.random.Generator(np.random.PCG64([motion, 41]))
    yaw = np.sin(2 * np.pi * (t / (8 + 4 * rng.random()) + rng.random()))
    return np.stack([0.2 * _waves(rng, t, (0.07, 0.19)), yaw, 0 * t], -1)


def _waves(rng: np.random.Generator, t: Curve, frequencies: tuple[float, ...]) -> Curve:
    """A sum of sinusoids (Hz, each a little detuned), within -1..1."""
    out, total = np.zeros(len(t)), 0.0
    for i, frequency in enumerate(frequencies):
        weight = 1.0 / (1 + 0.6 * i)
        out += weight * np.sin(2 * np.pi * (frequency * (0.85 + 0.3 * rng.random()) * t + rng.random()))
        total += weight
    return out / (0.8 * total)


def _soft(value: Curve, width: float) -> Curve:
    """0 below -width, 1 above width, smooth between."""
    s = np.clip((value + width) / (2 * width), 0.0, 1.0)
    return s * s * (3 - 2 * s)


def _bumps(rng: np.random.Generator, t: Curve, *, every: float, width: float) -> Curve:
    """Smooth bumps of height about 1, one in each stretch of ``every`` seconds, ``width`` seconds to each side."""
    out = np.zeros(len(t))
    for k in range(200):
        centre, height = (k + 0.15 + 0.7 * rng.random()) * every, 0.75 + 0.35 * rng.random()
        # rise, hold, fall
        hold = width * (0.6 + rng.random())
        if centre - hold / 2 - width > t[-1]:
            continue  # after the last frame
        distance = np.maximum(np.abs(t - centre) - hold / 2, 0.0) / width
        s = np.clip(1 - distance, 0.0, 1.0)
        out = np.maximum(out, height * s * s * (3 - 2 * s))
    return out


def _blinks(rng: np.random.Generator, t: Curve) -> Curve:
    """Quick full closures, 1.5 to 4.5 seconds apart."""
    out, centre = np.zeros(len(t)), 0.0
    for _ in range(200):
        centre += 1.5 + 3.0 * rng.random()
        if centre - 0.2 > t[-1]:
            continue
        late = t - centre
        distance = np.where(late < 0, -late / 0.09, np.maximum(late - 0.04, 0.0) / 0.16)
        s = np.clip(1.35 - distance, 0.0, 1.0)
        out = np.maximum(out, s * s * (3 - 2 * s))
    return out


def _saccades(rng: np.random.Generator, t: Curve) -> Curve:
    """Jumps between resting places, each jump about 60 ms long, within -1..1."""
    out, time, place = np.zeros(len(t)), 0.0, 0.0
    for _ in range(400):
        time += 0.5 + 1.6 * rng.random()
        next_place = np.clip(0.55 * rng.standard_normal(), -1, 1)
        if time - 0.04 < t[-1]:
            out += (next_place - place) * _soft(t - time, 0.04)
        place = next_place
    return out
