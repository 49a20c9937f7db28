"""Synthetic captures: a made-up person filmed by exact cameras, with the truth that a tracker would estimate."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from spatialavatar.clip.synthetic.hair import static_offset
from spatialavatar.clip.synthetic.mesh_renderer import Lights, Surface, render_mesh
from spatialavatar.clip.synthetic.motion import draw_motion
from spatialavatar.clip.synthetic.paint import paint
from spatialavatar.clip.synthetic.person import draw_person
from spatialavatar.clip.synthetic.studio import DISTANCE, FOCAL, camera_arc, draw_framing, draw_lights
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.splat.camera import Camera

WALL = (0.55, 0.56, 0.57)


@dataclass(frozen=True)
class SyntheticCapture:
    """T frames from C cameras. ``params`` is all that tracking could know: no hair volume, no texture."""

    identity: str
    params: HeadParams  # [T]
    world_to_camera: Float[torch.Tensor, "T C 4 4"]  # OpenCV, metres
    intrinsics: Float[torch.Tensor, "T C 3 3"]  # pixels, centres at +0.5
    face_box: Float[torch.Tensor, "T C 4"]  # x0 y0 x1 y1 in pixels
    fps: float
    width: int
    height: int
    test_from: int | None  # first frame held out, or none
    head: HeadModel
    surface: Surface
    static_offset: Float[torch.Tensor, "1 V 3"]  # hair: what refinement has to find by itself
    lights: Lights

    @property
    def frames(self) -> int:
        return self.params.batch

    @property
    def cameras(self) -> int:
        return self.world_to_camera.shape[1]

    def resized(self, size: int) -> "SyntheticCapture":
        """The same capture filmed with ``size`` pixels to each side."""
        scale = torch.tensor([size / self.width, size / self.height, 1.0])
        return dataclasses.replace(
            self,
            intrinsics=self.intrinsics * scale[:, None],
            face_box=self.face_box * scale[[0, 1, 0, 1]],
            width=size,
            height=size,
        )

    def vertices(self, t: int) -> Float[torch.Tensor, "V 3"]:
        """The true surface of a frame, hair included, metres."""
        params = dataclasses.replace(self.params[t], static_offset=self.static_offset)
        with torch.no_grad():
            return self.head(params)[0]

    def render(self, t: int, c: int = 0) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        """Image over the studio wall, and the matte beside it. Any frame, in any order, always the same bytes."""
        image, matte = render_mesh(
            self.vertices(t).numpy(),
            self.surface,
            self.world_to_camera[t, c].numpy(),
            self.intrinsics[t, c].numpy(),
            self.width,
            self.height,
            lights=self.lights,
        )
        picture = image + (1 - matte[..., None]) * np.array(WALL, np.float32)
        return _to_bytes(picture), _to_bytes(matte)


def synthesize_capture(
    head: HeadModel,
    *,
    identity: int,
    motion: int,
    frames: int,
    size: int,
    cameras: int = 1,
    fps: float = 25.0,
    test_last: int = 0,
    texture_size: int | None = None,
    lighting: int | None = None,
    framing: int | None = None,
    swing: float = 0.0,
) -> SyntheticCapture:
    """Film person number ``identity`` doing motion number ``motion``, ``size`` pixels square.

    Camera 0 is frontal, further ones spread over a frontal arc. Deterministic in its arguments; pictures are made
    when asked for. The last ``test_last`` frames are marked as test frames. ``lighting`` and ``framing`` are numbers
    by which the light and the place of the cameras are drawn, None being the studio's own; ``swing`` is how far the
    person turns to either side, in degrees (``draw_motion``).
    """
    if frames < 1 or size < 8 or cameras < 1:
        raise SpatialAvatarError(
            f"synthetic capture of {frames} frames, {size} pixels, {cameras} cameras: at least 1, 8 and 1 are needed"
        )
    numbers = {"identity": identity, "motion": motion, "lighting": lighting or 0, "framing": framing or 0}
    if min(numbers.values()) < 0:
        named = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise SpatialAvatarError(f"synthetic capture: {named}: expected numbers from 0 up")
    if not 0 <= test_last < frames:
        raise SpatialAvatarError(f"test_last {test_last}: must be from 0 to {frames - 1} in a clip of {frames} frames")
    person = draw_person(identity)
    params = draw_motion(head, identity, motion, frames, fps, swing)
    yaw, pitch, distance, focal = (0.0, 0.0, DISTANCE, FOCAL) if framing is None else draw_framing(framing)
    intrinsics = torch.tensor([[focal * size, 0.0, size / 2], [0.0, focal * size, size / 2], [0.0, 0.0, 1.0]])
    arc = camera_arc(cameras, yaw, pitch, distance)
    return SyntheticCapture(
        identity=f"synthetic-{identity:03d}",
        params=params,
        world_to_camera=arc.expand(frames, -1, -1, -1).contiguous(),
        intrinsics=intrinsics.expand(frames, cameras, -1, -1).contiguous(),
        face_box=_face_boxes(head, params, arc, intrinsics, size),
        fps=fps,
        width=size,
        height=size,
        test_from=frames - test_last if test_last else None,
        head=head,
        surface=paint(head, person, texture_size or (512 if size <= 320 else 1024)),
        static_offset=static_offset(head, person),
        lights=Lights() if lighting is None else draw_lights(lighting),
    )


def _face_boxes(
    head: HeadModel,
    params: HeadParams,
    arc: Float[torch.Tensor, "C 4 4"],
    intrinsics: Float[torch.Tensor, "3 3"],
    size: int,
) -> Float[torch.Tensor, "T C 4"]:
    """Boxes around the projected landmarks, with the forehead; without landmarks around the head's front half."""
    boxes = []
    front = head.template[:, 2] > head.template[:, 2].median()
    with torch.no_grad():
        for start in range(0, params.batch, 64):
            vertices = head(params[start : start + 64])
            points = head.landmarks(vertices) if head.info.landmark_scheme == "ibug68" else vertices[:, front]
            per_camera = []
            for world_to_camera in arc:
                b = len(points)
                camera = Camera(world_to_camera.expand(b, -1, -1), intrinsics.expand(b, -1, -1), size, size)
                pixels, _ = camera.project(points)
                low, high = pixels.amin(1), pixels.amax(1)
                if head.info.landmark_scheme == "ibug68":
                    low = low - torch.tensor([0.05, 0.40]) * (high - low)
                    high = high + torch.tensor([0.05, 0.03]) * (high - low)
                per_camera.append(torch.cat([low, high], -1).clamp(0, size))
            boxes.append(torch.stack(per_camera, 1))
    return torch.cat(boxes)


def _to_bytes(value: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(value, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
