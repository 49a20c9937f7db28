"""Pictures that other tools wrote: read with a limit, and refused by their size before they are decoded."""

from spatialavatar import files
from spatialavatar.clip.pictures import encoded_size
from spatialavatar.errors import SpatialAvatarError

LARGEST_SIDE = 8192  # pixels, of a clip's pictures
LARGEST_FILE = 256 << 20  # bytes; a PNG of that size with alpha takes no more


def read_picture(location: files.Location) -> bytes:
    """Raises SpatialAvatarError: no such file, or too large."""
    return files.read_bytes(location, LARGEST_FILE)


def picture_size(location: files.Location) -> tuple[int, int]:
    """Width and height. Raises SpatialAvatarError: no such file, no whole picture, too large."""
    try:
        size = encoded_size(read_picture(location))
    except ValueError as e:
        raise SpatialAvatarError(f"{location}: {e}") from None
    if max(size.width, size.height) > LARGEST_SIDE:
        raise SpatialAvatarError(f"{location}: is {size.width} x {size.height} pixels, at most {LARGEST_SIDE} are read")
    return size.width, size.height
