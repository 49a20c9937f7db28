"""Where the pixels of a NeRSemble sequence come from.

From ``images/cam_{serial}.mp4``, else from the pictures that VHAP unpacked there, else from VHAP's export, all at the
export's size. VHAP unpacks videos at 25 frames in a second unless told otherwise, so frame n of the tracking need not
be frame n of the video: which of the two counts is in use is found by the export's own pictures.
"""

import contextlib
import math
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from spatialavatar import files
from spatialavatar.clip.importers.foreign_pictures import LARGEST_SIDE, read_picture
from spatialavatar.clip.importers.vhap_listing import VhapSequence
from spatialavatar.clip.importers.vhap_pictures import Alpha, Pixels, VhapPictures
from spatialavatar.clip.pictures import decode, encoded_size
from spatialavatar.errors import SpatialAvatarError

UNPACKED_RATE = 25.0  # frames in a second that VHAP unpacks
_OTHER_PICTURE = 20.0  # levels: beyond this mean difference a picture is not the one that was tracked


class PixelSource(NamedTuple):
    """Where the pixels are read, and how instants count there."""

    name: str
    read: Callable[[int, int], Pixels]  # (instant, camera): at the export's size, colours as filmed
    rate: float  # instants in a second
    notes: list[str]


def pixel_source(folder: str, sequence: VhapSequence, pictures: VhapPictures) -> PixelSource:
    """The best source that is there (the order is above)."""
    images = files.join(folder, "images")
    listed = set(files.list_folder(images))
    size = (sequence.width, sequence.height)
    notes = []
    videos = [f"cam_{camera.id}.mp4" for camera in sequence.cameras]
    if set(videos) <= listed:
        opened = [_Video(files.join(images, name)) for name in videos]
        chosen = _frames_of_video(opened[0], sequence, pictures)
        if chosen is not None:
            numbers, rate, remarks = chosen
            return PixelSource(
                "images/cam_*.mp4",
                lambda t, c: _resized(opened[c].frame(numbers[t]), size),
                rate / _stride(sequence),
                remarks,
            )
        notes.append("the videos' pictures are not those that were tracked, and not used")
    unpacked = [[_unpacked_name(sequence, t, c) for c in range(len(videos))] for t in range(len(sequence.timesteps))]
    if all(name in listed for row in unpacked for name in row):
        return PixelSource(
            "images/cam_*.jpg",
            lambda t, c: _resized(_read_jpeg(files.join(images, unpacked[t][c])), size),
            UNPACKED_RATE / _stride(sequence),
            notes,
        )
    return PixelSource(
        "VHAP's export", lambda t, c: pictures.decoded(t, c)[0], UNPACKED_RATE / _stride(sequence), notes
    )


def _number(sequence: VhapSequence, instant: int) -> int:
    """Of the unpacked frame that an instant was tracked on."""
    number = sequence.frame_numbers[instant]
    return sequence.timesteps[instant] if number is None else number


def _stride(sequence: VhapSequence) -> int:
    """Unpacked frames from one instant to the next, where that is the same throughout."""
    steps = {int(step) for step in np.diff([_number(sequence, t) for t in range(len(sequence.timesteps))])}
    return max(1, steps.pop()) if len(steps) == 1 else 1


def _unpacked_name(sequence: VhapSequence, instant: int, camera: int) -> str:
    name = sequence.frame_names[instant] or f"{_number(sequence, instant):06d}"
    return f"cam_{sequence.cameras[camera].id}_{name}.jpg"


def _frames_of_video(
    video: "_Video", sequence: VhapSequence, pictures: VhapPictures
) -> tuple[list[int], float, list[str]] | None:
    """The video's frame of each instant, the rate they are counted at, and remarks; None when no count fits."""
    plain = [_number(sequence, t) for t in range(len(sequence.timesteps))]
    if abs(video.rate - UNPACKED_RATE) < 0.01:
        counts = {UNPACKED_RATE: plain}
    else:
        counts = {UNPACKED_RATE: [unpacked_frame(n, video.rate) for n in plain], video.rate: plain}
    checked = sorted({0, len(plain) // 2, len(plain) - 1})
    truths = {t: _seen(pictures, t) for t in checked}
    if not all(truths.values()):
        return counts[UNPACKED_RATE], UNPACKED_RATE, ["frames of the videos counted as VHAP unpacks them, not checked"]
    off: dict[float, float] = {}
    wanted = sorted({numbers[t] for numbers in counts.values() for t in checked})
    size = (sequence.width, sequence.height)
    found = {number: _resized(video.frame(number), size) for number in wanted if number < video.frames}
    for rate, numbers in counts.items():
        differences = []
        for t in checked:
            seen = truths[t]
            assert seen is not None
            picture = found.get(numbers[t])
            differences.append(
                255.0 if picture is None else float(np.abs(picture[seen[1]].astype(float) - seen[0][seen[1]]).mean())
            )
        off[rate] = max(differences)
    best = min(off, key=lambda rate: off[rate])
    return (counts[best], best, []) if off[best] <= _OTHER_PICTURE else None


def _seen(pictures: VhapPictures, instant: int) -> tuple[Pixels, Alpha] | None:
    """The export's picture of the first camera, and where it shows what was filmed; None when there is none."""
    if not files.exists(pictures.sequence.images[instant][0]):
        return None
    image, matte = pictures.decoded(instant, 0)
    shown = np.ones(image.shape[:2], bool) if matte is None else matte == 255
    return (image, shown) if shown.any() else None


def unpacked_frame(number: int, rate: float) -> int:
    """The frame of a video of ``rate`` that ffmpeg's filter fps=25 gives as its frame ``number``.

    Frame i goes to the time round(25 i / rate), halves up; the last one that is not later is shown.
    """
    return max(0, math.ceil((number + 0.5) * rate / UNPACKED_RATE - 1e-9) - 1)


class _Video:
    """Frames of a video by number. Going forward reads on, going back starts over; several threads may ask."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._lock = threading.Lock()
        kept = contextlib.ExitStack()
        self._path = kept.enter_context(files.local_copy(location))
        weakref.finalize(self, kept.close)
        self._start()
        sides = [self._capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        if not self._capture.isOpened() or not all(0 < side <= LARGEST_SIDE for side in sides):
            raise SpatialAvatarError(f"{location}: not a readable video of at most {LARGEST_SIDE} pixels a side")
        rate, frames = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 0 < rate < 1000 else UNPACKED_RATE
        self.frames = int(frames) if 0 < frames < 10**7 else 0

    def frame(self, number: int) -> Pixels:
        with self._lock:
            if number < self._next - 1:
                self._start()
            while self._next <= number:
                if not self._capture.grab():
                    raise SpatialAvatarError(
                        f"{self._location}: ends before frame {number}, after {self._next}; get the video again"
                    )
                self._next += 1
            done, pixels = self._capture.retrieve()
        if not done or pixels is None or pixels.ndim != 3:
            raise SpatialAvatarError(f"{self._location}: frame {number} cannot be decoded; get the video again")
        return np.ascontiguousarray(pixels[..., ::-1])

    def _start(self) -> None:
        # one thread each: sixteen videos are open side by side
        self._capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        self._next = 0


def _read_jpeg(location: str) -> Pixels:
    data = read_picture(location)
    try:
        size = encoded_size(data)
        if max(size.width, size.height) > LARGEST_SIDE:
            raise ValueError(f"is {size.width} x {size.height} pixels, at most {LARGEST_SIDE} a side are read")
        return decode(data, size.width, size.height, color=True)
    except ValueError as e:
        raise SpatialAvatarError(f"{location}: {e}") from None


def _resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    return image if image.shape[1::-1] == size else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
