"""LMDB in a child process: what is in the file, or one error that names it; nothing is left behind."""

import gc
import os
import signal
import struct
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from subprocess import Popen
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialavatar import files
from spatialavatar.clip.importers import lmdb_reader
from spatialavatar.clip.importers.lmdb_reader import LmdbReader
from spatialavatar.errors import SpatialAvatarError

PAGE = 4096


def write_lmdb(folder: Path, values: dict[str, bytes]) -> Path:
    with lmdb.open(str(folder), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return folder


def sample(count: int = 300) -> dict[str, bytes]:
    """Values on leaf pages and, beyond half a page, on pages of their own; enough for a tree with branches."""
    return {f"anna_{i}": struct.pack("<I", i) * (30 if i % 3 else 1500) for i in range(count)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (write_lmdb(tmp_path_factory.mktemp("sound"), sample()) / "data.mdb").read_bytes()


def put(folder: Path, data: bytes) -> Path:
    (folder / "data.mdb").write_bytes(data)
    return folder


def process_of(reader: LmdbReader) -> Popen[bytes]:
    process = reader._child.process
    assert process is not None
    return process


def is_gone(pid: int) -> bool:
    """Neither running nor a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def open_handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_keys_and_values(tmp_path: Path) -> None:
    values = sample()
    with LmdbReader(write_lmdb(tmp_path, values)) as reader:
        assert reader.keys() == sorted(values)
        assert all(reader.get(key) == value for key, value in values.items())
        assert reader.keys() == sorted(values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.mdb", "lock.mdb"]  # the writer's


def test_an_empty_database_has_no_keys(tmp_path: Path) -> None:
    with LmdbReader(write_lmdb(tmp_path, {})) as reader:
        assert reader.keys() == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = write_lmdb(tmp_path, sample(3))
    (folder / "lock.mdb").unlink()
    folder.chmod(0o500)
    with LmdbReader(folder) as reader:
        assert len(reader.keys()) == 3
    folder.chmod(0o700)


def test_on_a_store(sound: bytes) -> None:
    files.write_bytes("memory://lmdb/data.mdb", sound)
    reader = LmdbReader("memory://lmdb")
    copy = reader._path
    assert reader.get("anna_7") == sample()["anna_7"] and copy.exists()
    reader.close()
    assert not copy.exists()


@pytest.mark.parametrize("key", ["anna_999", "", "x" * 600, "é\ud800"])
def test_missing_keys(tmp_path: Path, key: str) -> None:
    with LmdbReader(write_lmdb(tmp_path, sample(5))) as reader:
        with pytest.raises(SpatialAvatarError, match=r"data\.mdb: .*") as error:
            reader.get(key)
        assert "\n" not in str(error.value)
        assert reader.get("anna_0") == sample(1)["anna_0"]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match=r"data\.mdb: no such file"):
        LmdbReader(tmp_path)


def test_keys_that_are_no_text(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"\xff\xfe", b"1")
    with LmdbReader(tmp_path) as reader, pytest.raises(SpatialAvatarError, match=r"data\.mdb: .*no UTF-8"):
        reader.keys()


def test_a_huge_value_is_refused(tmp_path: Path) -> None:
    with LmdbReader(write_lmdb(tmp_path, sample(5)), largest_value=1000) as reader:
        with pytest.raises(SpatialAvatarError, match=r"data\.mdb: .*6000 bytes, up to 1000"):
            reader.get("anna_3")
        assert reader.get("anna_4") == sample()["anna_4"]


def test_a_truncated_file_kills_the_child_only(tmp_path: Path, sound: bytes) -> None:
    """The pages beyond the end are mapped, but reading them is a bus error."""
    with LmdbReader(put(tmp_path, sound[: 3 * PAGE])) as reader:
        with pytest.raises(SpatialAvatarError, match=r"data\.mdb: not a readable LMDB \(.*SIG(BUS|SEGV)\)") as error:
            reader.keys()
        assert "\n" not in str(error.value)
        with pytest.raises(SpatialAvatarError, match=r"data\.mdb"):  # asked again: a new child, the same answer
            reader.get("anna_1")


def test_pages_in_a_circle_end(tmp_path: Path, sound: bytes) -> None:
    """Both children of a branch are made the same page: LMDB itself would go on."""
    data = bytearray(sound)
    branches = [at for at in range(0, len(data), PAGE) if struct.unpack_from("<H", data, at + 10)[0] == 1]
    assert branches
    for at in branches:
        lower = struct.unpack_from("<H", data, at + 12)[0]
        nodes = struct.unpack_from(f"<{(lower - 16) // 2}H", data, at + 16)
        for node in nodes:
            struct.pack_into("<HHH", data, at + node, *struct.unpack_from("<HHH", data, at + nodes[0]))
    with LmdbReader(put(tmp_path, bytes(data))) as reader, pytest.raises(SpatialAvatarError, match="not in order"):
        reader.keys()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_bytes(tmp_path_factory: pytest.TempPathFactory, sound: bytes, data: st.DataObject) -> None:
    """Keys in order and some bytes, or our error in one line; never another exception, never a hang."""
    content = bytearray(sound)
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    # most of the harm is in the pages' heads: of the first pages, and of any
    page = st.one_of(st.integers(0, 5), st.integers(0, len(sound) // PAGE - 1))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(page) * PAGE + data.draw(st.one_of(st.integers(0, 200), st.integers(0, PAGE - 1)))
        if at < len(content):
            content[at] = data.draw(st.sampled_from([0, 1, 2, 4, 8, 16, 127, 128, 255]) | st.integers(0, 255))
    with LmdbReader(put(tmp_path_factory.mktemp("damaged"), bytes(content)), time_limit=5) as reader:
        try:
            keys = reader.keys()
            assert all(a.encode() < b.encode() for a, b in pairwise(keys))
        except SpatialAvatarError as e:
            assert "data.mdb: " in str(e) and "\n" not in str(e)
            keys = ["anna_0"]
        for key in keys[:: max(1, len(keys) // 5)]:
            try:
                assert isinstance(reader.get(key), bytes)
            except SpatialAvatarError as e:
                assert "data.mdb: " in str(e) and "\n" not in str(e)
    assert bytes(content) != sound or keys == sorted(sample())


CHILDREN = {
    "silent": ("import time; time.sleep(600)", "no answer within 0.3 seconds"),
    "silent after its first bytes": ("import os, time; os.write(1, b'k12'); time.sleep(600)", "no answer within"),
    "dead": ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "died, SIGABRT"),
    "ended": ("pass", "died"),
    "raving": ("import os; os.write(1, b'k' + b'\\xff' * 100); input()", "nonsense"),
}


@pytest.mark.parametrize(("script", "message"), CHILDREN.values(), ids=CHILDREN)
def test_a_child_that_fails(tmp_path: Path, monkeypatch: Any, script: str, message: str) -> None:
    write_lmdb(tmp_path / "lmdb", sample(2))
    (tmp_path / "child.py").write_text(script)
    with monkeypatch.context() as patched:
        patched.setattr(lmdb_reader, "_CHILD", tmp_path / "child.py")
        silent = script.startswith("import time") or "time.sleep" in script
        reader = LmdbReader(tmp_path / "lmdb", time_limit=0.3 if silent else 20)
        started = []
        start = reader._child.started
        patched.setattr(reader._child, "started", lambda command: started.append(start(command)) or started[-1])
        before = open_handles()
        with pytest.raises(SpatialAvatarError, match=rf"data\.mdb: not a readable LMDB .*{message}"):
            reader.keys()
        assert is_gone(started[0].pid) and open_handles() == before
    reader.time_limit = 20
    assert reader.keys() == ["anna_0", "anna_1"]  # the next question has a child of its own
    reader.close()


def test_a_stopped_child_is_ended(tmp_path: Path) -> None:
    with LmdbReader(write_lmdb(tmp_path, sample(2))) as reader:
        reader.keys()
        process = process_of(reader)
        process.send_signal(signal.SIGSTOP)
        reader.time_limit = 0.3
        with pytest.raises(SpatialAvatarError, match="no answer within"):
            reader.get("anna_0")
        assert is_gone(process.pid)


@pytest.mark.parametrize("how", ["close", "forget"])
def test_nothing_is_left(tmp_path: Path, how: str) -> None:
    folder = write_lmdb(tmp_path, sample(2))
    gc.collect()
    before = open_handles()
    reader = LmdbReader(folder)
    reader.keys()
    pid, watched = process_of(reader).pid, weakref.ref(reader)
    if how == "close":
        reader.close()
        reader.close()
        with pytest.raises(ValueError, match="closed"):
            reader.keys()
    else:
        del reader
        assert watched() is None
    assert is_gone(pid) and open_handles() == before


def test_the_child_goes_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed cannot tell its child; the pipe's end does."""
    folder = write_lmdb(tmp_path, sample(2))
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(ours)
            os.set_inheritable(theirs, True)
            # the child's child holds our pipe open for as long as it lives
            lmdb_reader.subprocess.Popen = lambda *a, **k: Popen(*a, **k, close_fds=False)  # type: ignore[misc,assignment]
            reader = LmdbReader(folder)
            reader.keys()
            os.write(theirs, b"up")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(theirs)
    assert os.read(ours, 2) == b"up"
    os.waitpid(pid, 0)
    assert os.read(ours, 1) == b""  # end of file only once the child's child has ended too
    os.close(ours)


def test_several_threads(tmp_path: Path) -> None:
    values = sample(60)
    with LmdbReader(write_lmdb(tmp_path, values)) as reader, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(reader.get, values)) == list(values.values())


def _read_in_fork(reader: LmdbReader, answers: Any) -> None:
    pid = process_of(reader).pid
    answers.put([reader.get(f"anna_{i}") for i in range(60)])
    answers.put(process_of(reader).pid != pid)


def test_a_forked_process_has_a_child_of_its_own(tmp_path: Path) -> None:
    values = sample(60)
    with LmdbReader(write_lmdb(tmp_path, values)) as reader:
        reader.keys()
        context = get_context("fork")
        answers = context.Queue()
        workers = [context.Process(target=_read_in_fork, args=(reader, answers)) for _ in range(2)]
        for worker in workers:
            worker.start()
        assert [reader.get(key) for key in values] == list(values.values())
        got = [answers.get(timeout=60) for _ in range(4)]
        for worker in workers:
            worker.join()
        assert got.count(list(values.values())) == 2 and got.count(True) == 2
        assert reader.get("anna_5") == values["anna_5"]


def test_a_forked_process_that_closes_leaves_ours_alone(sound: bytes) -> None:
    files.write_bytes("memory://forked/data.mdb", sound)
    with LmdbReader("memory://forked") as reader:
        reader.keys()
        process = process_of(reader)
        worker = get_context("fork").Process(target=reader.close)
        worker.start()
        worker.join()
        assert worker.exitcode == 0 and process.poll() is None and reader._path.exists()
        assert reader.get("anna_1") == sample()["anna_1"] and process_of(reader) is process
