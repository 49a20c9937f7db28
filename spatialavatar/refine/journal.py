"""What a refinement keeps of one subject while it runs: time, log, checkpoints."""

import contextlib
import json
import math
import time
from concurrent.futures import Executor, Future
from typing import Any

import torch
from torch import Tensor

from spatialavatar import files
from spatialavatar.avatar.folder import LOG
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.refine import checkpoint as checkpoints
from spatialavatar.refine.checkpoint import Checkpoint
from spatialavatar.refine.loop import TERM_NAMES, Refinement

SECONDS_BETWEEN_LOG_WRITES = 1.0  # at least: a file on a store is written whole


class Journal:
    """Of a subject whose row in the refinement may change from call to call."""

    def __init__(self, folder: files.Location, inputs: dict[str, Any], uploads: Executor | None = None) -> None:
        """``inputs`` is what a resumed run must find unchanged. With ``uploads``, whose one thread keeps their order,
        files are written there while the refinement goes on; a store that refuses them then costs a checkpoint, and
        one that is so slow that the next checkpoint is due holds the refinement up."""
        self.folder, self.inputs = folder, inputs
        self.seconds = 0.0  # spent on the subject
        self.latest: dict[str, float] = {}  # the last line of the log
        self._uploads = uploads
        self._upload: Future[None] | None = None
        self._window: list[Tensor] = []  # on the device: reading a number would wait for it
        self._log_lines: list[str] = []
        self._log_written = -math.inf

    @property
    def log(self) -> bytes:
        """The lines so far, as refine.jsonl holds them."""
        return "".join(line + "\n" for line in self._log_lines).encode()

    def resume(self, refinement: Refinement, row: int) -> None:
        """Go on from the folder's checkpoint. Raises SpatialAvatarError: damaged, or of other inputs."""
        saved = checkpoints.load_checkpoint(self.folder, self.inputs)
        where = files.join(self.folder, LOG)
        data = files.read_bytes(where) if files.exists(where) else b""
        try:
            # lines of iterations that the killed run did after its checkpoint are done again
            parsed = [(line, json.loads(line)) for line in data.decode().splitlines()]
            kept = [(line, terms) for line, terms in parsed if terms["iteration"] <= saved.iteration]
            latest = {name: float(kept[-1][1][name]) for name in TERM_NAMES} if kept else {}
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise SpatialAvatarError(f"{where}: damaged ({type(e).__name__}: {e}); start over with --force") from None
        try:
            refinement.load_state(saved.tensors, saved.iteration, row)
        except ValueError as e:
            checkpoint = files.join(self.folder, checkpoints.FILE)
            raise SpatialAvatarError(f"{checkpoint}: damaged ({e}); start over with --force") from None
        self.seconds, self.latest = saved.seconds, latest
        self._window = [torch.tensor(terms, device=refinement.device) for terms in saved.window]
        self._log_lines = [line for line, _ in kept]
        self._write_log()

    def after_step(self, refinement: Refinement, row: int, terms: Tensor) -> None:
        """``terms`` are the subject's own. Raises SpatialAvatarError when numbers are no longer finite."""
        config, t = refinement.config, refinement.iterations[row]
        self._window.append(terms)
        last = t == config.iterations
        if t % config.log_every == 0 or last:
            self._log(refinement, row, last)
        if t % config.checkpoint_every == 0 and not last:
            self.save(refinement, row)

    def save(self, refinement: Refinement, row: int) -> None:
        """Write a checkpoint. Raises SpatialAvatarError instead of writing numbers that are not finite."""
        self._require_finite(refinement, row)
        self._write_log()
        window = [terms.tolist() for terms in self._window]
        state = {name: tensor.cpu().clone() for name, tensor in refinement.state(row).items()}
        checkpoint = Checkpoint(state, refinement.iterations[row], self.inputs, self.seconds, window)
        if self._uploads is None:
            checkpoints.save_checkpoint(self.folder, checkpoint)
        else:
            self.settle()  # one waits at most: each holds the state of a subject
            self._upload = self._uploads.submit(checkpoints.save_checkpoint, self.folder, checkpoint)

    def settle(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._upload is not None:
            with contextlib.suppress(SpatialAvatarError, OSError):  # the one before stays
                self._upload.result()
            self._upload = None

    def _log(self, refinement: Refinement, row: int, last: bool) -> None:
        self._require_finite(refinement, row)
        means = torch.stack(self._window).cpu().double().mean(0)
        self._window = []
        self.latest = {name: float(value) for name, value in zip(TERM_NAMES, means)}
        line = {"iteration": refinement.iterations[row], **self.latest}
        line["max_aspect_ratio"] = refinement.max_aspect_ratio(row)
        line["seconds"] = round(self.seconds, 3)
        self._log_lines.append(json.dumps(line, allow_nan=False))
        due = time.perf_counter() - self._log_written > SECONDS_BETWEEN_LOG_WRITES
        if self._uploads is None and (due or last):  # else with the checkpoints
            self._write_log()

    def _require_finite(self, refinement: Refinement, row: int) -> None:
        terms = torch.stack(self._window) if self._window else torch.zeros(1)
        if not (refinement.is_finite(row) and bool(torch.isfinite(terms).all())):
            kept = files.exists(files.join(self.folder, checkpoints.FILE))
            raise SpatialAvatarError(
                f"{self.folder}: loss or Gaussians not finite by iteration {refinement.iterations[row]}; "
                + ("the last good checkpoint is kept; " if kept else "")
                + "lower learning_rates, or run 'spatialavatar clip validate' on the input"
            )

    def _write_log(self) -> None:
        content, where = self.log, files.join(self.folder, LOG)
        if self._uploads is None:
            files.write_bytes(where, content)
        else:
            self._uploads.submit(files.write_bytes, where, content)
        self._log_written = time.perf_counter()
