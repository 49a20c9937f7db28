"""Who writes into a run's folder: of two runs that are alive, the one that was started last."""

import os
import socket
import uuid

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError

WRITER = "writer.json"


class TakenOver(SpatialAvatarError):
    """Another run writes into the folder now."""


class Writer:
    """One run's right to write, until another one takes it."""

    def __init__(self, run: files.Location, kind: str = "training") -> None:
        """``kind`` of run, for messages."""
        self._run, self._kind = run, kind
        self._id = uuid.uuid4().hex

    def take_over(self) -> None:
        content = {"id": self._id, "host": socket.gethostname(), "process": os.getpid()}
        files.write_json(files.join(self._run, WRITER), content)

    def require(self) -> None:
        """Raises TakenOver."""
        found = files.read_json(files.join(self._run, WRITER))
        if not isinstance(found, dict) or found.get("id") != self._id:
            who = f"process {found.get('process')} on {found.get('host')}" if isinstance(found, dict) else "another one"
            raise TakenOver(f"{self._run}: a {self._kind} that was started later writes here ({who}); this one ends")
