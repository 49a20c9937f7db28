"""A clip is replaced only when asked for, only by a whole one, and comes through a kill at any step."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spatialavatar import files
from spatialavatar.clip import FrameIndex, open_clip, validate_clip
from spatialavatar.clip.importers import import_clips
from spatialavatar.errors import SpatialAvatarError
from tests.builders.clips import tiny_clip, tiny_head, tiny_pictures
from tests.builders.trackers.npz import npz_folder

STORE = "memory://replacing/anna"


class Killed(BaseException):
    """Stands for SIGKILL: whoever cleans up after it in the same process is not tested by it."""


def content(folder: files.Location) -> dict[str, bytes]:
    """Every file by its path inside the folder."""
    found: dict[str, bytes] = {}
    for name in files.list_folder(folder):
        location = files.join(folder, name)
        if files.is_folder(location):
            found |= {f"{name}/{inner}": data for inner, data in content(location).items()}
        else:
            found[name] = files.read_bytes(location)
    return found


@pytest.fixture(params=["local", "file URL", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param != "store":
        return f"{'file://' if request.param == 'file URL' else ''}{tmp_path}/clips/anna"
    files.remove(STORE)
    return STORE


def die_at_frame(instant: int, error: BaseException) -> Callable[[int, int], Any]:
    def frames(t: int, c: int) -> Any:
        if t == instant:
            raise error
        return tiny_pictures(t, c, 32, 24)

    return frames


def test_a_complete_clip_needs_force(folder: str) -> None:
    tiny_clip(folder)
    before = content(folder)
    with pytest.raises(SpatialAvatarError, match=r"holds a clip; .*--force"):
        tiny_clip(folder, seed=1)
    assert content(folder) == before
    assert tiny_clip(folder, seed=1, force=True).identity == "tiny1"
    assert validate_clip(folder, tiny_head()) == []


@pytest.mark.parametrize("error", [SpatialAvatarError("no such file"), KeyboardInterrupt(), OSError(28, "full")])
def test_a_failed_write_leaves_the_old_clip(folder: str, error: BaseException) -> None:
    tiny_clip(folder)
    before = content(folder)
    with pytest.raises(type(error)):
        tiny_clip(folder, seed=1, instants=6, frames=die_at_frame(2, error), force=True)
    assert content(folder) == before
    assert files.list_folder(folder.rpartition("/")[0]) == ["anna"]


def test_a_failed_import_leaves_the_old_clip(tmp_path: Path) -> None:
    source = npz_folder(tmp_path / "source")
    import_clips(source, tmp_path / "clip", tiny_head())
    before = content(tmp_path / "clip")
    (source / "images/000012.jpg").unlink()
    for force in (False, True):
        with pytest.raises(SpatialAvatarError):
            import_clips(source, tmp_path / "clip", tiny_head(), force=force)
        assert content(tmp_path / "clip") == before


def test_an_unfinished_clip_is_rewritten_without_force(folder: str) -> None:
    with pytest.raises(Killed):
        tiny_clip(folder, instants=6, frames=die_at_frame(4, Killed()))
    with pytest.raises(SpatialAvatarError, match="was interrupted"):
        open_clip(folder)
    tiny_clip(folder, instants=2)
    assert files.list_folder(files.join(folder, "images")) == ["000000.jpg", "000001.jpg"]
    assert validate_clip(folder, tiny_head()) == []


def test_a_clip_can_be_made_from_the_one_that_it_replaces(folder: str) -> None:
    old = tiny_clip(folder)
    tiny_clip(folder, frames=lambda t, c: old.encoded(FrameIndex(3 - t, c)), force=True)
    assert validate_clip(folder, tiny_head()) == []


def test_other_files_move_to_the_new_clip(tmp_path: Path) -> None:
    target = tmp_path / "anna"
    tiny_clip(target)
    for name in ("notes.txt", "images/best.txt", "roi/drawn.xcf"):
        (target / name).write_text(name)
    tiny_clip(target, instants=2, has_region=False, force=True)
    assert files.list_folder(target) == ["clip.json", "images", "masks", "notes.txt", "params.safetensors", "roi"]
    assert files.list_folder(target / "images") == ["000000.jpg", "000001.jpg", "best.txt"]
    assert (target / "roi/drawn.xcf").read_text() == "roi/drawn.xcf"
    assert files.list_folder(target / "roi") == ["drawn.xcf"]


def test_a_link_to_a_clip_stays_a_link(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "disk/anna")
    (tmp_path / "anna").symlink_to(tmp_path / "disk/anna")
    tiny_clip(tmp_path / "anna", seed=1, force=True)
    assert (tmp_path / "anna").is_symlink() and open_clip(tmp_path / "disk/anna").identity == "tiny1"


def test_pictures_of_no_clip_are_not_overwritten(tmp_path: Path) -> None:
    source = npz_folder(tmp_path / "source")
    before = content(source)
    for force in (False, True):
        with pytest.raises(SpatialAvatarError, match="holds"):
            tiny_clip(source, force=force)
    assert content(source) == before


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_clip(tmp_path / "anna")
    monkeypatch.chdir(tmp_path / "anna/images")
    with pytest.raises(SpatialAvatarError, match="from outside"):
        tiny_clip(tmp_path / "anna", force=True)


class Kill:
    """Lets ``at`` calls through, of all functions together; each further one dies, those of cleaning up too."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*args, **named)

        return counted


def kill_at_every_step(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[Any, str]], work: Callable[[], Any]
) -> Iterator[int]:
    """Yields after each run of ``work`` that died at the first, second, ... call of the functions in ``steps``."""
    for at in range(1000):
        with monkeypatch.context() as patch:
            kill = Kill(at)
            for owner, name in steps:
                patch.setattr(owner, name, kill(getattr(owner, name)))
            try:
                work()
            except Killed:
                pass
            else:
                return
        yield at
    raise AssertionError("never finished")


LOCAL_STEPS = [(os, "replace"), (shutil, "rmtree"), (files, "remove"), (files, "write_bytes")]
STORE_STEPS = [(files, "remove"), (files, "write_bytes")]


def test_killed_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the clips is whole at its place, or the old one comes back with the next write, refused or not."""
    target = tmp_path / "clips/anna"
    identities: dict[str, set[str]] = {"at its place": set(), "brought back": set()}

    def replace() -> None:
        tiny_clip(target, instants=2, seed=1, force=True)

    def old() -> None:
        shutil.rmtree(tmp_path / "clips", ignore_errors=True)
        tiny_clip(target, instants=3)
        (target / "notes.txt").write_text("precious")

    old()
    for _ in kill_at_every_step(monkeypatch, LOCAL_STEPS, replace):
        if (target / "clip.json").exists():
            where = "at its place"
        else:
            where = "brought back"
            with pytest.raises(SpatialAvatarError, match=r"the old one is .*\.anna\.old\.tmp; run the command"):
                open_clip(target)
        with pytest.raises(SpatialAvatarError, match="holds a clip"):
            tiny_clip(target, seed=2)
        assert validate_clip(target, tiny_head()) == []
        identities[where].add(open_clip(target).identity)
        assert (target / "notes.txt").read_text() == "precious"
        old()
    assert identities["at its place"] == {"tiny0", "tiny1"} and identities["brought back"] == {"tiny0"}
    assert files.list_folder(tmp_path / "clips") == ["anna"]


def test_killed_at_any_step_on_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old clip stands, or the new one does after the next write, refused or not."""
    identities = set()
    files.remove(STORE)
    tiny_clip(STORE, instants=3)
    for _ in kill_at_every_step(monkeypatch, STORE_STEPS, lambda: tiny_clip(STORE, instants=2, seed=1, force=True)):
        with pytest.raises(SpatialAvatarError, match="holds a clip"):
            tiny_clip(STORE, seed=2)
        assert validate_clip(STORE, tiny_head()) == []
        identities.add(open_clip(STORE).identity)
        files.remove(STORE)
        tiny_clip(STORE, instants=3)
    assert identities == {"tiny0", "tiny1"}
    assert files.list_folder(STORE) == ["clip.json", "images", "masks", "params.safetensors", "roi"]
