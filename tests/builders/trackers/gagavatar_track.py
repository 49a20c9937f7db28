"""Miniature folders as GAGAvatar_track writes them, and where its own renderer puts the head in the picture.

Written from the layout's description, not from the importer: FLAME five times as large, no neck, PyTorch3D's camera
(row vectors, +X left, +Y up, +Z into the picture) with focal length 12 in NDC, keys that count from zero.
"""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from spatialavatar.clip.pictures import encode
from spatialavatar.head import HeadModel
from tests.builders.trackers.head import flame_head

Record = dict[str, np.ndarray]
SCALE, FOCAL = 5.0, 12.0


@dataclass
class TrackFolder:
    """What is to be written, by key; change it before ``write``."""

    optim: dict[str, Record]
    pictures: dict[str, bytes]
    smoothed: dict[str, Record] | None = None
    others: dict[str, bytes] = field(default_factory=dict)  # further files

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        environment = lmdb.open(str(folder / "img_lmdb"), map_size=1 << 40)  # as large as the tool makes it
        with environment, environment.begin(write=True) as transaction:
            for key, data in self.pictures.items():
                transaction.put(key.encode(), data)
        for name, records in (("optim.pkl", self.optim), ("smoothed.pkl", self.smoothed)):
            if records is not None:
                (folder / name).write_bytes(pickle.dumps(records))
        for name, data in self.others.items():
            (folder / name).write_bytes(data)
        return folder


def track_folder(frames: int = 12, name: str = "anna_k", size: int = 512, seed: int = 0) -> TrackFolder:
    """One video. The pickle's order is that of a run: not sorted."""
    records = track_records(frames, name, seed)
    return TrackFolder(records, {f"{name}_{i}": picture(i, size) for i in range(frames)})


def track_records(frames: int, name: str, seed: int = 0) -> dict[str, Record]:
    rng = np.random.default_rng(seed)
    shape = rng.normal(0, 0.7, 300)
    records = {}
    for i in rng.permutation(frames):
        # the head looks at the camera, so along -Z: half a turn about +Y, and its own motion
        motion = Rotation.from_rotvec(rng.normal(0, 0.15, 3)) * Rotation.from_euler("y", 180, degrees=True)
        translation = np.array([0.05 * i / frames, -0.02, 11.0 + 0.1 * i]) + rng.normal(0, 0.03, 3)
        record = {
            "shapecode": shape,
            "expcode": rng.normal(0, 0.7, 100),
            "posecode": np.array([0, 0, 0, *np.abs(rng.normal(0, 0.15, 1)), 0.01, -0.02]),
            "eyecode": rng.normal(0, 0.1, 6),
            "transform_matrix": np.concatenate([motion.as_matrix().T, translation[:, None]], 1),
        }
        box = tool_landmarks(record, 512) / 512
        record["bbox"] = np.array([*box.min(0), *box.max(0)]).clip(0, 1)
        records[f"{name}_{i}"] = {key: value.astype(np.float32) for key, value in record.items()}
    return records


def picture(number: int, size: int) -> bytes:
    """A JPEG on black that no other frame has."""
    y, x = np.mgrid[:size, :size] / size
    inside = np.hypot(x - 0.5, y - 0.5) < 0.3
    color = np.array([40 + 10 * number, 200 - 5 * number, 90])
    return encode((inside[..., None] * color).astype(np.uint8), "jpg")


def tool_vertices(record: Record, head: HeadModel | None = None) -> Float[np.ndarray, "V 3"]:
    """The tool's FLAME: linear blend skinning of [posecode[:3], no neck, posecode[3:], eyecode], times 5."""
    model: Any = {name: value.double().numpy() for name, value in (head or flame_head()).named_buffers()}
    r = {name: value.astype(np.float64) for name, value in record.items()}
    directions = np.concatenate([model["shapedirs"], model["exprdirs"]], -1)
    shaped = model["template"] + directions @ np.concatenate([r["shapecode"], r["expcode"]])
    joints = model["joint_regressor"] @ shaped
    pose = np.concatenate([r["posecode"][:3], np.zeros(3), r["posecode"][3:], r["eyecode"]]).reshape(5, 3)
    turns = Rotation.from_rotvec(pose).as_matrix()
    shaped = shaped + model["posedirs"] @ (turns[1:] - np.eye(3)).ravel()
    world = np.tile(np.eye(4), (5, 1, 1))
    for j, parent in enumerate((None, 0, 1, 1, 1)):
        local = np.eye(4)
        local[:3, :3], local[:3, 3] = turns[j], joints[j] - (0 if parent is None else joints[parent])
        world[j] = local if parent is None else world[parent] @ local
    moved = [(shaped - joints[j]) @ world[j, :3, :3].T + world[j, :3, 3] for j in range(5)]
    return SCALE * np.einsum("vj,jvd->vd", model["weights"], np.stack(moved))


def tool_pixels(points: Float[np.ndarray, "N 3"], transform: Float[np.ndarray, "3 4"], size: int) -> np.ndarray:
    """PyTorch3D: x_v = x R + T; NDC is 1 at the left and upper edges of the picture and -1 at the others."""
    view = points @ transform[:, :3].astype(np.float64) + transform[:, 3]
    ndc = FOCAL * view[:, :2] / view[:, 2:]
    return (1 - ndc) * size / 2


def tool_landmarks(record: Record, size: int, head: HeadModel | None = None) -> Float[np.ndarray, "L 2"]:
    head = head or flame_head()
    corners = tool_vertices(record, head)[head.faces[head.landmark_faces].numpy()]
    points = np.einsum("lkd,lk->ld", corners, head.landmark_barycentric.double().numpy())
    return tool_pixels(points, record["transform_matrix"], size)
