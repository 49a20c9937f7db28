"""Ingest in one process: what is found, planned, converted, rejected, and that it can be stopped anywhere."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from spatialavatar import files
from spatialavatar.clip import FrameIndex, TrackedClip, open_clip
from spatialavatar.clip.arrays import read_arrays, write_arrays
from spatialavatar.clip.importers import FORMATS, Importer, ImportOptions
from spatialavatar.errors import SpatialAvatarError, StoreError
from spatialavatar.shards import convert as converting
from spatialavatar.shards import file, find
from spatialavatar.shards.convert import Converted, convert, quarantine, remove_leftovers
from spatialavatar.shards.find import SourceFolder, find_sources
from spatialavatar.shards.ingest import Count, IngestSummary, Work, finish, in_turn, ingest, prepare
from spatialavatar.shards.ingest_config import IngestConfig
from spatialavatar.shards.manifest import ShardSet, open_shards
from spatialavatar.shards.plan import plan_groups
from spatialavatar.shards.records import read_records
from spatialavatar.shards.report import summary, verify
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.folders import folder_content
from tests.builders.trackers.npz import npz_folder

HEAD = "memory://builders/tiny.head.safetensors"


def clips_below(folder: Path, count: int, **changes: Any) -> Path:
    """``count`` small clips of ours in folders of two levels."""
    for number in range(count):
        place = folder / f"set{number % 2}" / f"anna{number:02d}"
        tiny_clip(place, seed=number, instants=3, identity=f"id{number}", **changes)
    return folder


def config_for(source_folder: Path, output: Any, **changes: Any) -> IngestConfig:
    tiny_head()
    return IngestConfig(
        **{"source": str(source_folder), "output": str(output), "head": HEAD, "clips_per_shard": 3, **changes}
    )


def rejected(output: Any) -> dict[str, str]:
    lines = files.read_bytes(files.join(output, "rejected.jsonl")).decode().splitlines()
    return {value["key"]: value["reason"] for value in map(json.loads, lines)}


def keys(shards: ShardSet) -> list[str]:
    return sorted(str(key) for key in shards.column("key"))


def same_clip(a: TrackedClip, b: TrackedClip) -> None:
    assert a.header == b.header
    first, second = a.arrays(), b.arrays()
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    for index in a.header.frames():
        assert a.encoded(index) == b.encoded(index)


# finding


def test_folders_are_found_by_what_is_in_them(tmp_path: Path) -> None:
    clips_below(tmp_path, 2)
    npz_folder(tmp_path / "deep/er/npz one")
    (tmp_path / ".hidden/x").mkdir(parents=True)
    shutil.copytree(tmp_path / "set0/anna00", tmp_path / ".hidden/x/y")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.txt").write_text("nothing")
    found = find_sources(tmp_path)
    assert [(s.key, s.format) for s in found.sources] == [
        ("deep/er/npz one", "npz"),
        ("set0/anna00", "clip"),
        ("set1/anna01", "clip"),
    ]
    assert [s.key for s in find_sources(tmp_path, "npz").sources] == ["deep/er/npz one"]
    assert [s.key for s in find_sources(tmp_path, "clip").sources] == ["set0/anna00", "set1/anna01"]
    assert found.sources[0].location == f"{tmp_path}/deep/er/npz one"


def test_the_source_may_be_one_folder(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "anna")
    (source,) = find_sources(f"{tmp_path}/anna/").sources
    assert source == SourceFolder("anna", f"{tmp_path}/anna", "clip")


def test_a_recognised_folder_is_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips_below(tmp_path, 4)
    asked: list[str] = []
    listing = files.list_folders_and_files
    monkeypatch.setattr(files, "list_folders_and_files", lambda place: (asked.append(place), listing(place))[1])
    assert len(find_sources(tmp_path).sources) == 4
    assert len(asked) == 1 + 2 + 4


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    clips_below(tmp_path / "real", 1)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/one").symlink_to(tmp_path / "real/set0/anna00")
    (tmp_path / "source/circle").symlink_to(tmp_path / "source")
    assert [s.key for s in find_sources(tmp_path / "source").sources] == ["one"]


def test_keys_keep_their_separator_to_themselves(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "a#1-of-2%")
    assert [s.key for s in find_sources(tmp_path).sources] == ["a%231-of-2%25"]


def test_folders_that_cannot_be_listed_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips_below(tmp_path, 2)
    os.mkdir(os.fsencode(tmp_path) + b"/set0/caf\xe9")
    listing = files.list_folders_and_files

    def failing(place: str) -> Any:
        if place.endswith("set1"):
            raise PermissionError(13, "Permission denied", place)
        return listing(place)

    monkeypatch.setattr(files, "list_folders_and_files", failing)
    found = find_sources(tmp_path)
    assert [s.key for s in found.sources] == ["set0/anna00"]
    reasons = {r.key: r.reason for r in found.unreadable}
    assert reasons == {
        "set0/caf\\udce9": "its name holds characters that cannot be printed; rename the folder",
        "set1": "cannot be listed: Permission denied",
    }
    summary = ingest(config_for(tmp_path, tmp_path / "out"))
    assert (summary.clips, summary.rejected) == (1, 2)
    assert set(rejected(tmp_path / "out")) == set(reasons)


def test_what_lies_too_deep_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips_below(tmp_path, 1)
    tiny_clip(tmp_path / "set0/below/it")
    monkeypatch.setattr(find, "DEEPEST", 3)
    found = find_sources(tmp_path)
    assert [s.key for s in found.sources] == ["set0/anna00"]
    assert [(r.key, r.reason[:30]) for r in found.unreadable] == [("set0/below/it", "lies more than 3 folders below")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "/no/such/folder"}, "no such folder"),
        ({"format": "vhs"}, "no source format named 'vhs'; there are auto, clip, npz"),
        ({"format": "npz"}, "holds no folder of format 'npz'"),
        ({"identity_pattern": "(oops"}, "--identity-pattern '\\(oops'"),
        ({"identity_pattern": "anna"}, "has no group"),
        ({"identity_pattern": "(berta)"}, "is found in none of the 2 keys, such as 'set0/anna00'"),
        ({"head": "no.head.safetensors"}, "no such file"),
    ],
)
def test_mistakes_of_the_user_write_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    clips_below(tmp_path / "in", 2)
    with pytest.raises(SpatialAvatarError, match=message) as error:
        ingest(config_for(tmp_path / "in", tmp_path / "out", **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_trackers_folders_need_their_head_named(tmp_path: Path) -> None:
    """Codes of another head can have the built-in one's lengths; only our own clips say which head is theirs."""
    npz_folder(tmp_path / "in" / "tracked")
    with pytest.raises(
        SpatialAvatarError, match=r"holds folders of npz, which do not say which head .* --head"
    ) as error:
        ingest(config_for(tmp_path / "in", tmp_path / "out", head=None))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_output_that_is_the_source_or_holds_something_else(tmp_path: Path) -> None:
    clips_below(tmp_path / "in", 1)
    with pytest.raises(SpatialAvatarError, match="is the source, too"):
        ingest(config_for(tmp_path / "in", tmp_path / "in/"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("precious")
    with pytest.raises(SpatialAvatarError, match="holds something else"):
        ingest(config_for(tmp_path / "in", tmp_path / "out"))
    assert folder_content(tmp_path / "out") == {"thesis.tex": b"precious"}


# converting


def test_clips_arrive_as_they_were(tmp_path: Path) -> None:
    source = clips_below(tmp_path / "in", 5, cameras=2)
    summary = ingest(config_for(source, tmp_path / "out"))
    assert summary == IngestSummary(clips=5, rejected=0, converted=5, frames=5 * 3 * 2, left=0)
    shards = open_shards(tmp_path / "out")
    assert len(set(shards.column("shard"))) == 2
    assert keys(shards) == sorted(f"set{n % 2}/anna{n:02d}" for n in range(5))
    for number in range(5):
        same_clip(open_clip(source / shards.entry(number).key), shards.clip(number))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "ingest.json",
        "manifest.json",
        "manifest.parquet",
        "rejected.jsonl",
        "shards",
    ]


def test_folders_of_a_tool_become_clips(tmp_path: Path) -> None:
    for name in ("p01", "p02"):
        npz_folder(tmp_path / "in" / name / "tracked")
    config = config_for(
        tmp_path / "in",
        tmp_path / "out",
        identity_pattern="^(p[0-9]+)/",
        licence="CC-BY-4.0",
        fps=50,
        test_last=2,
    )
    ingest(config)
    shards = open_shards(tmp_path / "out")
    assert sorted(shards.column("identity")) == ["p01", "p02"]
    clip = shards.clip(0)
    assert (clip.fps, clip.source.tool, clip.source.licence) == (50, "npz", "CC-BY-4.0")
    assert (clip.test_from, len(clip.split("train")), len(clip.split("test"))) == (3, 3, 2)
    original = (tmp_path / "in/p01/tracked/images/000010.jpg").read_bytes()
    assert shards.clip(shards.find("p01/tracked")).encoded(FrameIndex(0, 0)).image == original


def test_pictures_are_converted_where_asked(tmp_path: Path) -> None:
    clips_below(tmp_path / "in", 1, image_format="png", width=64, height=48)
    ingest(config_for(tmp_path / "in", tmp_path / "out", image_format="jpg", max_size=32))
    clip = open_shards(tmp_path / "out").clip(0)
    assert (clip.width, clip.height, clip.header.image_format) == (32, 24, "jpg")
    original = open_clip(tmp_path / "in/set0/anna00")
    torch.testing.assert_close(clip.intrinsics[..., :2, :], original.intrinsics[..., :2, :] / 2)
    assert clip.face_box is not None and original.face_box is not None
    torch.testing.assert_close(clip.face_box, original.face_box / 2)
    index = FrameIndex(1, 0)
    frame, wanted = clip.frame(index), original.frame(index, 32, 24)
    assert (frame.image - wanted.image).abs().mean() < 0.02
    torch.testing.assert_close(frame.matte, wanted.matte, atol=0.5 / 255 + 1e-6, rtol=0)


def broken(kind: str, folder: Path) -> None:
    if kind == "picture truncated":
        path = folder / "images/000001.jpg"
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "picture gone":
        (folder / "images/000002.jpg").unlink()
    elif kind == "matte of another size":
        (folder / "masks/000001.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
    elif kind == "header":
        (folder / "clip.json").write_text("{")
    elif kind == "unfinished":
        (folder / "clip.json").rename(folder / "clip.unfinished")
    elif kind == "mirrored camera":
        arrays = read_arrays(folder)
        arrays["world_to_camera"][1, 0, :3, :3] *= -1
        write_arrays(folder, arrays)
    elif kind == "landmarks elsewhere":
        arrays = read_arrays(folder)
        arrays["landmarks"] = np.full((3, 1, 9, 2), 2.0, np.float32)
        write_arrays(folder, arrays)
    elif kind == "another head":
        value = json.loads((folder / "clip.json").read_text())
        value["head"]["hash"] = "0" * 64
        (folder / "clip.json").write_text(json.dumps(value))


BROKEN = {
    "picture truncated": "images/000001.jpg, instant 1 camera 0: content: the JPEG is truncated",
    "picture gone": "images/000002.jpg: no such file",
    "matte of another size": "masks/000001.png, instant 1 camera 0: size: is 8 x 8 pixels",
    "header": "clip.json: not valid JSON",
    "unfinished": "writing this clip was interrupted",
    "mirrored camera": "instant 1 camera 0: world_to_camera: not a rotation: determinant -1",
    "landmarks elsewhere": "landmarks: their middle lies",
    "another head": "head.hash: the clip was tracked with 'tiny' (000000000000)",
}


def test_broken_clips_are_rejected_and_stop_nothing(tmp_path: Path) -> None:
    source = clips_below(tmp_path / "in", 2)
    for kind in BROKEN:
        tiny_clip(source / kind, instants=3)
        broken(kind, source / kind)
    summary = ingest(config_for(source, tmp_path / "out"))
    assert (summary.clips, summary.rejected, summary.left) == (2, len(BROKEN), 0)
    reasons = rejected(tmp_path / "out")
    assert reasons.keys() == BROKEN.keys()
    for kind, expected in BROKEN.items():
        assert expected in reasons[kind], reasons[kind]
        assert str(source / kind) in reasons[kind]
    assert keys(open_shards(tmp_path / "out")) == ["set0/anna00", "set1/anna01"]


def losing_the_face(folder: Path, bad: int, **changes: Any) -> TrackedClip:
    """A clip of 20 instants; in ``bad`` of them landmarks and box are somewhere else."""
    clip = tiny_clip(folder, instants=20, **changes)
    arrays = read_arrays(folder)
    landmarks = clip.camera(clip.split("all")).project(tiny_head().landmarks(tiny_head()(clip.params)))[0]
    arrays["landmarks"] = landmarks[:, None].numpy()
    arrays["landmarks"][3 : 3 + bad] += 1000
    arrays["face_box"][3 : 3 + bad] = [[[0, 0, 0, 0]]]  # as a detector writes that found nothing
    write_arrays(folder, arrays)
    return open_clip(folder)


def test_a_face_that_is_lost_for_a_moment_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "in"
    clips = {name: losing_the_face(source / name, bad) for name, bad in (("sound", 0), ("some", 2), ("many", 3))}
    ingest(config_for(source, tmp_path / "out", max_bad_frames=0.1))
    shards = open_shards(tmp_path / "out")
    assert dict(zip(shards.column("key"), shards.column("bad_frames"))) == {"sound": 0, "some": 2}
    same_clip(shards.clip(shards.find("some")), clips["some"])
    (reason,) = rejected(tmp_path / "out").values()
    assert reason.startswith(f"{source}/many: params.safetensors, instant 3 camera 0: face_box: is empty: 0 0 0 0")
    assert reason.endswith("(3 of 20 frames are such, --max-bad-frames 0.1 allows 2)")
    assert verify(shards, tiny_head()) == []
    assert summary(shards)["bad_frames"] == 2
    ingest(config_for(source, tmp_path / "strict", max_bad_frames=0))
    assert keys(open_shards(tmp_path / "strict")) == ["sound"]


def test_too_few_frames_for_the_test_set_reject_the_clip(tmp_path: Path) -> None:
    source = clips_below(tmp_path / "in", 1)
    tiny_clip(source / "long", instants=6)
    ingest(config_for(source, tmp_path / "out", test_last=3))
    (reason,) = rejected(tmp_path / "out").values()
    assert "--test-last 3 does not fit, expected 1..2: 3 instants" in reason
    assert open_shards(tmp_path / "out").clip(0).test_from == 3


def test_a_fault_of_the_program_is_the_clips_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips_below(tmp_path / "in", 2)

    def failing(location: str) -> TrackedClip:
        if location.endswith("anna01"):
            raise KeyError("what\nnow")
        return open_clip(location)

    monkeypatch.setattr(converting, "open_clip", failing)
    assert ingest(config_for(source, tmp_path / "out")).rejected == 1
    (reason,) = rejected(tmp_path / "out").values()
    assert "internal error: KeyError" in reason and "\n" not in reason


def test_everything_rejected_is_a_data_set_of_nothing(tmp_path: Path) -> None:
    source = clips_below(tmp_path / "in", 1)
    broken("header", source / "set0/anna00")
    assert ingest(config_for(source, tmp_path / "out")).clips == 0
    assert len(open_shards(tmp_path / "out")) == 0
    assert not list((tmp_path / "out/shards").glob("*.parquet"))


def test_a_store_that_fails_rejects_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a full disk: the clip is fine, and the next run takes it."""
    source = clips_below(tmp_path / "in", 2)
    config = config_for(source, tmp_path / "out")
    for error in (StoreError("the store did not answer"), OSError(28, "No space left on device")):

        def failing(location: str, error: Exception = error) -> TrackedClip:
            if location.endswith("anna01"):
                raise error
            return open_clip(location)

        with monkeypatch.context() as patch:
            patch.setattr(converting, "open_clip", failing)
            with pytest.raises(type(error)):
                ingest(config)
        assert read_records(tmp_path / "out") == []
        assert list((tmp_path / "out/shards").iterdir()) == []
    assert ingest(config) == IngestSummary(clips=2, rejected=0, converted=2, frames=6, left=0)


# stopping and going on


def test_a_second_run_has_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips_below(tmp_path / "in", 4)
    broken("header", source / "set0/anna00")
    config = config_for(source, tmp_path / "out")
    ingest(config)
    before = folder_content(tmp_path / "out")
    monkeypatch.setattr(converting, "open_clip", lambda location: pytest.fail(f"opened {location}"))
    assert ingest(config) == IngestSummary(clips=3, rejected=1, converted=0, frames=0, left=0)
    assert folder_content(tmp_path / "out") == before


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    source = clips_below(tmp_path / "in", 4)
    for name in ("a", "b"):
        ingest(config_for(source, tmp_path / name))
    assert folder_content(tmp_path / "a") == folder_content(tmp_path / "b")


class Killed(BaseException):
    """What no handler of ordinary errors sees."""


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Seven clips, one of them broken, and the data set that an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("seven")
    source = clips_below(folder / "in", 7)
    broken("picture gone", source / "set1/anna03")
    ingest(config_for(source, folder / "whole"))
    return source, folder_content(folder / "whole")


@pytest.mark.parametrize("after", range(10))
def test_killed_anywhere_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seven: tuple[Path, dict[str, bytes]], after: int
) -> None:
    """The same bytes as an undisturbed run, whichever write is the last that succeeds."""
    source, whole = seven
    config = config_for(source, tmp_path / "out")
    done = 0

    def counted(write: Callable[..., None]) -> Callable[..., None]:
        def counting(*arguments: Any) -> None:
            nonlocal done
            if done == after:
                raise Killed
            done += 1
            write(*arguments)

        return counting

    with monkeypatch.context() as patch:
        for name in ("write_bytes", "move_into_place"):
            patch.setattr(files, name, counted(getattr(files, name)))
        with pytest.raises(Killed):
            ingest(config)
    assert folder_content(tmp_path / "out") != whole
    ingest(config)
    assert folder_content(tmp_path / "out") == whole


def test_only_what_is_new_is_converted(tmp_path: Path) -> None:
    source = clips_below(tmp_path / "in", 4)
    config = config_for(source, tmp_path / "out")
    assert ingest(config.model_copy(update={"limit": 2})).clips == 2
    tiny_clip(source / "between", instants=3)
    assert ingest(config) == IngestSummary(clips=5, rejected=0, converted=3, frames=9, left=0)
    assert keys(open_shards(tmp_path / "out")) == ["between", *(f"set{n % 2}/anna{n:02d}" for n in (0, 2, 1, 3))]


def test_rejected_clips_are_tried_again_when_asked(tmp_path: Path) -> None:
    source = clips_below(tmp_path / "in", 3)
    broken("unfinished", source / "set1/anna01")
    broken("picture gone", source / "set0/anna02")
    config = config_for(source, tmp_path / "out")
    ingest(config)
    (source / "set1/anna01/clip.unfinished").rename(source / "set1/anna01/clip.json")
    assert ingest(config).converted == 0
    assert ingest(config, retry_rejected=True) == IngestSummary(clips=3 - 1, rejected=1, converted=1, frames=3, left=0)
    shards = open_shards(tmp_path / "out")
    assert keys(shards) == ["set0/anna00", "set1/anna01"]
    assert [(r.key, r.attempts) for r in shards.rejected] == [("set0/anna02", 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_last": 1}, "was made with test_last 0, not 1; use the same settings"),
        ({"max_size": 16}, "was made with max_size None, not 16"),
        ({"licence": "CC0"}, "was made with licence None, not 'CC0'"),
        ({"tracking": "/vhap"}, "was made with tracking None, not '/vhap'"),
        ({"max_bad_frames": 0}, r"was made with max_bad_frames 0\.05, not 0\.0"),
        ({"source": "other"}, "was made from .*/in, not from .*/other"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source = clips_below(tmp_path / "in", 1)
    clips_below(tmp_path / "other", 1)
    ingest(config_for(source, tmp_path / "out"))
    before = folder_content(tmp_path / "out")
    if "source" in changes:
        changes = {"source": str(tmp_path / "other")}
    with pytest.raises(SpatialAvatarError, match=message):
        ingest(config_for(source, tmp_path / "out", **changes))
    assert folder_content(tmp_path / "out") == before
    ingest(config_for(source, tmp_path / "out", clips_per_shard=1))  # how much goes into a shard is free


def test_two_ingests_at_once(tmp_path: Path) -> None:
    """Step by step in turn, and both finish; the second writes over what the first has written."""
    source = clips_below(tmp_path / "in", 5)
    ingest(config_for(source, tmp_path / "whole"))
    config = config_for(source, tmp_path / "out")
    first, second = prepare(config), prepare(config)
    counts = Count(first), Count(second)
    for a, b in zip(in_turn(first), in_turn(second), strict=True):
        counts[0].add(a)
        counts[1].add(b)
    finish(first, counts[0])
    finish(second, counts[1])
    assert folder_content(tmp_path / "out") == folder_content(tmp_path / "whole")


def test_a_manifest_that_another_ingest_has_mixed_up_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's table gets between our table and our manifest.json; and then its last record comes late."""
    source = clips_below(tmp_path / "in", 4)
    config = config_for(source, tmp_path / "out")
    work = prepare(config)
    count = Count(work)
    steps = in_turn(work)
    count.add(next(steps))
    write = files.write_bytes
    troubles = iter(["mix", "late"])

    def disturbed(location: Any, data: bytes) -> None:
        write(location, data)
        if str(location).endswith("manifest.parquet") and (trouble := next(troubles, None)):
            if trouble == "mix":
                write(location, b"another's")
            else:
                list(steps)

    monkeypatch.setattr(files, "write_bytes", disturbed)
    summary = finish(work, count)
    assert next(troubles, None) is None
    assert summary.clips == 4 and len(open_shards(tmp_path / "out")) == 4


def test_half_written_shards_go_with_their_process(tmp_path: Path) -> None:
    config = config_for(clips_below(tmp_path / "in", 1), tmp_path / "out")
    folder = tmp_path / "out/shards"
    with converting._growing_file(config.output, "name") as growing:
        growing.write_bytes(b"half")
        abandoned = folder / ".ingest-abandoned"
        abandoned.mkdir()
        (abandoned / "name.parquet").write_bytes(b"half")
        fresh = folder / ".ingest-fresh"  # its maker is about to lock it
        fresh.mkdir()
        for path in (abandoned, growing.parent):
            os.utime(path, (1, 1))
        remove_leftovers(config.output)
        assert growing.exists() and fresh.exists() and not abandoned.exists()
    assert sorted(folder.iterdir()) == [fresh]


# folders of several clips


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A format whose folders hold a list of our clips, in ``list.txt``."""
    from spatialavatar.clip.importers import open_source

    def open_several(folder: str, head: Any, options: ImportOptions) -> list[TrackedClip]:
        return [open_clip(line) for line in Path(folder, "list.txt").read_text().split()]

    monkeypatch.setitem(FORMATS, "several", Importer(lambda names: "list.txt" in names, open_several, "list.txt"))
    assert open_source
    clips_below(tmp_path / "clips", 8)
    paths = sorted((tmp_path / "clips").rglob("clip.json"))
    for name, some in (("big", paths), ("pair", paths[:2]), ("one", paths[:1])):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "list.txt").write_text("\n".join(str(p.parent) for p in some))
    yield tmp_path


def test_folders_of_several_clips_fill_several_shards(several: Path) -> None:
    config = config_for(several / "in", several / "out", format="several")
    seen: list[tuple[int, int]] = []
    summary = ingest(config, progress=lambda *numbers: seen.append(numbers))
    assert summary.clips == 11 and seen[-1] == (11, 11)
    shards = open_shards(several / "out")
    assert keys(shards) == sorted([*(f"big#{n}-of-8" for n in range(1, 9)), "one", "pair#1-of-2", "pair#2-of-2"])
    assert max(np.unique(shards.column("shard"), return_counts=True)[1]) <= 3
    assert shards.clip(shards.find("big#8-of-8")).identity == "id7"
    assert ingest(config).converted == 0


def test_a_big_folder_goes_on_where_it_stopped(several: Path) -> None:
    (several / "in/pair/list.txt").unlink()
    (several / "in/one/list.txt").unlink()
    config = config_for(several / "in", several / "out", format="several")
    ingest(config_for(several / "in", several / "whole", format="several"))
    steps = in_turn(prepare(config))
    assert [next(steps).record is None, next(steps).record is None] == [True, False]
    steps.close()
    work = prepare(config)
    assert [[key for item in group.items for key in item.keys] for group in work.groups] == [
        [f"big#{n}-of-8" for n in (4, 5, 6)],
        [f"big#{n}-of-8" for n in (7, 8)],
    ]
    ingest(config)
    assert folder_content(several / "out") == folder_content(several / "whole")


def test_one_clip_of_a_big_folder_is_rejected_and_retried_alone(several: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(several / "in", several / "out", format="several", identity_pattern="(id[0-9]|one)")
    fifth = sorted((several / "clips").rglob("clip.json"))[4].parent
    picture = (fifth / "images/000001.jpg").read_bytes()
    broken("picture truncated", fifth)
    assert ingest(config).rejected == 1
    assert list(rejected(several / "out")) == ["big#5-of-8"]
    (fifth / "images/000001.jpg").write_bytes(picture)
    made: list[str] = []
    real = converting._row
    monkeypatch.setattr(converting, "_row", lambda *arguments: (made.append(arguments[1]), real(*arguments))[1])
    assert ingest(config, retry_rejected=True).rejected == 0
    assert made == ["big#5-of-8"]
    shards = open_shards(several / "out")
    assert len(shards) == 11 and shards.clip(shards.find("big#5-of-8")).identity == "id1"
    assert shards.clip(shards.find("one")).identity == "one"


def test_a_source_that_ends_its_process_is_quarantined(tmp_path: Path) -> None:
    source = clips_below(tmp_path / "in", 3)
    config = config_for(source, tmp_path / "out")

    def run(work: Work) -> Iterator[Converted]:
        (group,) = work.groups
        parts = converting.grouped(group.items, 1, work.settings, 1)
        yield Converted(group, None, tuple(parts))
        yield Converted(parts[0], quarantine(parts[0], work.config, work.head, "ended its process twice"))
        for part in parts[1:]:
            yield convert(part, work.config, work.head)

    summary = ingest(config, run)
    assert (summary.clips, summary.rejected) == (2, 1)
    assert rejected(tmp_path / "out") == {"set0/anna00": f"{source}/set0/anna00: ended its process twice"}
    assert ingest(config).converted == 0


# planning


def test_planning_many_sources_is_quick_and_stable() -> None:
    config = IngestConfig(source="s3://a/b", output="s3://c/d", clips_per_shard=64)
    found = [SourceFolder(f"k{n:06d}", f"s3://a/b/k{n:06d}", "npz") for n in range(5_000)]
    groups = plan_groups(config, found, [], "settings")
    assert len(groups) == 79 and len({group.name for group in groups}) == 79
    assert groups == plan_groups(config, list(found), [], "settings")
    assert {g.name for g in groups}.isdisjoint(g.name for g in plan_groups(config, found, [], "others"))


def test_output_in_a_store_of_this_process(tmp_path: Path) -> None:
    """Source and output are URLs, as they are with s3://."""
    for number in range(3):
        tiny_clip(f"memory://ingest-in/a/c{number}", seed=number, instants=3)
    files.remove("memory://ingest-out")
    config = IngestConfig(source="memory://ingest-in", output="memory://ingest-out", head=HEAD, clips_per_shard=2)
    assert ingest(config).clips == 3
    shards = open_shards("memory://ingest-out")
    for number in range(3):
        same_clip(open_clip(f"memory://ingest-in/{shards.entry(number).key}"), shards.clip(number))
    assert ingest(config).converted == 0


def test_a_clip_that_is_refused_by_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips_below(tmp_path / "in", 2)
    monkeypatch.setattr(file, "LARGEST_PICTURES", 1000)
    assert ingest(config_for(source, tmp_path / "out")).rejected == 2
    assert "make them smaller (--image-format jpg, --max-size)" in rejected(tmp_path / "out")["set0/anna00"]


def test_a_shard_takes_no_more_folders_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips_below(tmp_path / "in", 4)
    monkeypatch.setattr(converting, "LARGEST_SHARD", 1000)
    ingest(config_for(source, tmp_path / "out", clips_per_shard=4))
    shards = open_shards(tmp_path / "out")
    assert len(shards) == 4 and len(set(shards.column("shard"))) == 4


def test_settings_name_everything_that_changes_clips() -> None:
    """A new option must be decided on: part of the settings or free."""
    config = IngestConfig(source="a", output="b")
    free = {"source", "output", "clips_per_shard", "limit"}
    assert set(config.settings(tiny_head())) == set(IngestConfig.model_fields) - free | {"head_hash"}
