"""``spatialavatar clip``: exit codes and what is printed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from spatialavatar.cli.clip import app
from spatialavatar.clip import open_clip, validate_clip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, builtin_head, write_head
from tests.builders.clips import tiny_cameras, tiny_clip, tiny_head, tiny_params, tiny_pictures
from tests.clip.test_importers import write_source


@pytest.fixture
def head_file(tmp_path: Path) -> str:
    head: HeadModel = tiny_head()
    path = tmp_path / "tiny.head.safetensors"
    write_head(path, head.info, {name: buffer.numpy() for name, buffer in head.named_buffers()})
    return str(path)


def test_import_validate_inspect(tmp_path: Path, head_file: str) -> None:
    source, out = write_source(tmp_path / "source"), str(tmp_path / "clip")
    result = CliRunner().invoke(app, ["import", str(source), "--head", head_file, "--out", out, "--test-last", "2"])
    assert result.exit_code == 0, result.output
    assert "5 instants x 1 cameras at 32 x 24, 3 train, 2 test" in result.output and "importing: 5/5" in result.output
    result = CliRunner().invoke(app, ["validate", out, "--head", head_file])
    assert result.exit_code == 0 and "no faults" in result.output
    sheet = str(tmp_path / "sheet.png")
    result = CliRunner().invoke(app, ["inspect", out, "--head", head_file, "--frames", "0,4", "--out", sheet])
    assert result.exit_code == 0 and "2 frames" in result.output and Path(sheet).exists()


def test_validate_lists_faults_and_exits_with_2(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "clip")
    (tmp_path / "clip/images/000001.jpg").unlink()
    (tmp_path / "clip/masks/000002.png").write_bytes(b"")
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "clip")])
    assert result.exit_code == 2
    assert "images/000001.jpg, instant 1 camera 0: file: is missing" in result.stdout
    assert "masks/000002.png, instant 2 camera 0: content: the file is empty" in result.stdout
    assert "2 faults" in result.stderr


@pytest.mark.parametrize("command", ["import", "synthesize", "validate", "inspect"])
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0 and f"spatialavatar clip {command} " in result.output


def test_synthesize_passes_its_options_on(tmp_path: Path, head_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def film(head: HeadModel, *, identity: int, motion: int, frames: int, size: int, cameras: int) -> SimpleNamespace:
        asked.update(identity=identity, motion=motion, frames=frames, size=size, cameras=cameras)
        world_to_camera, intrinsics = tiny_cameras(frames, cameras, size, size)
        return SimpleNamespace(
            identity=f"synthetic-{identity:03d}",
            params=tiny_params(frames),
            world_to_camera=world_to_camera,
            intrinsics=intrinsics,
            face_box=torch.tensor([10.0, 10, 20, 20]).expand(frames, cameras, 4),
            fps=25.0,
            width=size,
            height=size,
            test_from=None,
            render=lambda t, c: tiny_pictures(t, c, size, size)[:2],
        )

    monkeypatch.setattr("spatialavatar.clip.synthetic.synthesize_capture", film)
    out = str(tmp_path / "made-up")
    arguments = ["--identity", "7", "--motion", "2", "--frames", "3", "--size", "32", "--head", head_file]
    arguments += ["--cameras", "2", "--test-cameras", "1", "--test-last", "1"]
    result = CliRunner().invoke(app, ["synthesize", "--out", out, *arguments])
    assert result.exit_code == 0, result.output
    assert asked == {"identity": 7, "motion": 2, "frames": 3, "size": 32, "cameras": 2}
    clip = open_clip(out)
    assert (clip.identity, clip.width, clip.test_from, clip.test_cameras) == ("synthetic-007", 32, 2, [1])
    assert clip.source.licence == tiny_head().info.licence
    assert validate_clip(out, tiny_head()) == []


@pytest.mark.slow
def test_synthesize(tmp_path: Path) -> None:
    """Without --head the clip is of the built-in head, which is found again by its hash."""
    out = str(tmp_path / "made-up")
    result = CliRunner().invoke(app, ["synthesize", "--out", out, "--frames", "3", "--size", "48", "--cameras", "2"])
    assert result.exit_code == 0, result.output
    assert open_clip(out).head.hash == builtin_head().content_hash
    assert validate_clip(out, builtin_head()) == []
    result = CliRunner().invoke(app, ["inspect", out, "--out", str(tmp_path / "sheet.png")])
    assert result.exit_code == 0 and "6 frames" in result.output, result.output


def test_refused_synthesis(tmp_path: Path) -> None:
    for arguments, message in (
        (["--test-last", "3"], "leaves nothing"),
        (["--test-cameras", "x"], "numbers with commas"),
    ):
        result = CliRunner().invoke(app, ["synthesize", "--out", str(tmp_path), "--frames", "3", *arguments])
        assert isinstance(result.exception, SpatialAvatarError) and message in str(result.exception)
