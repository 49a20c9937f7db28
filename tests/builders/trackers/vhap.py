"""Miniature folders as VHAP exports them, with the truth beside: written from the tool's layout, not from our reader.

The head is posed in float64 by the tool's slots; cameras are OpenGL camera-to-world, and landmarks are projected by the
OpenGL formulas (y up, looking along -z), with the principal point counted from the lower edge as in the file.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from spatialavatar.head import HeadModel, HeadParams
from tests.builders.trackers.head import EXPRESSION_CODES, SHAPE_CODES, flame_head

WIDTH, HEIGHT = 64, 48
TEETH = 120


@dataclass
class VhapTake:
    """What was filmed. Arrays are float64; a test changes them before ``write``."""

    params: dict[str, np.ndarray]  # by VHAP's names, T rows; shape [300]
    camera_to_world: np.ndarray  # [T C 4 4], OpenGL
    focal: np.ndarray  # [C 2], pixels
    centre: np.ndarray  # [C 2], pixels from the lower left corner
    camera_ids: list[str]
    images: np.ndarray  # [T C H W 3] uint8, straight
    mattes: np.ndarray  # [T C H W] uint8
    numbers: list[int]  # timestep_index_original
    extra: dict[str, Any] = field(default_factory=dict)  # changes of every frame's fields; None removes one

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.mattes.shape[2:]
        return width, height

    @property
    def timesteps(self) -> int:
        return len(self.params["expr"])

    @property
    def cameras(self) -> int:
        return len(self.camera_ids)

    def vertices(self, head: HeadModel) -> np.ndarray:
        """[T V 3] by the tool's order of arguments, in float64."""
        p = {name: torch.from_numpy(value) for name, value in self.params.items()}
        t = self.timesteps
        offset = None
        if "static_offset" in p:
            offset = p["static_offset"][:, : head.vertex_count].expand(t, -1, -1)
        posed = HeadParams(
            shape=p["shape"].expand(t, -1),
            expression=p["expr"],
            global_rotation=p["rotation"],
            neck=p["neck_pose"],
            jaw=p["jaw_pose"],
            eyes=p["eyes_pose"],
            translation=p["translation"],
            static_offset=offset,
        )
        wide = HeadModel(head.info, **{name: _double(value) for name, value in head.named_buffers()})
        return wide(posed).numpy()

    def landmarks(self, head: HeadModel) -> np.ndarray:
        """[T C L 2] pixels from the upper left corner."""
        corners = self.vertices(head)[:, head.faces[head.landmark_faces].numpy()]  # [T L 3 3]
        points = (corners * head.landmark_barycentric.double().numpy()[..., None]).sum(-2)
        pixels = np.empty((self.timesteps, self.cameras, points.shape[1], 2))
        for t in range(self.timesteps):
            for c in range(self.cameras):
                to_camera = np.linalg.inv(self.camera_to_world[t, c])
                x, y, z = (points[t] @ to_camera[:3, :3].T + to_camera[:3, 3]).T
                right = self.centre[c, 0] + self.focal[c, 0] * x / -z
                above_lower_edge = self.centre[c, 1] + self.focal[c, 1] * y / -z
                pixels[t, c] = np.stack([right, self.size[1] - above_lower_edge], -1)
        return pixels

    def composites(self) -> np.ndarray:
        alpha = self.mattes[..., None] / 255
        return (alpha * self.images + (1 - alpha) * 255).astype(np.uint8)  # VHAP cuts the decimals off

    def frame(self, t: int, c: int, prefix: str = "", timestep: int | None = None) -> dict[str, Any]:
        fl_x, fl_y = self.focal[c]
        width, height = self.size
        index = t if timestep is None else timestep
        frame = {
            "timestep_index": index,
            "timestep_index_original": self.numbers[t],
            "timestep_id": f"{self.numbers[t]:06d}",
            "camera_index": c,
            "camera_id": self.camera_ids[c],
            "cx": self.centre[c, 0],
            "cy": self.centre[c, 1],
            "fl_x": fl_x,
            "fl_y": fl_y,
            "h": height,
            "w": width,
            "camera_angle_x": 2 * math.atan(width / (2 * fl_x)),
            "camera_angle_y": 2 * math.atan(height / (2 * fl_y)),
            "transform_matrix": self.camera_to_world[t, c].tolist(),
            "file_path": f"{prefix}images/{t:05d}_{c:02d}.png",
            "fg_mask_path": f"{prefix}fg_masks/{t:05d}_{c:02d}.png",
            "flame_param_path": f"{prefix}flame_param/{t:05d}.npz",
        }
        if prefix:  # combine_nerf_datasets drops them
            del frame["timestep_index_original"], frame["timestep_id"]
        return {name: value for name, value in {**frame, **self.extra}.items() if value is not None}

    def frames(self, prefix: str = "", first_timestep: int = 0) -> list[dict[str, Any]]:
        every = [(t, c) for t in range(self.timesteps) for c in range(self.cameras)]
        return [self.frame(t, c, prefix, first_timestep + t) for t, c in every]

    def write(self, folder: Path, *, pictures: bool = True, masks: bool = True) -> Path:
        """transforms.json alone; see ``write_split``."""
        for name in ("images", "fg_masks", "flame_param"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        composites = self.composites() if masks else self.images
        for t in range(self.timesteps):
            for c in range(self.cameras):
                if pictures:
                    write_png(folder / f"images/{t:05d}_{c:02d}.png", composites[t, c])
                if masks:
                    write_png(folder / f"fg_masks/{t:05d}_{c:02d}.png", self.mattes[t, c])
            self.write_parameters(folder, t)
        canonical = {name: np.zeros_like(value[:1]) for name, value in self.params.items()}
        canonical |= {"shape": self.params["shape"], "jaw_pose": np.array([[0.3, 0, 0]])}
        np.savez(folder / "canonical_flame_param.npz", **canonical)
        if not masks:
            self.extra["fg_mask_path"] = None
        write_listing(folder, "transforms.json", self.frames())
        return folder

    def write_parameters(self, folder: Path, t: int, **changes: Any) -> None:
        row = {name: value[t : t + 1] for name, value in self.params.items() if name not in ("shape", "static_offset")}
        whole = {name: self.params[name] for name in ("shape", "static_offset") if name in self.params}
        arrays = {name: value.astype(np.float32) for name, value in {**row, **whole}.items()}
        arrays |= changes
        np.savez(folder / f"flame_param/{t:05d}.npz", **{k: v for k, v in arrays.items() if v is not None})

    def write_split(self, folder: Path) -> Path:
        """transforms_{train,val,test}.json by VHAP's rule, for folders of at least two timesteps."""
        trained = math.ceil(0.7 * self.timesteps)
        validating = [] if self.cameras == 1 else [8 if self.cameras > 8 else self.cameras - 1]
        parts: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
        for frame in self.frames():
            division = "val" if frame["camera_index"] in validating else "train"
            parts[division if frame["timestep_index"] < trained else "test"].append(frame)
        for name, frames in parts.items():
            write_listing(folder, f"transforms_{name}.json", frames)
        return folder


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def write_png(path: Path, pixels: np.ndarray) -> None:
    swapped = pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]] if pixels.ndim == 3 else pixels
    path.write_bytes(cv2.imencode(".png", swapped)[1].tobytes())


def write_listing(folder: Path, name: str, frames: list[dict[str, Any]], **changes: Any) -> None:
    last = frames[-1] if frames else {}
    top = {key: last[key] for key in ("cx", "cy", "fl_x", "fl_y", "h", "w", "camera_angle_x") if key in last}
    indices: dict[str, list[int]] = {}
    for key in ("timestep", "camera"):
        found = [frame.get(f"{key}_index") for frame in frames]  # tests break single frames
        indices[f"{key}_indices"] = sorted({index for index in found if isinstance(index, int)})
    (folder / name).write_text(json.dumps({**top, **indices, "frames": frames, **changes}))


def read_listing(folder: Path, name: str = "transforms.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def vhap_take(
    timesteps: int = 4,
    cameras: int = 2,
    seed: int = 0,
    static_offset: bool = True,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> VhapTake:
    """A head that turns, talks and looks around before cameras on an arc; nothing is in the middle or symmetric."""
    rng = np.random.default_rng(seed)
    head = flame_head()
    params = {
        "translation": rng.normal(0, 0.01, (timesteps, 3)),
        "rotation": rng.normal(0, 0.15, (timesteps, 3)),
        "neck_pose": rng.normal(0, 0.1, (timesteps, 3)),
        "jaw_pose": np.abs(rng.normal(0, 0.1, (timesteps, 3))) * [1, 0.1, 0.1],
        "eyes_pose": rng.normal(0, 0.2, (timesteps, 6)),
        "shape": rng.normal(0, 1, SHAPE_CODES),
        "expr": rng.normal(0, 1, (timesteps, EXPRESSION_CODES)),
    }
    params["translation"] -= params["translation"].mean(0)  # VHAP moves the world so
    if static_offset:
        params["static_offset"] = rng.normal(0, 0.001, (1, head.vertex_count + TEETH, 3))
    poses = np.tile(np.eye(4), (timesteps, cameras, 1, 1))
    for c in range(cameras):
        yaw, pitch = 0.5 * (c - (cameras - 1) / 2), 0.06 * (c + 1)
        turn = cv2.Rodrigues(np.array([0, yaw, 0.0]))[0] @ cv2.Rodrigues(np.array([-pitch, 0, 0]))[0]
        poses[:, c, :3, :3] = turn
        poses[:, c, :3, 3] = turn @ [0, 0, 0.7]  # looking along -z at the origin
    unit = min(width, height) / 48
    focal = unit * np.stack([[88 + 2 * c, 91 + c] for c in range(cameras)])
    centre = np.stack([[width / 2 + 1.5 * unit, height / 2 + (3 + c) * unit] for c in range(cameras)])
    every = [(t, c) for t in range(timesteps) for c in range(cameras)]
    images, mattes = zip(*[_picture(t, c, centre[c], width, height) for t, c in every])
    return VhapTake(
        params={name: value.astype(np.float32).astype(np.float64) for name, value in params.items()},
        camera_to_world=poses,
        focal=focal,
        centre=centre,
        camera_ids=[f"{222200040 + c}" for c in range(cameras)] if cameras > 1 else ["0"],
        images=np.stack(images).reshape(timesteps, cameras, height, width, 3),
        mattes=np.stack(mattes).reshape(timesteps, cameras, height, width),
        numbers=list(range(timesteps)),
    )


def _picture(t: int, c: int, centre: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.stack([40 + 160 * x / width, 30 + 150 * y / height, np.full_like(x, 20 + 23 * ((3 * t + c) % 9))], -1)
    distance = np.hypot(x - centre[0], y - (height - centre[1])) / (0.36 * min(width, height))
    matte = np.clip((1 - distance) * 4 + 0.5, 0, 1)
    return image.astype(np.uint8), (matte * 255).astype(np.uint8)
