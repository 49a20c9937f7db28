"""Refining several subjects at once, each with its log and checkpoints.

``prepare`` makes a subject ready, ``refine_batch`` optimises prepared ones together.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch

from spatialavatar import files, tensor_files
from spatialavatar.clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError, StoreError, without_traceback
from spatialavatar.head import HeadModel, HeadReference
from spatialavatar.refine import checkpoint as checkpoints
from spatialavatar.refine.config import HARMLESS, RefineConfig
from spatialavatar.refine.journal import Journal
from spatialavatar.refine.loop import Refinement, SubjectError
from spatialavatar.refine.start import Start
from spatialavatar.refine.subject import Subject
from spatialavatar.splat.gaussians import LocalGaussians


class StopRefinement(Exception):
    """Raise this from an observer to stop a run after the current iteration, with a checkpoint to resume from."""


@dataclass
class Progress:
    """Where a run stands; handed to the observer after every iteration."""

    iteration: int
    iterations: int
    seconds: float
    latest: dict[str, float] = field(default_factory=dict)  # the last line of the log
    first: int = 0  # iteration at which this run began: that of the checkpoint, or 0
    place: int = 0  # of the subject in the batch, however many have left


@dataclass(frozen=True, eq=False)
class Prepared:
    """A subject that can be optimised: its frames and meshes, its start, and where its checkpoints lie."""

    subject: Subject
    start: Start
    folder: files.Location
    inputs: dict[str, Any]  # what a resumed run must find unchanged


@dataclass(frozen=True, eq=False)
class Refined:
    """What an optimisation made of a subject."""

    prepared: Prepared
    gaussians: LocalGaussians  # B = 1, on the CPU
    iterations: int
    seconds: float  # spent optimising: of a batch the subject's share
    max_aspect_ratio: float
    latest: dict[str, float]  # loss terms, means over the last lines of the log
    log: bytes  # JSON lines


def prepare(
    clip: TrackedClip,
    head: HeadModel,
    start: Start,
    config: RefineConfig,
    folder: files.Location,
    device: torch.device | str = "cpu",
) -> Prepared:
    """Raises SpatialAvatarError for a clip of another head, or without training frames."""
    subject = Subject(clip, head, config.resolution, config.frame_memory_gb * 1e9, torch.device(device))
    inputs = {
        "config": config.model_dump(mode="json", exclude=set(HARMLESS)),
        "clip": _clip_facts(clip),
        "head": HeadReference.of(head).hash,
        "layout": start.layout.fingerprint,
        "start": {"origin": start.origin, "gaussians": start.fingerprint[:16]},
    }
    return Prepared(subject, start, folder, inputs)


def refine_batch(
    batch: Sequence[Prepared],
    head: HeadModel,
    config: RefineConfig,
    *,
    resume: bool = True,
    start_over: bool = False,
    begin: Callable[[], None] = lambda: None,
    observe: Callable[[list[Progress]], None] = lambda progress: None,
    uploads: Executor | None = None,
) -> list[Refined | Exception]:
    """Optimise subjects of one layout and image size together; of each what came of it, or its error.

    A subject that fails or is finished leaves the others, whose results are what they would be without it. With
    ``resume`` a subject goes on from its checkpoint where there is one; with ``start_over`` one that is damaged or was
    made from other inputs is passed over, else it is the subject's error. Errors have no tracebacks, which would hold
    the batch. ``begin`` is called when all input has proved sound, ``observe`` after every iteration with the progress
    of each subject that is still there; StopRefinement raised there writes their checkpoints first. ``uploads`` as in
    Journal.
    """
    run = _Batch(batch, head, config, uploads)
    if resume:
        run.each(partial(run.go_on, start_over=start_over))
    run.note_beginning()
    if run.rows:
        begin()
    try:
        run.start_clock()
        run.each(run.preload)
        run.tell(observe)
        run.each(run.finish)
        while run.rows:
            if run.step():
                run.tell(observe)
                run.each(run.finish)
    except StopRefinement:
        run.save()
        raise
    return [outcome for outcome in run.outcomes if outcome is not None]


class _Batch:
    """Subjects that are optimised together, each in a row of the refinement until it leaves."""

    def __init__(
        self, batch: Sequence[Prepared], head: HeadModel, config: RefineConfig, uploads: Executor | None
    ) -> None:
        device = batch[0].subject.device
        layout = batch[0].start.layout.to(device)
        for prepared in batch[1:]:
            layout.require(prepared.start.layout.fingerprint, prepared.start.origin)
        starts = LocalGaussians.cat([prepared.start.gaussians.to(device) for prepared in batch])
        self._refinement = Refinement([prepared.subject for prepared in batch], head, layout, starts, config)
        self._batch, self._config = batch, config
        self._journals = [Journal(prepared.folder, prepared.inputs, uploads) for prepared in batch]
        self.outcomes: list[Refined | Exception | None] = [None] * len(batch)
        self.rows = list(range(len(batch)))  # the subject in each row of the refinement
        self._first: dict[int, int] = {}  # iteration at which each subject begins
        self._since = 0.0

    def each(self, action: Callable[[int, Journal], None]) -> None:
        """For the row and journal of every subject; one that raises leaves."""
        for row in reversed(range(len(self.rows))):
            try:
                action(row, self._journals[self.rows[row]])
            except (SpatialAvatarError, OSError) as e:
                self._leave(row, e)

    def go_on(self, row: int, journal: Journal, start_over: bool) -> None:
        """From the checkpoint, where there is one."""
        if files.exists(files.join(journal.folder, checkpoints.FILE)):
            try:
                journal.resume(self._refinement, row)
            except SpatialAvatarError as e:
                if not start_over or isinstance(e, StoreError):
                    raise

    def note_beginning(self) -> None:
        self._first = {i: self._refinement.iterations[row] for row, i in enumerate(self.rows)}

    def start_clock(self) -> None:
        self._since = time.perf_counter()

    def preload(self, row: int, journal: Journal) -> None:
        self._refinement.subjects[row].preload()

    def step(self) -> bool:
        """One iteration of every subject; or, when a subject's frame cannot be had, that one leaves and nothing is
        stepped."""
        try:
            terms = self._refinement.step().stacked()
        except SubjectError as e:
            assert isinstance(e.__cause__, Exception)
            self._leave(e.row, e.__cause__)
            return False
        self._share_time()
        self.each(lambda row, journal: journal.after_step(self._refinement, row, terms[:, row]))
        self._share_time()
        return True

    def tell(self, observe: Callable[[list[Progress]], None]) -> None:
        if not self.rows:
            return
        listed = [(self._refinement.iterations[row], self._journals[i], i) for row, i in enumerate(self.rows)]
        observe([Progress(t, self._config.iterations, j.seconds, j.latest, self._first[i], i) for t, j, i in listed])

    def finish(self, row: int, journal: Journal) -> None:
        """A subject that has done all its iterations leaves."""
        iterations = self._refinement.iterations[row]
        if iterations < self._config.iterations:
            return
        prepared = self._batch[self.rows[row]]
        gaussians = self._refinement.gaussians()[row].to("cpu")
        aspect = self._refinement.max_aspect_ratio(row)
        refined = Refined(prepared, gaussians, iterations, journal.seconds, aspect, journal.latest, journal.log)
        self._leave(row, refined)

    def save(self) -> None:
        """Checkpoints of all that are still there."""
        self._share_time()
        self.each(lambda row, journal: journal.save(self._refinement, row))
        for journal in self._journals:
            journal.settle()

    def _leave(self, row: int, outcome: Refined | Exception) -> None:
        self.outcomes[self.rows[row]] = without_traceback(outcome) if isinstance(outcome, Exception) else outcome
        self._refinement.remove(row)
        del self.rows[row]

    def _share_time(self) -> None:
        """The seconds since the last time, to the subjects that are there."""
        now = time.perf_counter()
        for i in self.rows:
            self._journals[i].seconds += (now - self._since) / len(self.rows)
        self._since = now


def _clip_facts(clip: TrackedClip) -> dict[str, Any]:
    """What names a clip's content without decoding its pictures."""
    arrays = {f.name: getattr(clip.params, f.name) for f in fields(clip.params)}
    arrays |= {"world_to_camera": clip.world_to_camera, "intrinsics": clip.intrinsics}
    return {
        "identity": clip.identity,
        "tracking": tensor_files.content_hash({name: a.numpy() for name, a in arrays.items() if a is not None}),
        "size": [clip.width, clip.height],
        "test_from": clip.test_from,
        "test_cameras": list(clip.test_cameras),
    }
