"""Runs in a folder: log, checkpoints, stop and resume, what is never overwritten."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spatialavatar import files
from spatialavatar.avatar import read_avatar
from spatialavatar.avatar.folder import GAUSSIANS, LOG
from spatialavatar.clip import TrackedClip, open_clip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.refine import (
    Progress,
    RefineConfig,
    Refinement,
    StepTerms,
    StopRefinement,
    avatar_start,
    refine_clip,
    template_start,
)
from spatialavatar.refine.checkpoint import FILE
from tests.builders.clips import tiny_clip, tiny_head, tiny_params
from tests.refine.test_loop import FAST, UV, config

SETTINGS = config("iterations=30", "checkpoint_every=10", "log_every=4", *FAST)


@pytest.fixture
def clip(tmp_path: Path) -> TrackedClip:
    return tiny_clip(tmp_path / "clip", instants=5, width=32, height=32, test_from=4, seed=3)


def refine(clip: TrackedClip, out: Path, settings: RefineConfig = SETTINGS, **options):  # type: ignore[no-untyped-def]
    return refine_clip(clip, tiny_head(), template_start(tiny_head(), UV), settings, out, **options)


def stop_at(iteration: int):  # type: ignore[no-untyped-def]
    def observe(progress: Progress) -> None:
        if progress.iteration == iteration:
            raise StopRefinement

    return observe


def test_finished_run_leaves_avatar_and_log_and_no_checkpoint(clip: TrackedClip, tmp_path: Path) -> None:
    out = tmp_path / "avatar"
    seen = []
    refine(clip, out, observe=lambda progress: seen.append(progress.iteration))
    assert seen == list(range(31))
    assert files.list_folder(out) == ["avatar.json", GAUSSIANS, LOG]
    lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert all(0 < line["l1"] < 1 and -1 <= line["ssim"] <= 1 for line in lines)
    avatar = read_avatar(out)
    start = template_start(tiny_head(), UV)
    assert avatar.layout_fingerprint == start.layout.fingerprint
    assert avatar.appearance.count == start.gaussians.count
    assert avatar.provenance["metrics"]["iterations"] == 30
    assert avatar.provenance["clip"]["training_frames"] == 4
    assert "made for tests" in avatar.licence_note


@pytest.mark.parametrize("stops", [[17], [10], [3, 12, 29]])
def test_stopped_and_resumed_run_is_bit_identical(clip: TrackedClip, tmp_path: Path, stops: list[int]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    refine(clip, whole)
    for stop in stops:
        with pytest.raises(StopRefinement):
            refine(clip, parts, resume=True, observe=stop_at(stop))
        assert FILE in files.list_folder(parts)
        assert "avatar.json" not in files.list_folder(parts)
    refine(clip, parts, resume=True)
    assert (parts / GAUSSIANS).read_bytes() == (whole / GAUSSIANS).read_bytes()

    def log_without_time(folder: Path) -> list[dict[str, float]]:
        return [{**json.loads(line), "seconds": 0} for line in (folder / LOG).read_text().splitlines()]

    assert log_without_time(parts) == log_without_time(whole)


def test_checkpoint_of_other_inputs_is_refused_and_kept(clip: TrackedClip, tmp_path: Path) -> None:
    out = tmp_path / "avatar"
    with pytest.raises(StopRefinement):
        refine(clip, out, observe=stop_at(10))
    before = (out / FILE).read_bytes()
    with pytest.raises(SpatialAvatarError, match="iterations: 30 then, 31 now"):
        refine(clip, out, config("iterations=31", "checkpoint_every=10", "log_every=4", *FAST), resume=True)
    same = {"instants": 5, "width": 32, "height": 32, "test_from": 4, "seed": 3}
    others = {
        "identity: tiny3 then, somebody-else now": {**same, "identity": "somebody-else"},
        "tracking": {**same, "params": tiny_params(5, seed=99), "identity": clip.identity},
        "test_from: 4 then, 3 now": {**same, "test_from": 3},
    }
    for expected, changes in others.items():
        other = tiny_clip(tmp_path / f"other-{len(expected)}", **changes)
        with pytest.raises(SpatialAvatarError, match=f"another clip.*{expected}"):
            refine(other, out, resume=True)
    with pytest.raises(SpatialAvatarError, match=r"--resume.*--force"):
        refine(clip, out)
    assert (out / FILE).read_bytes() == before


def test_finished_avatar_is_replaced_only_by_force(clip: TrackedClip, tmp_path: Path) -> None:
    out = tmp_path / "avatar"
    refine(clip, out)
    before = (out / GAUSSIANS).read_bytes()
    for resume in (False, True):
        with pytest.raises(SpatialAvatarError, match=r"finished avatar.*--force"):
            refine(clip, out, resume=resume)
    assert (out / GAUSSIANS).read_bytes() == before
    refine(clip, out, config("iterations=2", *FAST), force=True)
    assert (out / GAUSSIANS).read_bytes() != before


def test_foreign_folder_is_not_written_into(clip: TrackedClip, tmp_path: Path) -> None:
    out = tmp_path / "papers"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    for resume in (False, True):
        with pytest.raises(SpatialAvatarError, match="holds something else"):
            refine(clip, out, resume=resume)
    assert files.list_folder(out) == ["thesis.tex"]


def test_damaged_checkpoint_is_one_clear_error(clip: TrackedClip, tmp_path: Path) -> None:
    out = tmp_path / "avatar"
    with pytest.raises(StopRefinement):
        refine(clip, out, observe=stop_at(10))
    (out / FILE).write_bytes((out / FILE).read_bytes()[:-100])
    with pytest.raises(SpatialAvatarError, match=r"checkpoint\.safetensors.*truncated"):
        refine(clip, out, resume=True)


def test_disk_full_during_a_checkpoint_keeps_the_one_before(
    clip: TrackedClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "avatar", tmp_path / "whole"
    write, written = files.write_bytes, []

    def full_at_the_second(location: files.Location, data: bytes) -> None:
        if str(location).endswith(FILE):
            written.append(location)
            if len(written) == 2:
                raise OSError(28, "No space left on device", str(location))
        write(location, data)

    monkeypatch.setattr(files, "write_bytes", full_at_the_second)
    with pytest.raises(OSError):
        refine(clip, out)
    monkeypatch.undo()
    refine(clip, out, resume=True)
    refine(clip, whole)
    assert (out / GAUSSIANS).read_bytes() == (whole / GAUSSIANS).read_bytes()


def test_numbers_that_explode_stop_the_run_and_keep_the_last_checkpoint(
    clip: TrackedClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "avatar"
    with pytest.raises(StopRefinement):
        refine(clip, out, observe=stop_at(10))
    good = (out / FILE).read_bytes()
    step = Refinement.step

    def explode(self: Refinement) -> StepTerms:
        if self.iteration == 13:
            with torch.no_grad():
                self.parameters[0]["opacity"][:5] = torch.nan
        return step(self)

    monkeypatch.setattr(Refinement, "step", explode)
    with pytest.raises(SpatialAvatarError, match=r"not finite by iteration 16; the last good checkpoint is kept"):
        refine(clip, out, resume=True)
    assert (out / FILE).read_bytes() == good
    assert "avatar.json" not in files.list_folder(out)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("died_at", [0, 5])
def test_run_that_died_before_its_first_checkpoint_starts_again(
    clip: TrackedClip, tmp_path: Path, died_at: int, resume: bool
) -> None:
    out, whole = tmp_path / "avatar", tmp_path / "whole"

    def die(progress: Progress) -> None:
        if progress.iteration == died_at:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        refine(clip, out, observe=die)
    (out / f".{FILE}.abc{files.TEMPORARY}").write_bytes(b"half a checkp")
    refine(clip, out, resume=resume)
    refine(clip, whole)
    assert (out / GAUSSIANS).read_bytes() == (whole / GAUSSIANS).read_bytes()
    assert files.list_folder(out) == files.list_folder(whole)


def test_reference_frame_is_a_training_frame(tmp_path: Path) -> None:
    params = tiny_params(6, seed=5)
    jaw = torch.full((6, 3), 0.1)
    jaw[2], jaw[5] = 0.05, 0.01  # the most closed of all is held out
    params = replace(params, jaw=jaw, expression=torch.zeros_like(params.expression))
    clip = tiny_clip(tmp_path / "clip", instants=6, test_from=4, params=params)
    avatar = refine(clip, tmp_path / "avatar", config("iterations=1"))
    assert avatar.provenance["clip"]["reference_frame"] == 2
    torch.testing.assert_close(avatar.reference_params.jaw, jaw[2:3])


def test_start_from_another_avatar(clip: TrackedClip, tmp_path: Path) -> None:
    refine(clip, tmp_path / "first")
    start = avatar_start(tmp_path / "first", tiny_head())
    again = refine_clip(clip, tiny_head(), start, config("iterations=0"), tmp_path / "second")
    first = read_avatar(tmp_path / "first").appearance.gaussians
    torch.testing.assert_close(again.appearance.gaussians.position, first.position)
    # a clamped scale is clamped again about its new mean
    torch.testing.assert_close(again.appearance.gaussians.log_scale, first.log_scale, rtol=0, atol=5e-3)
    torch.testing.assert_close(again.appearance.gaussians.color, first.color.clamp(0.01, 0.99), rtol=0, atol=1e-6)
    assert again.provenance["start"].startswith("avatar")
    assert read_avatar(tmp_path / "first").licence_note in again.licence_note


def test_resuming_from_another_avatar_is_refused(clip: TrackedClip, tmp_path: Path) -> None:
    """Of the same head, layout and identity: only the Gaussians tell them apart."""
    for name, iterations in (("first", 1), ("second", 2)):
        refine(clip, tmp_path / name, config(f"iterations={iterations}", *FAST))
    first, second = (avatar_start(tmp_path / name, tiny_head()) for name in ("first", "second"))
    assert first.origin == second.origin and first.layout.fingerprint == second.layout.fingerprint
    out = tmp_path / "out"
    with pytest.raises(StopRefinement):
        refine_clip(clip, tiny_head(), first, SETTINGS, out, observe=stop_at(10))
    before = (out / FILE).read_bytes()
    for other in (second, template_start(tiny_head(), UV)):
        with pytest.raises(SpatialAvatarError, match=r"made with another start \(gaussians: .* then, .* now"):
            refine_clip(clip, tiny_head(), other, SETTINGS, out, resume=True)
    assert (out / FILE).read_bytes() == before
    again = avatar_start(tmp_path / "first", tiny_head())
    refined = refine_clip(clip, tiny_head(), again, SETTINGS, out, resume=True)
    started = refined.provenance["started_from"]
    assert started["gaussians"] == first.fingerprint and started["identity"] == clip.identity
    assert started["config"]["iterations"] == 1 and started["start"] == "template"


_KILLED = """
import sys
from pathlib import Path
from spatialavatar.clip import open_clip
from tests.refine.test_run import refine, LONG
refine(open_clip(sys.argv[1]), Path(sys.argv[2]), LONG, resume=True)
"""
LONG = config("iterations=400", "checkpoint_every=10", "log_every=7", *FAST)


@pytest.mark.slow
def test_killed_and_resumed_process_is_bit_identical(clip: TrackedClip, tmp_path: Path) -> None:
    """SIGKILL at some moment after a checkpoint, three times over; then to the end."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", _KILLED, clip.location, str(out)], cwd=Path(__file__).parents[2])

    assert start(whole).wait(timeout=300) == 0
    kills = 0
    for _ in range(3):
        seen = (parts / FILE).stat().st_mtime_ns if (parts / FILE).exists() else 0
        process = start(parts)
        while process.poll() is None:
            if (parts / FILE).exists() and (parts / FILE).stat().st_mtime_ns > seen:
                process.send_signal(signal.SIGKILL)
                process.wait(timeout=60)
                kills += 1
                break
            time.sleep(0.005)  # poll for the next checkpoint
    assert kills == 3
    assert start(parts).wait(timeout=300) == 0
    assert (parts / GAUSSIANS).read_bytes() == (whole / GAUSSIANS).read_bytes()
    assert open_clip(clip.location).identity == clip.identity
