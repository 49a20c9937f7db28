"""How a synthetic person is filmed: lights and cameras, as they always are or drawn by number."""

import numpy as np
import torch
from jaxtyping import Float

from spatialavatar.clip.synthetic.mesh_renderer import Lights

FOCAL = 2.2  # image widths
DISTANCE = 0.68  # metres from the camera to the middle of the head
MIDDLE = (0.0, 0.008, -0.005)  # where the cameras look, metres in the head's frame

Matrix = Float[np.ndarray, "4 4"]
Color = tuple[float, float, float]


def draw_lights(number: int) -> Lights:
    """A key light from the front or a side, warm or cool, a weaker fill from the other side, and ambient light.

    Bounds keep a face readable: it never sinks into black, and light skin seldom saturates.
    """
    rng = np.random.Generator(np.random.PCG64([number, 53]))
    side = 1.0 if rng.random() < 0.5 else -1.0
    key = _direction(side * rng.uniform(5.0, 75.0), rng.uniform(0.0, 55.0))
    fill = _direction(-side * rng.uniform(20.0, 80.0), rng.uniform(-15.0, 30.0))
    strengths = np.array(
        [rng.uniform(0.38, 0.80), rng.uniform(0.06, 0.34), rng.uniform(0.36, 0.56), rng.uniform(0.18, 0.36)]
    )
    exposure = rng.uniform(0.8, 1.15)  # of the studio light in all
    strengths *= exposure * _total(Lights()) / (strengths[:2].sum() + strengths[2:].mean())
    key_strength, fill_strength, sky, ground = (float(s) for s in strengths)
    warm = rng.uniform(-1.0, 1.0)
    return Lights(
        key=key,
        key_strength=key_strength,
        fill=fill,
        fill_strength=fill_strength,
        sky=sky,
        ground=ground,
        key_color=_temperature(warm),
        fill_color=_temperature(rng.uniform(-1.0, 1.0)),
        ambient_color=_temperature(-0.5 * warm + rng.uniform(-0.5, 0.5)),
    )


def draw_framing(number: int) -> tuple[float, float, float, float]:
    """Where the cameras as a group stand: yaw and pitch in radians, distance in metres, focal length in widths."""
    rng = np.random.Generator(np.random.PCG64([number, 59]))
    yaw, pitch = np.radians(rng.uniform(-12.0, 12.0)), np.radians(rng.uniform(-8.0, 10.0))
    distance = DISTANCE * rng.uniform(0.85, 1.35)
    focal = FOCAL * distance / DISTANCE * rng.uniform(0.92, 1.04)  # the head fills about as much of the picture
    return float(yaw), float(pitch), float(distance), float(focal)


def camera_arc(
    cameras: int, yaw: float = 0.0, pitch: float = 0.0, distance: float = DISTANCE
) -> Float[torch.Tensor, "C 4 4"]:
    """World-to-camera matrices around the head: 0 frontal, then in turn to either side, at three heights.

    ``yaw`` and ``pitch`` (radians) turn the whole arc.
    """
    out = []
    for c in range(cameras):
        rank = (c + 1) // 2
        steps = max(1, cameras // 2)
        sideways = np.radians(60.0 * rank / steps) * (1 if c % 2 else -1)
        up = np.radians((0.0, 8.0, -7.0)[rank % 3])
        if yaw or pitch:  # adding nothing would change the sign of zeros, and so the bytes of clips
            sideways, up = sideways + yaw, up + pitch
        out.append(_look_at(float(sideways), float(up), distance))
    return torch.from_numpy(np.stack(out).astype(np.float32))


def _look_at(yaw: float, pitch: float, distance: float) -> Matrix:
    """A camera at ``distance`` towards the subject's left (yaw) and above (pitch), in radians."""
    away = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.cross([0.0, 1.0, 0.0], away)
    right /= np.linalg.norm(right)
    out = np.eye(4)
    out[:3, :3] = np.stack([right, np.cross(-away, right), -away])
    out[:3, 3] = -out[:3, :3] @ (np.array(MIDDLE) + distance * away)
    return out


def _total(lights: Lights) -> float:
    return lights.key_strength + lights.fill_strength + (lights.sky + lights.ground) / 2


def _direction(azimuth: float, elevation: float) -> Color:
    """Degrees from straight ahead (+z), towards the subject's left and up."""
    a, e = np.radians(azimuth), np.radians(elevation)
    return float(np.sin(a) * np.cos(e)), float(np.sin(e)), float(np.cos(a) * np.cos(e))


def _temperature(warm: float) -> Color:
    """From cool (-1: about 9000 K under a 6500 K white) over white (0) to warm (1: about 4500 K); green stays."""
    return 1.0 + 0.14 * warm, 1.0, 1.0 - 0.18 * warm
