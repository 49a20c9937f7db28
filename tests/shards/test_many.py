"""A hundred thousand clips: listed, resumed, sampled in the memory of a small machine."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from spatialavatar.head import write_head
from spatialavatar.head.model import ARRAYS
from spatialavatar.shards.ingest_config import IngestConfig, claim_output, settings_hash
from spatialavatar.shards.records import write_record
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.shards import tiny_take, write_shard

PEOPLE, TAKES, PER_SHARD, UNDONE = 1000, 100, 64, 10
CLIPS = PEOPLE * TAKES
MEMORY = 2e9  # bytes of the process that plans, hands out and draws; what a worker takes is its clips' affair

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc"),
]


class DataSet(NamedTuple):
    source: Path
    output: Path
    head: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataSet]:
    """An interrupted ingest: a hundred thousand folders, records of all but the last few.

    The first shard is a true one; of the others there is the record alone, as a listing sees them.
    """
    place = tmp_path_factory.mktemp("many")
    made = DataSet(place / "source", place / "out", place / "tiny.head.safetensors")
    head = tiny_head()
    write_head(made.head, head.info, {name: getattr(head, name).numpy() for name in ARRAYS})
    keys = [f"person{p:04d}/take{t:02d}" for p in range(PEOPLE) for t in range(TAKES)]
    for key in keys[:-UNDONE]:  # never opened again: their names are enough
        os.makedirs(f"{made.source}/{key}")
        os.mknod(f"{made.source}/{key}/clip.json")
    for key in keys[-UNDONE:]:
        tiny_clip(made.source / key, instants=2, width=8, height=8, has_region=False)
    config = IngestConfig(source=str(made.source), output=str(made.output), head=str(made.head))
    claim_output(config, config.settings(head))
    settings = settings_hash(config.settings(head))
    takes = [tiny_take(seed, instants=2, width=8, height=8) for seed in range(3)]
    first = write_shard(made.output, "s000000", {key: takes[n % 3] for n, key in enumerate(keys[:PER_SHARD])})
    records = []
    for start in range(0, CLIPS - UNDONE, PER_SHARD):
        shard, held = f"s{start:06d}", keys[start : min(start + PER_SHARD, CLIPS - UNDONE)]
        entries = [
            dataclasses.replace(
                entry, key=key, shard=shard, identity=entry.identity if start == 0 else key.split("/")[0]
            )
            for entry, key in zip(first.entries, held)
        ]
        records.append(dataclasses.replace(first, shard=shard, entries=tuple(entries), settings=settings))
        write_record(made.output, records[-1])
    yield made
    shutil.rmtree(place)


RESUME = """
from ray_jobs.connect import connect
from ray_jobs.ingest import on_ray
from spatialavatar.shards.ingest import ingest
from spatialavatar.shards.ingest_config import IngestConfig
connect("local", 2)
config = IngestConfig(source=source, output=output, head=head)
planned = []
def run(work):
    planned.extend(key for group in work.groups for item in group.items for key in item.keys)
    return on_ray(work, 2)
summary = ingest(config, run)
answer = {"planned": planned, "clips": summary.clips, "rejected": summary.rejected, "new": summary.converted}
"""

DRAW = """
from spatialavatar.head import read_head
from spatialavatar.shards.manifest import open_shards
from spatialavatar.training.config import ShardData
from spatialavatar.training.samplers import clip_of
from spatialavatar.training.shard_pool import ShardPool
parts = {part: ShardPool(ShardData(url=output, part=part), read_head(head), 0.1, 1)
         for part in ("all", "train", "held_out")}
pool = parts["all"]
epochs = [[clip_of(e * len(pool) + visit, len(pool), 0) for visit in range(len(pool))] for e in range(2)]
known = {pool.name(clip).split("#")[1]: clip for clip in range(0, len(pool), 499)}
read = [pool.facts(clip).instants for clip in range(0, 70, 7)]  # of the shards whose files are there
answer = {"clips": {part: len(pool) for part, pool in parts.items()},
          "complete": [sorted(epoch) == list(range(len(pool))) for epoch in epochs],
          "differ": epochs[0] != epochs[1], "names": len(known), "read": read}
shards = open_shards(output)
answer["shards"] = {"clips": len(shards), "people": len(set(shards.column("identity"))),
                    "found": shards.entry(shards.find("person0999/take99")).key}
"""


def run(script: str, data: DataSet, root: Path) -> tuple[dict[str, Any], float]:
    """What the script calls its ``answer``, and the most memory that its process had."""
    begin = "import json, re, sys; source, output, head = sys.argv[1:]\n"
    # the peak that the system keeps of the children counts what their parent had when it started them
    end = "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]\n"
    end += "print(json.dumps([answer, peak]))"
    environment = {**os.environ, "PYTHONPATH": str(root), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""}
    done = subprocess.run(
        [sys.executable, "-c", begin + script + end, *map(str, data)],
        cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer, kilobytes = json.loads(done.stdout.splitlines()[-1])
    return answer, 1024 * int(kilobytes)


def test_an_ingest_goes_on_and_a_training_draws(folder: DataSet, pytestconfig: pytest.Config) -> None:
    answer, peak = run(RESUME, folder, pytestconfig.rootpath)
    assert answer["planned"] == [f"person0999/take{n}" for n in range(90, 100)]
    assert (answer["clips"], answer["rejected"], answer["new"]) == (CLIPS, 0, UNDONE)
    assert peak < MEMORY
    answer, peak = run(DRAW, folder, pytestconfig.rootpath)
    assert answer["shards"]["clips"] == CLIPS and answer["shards"]["found"] == "person0999/take99"
    parts = answer["clips"]
    assert parts["all"] == CLIPS == parts["train"] + parts["held_out"] and 0 < parts["held_out"] < 0.1 * CLIPS
    assert answer["complete"] == [True, True] and answer["differ"]
    assert answer["names"] == len(range(0, CLIPS, 499)) and answer["read"] == [[0, 1]] * 10
    assert peak < MEMORY
