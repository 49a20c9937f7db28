"""Moving pictures of an avatar: driven by a tracked clip, or turned before an orbiting camera."""

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spatialavatar import files
from spatialavatar.avatar.rendering import AvatarRenderer
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadParams
from spatialavatar.splat.camera import Camera

FOCAL = 2.2  # of the orbiting camera, in picture widths: a portrait lens
FILL = 0.8  # share of the picture's height that the head fills before the orbiting camera
YAW, PITCH = math.radians(35), math.radians(10)  # reach of the orbit to each side


def driven_frames(
    renderer: AvatarRenderer, params: HeadParams, cameras: Camera, background: Float[Tensor, " 3"]
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The avatar with each row of a driver's parameters, before the camera of the same row."""
    for row in range(params.batch):
        picture = renderer.image(params[row], cameras[row], background)[0]
        yield (picture * 255).round().byte().cpu().numpy()


def orbit_camera(vertices: Float[Tensor, "V 3"], frames: int, size: int) -> Camera:
    """A camera that swings to both sides of a head with its face to +z, and back to where it began.

    ``vertices`` are the head at rest in its own frame, metres; pictures are ``size`` x ``size`` pixels.
    """
    vertices = vertices.detach().cpu()
    low, high = vertices.amin(0), vertices.amax(0)
    center = (low + high) / 2
    distance = FOCAL * float(high[1] - low[1]) / FILL
    phase = torch.arange(frames) * (2 * math.pi / max(frames, 1))
    yaw, pitch = YAW * torch.sin(phase), PITCH * torch.sin(2 * phase)
    world_to_camera = torch.eye(4).repeat(frames, 1, 1)
    facing = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # before the face, upright
    rotation = facing @ _about_x(pitch) @ _about_y(yaw)
    world_to_camera[:, :3, :3] = rotation
    world_to_camera[:, :3, 3] = -(rotation @ center) + torch.tensor([0.0, 0.0, distance])
    intrinsics = torch.tensor([[FOCAL * size, 0, size / 2], [0, FOCAL * size, size / 2], [0, 0, 1]])
    return Camera(world_to_camera, intrinsics.repeat(frames, 1, 1), size, size)


def still(params: HeadParams) -> HeadParams:
    """The same expression with the head facing +z at the origin."""
    return HeadParams(
        shape=params.shape,
        expression=params.expression,
        global_rotation=torch.zeros_like(params.global_rotation),
        neck=torch.zeros_like(params.neck),
        jaw=params.jaw,
        eyes=params.eyes,
        translation=torch.zeros_like(params.translation),
        static_offset=params.static_offset,
    )


def write_video(location: files.Location, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float) -> int:
    """Write an H.264 mp4 and return its number of frames; odd sizes lose their last row or column.

    The file appears when it is whole. Raises SpatialAvatarError for another file type or no frames.
    """
    path = files.local_path(location)
    if path.suffix.lower() != ".mp4":
        raise SpatialAvatarError(f"{location}: videos are written as .mp4; name the output so")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial.mp4")
    count = 0
    try:
        options: dict[str, Any] = {"codec": "libx264", "quality": 8, "macro_block_size": 2, "pixelformat": "yuv420p"}
        # closing, because on an error imageio's own context manager leaves the writer open
        with closing(imageio.get_writer(partial, fps=fps, **options)) as writer:
            for picture in frames:
                height, width = (side - side % 2 for side in picture.shape[:2])
                writer.append_data(np.ascontiguousarray(picture[:height, :width]))
                count += 1
        if not count:
            raise SpatialAvatarError(f"{location}: no frames to write")
        files.move_into_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _about_y(angle: Float[Tensor, " T"]) -> Float[Tensor, "T 3 3"]:
    c, s, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).unflatten(-1, (3, 3))


def _about_x(angle: Float[Tensor, " T"]) -> Float[Tensor, "T 3 3"]:
    c, s, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).unflatten(-1, (3, 3))
