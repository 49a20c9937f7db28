"""TensorBoard's view of a run: curves and sample sheets in ``RUN/tensorboard``.

Event files grow line by line, which stores cannot do: there the file grows on this machine, without the pictures (the
run has them beside it), and is copied whole now and then.
"""

import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch.utils.tensorboard import SummaryWriter

from spatialavatar import files


class Board:
    """Writes events; what was written after ``step`` before, by a run that was killed, is hidden."""

    def __init__(self, folder: files.Location, step: int) -> None:
        self._target = folder
        self._temporary = None if files.is_local(folder) else tempfile.TemporaryDirectory(prefix="tensorboard-")
        here = files.local_path(folder) if self._temporary is None else Path(self._temporary.name)
        self._writer = SummaryWriter(str(here), purge_step=step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Values of curves at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, picture: UInt8[np.ndarray, "H W 3"], step: int) -> None:
        """A picture at a step; not on a store."""
        if self._temporary is None:
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def publish(self) -> None:
        """Bring the store's copy up to date."""
        if self._temporary is None:
            return
        self._writer.flush()
        for event_file in Path(self._temporary.name).iterdir():
            files.write_bytes(files.join(self._target, event_file.name), event_file.read_bytes())

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
        if self._temporary is not None:
            self.publish()
            self._temporary.cleanup()
