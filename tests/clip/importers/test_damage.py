"""Property-based: whatever is in a tracker's files, its importer gives sound clips or SpatialAvatarError of one line.

Every file of every format is damaged as bytes, and as what it is: JSON, npz, pickle, picture, LMDB. A clip that comes
out has sound arrays, and of its frames the first and the last are decoded.
"""

import json
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatialavatar.clip.arrays import check_arrays
from spatialavatar.clip.header import FrameIndex, check_header
from spatialavatar.clip.importers import ImportOptions, open_source
from spatialavatar.clip.importers.lmdb_reader import LmdbReader
from spatialavatar.clip.pictures import encode
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel
from tests.builders.clips import tiny_head
from tests.builders.trackers.gagavatar_track import track_folder
from tests.builders.trackers.head import flame_head
from tests.builders.trackers.imavatar import imavatar_folder
from tests.builders.trackers.nersemble import PARTICIPANT, SEQUENCE, participant
from tests.builders.trackers.npz import npz_folder
from tests.builders.trackers.vhap import vhap_take


def few(count: int) -> settings:
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Source(NamedTuple):
    build: Callable[[Path], Any]
    head: Callable[[], HeadModel] = flame_head
    opened: str = "."  # inside the folder that is built


def _vhap(folder: Path) -> None:
    take = vhap_take(timesteps=2, cameras=2)
    take.write(folder)
    take.write_split(folder)


def _gagavatar_track(folder: Path) -> None:
    track = track_folder(frames=3, size=64)
    track.smoothed = track.optim
    keys = sorted(track.optim)
    track.others = {"dataset.json": json.dumps({"train": keys[:2], "val": keys[2:], "test": []}).encode()}
    track.write(folder)
    (folder / "img_lmdb/lock.mdb").unlink()


def _nersemble(root: Path) -> None:
    shown = participant(root, timesteps=2, cameras=2, width=55, height=80)
    shown.write()
    shown.write_unpacked()


def _nersemble_videos(root: Path) -> None:
    shown = participant(root, timesteps=2, cameras=2, width=55, height=80)
    shown.write()
    shown.write_videos(25.0, 3, lambda frame, camera: np.full((40, 30, 3), 50 * frame + camera, np.uint8))


SOURCES = {
    "npz": Source(npz_folder, tiny_head),
    "imavatar": Source(lambda folder: imavatar_folder(folder, instants=3, pictures="rgba")),
    "imavatar masks": Source(lambda folder: imavatar_folder(folder, instants=3, pictures="mask")),
    "vhap": Source(_vhap),
    "gagavatar-track": Source(_gagavatar_track),
    "nersemble": Source(_nersemble, opened=f"{PARTICIPANT}/sequences/{SEQUENCE}"),
    "nersemble videos": Source(_nersemble_videos, opened=f"{PARTICIPANT}/sequences/{SEQUENCE}"),
}


class Sound(NamedTuple):
    """A source as it was built, and what the damaged one is opened with."""

    format: str
    head: HeadModel
    folder: Path
    content: dict[str, bytes]  # by path in the folder
    opened: str = "."

    def files(self, *endings: str) -> list[str]:
        return [name for name in self.content if name.endswith(endings)]

    def damaged(self, name: str, data: bytes | None, keep_split: bool = False) -> bool:
        """Open with this file's content replaced (None: the file is gone); whether clips came out."""
        place = self.folder / name
        try:
            place.unlink()
            if data is not None:
                place.write_bytes(data)
            return opens(self, keep_split)
        finally:
            place.unlink(missing_ok=True)
            place.write_bytes(self.content[name])


def opens(sound: Sound, keep_split: bool = False) -> bool:
    try:
        clips = open_source(sound.folder / sound.opened, sound.head, sound.format, ImportOptions(keep_split=keep_split))
        assert clips
        for clip in clips:
            assert check_arrays(clip.header, clip.arrays()) == []
            assert check_header(json.loads(json.dumps(clip.header.to_json())))[0] == []
            for index in (FrameIndex(0, 0), FrameIndex(clip.instants - 1, clip.cameras - 1)):
                frame = clip.frame(index)
                assert frame.image.shape == (clip.height, clip.width, 3)
    except SpatialAvatarError as e:
        assert "\n" not in str(e) and len(str(e)) < 1500
        return False
    return True


@pytest.fixture(scope="module", params=SOURCES)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return built(request.param, tmp_path_factory)


def built(name: str, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    folder = tmp_path_factory.mktemp("damage") / "anna"
    SOURCES[name].build(folder)
    content = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return Sound(name.split()[0], SOURCES[name].head(), folder, content, SOURCES[name].opened)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged LMDB can keep its reader busy for ever: here it is given up soon."""
    defaults = LmdbReader.__init__.__kwdefaults__
    assert defaults is not None and "time_limit" in defaults
    monkeypatch.setitem(defaults, "time_limit", 3.0)


def test_undamaged(sound: Sound) -> None:
    assert opens(sound)


def test_without_any_one_of_its_files(sound: Sound) -> None:
    for name in sound.content:
        sound.damaged(name, None)
        sound.damaged(name, b"")


# bytes ----------------------------------------------------------------------------------------------------------------


@few(20)
@given(data=st.data())
def test_bytes(sound: Sound, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(sound.content)))
    content = bytearray(sound.content[name])
    action = data.draw(st.sampled_from(["cut", "change", "insert", "random"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if action == "cut":
        del content[at:]
    elif action == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    elif action == "random":
        content = bytearray(data.draw(st.binary(max_size=100)))
    for _ in range(data.draw(st.integers(1, 4)) if action == "change" else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    sound.damaged(name, bytes(content), data.draw(st.booleans()))


# values ---------------------------------------------------------------------------------------------------------------

NAMES_ELSEWHERE = ["../../../etc/passwd", "/etc/passwd", "C:\\x.png", "s3://bucket/x.png", "a\0b", "", ".", "\ud800"]
hostile = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 10**9, 10**18, 2**63, 2**64, 10**400, -(10**400), 10**4000]),
    st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-320, 1e308, -1e308, 1e30, 3.5]),
    st.sampled_from([*NAMES_ELSEWHERE, "x" * 10000, "1", "nan", "image/1", "\n", "../" * 300]),
    st.text(max_size=8),
    st.sampled_from([[], [[]], [[[1]]], {}, {"a": []}, [None], [1, [2]], ["1"] * 15, [0.0] * 15, [[0.0] * 4] * 4]),
    st.integers(2, 300).map(lambda depth: json.loads("[" * depth + "]" * depth)),
)


def mutated(value: Any, data: st.DataObject, replacements: st.SearchStrategy[Any]) -> Any:
    """``value`` with one place in its lists and dictionaries replaced, deleted, doubled, or put at another's."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 5)) == 0:
        return data.draw(replacements)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = data.draw(st.sampled_from(keys))
    changed = value.copy()
    match data.draw(st.sampled_from(["into", "into", "into", "delete", "double", "move"])):
        case "into":
            changed[key] = mutated(value[key], data, replacements)
        case "delete":
            del changed[key]
        case "double" if isinstance(changed, list):
            changed.append(value[key])
        case _:
            changed[key] = value[data.draw(st.sampled_from(keys))]
    return changed


@few(30)
@given(data=st.data())
def test_values_of_json(sound: Sound, data: st.DataObject) -> None:
    if not sound.files(".json"):
        return
    name = data.draw(st.sampled_from(sound.files(".json")))
    value = json.loads(sound.content[name])
    for _ in range(data.draw(st.integers(1, 2))):
        value = mutated(value, data, hostile)
    sound.damaged(name, json.dumps(value).encode(), data.draw(st.booleans()))


arrays = st.one_of(
    st.sampled_from(
        [
            np.zeros(0),
            np.zeros((0, 3)),
            np.zeros((2, 0)),
            np.float32(1),
            np.full(3, np.nan),
            np.full((1, 3), np.inf),
            np.full((1, 3), 1e300),
            np.full((5, 4), 1e38, np.float32),
            np.full(6, -1),
            np.zeros(300, complex),
            np.zeros(3, bool),
            np.zeros(3, "datetime64[s]"),
            np.array(["a", "b"]),
            np.array([b"x"]),
            np.array([{}], object),
            np.zeros(2, [("a", "f4"), ("b", "i8")]),
            np.zeros((1,) * 30),
            np.broadcast_to(np.float32(0), (1, 100, 3)),
            np.arange(12.0).reshape(3, 4),
        ]
    ),
    st.tuples(st.lists(st.integers(0, 6), max_size=4), st.sampled_from(["f4", "f8", "f2", "i1", "u8", "i4"])).map(
        lambda drawn: np.ones(drawn[0], drawn[1])
    ),
)


@few(20)
@given(data=st.data())
def test_arrays_of_npz(sound: Sound, data: st.DataObject, tmp_path: Path) -> None:
    if not sound.files(".npz"):
        return
    name = data.draw(st.sampled_from(sound.files(".npz")))
    with np.load(sound.folder / name) as archive:
        content: dict[str, Any] = dict(archive)
    key = data.draw(st.sampled_from(sorted(content)))
    action = data.draw(st.sampled_from(["replace", "delete", "one value", "scale"]))
    if action == "replace":
        content[key] = data.draw(arrays)
    elif action == "delete":
        del content[key]
    elif action == "scale":
        content[key] = content[key] * data.draw(st.sampled_from([-1, 0, 1e30]))
    elif content[key].size:
        flat = content[key].astype(np.float64).reshape(-1).copy()
        flat[data.draw(st.integers(0, flat.size - 1))] = data.draw(st.sampled_from([np.nan, np.inf, 1e30, -1e300, 1e9]))
        content[key] = flat.reshape(content[key].shape)
    np.savez(tmp_path / "x.npz", **content)
    sound.damaged(name, (tmp_path / "x.npz").read_bytes())


# pickles --------------------------------------------------------------------------------------------------------------


class Harmful:
    """Unpickled by Python itself, this leaves a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture(scope="module")
def track(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return built("gagavatar-track", tmp_path_factory)


@few(30)
@given(data=st.data())
def test_values_of_pickles(track: Sound, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(track.files(".pkl")))
    value = mutated(pickle.loads(track.content[name]), data, hostile | arrays)
    track.damaged(name, pickle.dumps(value, data.draw(st.integers(0, 5))), data.draw(st.booleans()))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_that_call(track: Sound, tmp_path: Path, protocol: int) -> None:
    import os
    import subprocess

    trace = tmp_path / "trace"
    for harm in (
        Harmful(os.mkdir, str(trace)),
        Harmful(subprocess.call, ["touch", str(trace)]),
        Harmful(eval, f"open({str(trace)!r}, 'w')"),
        Harmful(np.ndarray.tofile, np.zeros(3), str(trace)),
        Harmful(np.save, str(trace), np.zeros(3)),
        Harmful(getattr, os, "mkdir"),
    ):
        try:
            whole = pickle.dumps(harm, protocol)
            inside = pickle.dumps({**pickle.loads(track.content["optim.pkl"]), "anna_k_9": harm}, protocol)
        except (pickle.PicklingError, TypeError):  # modules cannot be pickled
            continue
        for data in (whole, inside):
            assert not track.damaged("smoothed.pkl", data)
            assert not list(tmp_path.iterdir())


# pictures -------------------------------------------------------------------------------------------------------------


def png_bomb(width: int, height: int, kind: int = 2, depth: int = 8) -> bytes:
    """A few bytes that claim a huge picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(bytes(10000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_bomb(width: int, height: int) -> bytes:
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8), "jpg"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


LARGE, SMALL = (60000, 65535), (8, 9)
PICTURES: dict[str, bytes] = {
    **{f"png {kind}": png_bomb(*LARGE, kind) for kind in (0, 3, 6)},
    "png of 2**31": png_bomb(2**31 - 1, 2**31 - 1, 6),
    "png of 2**32": png_bomb(2**32 - 1, 1, 6),
    "png without pixels": png_bomb(64, 64, 6),
    "png of no size": png_bomb(0, 0),
    "png of an unknown kind": png_bomb(64, 64, 7, 3),
    "png of 8193": png_bomb(8193, 8193, 6),
    "jpeg": jpeg_bomb(65500, 65500),
    "jpeg of no size": jpeg_bomb(0, 0),
    "jpeg of another size": jpeg_bomb(9000, 16),
    "small": encode(np.zeros((*SMALL, 3), np.uint8), "png"),
    "tiny": encode(np.zeros((1, 1, 3), np.uint8), "png"),
    "grey": encode(np.zeros(SMALL, np.uint8), "png"),
    "wide": encode(np.zeros((8, 3000), np.uint8), "png"),
    "gif": b"GIF89a" + bytes(100),
    "text": b"not found",
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(sound: Sound, name: str) -> None:
    """The last one, and all of a folder: then they even agree on their size."""
    pictures = sound.files(".png", ".jpg")
    for folder in sorted({p.rpartition("/")[0] for p in pictures}):
        inside = [p for p in pictures if p.rpartition("/")[0] == folder]
        sound.damaged(inside[-1], PICTURES[name])
        try:
            for place in inside:
                (sound.folder / place).unlink()
                (sound.folder / place).write_bytes(PICTURES[name])
            came_out = opens(sound)
            assert not (came_out and name.startswith(("png", "jpeg"))), "such pictures show nothing"
        finally:
            for place in inside:
                (sound.folder / place).write_bytes(sound.content[place])


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_in_an_lmdb(track: Sound, tmp_path: Path, name: str) -> None:
    shutil.copytree(track.folder, tmp_path / "anna")
    environment = lmdb.open(str(tmp_path / "anna/img_lmdb"), map_size=1 << 24)
    with environment, environment.begin(write=True) as transaction:
        for key in list(pickle.loads(track.content["optim.pkl"])):
            transaction.put(key.encode(), PICTURES[name])
    assert not (opens(track._replace(folder=tmp_path / "anna")) and name.startswith(("png", "jpeg")))


@few(15)
@given(data=st.data())
def test_pages_of_an_lmdb(track: Sound, data: st.DataObject) -> None:
    """The head and the page numbers of pages are what LMDB trusts."""
    name = "img_lmdb/data.mdb"
    content = bytearray(track.content[name])
    for _ in range(data.draw(st.integers(1, 6))):
        page = data.draw(st.integers(0, len(content) // 4096 - 1))
        at = 4096 * page + data.draw(st.integers(0, 200))
        content[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\x01\0\0\0", b"\x7f\xff\0\x10"]))
    track.damaged(name, bytes(content))
