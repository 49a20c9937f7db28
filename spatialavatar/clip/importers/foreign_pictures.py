"""Pictures that other tools wrote, read with limits."""

from spatialavatar import files
from spatialavatar.clip.pictures import encoded_size
from spatialavatar.errors import SpatialAvatarError

LARGEST_SIDE = 8192  # pixels, of a clip's pictures
LARGEST_FILE = 256 << 20  # bytes; such a picture, uncompressed and with alpha, takes no more


def read_picture(location: files.Location) -> bytes:
    """Raises SpatialAvatarError: no such file, or too large."""
    return files.read_bytes(location, LARGEST_FILE)


def picture_size(location: files.Location) -> tuple[int, int]:
    """Width and height as the file says. Raises SpatialAvatarError: no such file, no whole picture."""
    try:
        size = encoded_size(read_picture(location))
    except ValueError as e:
        raise SpatialAvatarError(f"{location}: {e}") from None
    return size.width, size.height
