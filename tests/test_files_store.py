"""Files on an S3 store: sound, busy, slow, cutting connections, refusing; nothing is lost and nothing half read."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from spatialavatar import files, store, tensor_files
from spatialavatar.errors import SpatialAvatarError, StoreError
from tests.builders.store import EVERY, Fault, FaultyStore

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try more, at once; the client itself tries once and waits half a second for an answer."""
    monkeypatch.setattr(store, "RETRY_AFTER", (0.001,))
    monkeypatch.setattr(store, "S3_CLIENT", {"retries": {"total_max_attempts": 1}, "read_timeout": 0.5})


@pytest.fixture
def folder(s3_bucket: str) -> str:
    """A folder with two files, one in a folder of its own, and a neighbour whose name begins the same."""
    files.write_bytes(f"{s3_bucket}/data/take/a.bin", CONTENT)
    files.write_bytes(f"{s3_bucket}/data/take/deep/b.bin", b"b")
    files.write_bytes(f"{s3_bucket}/data/take2/c.bin", b"c")
    return f"{s3_bucket}/data/take"


def test_what_is_written_is_there(folder: str) -> None:
    where = f"{folder}/a.bin"
    assert files.read_bytes(where) == CONTENT
    assert files.read_bytes(where, max_bytes=300_000) == CONTENT
    assert files.read_start(where, 7) == CONTENT[:7]
    assert files.read_start(where, 10**6) == CONTENT
    assert files.read_range(where, 1000, 1003) == CONTENT[1000:1003]
    assert files.read_range(where, 299_999, 300_000) == CONTENT[-1:]
    assert files.size(where) == 300_000
    assert files.exists(where) and files.exists(folder) and not files.exists(f"{folder}/a")
    assert files.is_folder(folder) and files.is_folder(f"{folder}/deep") and not files.is_folder(where)
    assert not files.is_folder(f"{folder}/absent")
    assert files.list_folder(folder) == files.list_folder(f"{folder}/") == ["a.bin", "deep"]
    assert files.list_folders_and_files(folder) == (["deep"], ["a.bin"])
    assert files.list_folder(f"{folder}/absent") == []
    assert files.list_folder(where.rsplit("/data", 1)[0]) == ["data"]
    files.write_bytes(where, b"new")
    assert files.read_bytes(where) == b"new"


def test_an_empty_file(s3_bucket: str) -> None:
    files.write_bytes(f"{s3_bucket}/empty", b"")
    assert files.read_bytes(f"{s3_bucket}/empty") == files.read_start(f"{s3_bucket}/empty", 9) == b""
    with files.local_copy(f"{s3_bucket}/empty") as local:
        assert local.read_bytes() == b""


def test_listings_are_never_remembered(folder: str, faulty_store: FaultyStore) -> None:
    assert files.list_folder(folder) == ["a.bin", "deep"]
    assert not files.exists(f"{folder}/late")
    faulty_store.put(f"{folder}/late", b"1")  # past our client, as another machine would
    assert files.list_folder(folder) == ["a.bin", "deep", "late"]
    assert files.exists(f"{folder}/late")


def test_a_listing_of_several_pages(s3_bucket: str, faulty_store: FaultyStore) -> None:
    names = [f"{i:04d}" for i in range(1050)]  # a page has 1000
    for name in names:
        faulty_store.put(f"{s3_bucket}/many/{name}", b"x")
    assert files.list_folder(f"{s3_bucket}/many") == names


def test_remove_takes_a_folder_and_no_neighbour(folder: str) -> None:
    files.remove(f"{folder}/deep/b.bin")
    assert files.list_folder(folder) == ["a.bin"]
    files.remove(folder)
    files.remove(folder)
    assert not files.exists(folder)
    assert files.read_bytes(f"{folder}2/c.bin") == b"c"


def test_what_the_store_does_not_remove_is_said(folder: str, faulty_store: FaultyStore) -> None:
    """It answers a removal of many with 200 and, inside, what went wrong."""
    kept = "<DeleteResult><Error><Key>data/take/a.bin</Key><Code>{}</Code></Error></DeleteResult>"
    kept_once = Fault("answer", method="POST", path="delete", status=200, body=kept.format("InternalError"))
    faulty_store.inject(kept_once)
    files.remove(f"{folder}/a.bin")
    assert files.list_folder(folder) == ["deep"] and faulty_store.pending() == 0
    faulty_store.inject(Fault("answer", EVERY, "POST", "delete", status=200, body=kept.format("AccessDenied")))
    with pytest.raises(StoreError, match="it is still there after its removal"):
        files.remove(folder)


def test_local_copies_of_a_file_and_of_a_folder(folder: str) -> None:
    with files.local_copy(f"{folder}/a.bin") as local:
        assert local.name == "a.bin" and local.read_bytes() == CONTENT
    assert not local.exists()
    with files.local_copy(f"{folder}/") as local:
        found = {str(p.relative_to(local)): p.read_bytes() for p in local.rglob("*") if p.is_file()}
    assert found == {"a.bin": CONTENT, "deep/b.bin": b"b"}


def test_a_local_copy_leaves_its_folder_for_no_name(folder: str, faulty_store: FaultyStore) -> None:
    faulty_store.put(f"{folder}/deep/../../../escaped", b"1")
    with pytest.raises(SpatialAvatarError, match="leads out"), files.local_copy(folder):
        pass


@pytest.mark.parametrize("true_size", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_large_file_goes_in_parts_and_comes_in_parts(
    s3_bucket: str, tmp_path: Path, faulty_store: FaultyStore, monkeypatch: pytest.MonkeyPatch, true_size: bool
) -> None:
    monkeypatch.setattr(store, "S3_CLIENT", {"retries": {"mode": "standard", "total_max_attempts": 2}})
    megabytes = 101  # s3fs uploads in parts of 50 MiB from 100 MiB on
    if not true_size:
        megabytes = 11
        monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 << 20)
        monkeypatch.setattr(files, "_PART", 3 << 20)
    local = tmp_path / "large"
    content = np.random.default_rng(1).bytes(megabytes << 20)
    local.write_bytes(content)
    where = f"{s3_bucket}/deep/large"
    faulty_store.inject(Fault("answer", method="PUT", path="partNumber=2"))
    files.move_into_place(local, where)
    assert not local.exists() and files.size(where) == len(content)
    parts = [r.path.split("partNumber=")[1][0] for r in faulty_store.requests if "partNumber" in r.path]
    assert sorted(parts) == ["1", "2", "2", "3"]  # only what failed goes again
    faulty_store.heal()
    faulty_store.inject(Fault("cut", method="GET", skip=1))
    with files.local_copy(where) as copy:
        assert copy.read_bytes() == content
    assert len({r.range for r in faulty_store.requests if r.method == "GET"}) == 4
    assert faulty_store.pending() == 0


def test_a_large_file_whose_last_answer_is_lost(
    s3_bucket: str, tmp_path: Path, faulty_store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload is complete, and asking to complete it again meets 'no such upload'."""
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 << 20)
    content = np.random.default_rng(1).bytes(10 << 20)
    (tmp_path / "large").write_bytes(content)
    complete = {"method": "POST", "path": "uploadId"}
    faulty_store.inject(Fault("lose", **complete), Fault("answer", status=404, code="NoSuchUpload", **complete))
    monkeypatch.setattr(store, "S3_CLIENT", {"retries": {"mode": "standard", "total_max_attempts": 2}})
    files.move_into_place(tmp_path / "large", f"{s3_bucket}/large")
    assert faulty_store.pending() == 0
    assert files.read_bytes(f"{s3_bucket}/large") == content


TASKS: dict[str, Callable[[str], object]] = {
    "read": lambda folder: files.read_bytes(f"{folder}/a.bin") == CONTENT,
    "read-bounded": lambda folder: files.read_bytes(f"{folder}/a.bin", 10**6) == CONTENT,
    "start": lambda folder: files.read_start(f"{folder}/a.bin", 100_000) == CONTENT[:100_000],
    "range": lambda folder: files.read_range(f"{folder}/a.bin", 10, 200_000) == CONTENT[10:200_000],
    "size": lambda folder: files.size(f"{folder}/a.bin") == 300_000,
    "exists": lambda folder: files.exists(f"{folder}/a.bin"),
    "not-exists": lambda folder: not files.exists(f"{folder}/absent"),
    "is-folder": lambda folder: files.is_folder(folder),
    "list": lambda folder: files.list_folder(folder) == ["a.bin", "deep"],
    "list-apart": lambda folder: files.list_folders_and_files(folder) == (["deep"], ["a.bin"]),
    "copy": lambda folder: _copied(folder) == {"a.bin": CONTENT, "b.bin": b"b"},
    "write": lambda folder: _written(f"{folder}/deep/c") == CONTENT[1:],
    "remove": lambda folder: files.remove(f"{folder}/deep") or files.list_folder(folder) == ["a.bin"],
}


def _copied(folder: str) -> dict[str, bytes]:
    with files.local_copy(folder) as local:
        return {p.name: p.read_bytes() for p in local.rglob("*") if p.is_file()}


def _written(where: str) -> bytes:
    files.write_bytes(where, CONTENT[1:])
    return files.read_bytes(where)


FAULTS = {
    "busy": Fault("answer"),
    "internal": Fault("answer", status=500),
    "dropped": Fault("drop", times=3),
    "answer-lost": Fault("lose", times=3),
    "cut": Fault("cut", method="GET"),
    "cut-at-once": Fault("cut", method="GET", keep=0.0),
    "silent": Fault("wait", seconds=0.8),
}


RARER = ("internal", "dropped", "cut-at-once")


@pytest.mark.parametrize(
    "fault", ["busy", "answer-lost", "cut", "silent", *(pytest.param(f, marks=pytest.mark.slow) for f in RARER)]
)
def test_a_failing_store_is_asked_again(folder: str, faulty_store: FaultyStore, fault: str) -> None:
    struck = 0
    for name, task in TASKS.items():
        injected = Fault(**vars(FAULTS[fault]))
        if fault == "silent" and name not in ("read", "copy", "write"):
            continue  # half a second each
        faulty_store.heal()
        faulty_store.inject(injected)
        assert task(folder), name
        struck += injected.times == 0
    assert struck >= 3


def test_answers_that_are_slow_but_come(folder: str, faulty_store: FaultyStore) -> None:
    faulty_store.inject(Fault("wait", times=3, seconds=0.2))
    assert _copied(folder) == {"a.bin": CONTENT, "b.bin": b"b"}
    assert files.read_bytes(f"{folder}/a.bin") == CONTENT


@pytest.mark.parametrize("fault", ["busy", "dropped", "cut"])
def test_giving_up_is_said_in_one_line(folder: str, faulty_store: FaultyStore, fault: str) -> None:
    faulty_store.inject(Fault(**{**vars(FAULTS[fault]), "times": EVERY}))
    for ask in (
        lambda: files.read_bytes(f"{folder}/a.bin"),
        lambda: files.read_range(f"{folder}/a.bin", 10, 200_000),
        lambda: files.list_folder(folder) if fault != "cut" else files.read_start(f"{folder}/a.bin", 99_999),
    ):
        before = len(faulty_store.requests)
        with pytest.raises(StoreError, match=r"data/take.*did not answer after 2 tries.*run the same command") as info:
            ask()
        assert "\n" not in str(info.value)
        # s3fs's own loops are out of the way; aiohttp asks twice when a connection breaks
        assert len(faulty_store.requests) - before == (4 if fault == "dropped" else 2)
    if fault != "cut":
        with pytest.raises(StoreError, match="did not answer after 2 tries"):
            files.write_bytes(f"{folder}/new", b"1")
        faulty_store.heal()
        assert not files.exists(f"{folder}/new")


def test_a_failed_upload_keeps_the_local_file(folder: str, tmp_path: Path, faulty_store: FaultyStore) -> None:
    local = tmp_path / "shard"
    local.write_bytes(CONTENT[:10])
    faulty_store.inject(Fault("answer", EVERY, method="PUT"))
    with pytest.raises(StoreError):
        files.move_into_place(local, f"{folder}/a.bin")
    assert local.read_bytes() == CONTENT[:10]
    faulty_store.heal()
    assert files.read_bytes(f"{folder}/a.bin") == CONTENT
    files.move_into_place(local, f"{folder}/a.bin")
    assert files.read_bytes(f"{folder}/a.bin") == CONTENT[:10]


def test_a_dead_store_stops_a_copy_of_many_files(folder: str, faulty_store: FaultyStore) -> None:
    for i in range(40):
        files.write_bytes(f"{folder}/{i}", b"x")
    faulty_store.heal()
    faulty_store.inject(Fault("answer", EVERY, method="GET", path="/data/take/"))
    with pytest.raises(StoreError, match="did not answer"), files.local_copy(folder):
        pass
    assert len({r.path for r in faulty_store.requests if r.path.count("/") > 2}) < 30


def test_what_asking_again_does_not_mend_is_said_at_once(folder: str, faulty_store: FaultyStore) -> None:
    bucket = folder.removeprefix("s3://").split("/")[0]
    for ask, reason in (
        (lambda: files.read_bytes(f"{folder}/absent"), "absent: no such file"),
        (lambda: files.read_start(f"{folder}/absent", 5), "absent: no such file"),
        (lambda: files.read_range(f"{folder}/absent", 0, 5), "absent: no such file"),
        (lambda: files.size(f"{folder}/absent"), "absent: no such file"),
        (lambda: _copied(f"{folder}/absent"), "absent: no such file"),
        (lambda: files.read_range(f"{folder}/deep/b.bin", 0, 5), "ends after 1 bytes, 5 were expected"),
        (lambda: files.read_range(f"{folder}/deep/b.bin", 8, 9), "ends after 1 bytes, 9 were expected"),
        (lambda: files.read_bytes(f"{folder}/a.bin", 10), "300000 bytes, such files are read up to 10"),
        (lambda: files.write_bytes(f"s3://{bucket}x/a", b"1"), "no such bucket"),
        (lambda: files.list_folder(f"s3://{bucket}x/a"), "no such bucket"),
        (lambda: files.list_folders_and_files(f"s3://{bucket}x"), "no such bucket"),
        (lambda: files.read_bytes("s3://Not A Bucket/a"), "refuses"),
    ):
        faulty_store.heal()
        with pytest.raises(SpatialAvatarError, match=reason):
            ask()
        assert len(faulty_store.requests) <= 3, reason
    assert not files.exists(f"s3://{bucket}x")  # the misspelt bucket was not made


@pytest.mark.parametrize("status", [400, 403])
def test_a_refusal_is_said_at_once(folder: str, faulty_store: FaultyStore, status: int) -> None:
    faulty_store.inject(Fault("answer", EVERY, status=status))
    for ask in (
        lambda: files.read_bytes(f"{folder}/a.bin"),
        lambda: files.exists(f"{folder}/a.bin"),
        lambda: files.list_folder(folder),
        lambda: files.write_bytes(f"{folder}/new", b"1"),
        lambda: files.remove(f"{folder}/a.bin"),
    ):
        before = len(faulty_store.requests)
        with pytest.raises(StoreError, match=r"take.*refuses access.*check the address and the keys"):
            ask()
        assert len(faulty_store.requests) - before <= 2


def test_no_keys_at_all(folder: str, monkeypatch: pytest.MonkeyPatch, faulty_store: FaultyStore) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(store, "S3_CLIENT", {"retries": {"total_max_attempts": 1}, "read_timeout": 3})  # a new client
    with pytest.raises(StoreError, match="credentials"):
        files.read_bytes(f"{folder}/a.bin")
    assert not faulty_store.requests


def test_no_server_at_the_address(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(store, "S3_CLIENT", {"retries": {"total_max_attempts": 1}, "read_timeout": 4})
    with pytest.raises(StoreError, match="did not answer after 2 tries"):
        files.read_bytes(f"{folder}/a.bin")


def test_a_mistake_of_ours_is_not_blamed_on_the_store(folder: str, faulty_store: FaultyStore) -> None:
    with pytest.raises(TypeError):
        files.write_bytes(f"{folder}/new", None)  # type: ignore[arg-type]
    assert not faulty_store.requests


def _read_in_child(where: str, answer: Connection) -> None:
    answer.send_bytes(files.read_bytes(where))


def test_a_forked_process_reads_too(folder: str) -> None:
    assert files.read_bytes(f"{folder}/deep/b.bin") == b"b"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_read_in_child, args=(f"{folder}/a.bin", there))
    child.start()
    there.close()
    try:
        assert here.poll(60) and here.recv_bytes() == CONTENT
    finally:
        child.kill()
        child.join()
    assert files.read_bytes(f"{folder}/deep/b.bin") == b"b"


def test_threads_share_one_client(folder: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        ranges = [(i * 1000, i * 1000 + 1000) for i in range(100)]
        read = list(threads.map(lambda r: files.read_range(f"{folder}/a.bin", *r), ranges))
    assert b"".join(read) == CONTENT[:100_000]


def test_metadata_of_a_large_tensor_file_take_little(s3_bucket: str, faulty_store: FaultyStore) -> None:
    where = f"{s3_bucket}/t.safetensors"
    long = {"note": "x" * 200_000}
    tensor_files.write_tensors(where, {"a": np.ones(10**6, np.float32)}, {"note": "short"})
    tensor_files.write_tensors(f"{where}2", {"a": np.ones(10**6, np.float32)}, long)
    faulty_store.heal()
    assert tensor_files.read_tensor_metadata(where) == {"note": "short"}
    assert [r.range for r in faulty_store.requests] == ["bytes=0-65535"]
    assert tensor_files.read_tensor_metadata(f"{where}2") == long
    np.testing.assert_array_equal(tensor_files.read_tensors(where)[0]["a"], np.ones(10**6))


def test_one_request_each(folder: str, faulty_store: FaultyStore) -> None:
    for ask in (
        lambda: files.read_bytes(f"{folder}/a.bin"),
        lambda: files.read_range(f"{folder}/a.bin", 5, 10),
        lambda: files.read_start(f"{folder}/a.bin", 5),
        lambda: files.write_bytes(f"{folder}/new", b"1"),
        lambda: files.list_folder(folder),
        lambda: files.exists(f"{folder}/a.bin"),
    ):
        faulty_store.heal()
        ask()
        assert len(faulty_store.requests) == 1


def test_the_environment_of_the_tests_is_the_server(s3: FaultyStore) -> None:
    assert os.environ["AWS_ENDPOINT_URL"] == s3.url  # never a real store
