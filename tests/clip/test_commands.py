"""``spatialavatar clip``: exit codes and what is printed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from spatialavatar.cli.clip import app
from spatialavatar.cli.main import app as program
from spatialavatar.clip import open_clip, validate_clip
from spatialavatar.clip.importers import ImportOptions
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head import HeadModel, builtin_head, write_head
from tests.builders.clips import tiny_cameras, tiny_clip, tiny_head, tiny_params, tiny_pictures
from tests.builders.trackers.npz import npz_folder


@pytest.fixture
def head_file(tmp_path: Path) -> str:
    head: HeadModel = tiny_head()
    path = tmp_path / "tiny.head.safetensors"
    write_head(path, head.info, {name: buffer.numpy() for name, buffer in head.named_buffers()})
    return str(path)


def test_import_validate_inspect(tmp_path: Path, head_file: str) -> None:
    source, out = npz_folder(tmp_path / "source"), str(tmp_path / "clip")
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


@pytest.mark.parametrize("command", ["import", "export", "synthesize", "validate", "inspect"])
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
        (["--test-cameras", "1"], r"--test-cameras 1: there are cameras 0..0"),
        (["--test-cameras", "-1", "--cameras", "2"], "--test-cameras -1: there are cameras 0..1"),
    ):
        result = CliRunner().invoke(app, ["synthesize", "--out", str(tmp_path), "--frames", "3", *arguments])
        assert isinstance(result.exception, SpatialAvatarError) and message in str(result.exception)


@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [
        ("--size", 9000, 8192),
        ("--size", 7, 8),
        ("--identity", -1, 0),
        ("--motion", -1, 0),
        ("--cameras", 101, 100),
        ("--frames", 10**6, 999999),
    ],
)
def test_numbers_out_of_range_name_option_and_limit(tmp_path: Path, option: str, value: int, limit: int) -> None:
    result = CliRunner().invoke(program, ["clip", "synthesize", "--out", str(tmp_path / "a"), option, str(value)])
    assert result.exit_code == 2 and f"'{option}'" in result.output and str(limit) in result.output
    assert not (tmp_path / "a").exists()


def test_identities_that_cannot_name_files(tmp_path: Path, head_file: str) -> None:
    source = npz_folder(tmp_path / "source")
    for identity, suggested in (("Anna Müller", "Anna_M_ller"), ("anna\n", "anna_"), ("../x", "_x"), ("", "unnamed")):
        arguments = ["import", str(source), "--head", head_file, "--out", str(tmp_path / "a"), "--identity", identity]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, SpatialAvatarError), result.output
        assert str(result.exception).startswith(f"--identity {identity!r}: expected letters a-z, digits")
        assert str(result.exception).endswith(f"--identity {suggested}")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-split", "--test-last", "2"], "give one of them"),
        (["--fps", "0"], "--fps 0: expected a positive number"),
        (["--fps", "nan"], "--fps nan: expected a positive number"),
        (["--tracking", "vhap/a", "--format", "vhap"], "--tracking vhap/a: belongs to --format nersemble"),
        (["--format", "deca"], "no importer named 'deca'; there are auto, npz, gagavatar-track, imavatar, vhap"),
    ],
)
def test_refused_imports(tmp_path: Path, head_file: str, options: list[str], message: str) -> None:
    source = npz_folder(tmp_path / "source")
    arguments = ["import", str(source), "--head", head_file, "--out", str(tmp_path / "a"), *options]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SpatialAvatarError) and message in str(result.exception), result.output
    assert not (tmp_path / "a").exists()


def test_import_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def record(source: str, out: str, head: str, format: str, options: ImportOptions, **rest: object) -> list[object]:
        asked.update(vars(options), source=source, format=format, force=rest["force"])
        return []

    monkeypatch.setattr("spatialavatar.clip.importers.import_clips", record)
    monkeypatch.setattr("spatialavatar.head.file.read_head", lambda path: path)
    arguments = ["import", "SRC", "--head", "H", "--out", str(tmp_path / "a"), "--format", "nersemble", "--force"]
    arguments += ["--fps", "73", "--keep-split", "--tracking", "T", "--drop-dynamic-offsets", "--licence", "ask"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert asked == {
        "source": "SRC",
        "format": "nersemble",
        "force": True,
        "identity": None,
        "licence": "ask",
        "fps": 73,
        "test_last": 0,
        "keep_split": True,
        "tracking": "T",
        "drop_dynamic_offsets": True,
    }


def test_a_clip_is_not_replaced_unasked(tmp_path: Path, head_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before any work starts."""
    monkeypatch.setattr("spatialavatar.head.builtin_head", lambda: pytest.fail("worked"))
    tiny_clip(tmp_path / "anna")
    source = npz_folder(tmp_path / "source")
    for arguments in (["synthesize"], ["import", str(source), "--head", head_file]):
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "anna")])
        assert isinstance(result.exception, SpatialAvatarError) and "replace the clip with --force" in str(
            result.exception
        )
    assert open_clip(tmp_path / "anna").identity == "tiny0"
    arguments = ["import", str(source), "--head", head_file, "--out", str(tmp_path / "anna"), "--force"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert open_clip(tmp_path / "anna").identity == "source"


def test_inspect_keeps_what_is_there(tmp_path: Path, head_file: str) -> None:
    tiny_clip(tmp_path / "clip")
    out = tmp_path / "thesis.tex"
    out.write_text("precious")
    arguments = ["inspect", str(tmp_path / "clip"), "--head", head_file, "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SpatialAvatarError) and "--force" in str(result.exception)
    assert out.read_text() == "precious"
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_validate_finds_the_head(tmp_path: Path, head_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = tiny_head()
    clip = tiny_clip(tmp_path / "clip")
    landmarks = clip.camera(clip.split("all")).project(head.landmarks(head(clip.params)))[0][:, None]
    tiny_clip(tmp_path / "clip", landmarks=landmarks * 0.1, force=True)
    unchecked = "not checked: code and vertex counts, whether the posed head and its landmarks fit"
    monkeypatch.delenv("SPATIALAVATAR_HEADS", raising=False)
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "clip")])
    assert result.exit_code == 0 and "no faults" in result.stdout
    (line,) = [line for line in result.stderr.splitlines() if "not checked" in line]
    assert line.startswith(unchecked) and "needs head tiny" in line and "--head" in line

    monkeypatch.setenv("SPATIALAVATAR_HEADS", str(Path(head_file).parent))
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "clip")])
    assert result.exit_code == 2 and "pixels from the posed head's landmarks" in result.stdout
    assert "not checked" not in result.stderr


def test_validate_looks_for_the_builtin_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: buffer.numpy() for name, buffer in tiny_head().named_buffers()}
    head = write_head(tmp_path / "b.head.safetensors", replace(tiny_head().info, id="builtin-tiny"), arrays)
    monkeypatch.setattr("spatialavatar.head.reference.builtin_head", lambda: head)
    clip = tiny_clip(tmp_path / "clip", head=head, landmarks=torch.zeros(4, 1, 4, 2))
    result = CliRunner().invoke(app, ["validate", clip.location])
    assert result.exit_code == 2 and "pixels from the posed head's landmarks" in result.stdout, result.output
