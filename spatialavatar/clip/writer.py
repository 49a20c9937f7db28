"""Writing tracked clips, frame by frame.

``clip.json`` is written last: a folder without it is not a clip, so an interrupted write is never mistaken for one.
A clip that stood there before stays until the new one is whole (replacing.py).
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from spatialavatar import files
from spatialavatar.clip import replacing
from spatialavatar.clip.arrays import write_arrays
from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.header import HEADER_FILE, ClipSource, Picture
from spatialavatar.clip.tracked_clip import Progress, TrackedClip, open_clip
from spatialavatar.head.model import HeadModel

if TYPE_CHECKING:
    from spatialavatar.clip.synthetic import SyntheticCapture


def save_clip(
    clip: TrackedClip, folder: files.Location, *, progress: Progress | None = None, force: bool = False
) -> TrackedClip:
    """Write a clip, wherever it comes from, and return it opened; every frame is asked for once, in order.

    A complete clip in ``folder`` is replaced only with ``force``, and only once the new one is whole; on any failure it
    is as it was. Raises SpatialAvatarError: the folder holds a clip or something else (and not ``force``), a frame that
    cannot be read.
    """
    target = os.fspath(folder).rstrip("/") or "/"
    written = replacing.begin(target, force)
    try:
        write_arrays(written, clip.arrays())
        everything = clip.header.frames()
        for done, index in enumerate(everything):
            frame = clip.encoded(index)
            pieces: dict[Picture, bytes | None] = {"images": frame.image, "masks": frame.matte, "roi": frame.region}
            for picture in clip.header.pictures:
                data = pieces[picture]
                assert data is not None
                files.write_bytes(files.join(written, clip.header.frame_file(picture, index)), data)
            if progress is not None:
                progress(done + 1, len(everything))
        files.write_json(files.join(written, HEADER_FILE), clip.header.to_json())
        replacing.finish(written, target)
    except BaseException:
        replacing.abandon(written, target)
        raise
    return open_clip(target)


def write_clip(
    folder: files.Location, *, progress: Progress | None = None, force: bool = False, **parts: Any
) -> TrackedClip:
    """Write a clip from its parts (``assemble_clip`` names them) and return it opened."""
    clip = assemble_clip(os.fspath(folder).rstrip("/") or "/", **parts)
    return save_clip(clip, folder, progress=progress, force=force)


def write_synthetic(
    capture: "SyntheticCapture",
    head: HeadModel,
    folder: files.Location,
    *,
    test_from: int | None = None,
    test_cameras: Sequence[int] = (),
    image_format: Literal["jpg", "png"] = "jpg",
    progress: Progress | None = None,
    force: bool = False,
) -> TrackedClip:
    """Render a synthetic capture into a clip. ``test_from`` is the capture's own when not given.

    The pictures show the head model, so they carry its licence.
    """
    return write_clip(
        folder,
        identity=capture.identity,
        head=head,
        params=capture.params,
        world_to_camera=capture.world_to_camera,
        intrinsics=capture.intrinsics,
        width=capture.width,
        height=capture.height,
        fps=capture.fps,
        frames=capture.render,
        face_box=capture.face_box,
        test_from=capture.test_from if test_from is None else test_from,
        test_cameras=test_cameras,
        source=ClipSource("spatialavatar clip synthesize", "rendered from known parameters", head.info.licence),
        image_format=image_format,
        progress=progress,
        force=force,
    )
