"""Fleets of tiny subjects: their clips, the driver as a job of its own, and work that ends its process when told to."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from spatialavatar import files, tensor_files
from spatialavatar.clip import FrameIndex, TrackedClip
from spatialavatar.clip.header import HEADER_FILE
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.synthetic import synthesize_capture
from spatialavatar.clip.writer import save_clip, write_synthetic
from spatialavatar.config import load_config
from spatialavatar.fleet.config import FleetConfig
from spatialavatar.fleet.pipeline import Job, Pipeline
from spatialavatar.fleet.records import Record
from spatialavatar.fleet.subjects import FleetSubject, read_subjects
from spatialavatar.fleet.work import RefineWork
from spatialavatar.head import HeadModel
from spatialavatar.processors import use_threads
from tests.builders.clips import tiny_clip
from tests.builders.train_jobs import ROOT, started

KILLER = "ends-its-process"
# everything that a refinement does, within a few iterations
SETTINGS = {
    "refine": {
        "iterations": 12,
        "resolution": 32,
        "uv_resolution": 24,
        "checkpoint_every": 5,
        "log_every": 4,
        "anti_spike": {"scale_freeze_iterations": 3, "clamp_from": 3, "aspect_from": 3},
    },
    "gate": {"min_psnr": None},
    "attempts": {"errors": 2, "crashes": 3},
}


def settings(subjects: str, output: str, head: str, **changes: Any) -> FleetConfig:
    given = {**SETTINGS, "subjects": subjects, "output": output, "head": head, **changes}
    return load_config(FleetConfig).model_validate(given)


def tiny_subjects(folder: str, count: int) -> list[str]:
    """Places of clips that differ."""
    names = [f"c{number:02d}" for number in range(count)]
    for number, name in enumerate(names):
        tiny_clip(f"{folder}/{name}", instants=5, width=32, height=32, test_from=3, seed=number)
    return names


def poison(folder: str) -> dict[str, str]:
    """Clips that cannot be refined, and what must be said of each."""
    for number, name in enumerate(("not-a-number", "corrupt-image", "wrong-head", KILLER)):
        tiny_clip(f"{folder}/{name}", instants=4, width=32, height=32, test_from=3, seed=40 + number)
    params = files.join(folder, "not-a-number", "params.safetensors")
    arrays, metadata = tensor_files.read_tensors(params)
    arrays = {name: array.copy() for name, array in arrays.items()}
    arrays["expression"][1, 2] = float("nan")
    tensor_files.write_tensors(params, arrays, {**metadata, "hash": tensor_files.content_hash(arrays)})
    files.write_bytes(files.join(folder, "corrupt-image", "images/000002.jpg"), b"\xff\xd8 no picture")
    header = files.read_json(files.join(folder, "wrong-head", HEADER_FILE))
    header["head"]["hash"] = "0" * 64
    files.write_json(files.join(folder, "wrong-head", HEADER_FILE), header)
    return {
        "not-a-number": "expression",
        "corrupt-image": "images/000002.jpg",
        "wrong-head": "made with head",
        "empty": "no such folder",
        KILLER: "ended the process that refined it",
    }


def write_manifest(location: str, clips: dict[str, str]) -> str:
    rows = [json.dumps({"id": id, "clip": clip}) + "\n" for id, clip in clips.items()]
    files.write_bytes(location, "".join(rows).encode())
    return location


class FragileWork(RefineWork):
    """Ends its process when it meets one subject."""

    def prepare(self, job: Job) -> Any:
        if job.subject.id == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(job)


DRIVER = """
    import ray_jobs.refine
    from ray_jobs.command import run
    from tests.builders.fleet import FragileWork
    ray_jobs.refine.make_work = FragileWork
    run(ray_jobs.refine.app, "ray_jobs.refine")
"""


@contextlib.contextmanager
def driver(config: FleetConfig, folder: Path, address: str | None, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """``python -m ray_jobs.refine`` with work that a subject can end; killed at the end if it is still there."""
    file = folder / "fleet.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), "--config", str(file), *options]
    command += ["--address", address] if address else []
    with started(command) as process:
        yield process


def undisturbed(config: FleetConfig, subjects: list[FleetSubject], out: str) -> dict[str, Record]:
    """The records that one process makes of the subjects, one after the other, without Ray."""
    from ray_jobs.refine import instruments

    given = instruments(config, read_subjects(config.subjects, config.allow))
    given = replace(given, config=given.config.model_copy(update={"output": out}))
    pipeline = Pipeline(lambda uploads: RefineWork(given, "cpu", uploads), lambda: use_threads(1))
    report = pipeline.refine([Job(subject, given.recipe.name(subject), 1) for subject in subjects])
    records = {outcome.id: outcome.record for outcome in report.outcomes}
    assert all(records.values()), [outcome.reason for outcome in report.outcomes]
    return records  # type: ignore[return-value]


def refiners(address: str) -> list[psutil.Process]:
    """Processes of a fleet's workers on the machines here of the cluster at an address."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("Refiner" in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                raylet = process.parent()
                if raylet is not None and any(word.endswith(f"={address}") for word in raylet.cmdline()):
                    found.append(process)
    return found


def kill_one(address: str, chance: random.Random) -> bool:
    """One of the workers, whatever it does."""
    there = refiners(address)
    if not there:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        chance.choice(there).kill()
    return True


MACHINES = """
    import sys
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
    nodes = []
    def add():
        nodes.append(cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=80 * 2**20))
    add()
    add()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            add()
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        print(line.strip(), flush=True)
    cluster.shutdown()
"""


@contextlib.contextmanager
def machines() -> Iterator[tuple[str, Callable[[str], None]]]:
    """A cluster of two machines with a made-up GPU each; its address, and what takes 'add' and 'remove'."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(MACHINES)],
        cwd=ROOT, env={**os.environ, "RAY_ADDRESS": ""}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    inlet, outlet = process.stdin, process.stdout

    def tell(command: str) -> None:
        inlet.write(f"{command}\n")
        inlet.flush()
        assert outlet.readline().strip() == command

    try:
        yield outlet.readline().strip(), tell
    finally:
        inlet.close()
        process.wait(60)


def pieces_of(clip: TrackedClip, folder: str, count: int, frames: int, test_last: int) -> list[str]:
    """A clip cut into ``count`` clips of ``frames`` instants, from its beginning; their names."""
    names = [f"piece{number}" for number in range(count)]
    for number, name in enumerate(names):
        first = number * (clip.instants // count)
        rows = slice(first, first + frames)

        def frame(instant: int, camera: int, first: int = first) -> EncodedFrame:
            return clip.encoded(FrameIndex(first + instant, camera))

        header = replace(
            clip.header, identity=f"{clip.identity}-{number}", instants=frames, test_from=frames - test_last
        )
        part = replace(
            clip,
            header=header,
            params=clip.params[rows],
            world_to_camera=clip.world_to_camera[rows],
            intrinsics=clip.intrinsics[rows],
            face_box=None if clip.face_box is None else clip.face_box[rows],
            landmarks=None if clip.landmarks is None else clip.landmarks[rows],
            read_frame=lambda index, frame=frame: frame(*index),
        )
        save_clip(part, f"{folder}/{name}")
    return names


def synthetic_people(head: HeadModel, folder: str, count: int, frames: int, size: int, test_last: int) -> list[str]:
    names = [f"person{number}" for number in range(count)]
    for number, name in enumerate(names):
        capture = synthesize_capture(head, identity=number, motion=number, frames=frames, size=size)
        write_synthetic(capture, head, f"{folder}/{name}", test_from=frames - test_last)
    return names
