"""The whole path on an S3 store that fails: folders to shards to batches; nothing lost, doubled, or other than on a
disk."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatialavatar import files, store
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.shards.convert import Converted
from spatialavatar.shards.ingest import IngestSummary, Work, ingest
from spatialavatar.shards.ingest_config import IngestConfig
from spatialavatar.shards.manifest import open_shards
from spatialavatar.shards.records import read_records
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.packed_batch import PackedBatch
from spatialavatar.training.pool import open_pool
from spatialavatar.training.stream import batches
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.store import EVERY, Fault, FaultyStore
from tests.builders.trackers.npz import npz_folder
from tests.builders.training import tiny_batches

HEAD = "memory://builders/tiny.head.safetensors"
EXPECTED = IngestSummary(clips=5, rejected=1, converted=5, frames=3 * 2 + 2 * 2 + 5, left=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of ours, one of them of two cameras, a tracker's folder and a damaged one."""
    folder = tmp_path_factory.mktemp("source")
    for seed in range(3):
        tiny_clip(folder / f"ours/{seed}", seed=seed, instants=2)
    tiny_clip(folder / "ours/pair", instants=2, cameras=2, seed=7)
    npz_folder(folder / "tracked/whole")
    damaged = npz_folder(folder / "tracked/damaged") / "images/000012.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def on_disk(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ingest makes of them on a disk."""
    output = tmp_path_factory.mktemp("shards") / "out"
    assert ingest(config_for(str(source), str(output))) == EXPECTED
    return output


@pytest.fixture
def in_store(source: Path, s3_bucket: str, faulty_store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> IngestConfig:
    """The same folders in a bucket, on a store that is asked again soon."""
    monkeypatch.setattr(store, "RETRY_AFTER", (0.001,) * 3)
    monkeypatch.setattr(store, "S3_CLIENT", {"retries": {"total_max_attempts": 1}, "read_timeout": 0.5})
    for path in source.rglob("*"):
        if path.is_file():
            faulty_store.put(f"{s3_bucket}/raw/{path.relative_to(source)}", path.read_bytes())
    return config_for(f"{s3_bucket}/raw", f"{s3_bucket}/shards")


def config_for(source: str, output: str) -> IngestConfig:
    tiny_head()
    return IngestConfig(source=source, output=output, head=HEAD, clips_per_shard=2)


def check_equal(output: str, on_disk: Path) -> None:
    """The store holds, byte for byte, what the disk does."""
    names = files.list_folder(on_disk / "shards")
    assert files.list_folder(f"{output}/shards") == names and len(names) == 6
    for name in [*(f"shards/{name}" for name in names if name.endswith(".parquet")), "manifest.parquet"]:
        assert files.read_bytes(f"{output}/{name}") == (on_disk / name).read_bytes(), name
    here, there = open_shards(output), open_shards(on_disk)
    assert here.column("key").tolist() == there.column("key").tolist()
    assert [r.key for r in here.rejected] == [r.key for r in there.rejected] == ["tracked/damaged"]
    for number in range(len(there)):
        a, b = here.clip(number), there.clip(number)
        assert a.header == b.header
        assert all(np.array_equal(array, b.arrays()[name]) for name, array in a.arrays().items())
        assert [a.encoded(i) for i in a.header.frames()] == [b.encoded(i) for i in b.header.frames()]


def every(step: int, count: int, *kinds: Fault) -> list[Fault]:
    """``count`` faults, one in ``step`` requests, of the given kinds in turn."""
    return [Fault(**{**vars(kinds[n % len(kinds)]), "skip": n * (step - 1)}) for n in range(count)]


ALL_KINDS = (
    Fault("answer"),
    Fault("cut", method="GET"),
    Fault("answer", status=500),
    Fault("drop", times=2),
    Fault("cut", method="GET", keep=0.0),
)


@pytest.mark.slow
def test_what_a_sound_store_gets(in_store: IngestConfig, on_disk: Path) -> None:
    assert ingest(in_store) == EXPECTED
    check_equal(in_store.output, on_disk)
    assert ingest(in_store) == IngestSummary(clips=5, rejected=1, converted=0, frames=0, left=0)


def test_faults_all_along_change_nothing(in_store: IngestConfig, on_disk: Path, faulty_store: FaultyStore) -> None:
    faulty_store.inject(*every(5, 40, *ALL_KINDS))
    assert ingest(in_store) == EXPECTED
    assert faulty_store.pending() < 20  # most of them struck
    faulty_store.heal()
    check_equal(in_store.output, on_disk)


def test_a_store_that_goes_down_leaves_whole_shards_only(
    in_store: IngestConfig, on_disk: Path, faulty_store: FaultyStore
) -> None:
    """The store goes down ever later; each run goes on where the one before it ended."""
    done: set[str] = set()
    for served in (0, 35, 70):
        faulty_store.heal()
        faulty_store.inject(Fault("answer", EVERY, skip=served))
        try:
            ingest(in_store)
        except StoreError as e:
            assert "run the same command again" in str(e) and "\n" not in str(e)
        else:
            break
        faulty_store.heal()
        if served:
            records = read_records(in_store.output)
            assert done <= {record.shard for record in records}
            done |= {record.shard for record in records}
            for record in records:
                stored = f"shards/{record.shard}.parquet"
                assert files.read_bytes(f"{in_store.output}/{stored}") == (on_disk / stored).read_bytes()
            with pytest.raises(SpatialAvatarError, match=r"not finished|no data set"):
                open_shards(in_store.output)
    assert done  # it did go down half-way
    faulty_store.heal()
    ingest(in_store)
    check_equal(in_store.output, on_disk)


@pytest.mark.slow
def test_an_upload_that_never_ends_is_no_shard(
    in_store: IngestConfig, on_disk: Path, faulty_store: FaultyStore
) -> None:
    faulty_store.inject(Fault("drop", EVERY, method="PUT", path=".parquet"))
    with pytest.raises(StoreError, match=r"\.parquet: the store did not answer"):
        ingest(in_store)
    faulty_store.heal()
    assert files.list_folder(f"{in_store.output}/shards") == []
    assert ingest(in_store) == EXPECTED
    check_equal(in_store.output, on_disk)


@pytest.mark.slow
def test_two_ingests_at_once(in_store: IngestConfig, on_disk: Path, faulty_store: FaultyStore) -> None:
    faulty_store.inject(*every(7, 20, *ALL_KINDS[:3]))
    with ThreadPoolExecutor(2) as threads:
        summaries = list(threads.map(lambda _: ingest(in_store), range(2)))
    assert all((s.clips, s.rejected, s.left) == (5, 1, 0) for s in summaries)
    faulty_store.heal()
    check_equal(in_store.output, on_disk)


def test_wrong_keys_are_said_at_once_and_reject_no_clip(in_store: IngestConfig, faulty_store: FaultyStore) -> None:
    faulty_store.inject(Fault("answer", EVERY, status=403))
    with pytest.raises(StoreError, match=r"refuses access.*check the address and the keys"):
        ingest(in_store)
    assert len(faulty_store.requests) < 5
    faulty_store.heal()
    # keys that stop working half-way
    faulty_store.inject(Fault("answer", EVERY, status=403, path="/raw/tracked/whole/"))
    with pytest.raises(StoreError, match="refuses access"):
        ingest(in_store)
    faulty_store.heal()
    rejected = {item.key for record in read_records(in_store.output) for item in record.rejected}
    assert rejected <= {"tracked/damaged"}


def test_a_clip_is_one_request_and_each_frame_one_more_or_all_are_one(
    in_store: IngestConfig, faulty_store: FaultyStore
) -> None:
    ingest(in_store)
    shards = open_shards(in_store.output)
    for number in range(len(shards)):
        entry = shards.entry(number)
        faulty_store.heal()
        clip = shards.clip(number)
        frames = clip.header.frames()
        one_by_one = [clip.encoded(i) for i in frames]
        ranges = [tuple(map(int, r.range.removeprefix("bytes=").split("-"))) for r in faulty_store.requests]
        assert len(ranges) == 1 + len(frames)
        assert ranges[0] == (entry.start, entry.pictures - 1)
        assert all(entry.pictures <= first <= last < entry.end for first, last in ranges[1:])
        faulty_store.heal()
        whole = shards.clip(number, whole=True)
        assert [whole.encoded(i) for i in frames] == one_by_one
        assert [r.range for r in faulty_store.requests] == [f"bytes={entry.start}-{entry.end - 1}"]
    faulty_store.heal()
    open_shards(in_store.output)
    assert [r.path.rsplit("/", 1)[-1] for r in faulty_store.requests] == ["manifest.json", "manifest.parquet"]
    assert len(faulty_store.requests) <= 5


def test_an_object_that_lost_its_end_is_named(in_store: IngestConfig, faulty_store: FaultyStore) -> None:
    ingest(in_store)
    shards = open_shards(in_store.output)
    entry = shards.entry(len(shards) - 1)
    where = f"{in_store.output}/shards/{entry.shard}.parquet"
    content = files.read_bytes(where)

    def read(whole: bool) -> None:
        clip = shards.clip(len(shards) - 1, whole)
        for index in clip.header.frames():
            clip.encoded(index)

    for left in (entry.start + 100, entry.pictures, entry.end - 1):
        faulty_store.put(where, content[:left])
        for whole in (False, True):
            with pytest.raises(SpatialAvatarError, match=entry.shard) as e:
                read(whole)
            assert not isinstance(e.value, StoreError)  # the store is sound, what it holds is not
            assert "truncated" in str(e.value)


# the training stream


def train_config(output: str) -> TrainConfig:
    config = tiny_batches("", steps=6, sampler={"draws_per_clip": 2})
    return TrainConfig.model_validate({**config.model_dump(), "data": {"shards": output}})


def same_batches(found: Iterable[PackedBatch], expected: list[PackedBatch]) -> bool:
    return all(
        a.arrays.keys() == b.arrays.keys()
        and all(np.array_equal(a.arrays[name], b.arrays[name], equal_nan=True) for name in b.arrays)
        for a, b in zip(found, expected, strict=True)
    )


def streamed(output: Any, first_step: int = 0) -> list[PackedBatch]:
    config = train_config(str(output))
    return list(batches(open_pool(config.data, tiny_head()), config, first_step))


def copied(on_disk: Path, store: FaultyStore, bucket: str) -> str:
    for path in on_disk.rglob("*"):
        if path.is_file():
            store.put(f"{bucket}/shards/{path.relative_to(on_disk)}", path.read_bytes())
    return f"{bucket}/shards"


def test_batches_are_those_of_the_disk(on_disk: Path, faulty_store: FaultyStore, in_store: IngestConfig) -> None:
    expected = streamed(on_disk)
    output = copied(on_disk, faulty_store, in_store.output.rsplit("/", 1)[0])
    faulty_store.inject(*every(3, 30, *ALL_KINDS))
    assert same_batches(streamed(output), expected)
    assert faulty_store.pending() < 30
    assert same_batches(streamed(output, 3), expected[3:])


def test_a_stream_says_that_the_store_is_gone(on_disk: Path, faulty_store: FaultyStore, in_store: IngestConfig) -> None:
    output = copied(on_disk, faulty_store, in_store.output.rsplit("/", 1)[0])
    config = train_config(output)
    pool = open_pool(config.data, tiny_head())
    faulty_store.inject(Fault("answer", EVERY))
    with pytest.raises(StoreError, match="did not answer"):
        list(batches(pool, config))


# on Ray


@pytest.mark.slow
def test_ray_brings_the_same_from_a_failing_store(
    ray_cluster: str, source: Path, on_disk: Path, faulty_store: FaultyStore, s3_bucket: str
) -> None:
    """The workers wait as long as in earnest; so the faults are few."""
    from ray_jobs.ingest import on_ray
    from ray_jobs.stream import ray_batches

    for path in source.rglob("*"):
        if path.is_file():
            faulty_store.put(f"{s3_bucket}/raw/{path.relative_to(source)}", path.read_bytes())
    config = config_for(f"{s3_bucket}/raw", f"{s3_bucket}/shards")
    run: Callable[[Work], Iterable[Converted]] = lambda work: on_ray(work, 2)  # noqa: E731
    faulty_store.inject(*every(25, 6, *ALL_KINDS[:3]))
    assert ingest(config, run) == EXPECTED
    assert faulty_store.pending() < 6
    faulty_store.heal()
    check_equal(config.output, on_disk)
    expected = streamed(on_disk)
    faulty_store.inject(*every(4, 4, *ALL_KINDS[:3]))
    assert same_batches(ray_batches(tiny_head(), train_config(config.output), workers=2), expected)
    assert faulty_store.pending() < 4
