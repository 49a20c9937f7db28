"""Several subjects at once: each ends as it would alone, whatever happens to the others."""

import gc
import json
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spatialavatar import files, tensor_files
from spatialavatar.avatar.folder import LOG
from spatialavatar.clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.refine import (
    Prepared,
    Progress,
    RefineConfig,
    Refined,
    Refinement,
    StepTerms,
    StopRefinement,
    prepare,
    refine_batch,
    template_start,
)
from spatialavatar.refine import batch as batches
from spatialavatar.refine import checkpoint as checkpoints
from spatialavatar.refine.checkpoint import FILE
from tests.builders.clips import tiny_clip, tiny_head
from tests.refine.test_loop import FAST, UV, clips, config

pytestmark = pytest.mark.usefixtures("one_thread")
# the freeze ends, the clamp and the aspect loss begin at iterations of their own
BOUNDARIES = ["anti_spike.scale_freeze_iterations=3", "anti_spike.clamp_from=5", "anti_spike.aspect_from=7"]
SETTINGS = config("iterations=12", "checkpoint_every=5", "log_every=4", "anti_spike.aspect_tau=0", *BOUNDARIES, *FAST)
TIGHT = SETTINGS.model_copy(update={"frame_memory_gb": 1e-9})  # no frame is kept


def ready(clip: TrackedClip, folder: files.Location, settings: RefineConfig = SETTINGS) -> Prepared:
    return prepare(clip, tiny_head(), template_start(tiny_head(), UV), settings, folder)


def refine(batch: Sequence[Prepared], settings: RefineConfig = SETTINGS, **options: Any) -> list[Refined | Exception]:
    return refine_batch(batch, tiny_head(), settings, **options)


def stop_at(iteration: int) -> Callable[[list[Progress]], None]:
    """Of the subject that has done the fewest."""

    def observe(progress: list[Progress]) -> None:
        if min(p.iteration for p in progress) == iteration:
            raise StopRefinement

    return observe


def stopped(batch: Sequence[Prepared], iteration: int, settings: RefineConfig = SETTINGS, **options: Any) -> None:
    with pytest.raises(StopRefinement):
        refine(batch, settings, observe=stop_at(iteration), **options)


def log_without_time(log: bytes) -> list[dict[str, float]]:
    return [{**json.loads(line), "seconds": 0} for line in log.splitlines()]


def assert_same(outcome: Refined | Exception, expected: Refined) -> None:
    """To the last bit."""
    assert isinstance(outcome, Refined), outcome
    for name, tensor in expected.gaussians.tensors().items():
        assert torch.equal(outcome.gaussians.tensors()[name], tensor), name
    assert (outcome.iterations, outcome.max_aspect_ratio) == (expected.iterations, expected.max_aspect_ratio)
    assert outcome.latest == expected.latest
    assert log_without_time(outcome.log) == log_without_time(expected.log)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> list[TrackedClip]:
    return clips(tmp_path_factory.mktemp("people"), 3)


@pytest.fixture(scope="module")
def alone(people: list[TrackedClip], tmp_path_factory: pytest.TempPathFactory) -> list[Refined]:
    """What each becomes by itself, undisturbed."""
    folder = tmp_path_factory.mktemp("alone")
    refined = []
    for clip in people:
        [outcome] = refine([ready(clip, folder / clip.identity)])
        assert isinstance(outcome, Refined)
        refined.append(outcome)
    return refined


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints that hold no measured seconds."""
    monkeypatch.setattr(batches, "time", SimpleNamespace(perf_counter=lambda: 0.0))


def test_everybody_ends_as_alone(people: list[TrackedClip], alone: list[Refined], tmp_path: Path) -> None:
    seen = []
    batch = [ready(clip, tmp_path / clip.identity) for clip in people]
    outcomes = refine(batch, observe=lambda progress: seen.append([p.iteration for p in progress]))
    for outcome, expected, prepared in zip(outcomes, alone, batch):
        assert_same(outcome, expected)
        assert isinstance(outcome, Refined) and outcome.prepared is prepared
    assert seen == [[t] * 3 for t in range(13)]
    assert not torch.equal(alone[0].gaussians.position, alone[1].gaussians.position)


@pytest.mark.parametrize(("settings", "left_at"), [(TIGHT, 5), (SETTINGS, 0)], ids=["drawn", "preloaded"])
def test_a_frame_that_cannot_be_decoded_costs_its_own_subject(
    people: list[TrackedClip], alone: list[Refined], tmp_path: Path, settings: RefineConfig, left_at: int
) -> None:
    """Without room for it in memory, when it is drawn: after five iterations of everybody."""
    spoilt = tiny_clip(tmp_path / "spoilt", instants=6, width=32, height=32, seed=1, identity="spoilt")
    batch = [ready(clip, tmp_path / clip.identity, settings) for clip in (people[0], spoilt, people[2])]
    subject = batch[1].subject
    damaged = spoilt.header.frame_file("images", subject.frames[subject.row_at(settings.seed, 5)])
    (tmp_path / "spoilt" / damaged).write_bytes(b"\xff\xd8 not a picture")
    seen = []
    outcomes = refine(batch, settings, observe=lambda progress: seen.append([p.iteration for p in progress]))
    assert isinstance(outcomes[1], SpatialAvatarError) and damaged in str(outcomes[1])
    assert_same(outcomes[0], alone[0])
    assert_same(outcomes[2], alone[2])
    expected = [[t] * 3 for t in range(left_at + 1)] if left_at else [[0] * 2]
    assert seen == expected + [[t] * 2 for t in range(left_at + 1, 13)]


def exploding(monkeypatch: pytest.MonkeyPatch, identity: str, at: int, value: float) -> None:
    step = Refinement.step

    def explode(self: Refinement) -> StepTerms:
        for row, subject in enumerate(self.subjects):
            if subject.clip.identity == identity and self.iterations[row] == at:
                with torch.no_grad():
                    self.parameters[row]["opacity"][:, :5] = value
                    self.parameters[row]["position"][:, 5:9] = value
        return step(self)

    monkeypatch.setattr(Refinement, "step", explode)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_numbers_that_explode_cost_their_own_subject(
    people: list[TrackedClip],
    alone: list[Refined],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: int,
    value: float,
) -> None:
    """They are found two iterations later, at the next line of the log; until then they are in the batch."""
    exploding(monkeypatch, people[row].identity, 6, value)
    outcomes = refine([ready(clip, tmp_path / clip.identity) for clip in people])
    assert isinstance(outcomes[row], SpatialAvatarError)
    assert "not finite by iteration 8; the last good checkpoint is kept" in str(outcomes[row])
    kept = checkpoints.load_checkpoint(tmp_path / people[row].identity, {})
    assert kept.iteration == 5 and all(bool(torch.isfinite(t).all()) for t in kept.tensors.values())
    for other in {0, 1, 2} - {row}:
        assert_same(outcomes[other], alone[other])


def test_when_everybody_fails_each_has_its_own_error(people: list[TrackedClip], tmp_path: Path) -> None:
    batch = [ready(replace(clip, read_frame=refusing(clip.identity)), tmp_path / clip.identity) for clip in people]
    outcomes = refine(batch, observe=lambda progress: pytest.fail("nobody is there"))
    assert [str(outcome) for outcome in outcomes] == [f"{clip.identity} is gone" for clip in people]


def refusing(name: str) -> Callable[..., Any]:
    def read(frame: Any) -> Any:
        raise SpatialAvatarError(f"{name} is gone")

    return read


@pytest.mark.parametrize("resumed_first", [True, False])
@pytest.mark.parametrize("head_start", [1, 2, 4, 6, 11])
def test_subjects_that_stand_at_different_iterations(
    people: list[TrackedClip], alone: list[Refined], tmp_path: Path, head_start: int, resumed_first: bool
) -> None:
    """One crosses the ends of the freeze and of the time without clamp and aspect loss before the other."""
    batch = [ready(clip, tmp_path / clip.identity) for clip in people[:2]]
    stopped(batch[:1], head_start)
    order = [0, 1] if resumed_first else [1, 0]
    seen = []
    outcomes = refine([batch[i] for i in order], observe=lambda ps: seen.append([p.iteration for p in ps]))
    for outcome, i in zip(outcomes, order):
        assert_same(outcome, alone[i])
    both = [[head_start + t, t] if resumed_first else [t, head_start + t] for t in range(13 - head_start)]
    assert seen == both + [[t] for t in range(13 - head_start, 13)]


def test_each_has_its_checkpoints(people: list[TrackedClip], alone: list[Refined], tmp_path: Path) -> None:
    """A run that dies leaves the last ones of each; going on from them, alone or with others, changes nothing."""
    batch = [ready(clip, tmp_path / clip.identity) for clip in people]
    stopped(batch[2:], 3)

    def die(progress: list[Progress]) -> None:
        if progress[0].iteration == 8:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        refine(batch, observe=die)
    found = [checkpoints.load_checkpoint(prepared.folder, prepared.inputs).iteration for prepared in batch]
    assert found == [5, 5, 10]  # the third had a start of three
    assert_same(refine(batch[1:2])[0], alone[1])
    outcomes = refine([batch[2], batch[0]])
    assert_same(outcomes[0], alone[2])
    assert_same(outcomes[1], alone[0])


@pytest.mark.parametrize("uploading", [False, True])
def test_a_stopped_batch_goes_on_in_any_other(
    people: list[TrackedClip], alone: list[Refined], tmp_path: Path, uploading: bool
) -> None:
    batch = [ready(clip, tmp_path / clip.identity) for clip in people]
    with ThreadPoolExecutor(1) as lane:
        stopped(batch, 2, uploads=lane if uploading else None)
        assert [checkpoints.load_checkpoint(p.folder, p.inputs).iteration for p in batch] == [2, 2, 2]
        stopped([batch[2], batch[0]], 7, uploads=lane if uploading else None)
        outcomes = refine([batch[1], batch[2], batch[0]], uploads=lane if uploading else None)
    for outcome, i in zip(outcomes, (1, 2, 0)):
        assert_same(outcome, alone[i])


def test_a_stop_does_not_keep_numbers_that_are_not_finite(
    people: list[TrackedClip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exploding(monkeypatch, people[1].identity, 5, torch.nan)
    batch = [ready(clip, tmp_path / clip.identity) for clip in people]
    stopped(batch, 7)
    assert [checkpoints.load_checkpoint(p.folder, p.inputs).iteration for p in batch] == [7, 5, 7]


def truncated(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100])


def rewritten(change: Callable[[dict[str, Any], dict[str, str]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        arrays, metadata = tensor_files.read_tensors(folder / FILE)
        change(arrays, metadata)
        tensor_files.write_tensors(folder / FILE, arrays, metadata)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncated,
    "empty": lambda folder: (folder / FILE).write_bytes(b"") and None,
    "other program": rewritten(lambda arrays, metadata: metadata.update(version="99")),
    "facts are no JSON": rewritten(lambda arrays, metadata: metadata.update(facts="{")),
    "facts are missing": rewritten(lambda arrays, metadata: metadata.update(facts="{}")),
    "facts are a list": rewritten(lambda arrays, metadata: metadata.update(facts="[]")),
    "a tensor is missing": rewritten(lambda arrays, metadata: arrays.pop("opacity") is None),
    "a moment is missing": rewritten(lambda arrays, metadata: arrays.pop("opacity.exp_avg") is None),
    "a tensor is another": rewritten(lambda arrays, metadata: arrays.update(opacity=arrays["opacity"][:, :-1])),
    "the log is no JSON": lambda folder: (folder / LOG).write_bytes(b'{"iteration": 4\n') and None,
    "the log is another": lambda folder: (folder / LOG).write_bytes(b'{"iteration": 4}\n[]\n') and None,
    "the log is no text": lambda folder: (folder / LOG).write_bytes(b"\xff\xfe\n") and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(people: list[TrackedClip], alone: list[Refined], tmp_path: Path, damage: str) -> None:
    """Is its subject's error, or passed over by ``start_over``; in no case does it matter to others."""
    batch = [ready(clip, tmp_path / clip.identity) for clip in people[:2]]
    stopped(batch, 6)
    DAMAGES[damage](tmp_path / people[0].identity)
    outcomes = refine(batch)
    assert isinstance(outcomes[0], SpatialAvatarError) and str(tmp_path / people[0].identity) in str(outcomes[0])
    assert_same(outcomes[1], alone[1])
    outcomes = refine(batch, start_over=True)
    assert_same(outcomes[0], alone[0])
    assert_same(outcomes[1], alone[1])


def test_a_checkpoint_of_other_inputs(people: list[TrackedClip], alone: list[Refined], tmp_path: Path) -> None:
    others = config("iterations=12", "seed=5", *FAST)
    stopped([ready(people[0], tmp_path / "0", others)], 6, others)
    batch = [ready(clip, tmp_path / str(i)) for i, clip in enumerate(people[:2])]
    outcomes = refine(batch)
    assert isinstance(outcomes[0], SpatialAvatarError) and "seed: 5 then, 0 now" in str(outcomes[0])
    assert_same(outcomes[1], alone[1])
    begun = []
    outcomes = refine(batch, start_over=True, begin=lambda: begun.append(True))
    assert begun == [True]
    assert_same(outcomes[0], alone[0])
    assert_same(outcomes[1], alone[1])


def test_nothing_begins_when_no_checkpoint_can_be_used(people: list[TrackedClip], tmp_path: Path) -> None:
    batch = [ready(clip, tmp_path / clip.identity) for clip in people[:2]]
    stopped(batch, 6)
    for clip in people[:2]:
        truncated(tmp_path / clip.identity)
    outcomes = refine(batch, begin=lambda: pytest.fail("begun"))
    assert all(isinstance(outcome, SpatialAvatarError) for outcome in outcomes)


def test_a_store_that_does_not_answer_is_no_reason_to_start_over(
    people: list[TrackedClip], alone: list[Refined], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [ready(clip, tmp_path / clip.identity) for clip in people[:2]]
    stopped(batch, 6)
    load = checkpoints.load_checkpoint

    def silent(folder: files.Location, inputs: dict[str, Any]) -> Any:
        if folder == batch[0].folder:
            raise StoreError("no answer")
        return load(folder, inputs)

    monkeypatch.setattr(checkpoints, "load_checkpoint", silent)
    outcomes = refine(batch, start_over=True)
    assert isinstance(outcomes[0], StoreError)
    assert_same(outcomes[1], alone[1])


class Late(Executor):
    """Does what it is given, in order, when somebody waits for it or at the end."""

    def __init__(self) -> None:
        self._given: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        late = self

        class Asked(Future):  # type: ignore[type-arg]
            def result(self, timeout: float | None = None) -> Any:
                late.catch_up()
                return super().result(timeout)

        future: Future[Any] = Asked()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as e:
                future.set_exception(e)

        self._given.append(work)
        return future

    def catch_up(self) -> None:
        given, self._given = self._given, []
        for work in given:
            work()


@pytest.mark.usefixtures("no_time")
def test_background_writing_writes_the_same_bytes(
    people: list[TrackedClip], alone: list[Refined], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when it happens long after: what it writes is what was true when it was asked for."""
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2})
    write = files.write_bytes
    written: dict[str, list[bytes]] = {}

    def note(location: files.Location, data: bytes) -> None:
        if str(location).endswith(FILE):
            written.setdefault(str(location).replace("late", "direct"), []).append(data)
        write(location, data)

    monkeypatch.setattr(files, "write_bytes", note)
    for name, uploads in (("direct", None), ("late", Late())):
        batch = [ready(clip, tmp_path / name / clip.identity, settings) for clip in people[:2]]
        written.clear()
        outcomes = refine(batch, settings, uploads=uploads)
        if isinstance(uploads, Late):
            uploads.catch_up()
        for outcome, expected in zip(outcomes, alone):
            assert_same(outcome, expected)
        if uploads is None:
            expected_bytes = dict(written)
            assert [len(set(contents)) for contents in written.values()] == [5, 5]  # after 2, 4, .. 10 iterations
    assert written == expected_bytes
    for clip in people[:2]:
        # beside a checkpoint the log as it was then: what follows is done again by a run that goes on
        lines = log_without_time((tmp_path / "late" / clip.identity / LOG).read_bytes())
        assert [line["iteration"] for line in lines] == [4, 8]


@pytest.mark.usefixtures("no_time")
def test_a_stop_waits_for_what_is_written_in_the_background(people: list[TrackedClip], tmp_path: Path) -> None:
    contents = []
    for uploads in (None, Late()):
        folder = tmp_path / type(uploads).__name__
        batch = [ready(clip, folder / clip.identity) for clip in people[:2]]
        stopped(batch, 7, uploads=uploads)
        contents.append([(folder / clip.identity / FILE).read_bytes() for clip in people[:2]])
    assert contents[0] == contents[1]


REFUSALS = [
    StoreError("the store did not answer"),
    OSError(28, "No space left on device"),
    SpatialAvatarError("no such bucket or folder"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda e: type(e).__name__)
def test_a_store_that_refuses_a_checkpoint(
    people: list[TrackedClip],
    alone: list[Refined],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Exception,
) -> None:
    """Costs the checkpoint when it is written in the background; else the subject, and nobody else."""
    write = files.write_bytes
    refused = []

    def refuse(location: files.Location, data: bytes) -> None:
        if str(location) == str(files.join(tmp_path / people[0].identity, FILE)):
            refused.append(location)
            raise refusal
        write(location, data)

    monkeypatch.setattr(files, "write_bytes", refuse)
    batch = [ready(clip, tmp_path / clip.identity) for clip in people[:2]]
    with ThreadPoolExecutor(1) as lane:
        outcomes = refine(batch, uploads=lane)
        assert_same(outcomes[0], alone[0])
        assert_same(outcomes[1], alone[1])
        for folder in (tmp_path / clip.identity for clip in people[:2]):
            files.remove(folder)
        stopped(batch, 7, uploads=lane)
    assert len(refused) == 4 and not (tmp_path / people[0].identity / FILE).exists()
    assert checkpoints.load_checkpoint(batch[1].folder, batch[1].inputs).iteration == 7
    files.remove(tmp_path / people[1].identity)
    outcomes = refine(batch)
    assert outcomes[0] is refusal
    assert_same(outcomes[1], alone[1])


def test_time_is_shared_among_those_that_are_there(
    people: list[TrackedClip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that ticks at every look, twice an iteration: a subject's seconds are its share, and none is lost."""
    ticks = [0.0]

    def tick() -> float:
        ticks[0] += 1.0
        return ticks[0]

    monkeypatch.setattr(batches, "time", SimpleNamespace(perf_counter=tick))
    outcomes = refine([ready(clip, tmp_path / clip.identity) for clip in people[:2]])
    seconds = [outcome.seconds for outcome in outcomes if isinstance(outcome, Refined)]
    assert seconds == [12.0, 12.0]  # of twelve iterations


@pytest.mark.parametrize("settings", [TIGHT, SETTINGS], ids=["drawn", "preloaded"])
def test_an_error_does_not_keep_the_batch(people: list[TrackedClip], tmp_path: Path, settings: RefineConfig) -> None:
    """Frames and meshes go with the last name for them; nobody has to look for cycles."""

    def read(frame: Any) -> Any:
        try:
            raise KeyError(frame)  # one that the error was made from holds as much
        except KeyError:
            raise SpatialAvatarError("is gone") from None

    batch = [ready(people[0], tmp_path / "0", settings), ready(people[1], tmp_path / "1", settings)]
    damaged = replace(people[1], read_frame=read)
    batch[1] = ready(damaged, tmp_path / "1", settings)
    held = [weakref.ref(prepared.subject) for prepared in batch]
    gc.collect()
    gc.disable()
    try:
        outcomes = refine(batch, settings)
        del batch
        assert isinstance(outcomes[1], SpatialAvatarError) and held[1]() is None
        del outcomes
        assert held[0]() is None
    finally:
        gc.enable()


def test_progress_tells_who_it_is_and_where_this_run_began(people: list[TrackedClip], tmp_path: Path) -> None:
    batch = [ready(clip, tmp_path / clip.identity) for clip in people]
    stopped(batch[:1], 7)
    stopped(batch[2:], 4)
    truncated(tmp_path / people[0].identity)
    seen = []
    outcomes = refine(batch, observe=lambda ps: seen.append([(p.place, p.first, p.iteration) for p in ps]))
    assert isinstance(outcomes[0], SpatialAvatarError)
    assert seen[0] == [(1, 0, 0), (2, 4, 4)] and seen[8] == [(1, 0, 8), (2, 4, 12)]
    assert seen[9:] == [[(1, 0, t)] for t in range(9, 13)]
