"""Miniature participants of NeRSemble v2 with VHAP's tracking, written from their layouts, with the truth beside.

The calibration's world is VHAP's, rigidly moved; one K for all cameras at 2200 x 3208 pixels. The export's pictures are
uncorrected; what a corrected pixel must be is computed here by the formulas, in float64.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.builders.trackers.vhap import VhapTake, vhap_take

WIDTH, HEIGHT = 275, 401  # an eighth of the cameras' pictures
FULL_WIDTH, FULL_HEIGHT = 2200, 3208
PARTICIPANT, SEQUENCE = "030", "EMO-1-shout+laugh"
SERIALS = ["222200037", "222200038", "220700191"]


@dataclass
class Participant:
    take: VhapTake
    world_to_camera: dict[str, np.ndarray]  # the calibration's
    intrinsics: np.ndarray  # at the full size
    colors: dict[str, list[list[float]]]
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / PARTICIPANT

    @property
    def sequence(self) -> Path:
        return self.folder / "sequences" / SEQUENCE

    def write(self, tracking: Path | None = None) -> Path:
        """Calibration and export; pictures of the cameras are written by the methods below."""
        (self.folder / "calibration").mkdir(parents=True)
        (self.sequence / "images").mkdir(parents=True)
        (self.folder / "sequences/BACKGROUND").mkdir()
        self.write_calibration()
        self.take.write(self.sequence / "vhap" if tracking is None else tracking)
        return self.sequence

    def write_calibration(self, **changes: Any) -> None:
        poses = {serial: pose.tolist() for serial, pose in self.world_to_camera.items()}
        content = {"world_2_cam": poses, "intrinsics": self.intrinsics.tolist(), **changes}
        (self.folder / "calibration/camera_params.json").write_text(json.dumps(content))
        (self.folder / "calibration/color_calibration.json").write_text(json.dumps(self.colors))

    def write_unpacked(self) -> None:
        """As VHAP unpacks videos: by the tracking's own frame numbers, twice the export's size here."""
        width, height = self.take.size
        for t, number in enumerate(self.take.numbers):
            for c, serial in enumerate(self.take.camera_ids):
                pixels = cv2.resize(self.take.images[t, c], (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
                path = self.sequence / f"images/cam_{serial}_{number:06d}.jpg"
                path.write_bytes(cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes())

    def write_videos(self, rate: float, frames: int, filmed: Any) -> None:
        """``filmed(frame, camera)`` gives the pixels of each of a video's frames, of any even size."""
        for c, serial in enumerate(self.take.camera_ids):
            write_video(self.sequence / f"images/cam_{serial}.mp4", rate, [filmed(n, c) for n in range(frames)])


def write_video(path: Path, rate: float, frames: list[np.ndarray]) -> None:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()


def participant(
    root: Path, timesteps: int = 3, cameras: int = 2, seed: int = 0, width: int = WIDTH, height: int = HEIGHT
) -> Participant:
    take = vhap_take(timesteps, cameras, seed, width=width, height=height)
    take.camera_ids = SERIALS[:cameras]
    scale = width / FULL_WIDTH
    full = np.array([[4100.0, 0, 1085.0], [0, 4130.0, 1630.0], [0, 0, 1]])  # y of the centre from the upper edge
    take.focal[:] = [scale * full[0, 0], scale * full[1, 1]]
    take.centre[:] = [scale * full[0, 2], scale * (FULL_HEIGHT - full[1, 2])]
    rng = np.random.default_rng(seed + 100)
    moved = np.eye(4)  # VHAP's world to the calibration's
    moved[:3, :3] = cv2.Rodrigues(rng.normal(0, 1, 3))[0]
    moved[:3, 3] = rng.normal(0, 1, 3)
    opencv = np.diag([1.0, -1, -1, 1])
    world_to_camera = {
        serial: np.linalg.inv(moved @ take.camera_to_world[0, c] @ opencv) for c, serial in enumerate(take.camera_ids)
    }
    colors = [
        [[1.2, -0.1, 0.0], [0.05, 0.9, 0.02], [0.0, -0.2, 1.4]],
        [[0.9, 0.1, 0.0, 0.01], [-0.1, 1.1, 0.0, -0.005], [0.0, 0.1, 0.8, 0.02]],
        [[1.0, 0.0, 0.0, 0.3, 0.0], [0.0, 1.0, 0.0, -0.2, 0.01], [0.1, 0.0, 0.9, 0.1, 0.0]],
    ]
    return Participant(
        take=take,
        # others of the rig, which this tracking did not use, stand first
        world_to_camera={"222200042": np.eye(4), **world_to_camera},
        intrinsics=full,
        colors={"222200042": np.eye(3).tolist(), **dict(zip(take.camera_ids, colors))},
        root=root,
    )


def truly_corrected(image: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """[..., 3] levels, not rounded; 3, 4 and 5 products a row."""
    value = image.astype(np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    r, g, b = np.moveaxis(linear, -1, 0)
    products = {3: [r, g, b], 4: [r, g, b, r * 0 + 1], 5: [r, g, b, r * g * b, r * 0 + 1]}[len(matrix[0])]
    light = sum(np.multiply.outer(p, np.array(matrix)[:, i]) for i, p in enumerate(products)).clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
