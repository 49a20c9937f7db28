"""Where an export goes and when it does: a whole folder or none. What is in it is tested with each format."""

import dataclasses
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spatialavatar import files
from spatialavatar.cli.clip import app
from spatialavatar.clip import TrackedClip
from spatialavatar.clip.exporters import FORMATS, ExportReport, export_clip
from spatialavatar.clip.header import FrameIndex
from spatialavatar.clip.importers import open_source, recognise
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.tracked_clip import Progress
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, HeadParams, write_head
from tests.builders.clips import tiny_cameras, tiny_clip, tiny_head
from tests.builders.trackers.head import flame_head


@pytest.fixture
def clip(tmp_path: Path) -> TrackedClip:
    return tiny_clip(tmp_path / "clips/ann", instants=2, identity="ann")


def fake(clip: TrackedClip, head: HeadModel, out: files.Location, progress: Progress | None) -> ExportReport:
    """Writes pictures, then fails for a clip of three instants."""
    for t in range(clip.instants):
        files.write_bytes(files.join(out, f"pictures/{t}"), b"new")
        if t == 2:
            raise SpatialAvatarError("the disk is full")
    files.write_bytes(files.join(out, "listing"), str(out).rsplit("/", 1)[-1].encode())
    return ExportReport(3, ("a note",))


@pytest.fixture(autouse=True)
def with_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "fake", fake)


def holds(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


EXPORTED = {"listing": b"out", "pictures/0": b"new", "pictures/1": b"new"}


def test_a_new_folder(clip: TrackedClip, tmp_path: Path) -> None:
    report = export_clip(clip, "fake", tmp_path / "a/out", tiny_head())
    assert report == ExportReport(3, ("a note",))
    assert holds(tmp_path / "a") == {f"out/{name}": data for name, data in EXPORTED.items()}


def test_an_empty_folder(clip: TrackedClip, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_clip(clip, "fake", f"{tmp_path}/out/", tiny_head())
    assert holds(tmp_path / "out") == EXPORTED


def test_a_url(clip: TrackedClip) -> None:
    export_clip(clip, "fake", "memory://exports/out", tiny_head())
    assert files.read_bytes("memory://exports/out/listing") == b"out"


def test_a_folder_that_holds_something(clip: TrackedClip, tmp_path: Path) -> None:
    earlier = {"listing": b"old", "pictures/0": b"old", "pictures/7": b"old", "thesis.tex": b"years"}
    for name, data in earlier.items():
        files.write_bytes(tmp_path / "out" / name, data)
    with pytest.raises(SpatialAvatarError, match=r"holds listing, pictures, thesis\.tex; .* --force"):
        export_clip(clip, "fake", tmp_path / "out", tiny_head())
    assert holds(tmp_path / "out") == earlier
    export_clip(clip, "fake", tmp_path / "out", tiny_head(), force=True)
    assert holds(tmp_path / "out") == {**EXPORTED, "thesis.tex": b"years"}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    failing = tiny_clip(tmp_path / "clips/long", instants=3)
    with pytest.raises(SpatialAvatarError, match="disk is full"):
        export_clip(failing, "fake", tmp_path / "out", tiny_head())
    assert not (tmp_path / "out").exists()
    files.write_bytes(tmp_path / "out/listing", b"old")
    with pytest.raises(SpatialAvatarError, match="disk is full"):
        export_clip(failing, "fake", tmp_path / "out", tiny_head(), force=True)
    assert holds(tmp_path / "out") == {"listing": b"old"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clips", "out"]


def test_what_a_killed_export_left_is_taken_away(clip: TrackedClip, tmp_path: Path) -> None:
    files.write_bytes(tmp_path / ".out.new.tmp/out/pictures/9", b"half")
    export_clip(clip, "fake", tmp_path / "out", tiny_head())
    assert holds(tmp_path / "out") == EXPORTED and not (tmp_path / ".out.new.tmp").exists()


def test_refused(clip: TrackedClip, tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match="no exporter named 'usd'; there are vhap, gagavatar-track"):
        export_clip(clip, "usd", tmp_path / "out", tiny_head())
    with pytest.raises(SpatialAvatarError, match="clip has 3 shape and 4 expression codes"):
        export_clip(clip, "fake", tmp_path / "out", flame_head())
    (tmp_path / "file").write_text("")
    with pytest.raises(SpatialAvatarError, match="is a file"):
        export_clip(clip, "fake", tmp_path / "file", tiny_head())
    for place in (clip.location, str(Path(clip.location).parent)):
        with pytest.raises(SpatialAvatarError, match="holds the clip itself"):
            export_clip(clip, "fake", place, tiny_head(), force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clips", "file"]


@pytest.mark.parametrize("format", ["vhap", "gagavatar-track"])
def test_what_is_half_written_on_a_store_is_no_export(tmp_path: Path, format: str) -> None:
    """Also over an earlier export: its listing would then be of other pictures."""
    parts = {"instants": 2, "width": 64, "height": 64}
    clip, out = tiny_clip(tmp_path / "a", **parts), f"memory://half-written/{format}"
    export_clip(clip, format, out, tiny_head())
    assert recognise(frozenset(files.list_folder(out))) == format

    def lost(index: FrameIndex) -> EncodedFrame:
        if index.instant == 1:
            raise SpatialAvatarError("the picture is lost")
        return clip.encoded(index)

    with pytest.raises(SpatialAvatarError, match="is lost"):
        export_clip(dataclasses.replace(clip, read_frame=lost), format, out, tiny_head(), force=True)
    assert recognise(frozenset(files.list_folder(out))) is None
    export_clip(clip, format, out, tiny_head(), force=True)
    assert open_source(out, tiny_head())[0].instants == 2


@pytest.fixture(scope="module")
def head_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    head = flame_head()
    path = tmp_path_factory.mktemp("head") / "flame.head.safetensors"
    write_head(path, head.info, {name: buffer.numpy() for name, buffer in head.named_buffers()})
    return str(path)


@pytest.mark.parametrize("format", ["vhap", "gagavatar-track"])
def test_the_command(tmp_path: Path, head_file: str, format: str) -> None:
    """And what it writes is imported again by the command that names no format."""
    size, head = 64, flame_head()
    random = torch.Generator().manual_seed(0)
    params = HeadParams.neutral(2, 300, 100)
    jaw = 0.1 * torch.rand(2, 3, generator=random)
    world_to_camera, intrinsics = tiny_cameras(2, 1, size, size)
    clip = tiny_clip(
        tmp_path / "ann",
        instants=2,
        width=size,
        height=size,
        identity="ann",
        head=head,
        params=HeadParams(**{**vars(params), "jaw": jaw}),
        world_to_camera=world_to_camera,
        intrinsics=intrinsics,
    )
    out, back = str(tmp_path / "exported"), str(tmp_path / "back")
    arguments = ["export", clip.location, "--format", format, "--head", head_file, "--out", out]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert torch.is_grad_enabled(), "the export switched gradients off for whatever comes after"
    assert f"{out}: ann for {format}, 2 instants x 1 cameras at 64 x 64, " in result.stdout
    assert "note: " in result.stderr and "exporting: 2/2" in result.stderr
    assert len(open_source(out, head)) == 1
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, SpatialAvatarError) and "--force" in str(again.exception)
    result = CliRunner().invoke(app, ["import", out, "--head", head_file, "--out", back, "--fps", "30"])
    assert result.exit_code == 0, result.output
    assert f"{back}: " in result.stdout and f"read from {format}: " in result.stderr
