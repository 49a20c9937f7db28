"""Reading other people's pickles without running anything of theirs.

FLAME's files and trackers' results are pickles, and a pickle is a program. This reader runs that program on a machine
of its own: a global is never imported but looked up in a table of names, and what is "called" is a function of ours
that checks its arguments. Admitted are numpy arrays, scalars and plain dtypes, scipy.sparse matrices, plain
containers, and chumpy's arrays as inert holders of their state (chumpy_array.py; no chumpy code). Strings of Python 2
are decoded as latin-1. Modules are known under their old and new paths (numpy.core, scipy.sparse.csc, __builtin__).

Memory and work are bounded by the size of the file. Whatever a call makes of what the file already holds (arrays,
scalars, copies of containers and bytes) is paid from an allowance of ``GROWTH`` times its bytes. Keys of dictionaries
and members of sets are flat and short: nested tuples can take exponential time to hash, and whole numbers beyond 64
bits can be chosen to collide.
"""

from typing import Any

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.unpickle.chumpy_array import ChumpyArray as ChumpyArray
from spatialavatar.unpickle.machine import Machine
from spatialavatar.unpickle.values import Refused

_LIMIT = 2 << 30  # bytes; the largest FLAME file is under 0.2e9
_ADMITTED = "numpy, scipy.sparse, plain containers and chumpy arrays"


def read_pickle(location: files.Location, max_bytes: int = _LIMIT) -> Any:
    """The value in a pickle file. ``np.asarray`` of a ``ChumpyArray`` in it gives its array.

    Raises SpatialAvatarError: no such file, larger than ``max_bytes``, damaged or truncated, or it asks for something
    that is not admitted (named in the message; nothing of it has run).
    """
    return unpickle(files.read_bytes(location, max_bytes), location)


def unpickle(data: bytes, location: files.Location) -> Any:
    """As ``read_pickle``, of bytes that came from ``location``."""
    try:
        return Machine(data).load()
    except Refused as e:
        raise SpatialAvatarError(
            f"{location}: the pickle asks for {e}, which is not read ({_ADMITTED} are); nothing of it was run; "
            "get the file from its publisher, or store its arrays as npz yourself"
        ) from None
    except Exception as e:  # hostile or damaged bytes can fail in any way
        raise SpatialAvatarError(
            f"{location}: not a readable pickle ({in_short(e, 120, plain=True)}); it is damaged or truncated, get the "
            "file again"
        ) from None
