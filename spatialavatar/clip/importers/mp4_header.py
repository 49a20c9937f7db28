"""The frame rate that an MP4 file states (ISO/IEC 14496-12), read from its header alone.

No decoder touches the file: trackers' videos come from anywhere, and only this one number is wanted.
"""

import struct
from collections.abc import Iterator

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError

_LARGEST_HEADER = 64 << 20  # bytes; hours of video stay below
_MOST_BOXES = 1000  # at the top of a file; one written in pieces has more, and its header knows no rate


def mp4_frame_rate(location: files.Location) -> float | None:
    """Frames in a second, on average, of the first video track; None when the file does not say."""
    try:
        header = _movie_header(location)
        for track in _inside(header, b"trak"):
            media = next(_inside(track, b"mdia"))
            if next(_inside(media, b"hdlr"))[8:12] == b"vide":
                return _rate(media)
    except (SpatialAvatarError, struct.error, StopIteration, ZeroDivisionError):
        pass
    return None


def _movie_header(location: files.Location) -> bytes:
    """The content of the box ``moov``, which may stand before or behind the pictures."""
    length, at = files.size(location), 0
    for _ in range(_MOST_BOXES):
        size, kind = struct.unpack(">I4s", files.read_range(location, at, at + 8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", files.read_range(location, at + 8, at + 16)), 16
        if size == 0:
            size = length - at
        if kind == b"moov" and head <= size <= _LARGEST_HEADER:
            return files.read_range(location, at + head, at + size)
        if size < head:
            break
        at += size
    raise StopIteration


def _inside(content: bytes, wanted: bytes) -> Iterator[bytes]:
    """The contents of the boxes of one kind."""
    at = 0
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        if size < 8:
            return
        if kind == wanted:
            yield content[at + 8 : at + size]
        at += size


def _rate(media: bytes) -> float | None:
    clock = next(_inside(media, b"mdhd"))
    (ticks,) = struct.unpack_from(">I", clock, 20 if clock[0] == 1 else 12)  # in a second
    table = next(_inside(next(_inside(next(_inside(media, b"minf")), b"stbl")), b"stts"))
    (count,) = struct.unpack_from(">I", table, 4)
    if count * 8 + 8 > len(table):
        return None
    runs = struct.iter_unpack(">II", table[8 : 8 + count * 8])  # so many frames, each of so many ticks
    frames = duration = 0
    for number, length in runs:
        frames, duration = frames + number, duration + number * length
    return ticks * frames / duration
