"""Head models of others to ours: FLAME pickles, the ICT archive, a checkout of ICT-FaceKit."""

import numpy as np

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadInfo

_SOURCES = "a FLAME pickle (.pkl), the ICT archive (.npz) or a checkout of ICT-FaceKit (a folder with FaceXModel/)"


def convert_head(
    source: files.Location,
    uv: files.Location | None = None,
    id: str | None = None,
    landmarks: files.Location | None = None,
    codes: tuple[int, int] | None = None,
) -> tuple[HeadInfo, dict[str, np.ndarray]]:
    """Whatever ``source`` is, as the info and the arrays that ``write_head`` takes.

    ``uv`` is FLAME's unwrap (its template OBJ, or an npz), ``landmarks`` a FLAME landmark embedding (npz, npy or
    pickle); heads that bring their own take neither. ``id`` names the head; an id or file name with "2023-open" says
    that a FLAME pickle is FLAME 2023 Open (CC-BY-4.0). ``codes`` states the shape and expression columns of a FLAME
    pickle that has not 300 and 100. Raises SpatialAvatarError.
    """
    if files.is_folder(source):
        from spatialavatar.head.convert.ict_checkout import convert_ict_checkout

        _refuse_extras(source, uv=uv, landmarks=landmarks, codes=codes)
        return convert_ict_checkout(source, id=id)
    start = files.read_start(source, 4)
    if start == b"PK\x03\x04":
        from spatialavatar.head.convert.ict_archive import convert_ict_archive

        _refuse_extras(source, uv=uv, landmarks=landmarks, codes=codes)
        return convert_ict_archive(source, id=id)
    if start[:1] in (b"\x80", b"(", b"}") or str(source).endswith(".pkl"):  # protocols 2 and later, 0, 1
        from spatialavatar.head.convert.flame import convert_flame

        return convert_flame(source, uv, id=id, landmarks=landmarks, columns=codes)
    raise SpatialAvatarError(f"{source}: not a head that can be converted; expected {_SOURCES}")


def _refuse_extras(source: files.Location, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise SpatialAvatarError(f"{source}: an ICT head brings its own, leave out --{name}")
