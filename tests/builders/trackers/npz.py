"""A miniature folder as the npz importer reads it, of the tiny head."""

from pathlib import Path
from typing import Any

import numpy as np

from spatialavatar.clip.pictures import encode
from tests.builders.clips import tiny_cameras, tiny_params, tiny_pictures

WIDTH, HEIGHT, T = 32, 24, 5


def npz_folder(folder: Path, *, roi: bool = True, kind: Any = "jpg", **changes: Any) -> Path:
    """``changes`` replace arrays, None removes one."""
    world_to_camera, intrinsics = tiny_cameras(T, 1, WIDTH, HEIGHT)
    p = tiny_params(T)
    arrays: dict[str, Any] = {
        "frame_ids": np.arange(10, 10 + T, dtype=np.int32),
        "image_size": np.array([WIDTH, HEIGHT], np.int32),
        "K": intrinsics[0, 0].numpy(),
        "w2c": world_to_camera[:, 0].numpy(),
        "shape": p.shape[0].numpy(),
        "expr": p.expression.numpy(),
        "jaw": p.jaw.numpy(),
        "eye_left": p.eyes[:, :3].numpy(),
        "eye_right": p.eyes[:, 3:].numpy(),
        "bbox": np.tile(np.float32([8, 6, 24, 20]), (T, 1)),
        "fps": np.float32(30),
        "unknown_extra": np.zeros(3),
        **changes,
    }
    for name in ("images", "masks", *(["roi"] if roi else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{k: v for k, v in arrays.items() if v is not None})
    for t in range(T):
        image, matte, region = tiny_pictures(t, 0, WIDTH, HEIGHT)
        (folder / f"images/{10 + t:06d}.{kind}").write_bytes(encode(image, kind))
        (folder / f"masks/{10 + t:06d}.png").write_bytes(encode(matte, "png"))
        if roi:
            (folder / f"roi/{10 + t:06d}.png").write_bytes(encode(region, "png"))
    return folder
