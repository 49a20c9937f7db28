"""The work of a fleet in one process: from the same given things, the same avatars, whatever happens on the way."""

import gc
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.refine import instruments
from spatialavatar import files
from spatialavatar.avatar import read_avatar
from spatialavatar.avatar.folder import LOG, METRICS
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet import device as device_module
from spatialavatar.fleet import work as work_module
from spatialavatar.fleet.pipeline import Broken, Job, OutOfMemory, Stopped
from spatialavatar.fleet.records import THUMBNAIL, UNFINISHED, Record, read_records
from spatialavatar.fleet.subjects import read_subjects
from spatialavatar.fleet.work import Instruments, Measured, Ready, RefineWork
from spatialavatar.generator.checkpoint import write_generator
from spatialavatar.refine.checkpoint import FILE
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.fleet import settings
from tests.builders.generators import awaken, tiny_generator
from tests.builders.lpips import random_alexnet
from tests.refine.test_batch import Late

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"anna": (48, 32), "ben": (32, 32), "cleo": (48, 32)}
ITERATIONS = 12


def made(folder: Path, **changes: Any) -> Instruments:
    """As the driver makes it, of the clips in a folder."""
    head = folder / "tiny.head.safetensors"
    tiny_head()
    files.write_bytes(head, files.read_bytes("memory://builders/tiny.head.safetensors"))
    config = settings(str(folder / "clips"), str(folder / "out"), str(head), **changes)
    refine = config.refine.model_copy(update={"resolution": 48})
    given = instruments(config.model_copy(update={"refine": refine}), read_subjects(config.subjects))
    return replace(given, lpips=random_alexnet())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    for seed, (name, (width, height)) in enumerate(SIZES.items()):
        tiny_clip(folder / "clips" / name, instants=5, width=width, height=height, test_from=3, seed=seed)
    write_generator(folder / "generator.safetensors", awaken(tiny_generator(tiny_head())), {})
    return folder


@pytest.fixture(scope="module")
def template(folder: Path) -> Instruments:
    return made(folder)


@pytest.fixture(scope="module")
def generator(folder: Path) -> Instruments:
    return made(folder, checkpoint=str(folder / "generator.safetensors"))


def elsewhere(given: Instruments, out: Path) -> Instruments:
    """With an output of its own; what a worker gets of it."""
    sent = replace(given, config=given.config.model_copy(update={"output": str(out)}))
    received: Instruments = pickle.loads(pickle.dumps(sent))
    return received


def jobs(given: Instruments, ids: Sequence[str]) -> list[Job]:
    subjects = {subject.id: subject for subject in read_subjects(given.config.subjects).subjects}
    return [Job(subjects[id], given.recipe.name(subjects[id]), 1) for id in ids]


def never() -> bool:
    return False


class Fleet:
    """One worker, called as its lanes call it."""

    def __init__(self, given: Instruments, out: Path, uploads: Any = None) -> None:
        self.given = elsewhere(given, out)
        self.work = RefineWork(self.given, "cpu", uploads or Late())

    def ready(self, *ids: str) -> list[Ready]:
        return [self.work.prepare(job) for job in jobs(self.given, ids)]

    def refine(self, *ids: str) -> list[Record]:
        outcomes, _ = self.work.optimise(self.ready(*ids), never)
        return [self.deliver(id, outcome) for id, outcome in zip(ids, outcomes)]

    def deliver(self, id: str, outcome: Measured | Exception) -> Record:
        assert isinstance(outcome, Measured), outcome
        [job] = jobs(self.given, [id])
        return self.work.deliver(job, outcome)

    def unfinished(self, id: str) -> Path:
        return Path(self.given.config.output) / UNFINISHED / jobs(self.given, [id])[0].name


def without_time(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in ("seconds", "finished")}


@pytest.fixture(scope="module")
def alone(template: Instruments, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """What each becomes by itself, undisturbed."""
    out = tmp_path_factory.mktemp("alone")
    return {id: Fleet(template, out).refine(id)[0] for id in SIZES}


def test_sizes_may_be_mixed(template: Instruments, alone: dict[str, Record], tmp_path: Path) -> None:
    """Each avatar, whose place is named by its content, and its metrics are those that it gets alone."""
    fleet = Fleet(template, tmp_path)
    outcomes, timing = fleet.work.optimise(fleet.ready(*SIZES), never)
    for id, outcome in zip(SIZES, outcomes):
        assert without_time(fleet.deliver(id, outcome)) == without_time(alone[id])
    assert timing.together == 2 and timing.seconds is None and timing.memory > 0  # too few iterations to be timed
    assert len({record["avatar"].split(".")[1] for record in alone.values()}) == 3


def test_the_time_is_that_of_the_largest_part(
    template: Instruments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes faster the larger the pictures are."""
    monkeypatch.setattr(work_module, "_TIMED", ITERATIONS)
    ticks, sizes = [0.0], []
    refine = work_module.refine_batch

    def noting(batch: Any, *args: Any, **options: Any) -> Any:
        sizes.append(batch[0].subject.height)
        return refine(batch, *args, **options)

    def tick() -> float:
        ticks[0] += sizes[-1]
        return ticks[0]

    monkeypatch.setattr(work_module, "refine_batch", noting)
    monkeypatch.setattr(work_module.time, "perf_counter", tick)
    fleet = Fleet(template, tmp_path)
    ready = fleet.ready("ben", "anna", "cleo")
    monkeypatch.setattr(fleet.work, "_measured", lambda refined, residual: ValueError())
    _, timing = fleet.work.optimise(ready, never)
    # two looks at the clock of refine_batch between two of observe
    assert sizes == [32, 48] and timing.seconds == 3 * 32 / 2


def test_what_is_kept_of_a_subject(template: Instruments, folder: Path, tmp_path: Path) -> None:
    fleet = Fleet(template, tmp_path)
    [record] = fleet.refine("ben")
    [job] = jobs(fleet.given, ["ben"])
    assert dict(read_records(str(tmp_path), [job.name])) == {job.name: record}
    assert (record["id"], record["attempts"], record["iterations"]) == ("ben", 1, ITERATIONS)
    assert record["digest"] == template.recipe.digest(job.subject) and record["clip"] == job.subject.clip
    assert (record["config_hash"], record["layout_fingerprint"]) == (
        template.recipe.config_hash,
        template.recipe.layout_fingerprint,
    )
    assert record["identity"] == "tiny1" and record["worker"].endswith("CPU") and record["seconds"] > 0
    metrics = record["metrics"]
    assert metrics["lpips"] > 0 and metrics["frames"] == 2 and metrics["worst_psnr"] <= metrics["psnr"]
    place = tmp_path / record["avatar"]
    assert files.read_json(place / METRICS)["psnr"] == metrics["psnr"]
    assert (place / THUMBNAIL).read_bytes()[:2] == b"\xff\xd8"
    lines = (place / LOG).read_text().splitlines()
    assert len(lines) == 3
    avatar = read_avatar(place)
    assert avatar.provenance["start"] == "template"
    found = os.path.normpath(place / avatar.provenance["head_file"])
    assert found == str(folder / "tiny.head.safetensors")
    assert not fleet.unfinished("ben").exists()


def test_from_a_generator(generator: Instruments, alone: dict[str, Record], tmp_path: Path) -> None:
    records = [Fleet(generator, tmp_path / name).refine("anna", "cleo") for name in "ab"]
    assert [without_time(r) for r in records[0]] == [without_time(r) for r in records[1]]
    assert records[0][0]["avatar"] != alone["anna"]["avatar"]
    assert generator.generator is not None
    started = read_avatar(tmp_path / "a" / records[0][0]["avatar"]).provenance
    assert started["start"].startswith(f"generator {generator.generator.facts.hash[:12]} from frames ")
    assert started["started_from"]["generator"]["hash"] == generator.generator.facts.hash


def stop_after(looks: int) -> Callable[[], bool]:
    """At the start of a part and after each of its iterations, the zeroth too, somebody looks."""
    left = [looks]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return stop


@pytest.mark.parametrize("start", ["template", "generator"])
def test_another_worker_goes_on(start: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """From checkpoints that the first one left; its progress counts from there."""
    given: Instruments = request.getfixturevalue(start)
    undisturbed = Fleet(given, tmp_path / "undisturbed").refine("anna", "cleo")
    first = Fleet(given, tmp_path / "stopped")
    outcomes, _ = first.work.optimise(first.ready("anna", "cleo"), stop_after(8))
    assert all(isinstance(outcome, Stopped) for outcome in outcomes)
    assert all((first.unfinished(id) / FILE).exists() for id in ("anna", "cleo"))

    second, seen = Fleet(given, tmp_path / "stopped"), []
    outcomes, _ = second.work.optimise(second.ready("anna", "cleo"), lambda: bool(seen.append(second.work.progress())))
    records = [second.deliver(id, outcome) for id, outcome in zip(("anna", "cleo"), outcomes)]
    assert [without_time(r) for r in records] == [without_time(r) for r in undisturbed]
    assert seen[1:] == pytest.approx([2 * t / ITERATIONS for t in range(ITERATIONS - 7 + 1)])
    assert second.work.progress() == 0.0


def test_progress_counts_those_that_are_through(template: Instruments, tmp_path: Path) -> None:
    """One that was resumed ends before the other, and a part of another size comes after both."""
    fleet = Fleet(template, tmp_path)
    fleet.work.optimise(fleet.ready("anna"), stop_after(8))
    seen: list[float] = []
    fleet.work.optimise(fleet.ready(*SIZES), lambda: bool(seen.append(fleet.work.progress())))
    assert seen == sorted(seen) and seen[-1] == pytest.approx(2 + 5 / ITERATIONS)


def test_a_stop_keeps_the_part_that_is_finished(
    template: Instruments, alone: dict[str, Record], tmp_path: Path
) -> None:
    fleet = Fleet(template, tmp_path)
    outcomes, _ = fleet.work.optimise(fleet.ready(*SIZES), stop_after(2 + ITERATIONS))
    assert isinstance(outcomes[1], Stopped)
    for id, outcome in zip(("anna", "cleo"), outcomes[::2]):
        assert without_time(fleet.deliver(id, outcome)) == without_time(alone[id])


def failing(monkeypatch: pytest.MonkeyPatch, identity: str, error: Exception) -> None:
    evaluate = work_module.evaluate

    def fail(renderer: Any, clip: Any, *args: Any, **options: Any) -> Any:
        if clip.identity == identity:
            raise error
        return evaluate(renderer, clip, *args, **options)

    monkeypatch.setattr(work_module, "evaluate", fail)


def test_one_that_cannot_be_measured(
    template: Instruments, alone: dict[str, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ValueError("no such thing")
    failing(monkeypatch, "tiny0", error)
    fleet = Fleet(template, tmp_path)
    outcomes, _ = fleet.work.optimise(fleet.ready("anna", "cleo"), never)
    assert outcomes[0] is error and error.__traceback__ is None
    assert without_time(fleet.deliver("cleo", outcomes[1])) == without_time(alone["cleo"])


FATAL = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried ...", OutOfMemory, "lower refine.resolution"),
    (RuntimeError, "CUDA error: an illegal access", Broken, "RuntimeError: CUDA error: an illegal access"),
]


@pytest.mark.parametrize(("error", "text", "kind", "said"), FATAL)
@pytest.mark.parametrize("where", ["prepare", "optimise", "measure"])
def test_errors_of_the_device(
    template: Instruments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: type[Exception],
    text: str,
    kind: type[Exception],
    said: str,
) -> None:
    """Are told apart, and what took the memory is gone before the device is asked to free it."""
    fleet = Fleet(template, tmp_path)
    taken: list[weakref.ref[Any]] = []
    freed = []

    def fail(*args: Any, **options: Any) -> Any:
        tensor = torch.zeros(3)
        taken.append(weakref.ref(tensor))
        raise error(text)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(taken[0]() is None))
    ready = [] if where == "prepare" else fleet.ready("anna")
    name = {"prepare": "prepare", "optimise": "refine_batch", "measure": "evaluate"}[where]
    monkeypatch.setattr(work_module, name, fail)
    with pytest.raises(kind, match=said):
        fleet.ready("anna") if where == "prepare" else fleet.work.optimise(ready, never)
    assert freed == ([True] if kind is OutOfMemory else [])


def test_other_errors_stay_what_they_are(
    template: Instruments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(template, tmp_path)
    for error in (RuntimeError("shapes differ"), SpatialAvatarError("damaged")):

        def fail(*args: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(work_module, "prepare", fail)
        with pytest.raises(type(error), match=str(error)):
            fleet.ready("anna")


def test_delivery_needs_no_device(template: Instruments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is of no more use would make its subjects look bad."""
    fleet = Fleet(template, tmp_path)
    [refined], _ = fleet.work.optimise(fleet.ready("ben"), never)
    monkeypatch.setattr(fleet.work, "_device", None)
    assert fleet.deliver("ben", refined)["worker"].endswith(" CPU")


def test_what_waits_for_delivery_holds_no_frames(template: Instruments, tmp_path: Path) -> None:
    fleet = Fleet(template, tmp_path)
    ready = fleet.ready("anna", "ben")
    frames = [weakref.ref(one.prepared.subject) for one in ready]
    gc.collect()
    gc.disable()
    try:
        outcomes, _ = fleet.work.optimise(ready, never)
        del ready
        assert all(isinstance(outcome, Measured) for outcome in outcomes)
        assert [frame() for frame in frames] == [None, None]
    finally:
        gc.enable()


def test_checkpoints_on_their_way_do_not_come_back(template: Instruments, tmp_path: Path) -> None:
    """One that is written late is written before the subject's checkpoints are removed."""
    uploads = Late()
    fleet = Fleet(template, tmp_path, uploads)
    [outcome], _ = fleet.work.optimise(fleet.ready("anna"), never)
    late = fleet.unfinished("anna") / "late"
    uploads.submit(files.write_bytes, late, b"a checkpoint")
    fleet.deliver("anna", outcome)
    uploads.catch_up()
    assert not fleet.unfinished("anna").exists()


def test_checkpoints_are_written_in_the_lane_for_them(
    template: Instruments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    write = files.write_bytes

    def note(location: files.Location, data: bytes) -> None:
        if str(location).endswith(FILE):
            threads.add(threading.current_thread().name)
        write(location, data)

    monkeypatch.setattr(files, "write_bytes", note)
    with ThreadPoolExecutor(1, "uploads") as lane:
        Fleet(template, tmp_path, lane).refine("anna")
    assert threads == {"uploads_0"}


def test_the_template_is_made_on_the_cpu(
    template: Instruments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where checkpoints of one kind of worker must fit another's, and heads are copied once for a worker."""
    heads, rendered = [], []
    start, renderer = work_module.template_start, work_module.AvatarRenderer

    def note_start(head: Any, *args: Any) -> Any:
        heads.append(head)
        return start(head, *args)

    def note_renderer(avatar: Any, head: Any, device: Any) -> Any:
        rendered.append(head)
        return renderer(avatar, head, device)

    monkeypatch.setattr(work_module, "template_start", note_start)
    monkeypatch.setattr(work_module, "AvatarRenderer", note_renderer)
    given = elsewhere(template, tmp_path)
    work = RefineWork(given, "cpu:0", Late())  # another device by name: the worker has a head of its own there
    assert work._head is not given.head and heads == [given.head]
    work.optimise([work.prepare(job) for job in jobs(given, ["anna"])], never)
    assert rendered == [work._head]


def test_a_device_has_the_name_that_its_tensors_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert device_module.with_index(torch.device("cuda")) == torch.device("cuda:3")
    assert device_module.with_index(torch.device("cuda:1")) == torch.device("cuda:1")
    assert device_module.with_index(torch.device("cpu")) == torch.device("cpu")
