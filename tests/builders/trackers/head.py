"""A small head with FLAME's codes, joints and correctives and none of FLAME's content, for trackers' folders.

An egg 22 cm high that looks along +z, with +x the subject's left. Every code, joint and corrective moves its vertices,
so that one in the wrong slot shows; codes of size 1 move a vertex by some millimetres. Landmarks are in iBUG's order.
"""

from functools import cache

import numpy as np

from spatialavatar.head import HeadInfo, HeadModel, write_head

SHAPE_CODES, EXPRESSION_CODES = 300, 100
EYE_LEFT, EYE_RIGHT, NOSE, CHIN = 45, 36, 30, 8  # landmarks: outer corners of the subject's eyes, tip, chin
LIP_UPPER, LIP_LOWER = 62, 66
RADII = np.array([0.075, 0.11, 0.09])  # metres
_JOINTS = np.array([[0, -0.1, -0.02], [0, -0.07, -0.03], [0, -0.02, 0.01], [0.032, 0.03, 0.06], [-0.032, 0.03, 0.06]])


@cache
def flame_head() -> HeadModel:
    rows, columns = 15, 22
    elevation, azimuth = np.meshgrid(
        np.linspace(-1.5, 1.5, rows), np.linspace(-np.pi, np.pi, columns + 1), indexing="ij"
    )
    template = _on_egg(azimuth, elevation).reshape(-1, 3)
    corner = (np.arange(rows - 1)[:, None] * (columns + 1) + np.arange(columns)).reshape(-1)
    right, up = 1, columns + 1
    faces = np.concatenate(
        [
            np.stack([corner, corner + right, corner + right + up], -1),
            np.stack([corner, corner + right + up, corner + up], -1),
        ]
    )
    v, f = len(template), len(faces)
    rng = np.random.default_rng(0)
    landmark_faces, landmark_barycentric = _nearest(template, faces, _on_egg(*_ibug68().T))
    info = HeadInfo(
        id="flame-like",
        licence="Apache-2.0",
        attribution="made for tests",
        joints_follow_expression=True,
        part_names=["skin"],
        landmark_scheme="ibug68",
    )
    arrays = {
        "template": template,
        "faces": faces,
        "uv": np.stack([azimuth / (2 * np.pi) + 0.5, elevation / 3.2 + 0.5], -1).reshape(-1, 2),
        "uv_faces": faces,
        "face_chart": np.zeros(f),
        "face_part": np.zeros(f),
        "shapedirs": rng.normal(0, 4e-4, (v, 3, SHAPE_CODES)),
        "exprdirs": rng.normal(0, 4e-4, (v, 3, EXPRESSION_CODES)),
        "posedirs": rng.normal(0, 1e-3, (v, 3, 36)),
        "joint_regressor": _regressor(template),
        "weights": _weights(template),
        "landmark_faces": landmark_faces,
        "landmark_barycentric": landmark_barycentric,
    }
    return write_head("memory://builders/flame-like.head.safetensors", info, arrays)


def _on_egg(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Azimuth 0 is the front, positive to the subject's left."""
    along = [np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)]
    return RADII * np.stack(along, -1)


def _ibug68() -> np.ndarray:
    """Azimuth and elevation of the 68 points; the first of each group is on the subject's right."""

    def ellipse(x: float, y: float, width: float, height: float, count: int, stretch: float = 1.0) -> np.ndarray:
        angle = np.pi - 2 * np.pi * np.arange(count) / count  # from the subject's right over the top
        return np.stack([x + width * np.cos(angle) * stretch, y + height * np.sin(angle)], -1)

    jaw = np.linspace(-1.3, 1.3, 17)
    across = np.linspace(-1, 1, 5)
    groups = [
        np.stack([jaw, -0.9 * np.cos(jaw / 1.3 * np.pi / 2)], -1),
        *[np.stack([side * 0.42 + 0.2 * across, 0.55 - 0.05 * across**2], -1) for side in (-1, 1)],
        np.stack([np.zeros(4), np.linspace(0.3, -0.05, 4)], -1),
        np.stack([0.12 * across, -0.15 - 0.03 * (1 - across**2)], -1),
        *[ellipse(side * 0.42, 0.28, 0.17, 0.06, 6) for side in (-1, 1)],
        ellipse(0, -0.45, 0.3, 0.1, 12),
        ellipse(0, -0.45, 0.24, 0.03, 8),
    ]
    return np.concatenate(groups)


def _nearest(template: np.ndarray, faces: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each point the triangle that a ray from the egg's middle through it meets, and where (barycentric)."""
    corners = template[faces].transpose(0, 2, 1)  # columns are corners
    usable = np.abs(np.linalg.det(corners)) > 1e-9
    shares = np.full((len(wanted), len(faces), 3), -np.inf)
    shares[:, usable] = np.einsum("fij,lj->lfi", np.linalg.inv(corners[usable]), wanted)
    best = shares.min(-1).argmax(1)
    chosen = shares[np.arange(len(wanted)), best].clip(0)
    return best, chosen / chosen.sum(1, keepdims=True)


def _regressor(template: np.ndarray) -> np.ndarray:
    """The smallest weights with sum 1 that give the joints."""
    conditions = np.concatenate([template.T, np.ones((1, len(template)))])
    targets = np.concatenate([_JOINTS.T, np.ones((1, len(_JOINTS)))])
    return np.linalg.lstsq(conditions, targets, rcond=None)[0].T


def _weights(template: np.ndarray) -> np.ndarray:
    _, y, z = template.T
    root = np.clip((-0.08 - y) / 0.03, 0, 1)
    jaw = (1 - root) * np.clip((-0.03 - y) / 0.02, 0, 1) * np.clip(z / 0.03, 0, 1)
    eyes = [
        0.6 * np.exp(-np.sum((template - RADII[2] * j / np.linalg.norm(j)) ** 2, 1) / 0.025**2) for j in _JOINTS[3:]
    ]
    rest = (1 - root) - jaw
    eyes = [eye * rest for eye in eyes]
    return np.stack([root, rest - eyes[0] - eyes[1], jaw, *eyes], 1)
