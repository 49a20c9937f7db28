"""The small world of end_to_end.sh: people who do not exist, filmed, and 'tracked' into the folders of two trackers.

    python examples/end_to_end/world.py OUT

OUT/monocular/NAME    a person before one camera, as GAGAvatar_track leaves it: 512 pixels, its own focal length, poses
                      as cameras, no matte (pictures on black)
OUT/monocular/broken  the same, of which an upload broke off: the ingest has to set it aside
OUT/multiview/NAME    a take of several cameras, as VHAP exports it for GaussianAvatars
OUT/builtin.head.safetensors  the head model of all of them

The numbers of a real tracker are estimates; these are exact, so what is lost on the way shows in the results.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from spatialavatar.clip.exporters import export_clip
from spatialavatar.clip.importers.gagavatar_track import FOCAL
from spatialavatar.clip.synthetic import SyntheticCapture, synthesize_capture
from spatialavatar.clip.synthetic.studio import DISTANCE, camera_arc
from spatialavatar.clip.synthetic.studio import FOCAL as STUDIO_FOCAL
from spatialavatar.clip.writer import write_synthetic
from spatialavatar.head import HeadModel, write_head
from spatialavatar.head.builtin import generate_head

TRACKERS_SIZE = 512  # pixels, of GAGAvatar_track


def main(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    people: Annotated[int, typer.Option(min=2, help="Before one camera.")] = 8,
    frames: Annotated[int, typer.Option(min=8, help="Of each of them.")] = 16,
    takes: Annotated[int, typer.Option(min=2, help="People before several cameras.")] = 6,
    instants: Annotated[int, typer.Option(min=5, help="Of each take.")] = 6,
    cameras: Annotated[int, typer.Option(min=2, help="Of each take.")] = 6,
    size: Annotated[int, typer.Option(min=32, help="Pixels of a take's pictures.")] = 128,
) -> None:
    """Make the folders of two trackers, monocular and multi-view."""
    head = write_head(out / "builtin.head.safetensors", *generate_head())
    for number in range(people):
        capture = synthesize_capture(
            head, identity=number, motion=number, frames=frames, size=TRACKERS_SIZE, lighting=number, swing=25.0
        )
        _export(_as_the_tracker_sees(capture), head, "gagavatar-track", out / "monocular" / f"person-{number:02d}")
    for number in range(people, people + takes):
        capture = synthesize_capture(
            head, identity=number, motion=number, frames=instants, size=size, cameras=cameras, lighting=number
        )
        _export(capture, head, "vhap", out / "multiview" / f"person-{number:02d}")
    capture = synthesize_capture(head, identity=people + takes, motion=0, frames=4, size=TRACKERS_SIZE)
    broken = out / "monocular" / "broken"
    _export(_as_the_tracker_sees(capture), head, "gagavatar-track", broken)
    for file in ("optim.pkl", "smoothed.pkl"):
        (broken / file).write_bytes((broken / file).read_bytes()[:1000])
    print(f"{out}: {people} people before one camera, one of them more broken, {takes} before {cameras}")


def _as_the_tracker_sees(capture: SyntheticCapture) -> SyntheticCapture:
    """With a neck at rest, and from further away through a longer lens: such a clip the layout holds exactly."""
    focal = FOCAL / 2  # image widths
    arc = camera_arc(1, distance=DISTANCE * focal / STUDIO_FOCAL)
    middle, size = capture.width / 2, capture.width
    intrinsics = torch.tensor([[focal * size, 0.0, middle], [0.0, focal * size, middle], [0.0, 0.0, 1.0]])
    return dataclasses.replace(
        capture,
        params=dataclasses.replace(capture.params, neck=torch.zeros_like(capture.params.neck)),
        world_to_camera=arc.expand_as(capture.world_to_camera).contiguous(),
        intrinsics=intrinsics.expand_as(capture.intrinsics).contiguous(),
    )


def _export(capture: SyntheticCapture, head: HeadModel, layout: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clip = write_synthetic(capture, head, Path(folder) / out.name)
        export_clip(clip, layout, out, head)
    print(f"{out}: {clip.instants} instants x {clip.cameras} cameras", flush=True)


if __name__ == "__main__":
    typer.run(main)
