"""Evaluations on a real cluster: the same files whoever measures, going on, what is damaged or ends its process."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm

from spatialavatar import files
from spatialavatar.avatar import write_avatar
from spatialavatar.evaluation.generator_report import measure_subject
from spatialavatar.evaluation.results import finished
from spatialavatar.generator.checkpoint import FILE, write_generator
from spatialavatar.losses import lpips_weights
from spatialavatar.training.folder_pool import FolderPool
from tests.avatar.test_avatar import avatar
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.folders import folder_content
from tests.builders.generators import awaken, tiny_generator
from tests.builders.ray_commands import exit_code
from tests.builders.shards import tiny_shards
from tests.builders.train_jobs import ROOT
from tests.builders.training import tiny_head_file

pytest.importorskip("ray")


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def away(url: str) -> bytes:
        raise OSError("no network in tests")

    monkeypatch.setattr(lpips_weights, "_download", away)
    monkeypatch.setattr(lpips_weights, "_hub_cache", lambda: tmp_path)
    monkeypatch.delenv(lpips_weights.WEIGHTS_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator, its head, five clips of which one is damaged, and two of them as shards."""
    folder = tmp_path_factory.mktemp("evaluate")
    head, _ = tiny_head_file(folder)
    (folder / "run").mkdir()
    write_generator(folder / "run" / FILE, awaken(tiny_generator(head)), {"resolution": 32})
    for number in range(5):
        tiny_clip(folder / f"clips/c{number}", instants=7, width=32, height=32, seed=number, test_from=6)
    for picture in (folder / "clips/c3/images").iterdir():
        picture.write_bytes(b"")
    (folder / "clips/c4/clip.json").write_text("{}")
    tiny_shards(folder / "shards", 2, instants=6, width=32, height=32)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *options: Any) -> int:
    """The command in this process, as far as it connects to Ray; its exit code."""
    return exit_code(monkeypatch, "evaluate", *options)


def options_for(made: Path, out: Path, **changes: Any) -> list[str]:
    named = {"checkpoint": made / "run", "data": made / "clips", "out": out, "head": made / "tiny.head.safetensors"}
    named |= {"k": "1,3", "targets": 2}
    given = {name: value for name, value in {**named, **changes}.items() if value is not None}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def never_on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray_jobs.connect

    monkeypatch.setattr(ray_jobs.connect, "connect", lambda *_: pytest.fail("connected"))


def test_a_generator_whoever_measures(
    made: Path, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One worker and three leave the same files; a damaged clip is listed; what is there is not measured again."""
    one, three = tmp_path / "one", tmp_path / "three"
    assert command(monkeypatch, *options_for(made, one, workers=1)) == 0
    out, err = capfd.readouterr()
    assert out == f"{one}: 3 subjects, 3 new\n2 could not be measured, with reasons in {one}/evaluation.json\n"
    assert all(line.startswith(("evaluating: ", "LPIPS is left out: ")) for line in err.splitlines()), err
    assert command(monkeypatch, *options_for(made, three, workers=3)) == 0
    assert folder_content(one) == folder_content(three)

    report = files.read_json(one / "evaluation.json")
    assert [fault["key"] for fault in report["failed"]] == ["c3", "c4"]
    assert "c3/images/" in report["failed"][0]["reason"] and "clip.json" in report["failed"][1]["reason"]
    assert [(row["key"], row["identity"], row["cases"]) for row in report["subjects"]] == [
        (f"c{n}", f"tiny{n}", 4) for n in range(3)
    ]
    assert report["summary"]["by_k"].keys() == {"1", "3"} and report["summary"]["overall"]["cases"] == 12
    assert report["summary"]["reasons"].keys() == {"lpips", "csim", "aed", "apd", "akd"}
    lines = (one / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["K = 1", "K = 3", "all"]
    assert lines[0] == "| variant | PSNR | SSIM | LPIPS | CSIM | AED | APD | AKD |"
    assert lines[6].startswith("LPIPS: no AlexNet weights") and lines[8].startswith("CSIM: no identity estimator")
    assert (one / "table.csv").read_text().startswith("variant,psnr,ssim,lpips,csim,aed,apd,akd\nK = 1,")

    kept = next((one / "subjects").glob("c1-*.json"))
    rows = files.read_json(kept)["rows"]
    pool = FolderPool([str(made / "clips/c1")], tiny_head(), 0.0)
    from spatialavatar.evaluation.subjects import _number

    mine = measure_subject(
        awaken(tiny_generator(tiny_head())).eval(), pool, 0, sources=(1, 3), targets=2, resolution=32,
        identity="tiny1", number=_number("c1"),
    )  # fmt: skip
    assert [row["psnr"] for row in rows] == pytest.approx([row["psnr"] for row in mine], abs=1e-3)
    assert [row["instant"] for row in rows] == [row["instant"] for row in mine]

    # goes on: c1 is measured again, the others are kept, and the damaged picture's clip is tried again
    before = folder_content(one)
    other = next((one / "subjects").glob("c0-*.json"))
    marked = json.loads(other.read_text())
    marked["rows"][0]["psnr"] += 1
    other.write_text(json.dumps(marked))
    kept.unlink()
    capfd.readouterr()
    assert command(monkeypatch, *options_for(made, one, workers=2)) == 0
    assert capfd.readouterr().out.startswith(f"{one}: 3 subjects, 1 new\n2 could not")
    assert json.loads(other.read_text()) == marked
    again = files.read_json(one / "evaluation.json")
    assert again["summary"]["overall"]["psnr"] == pytest.approx(report["summary"]["overall"]["psnr"] + 1 / 12)
    assert command(monkeypatch, *options_for(made, one), "--force") == 0
    assert folder_content(one) == before
    # other settings measure anew
    assert command(monkeypatch, *options_for(made, one, targets=1)) == 0
    assert "3 subjects, 3 new" in capfd.readouterr().out


def test_a_store_of_shards(
    made: Path, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a limit; once all is measured, no cluster is needed."""
    out = tmp_path / "out"
    options = options_for(made, out, data=made / "shards", k=1)
    assert command(monkeypatch, *options, "--limit", "1") == 0
    assert command(monkeypatch, *options) == 0
    assert [line.split(": ", 1)[1] for line in capfd.readouterr().out.splitlines()] == [
        "1 subjects, 1 new",
        "2 subjects, 1 new",
    ]
    never_on_ray(monkeypatch)
    assert command(monkeypatch, *options) == 0
    assert capfd.readouterr().out == f"{out}: 2 subjects, nothing new\n"


def test_avatars_on_their_own_clips(
    made: Path, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clips, avatars, out = tmp_path / "clips", tmp_path / "avatars", tmp_path / "out"
    for name, identity in (("0", "ann"), ("1", "ben"), ("2", "ben")):
        tiny_clip(clips / name, instants=5, width=32, height=32, seed=int(name), identity=identity, test_from=3)
    for name, identity in (("a", "ann"), ("deep/b", "ben"), ("x", "nobody"), ("y", "ann")):
        write_avatar(avatars / name, dataclasses.replace(avatar(), identity=identity))
    (avatars / "y/gaussians.safetensors").write_bytes(b"")
    options = options_for(made, out, checkpoint=None, k=None, targets=None, avatars=avatars, data=clips)
    assert command(monkeypatch, *options, "--workers", "2") == 0
    assert capfd.readouterr().out.startswith(f"{out}: 3 subjects, 3 new\n2 could not be measured")
    report = files.read_json(out / "evaluation.json")
    assert [(row["key"], row["identity"], row["cases"]) for row in report["subjects"]] == [
        ("a", "ann", 2), ("deep/b on 1", "ben", 2), ("deep/b on 2", "ben", 2),
    ]  # fmt: skip
    assert [fault["key"] for fault in report["failed"]] == ["x", "y"]
    assert report["failed"][0]["reason"] == f"{avatars}/x: no clip of nobody in {clips}"
    mean = sum(row["psnr"] for row in report["subjects"]) / 3
    assert report["summary"]["overall"]["psnr"] == pytest.approx(mean)
    whole = files.read_json(next((out / "subjects").glob("a-*.json")))["report"]
    assert [row["instant"] for row in whole["per_frame"]] == [3, 4] and whole["csim"] is None
    lines = (out / "table.md").read_text().splitlines()
    assert lines[2].startswith("| a | ") and lines[5].startswith(f"| mean | {mean:.2f} | ")
    never_on_ray(monkeypatch)
    shutil.rmtree(avatars / "y")  # it had failed, so it would be tried again
    assert command(monkeypatch, *options) == 0


@pytest.mark.slow
def test_as_a_program_of_its_own(made: Path, tmp_path: Path, ray_cluster: str) -> None:
    """What its workers are sent must not be of ``__main__``, which is another module there."""
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9"}  # nobody: no weights are downloaded
    options = options_for(made, tmp_path / "out", k=1, targets=1, limit=1, address=ray_cluster)
    program = [sys.executable, "-m", "ray_jobs.evaluate", *options]
    done = subprocess.run(program, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=200)
    assert done.stdout.startswith(f"{tmp_path}/out: 1 subjects, 1 new"), done.stderr


def test_a_subject_that_ends_its_process_is_left_out(
    made: Path, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It lies in a task with sound ones, which are measured all the same."""
    import ray_jobs.evaluate

    real, tries = ray_jobs.evaluate.measure, tmp_path / "tries"

    def fragile(group: Any, opened: Any) -> Any:
        if any(subject.key == "c1" for subject in group):
            with open(tries, "a") as f:
                f.write(f"{len(group)}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(group, opened)

    monkeypatch.setattr(ray_jobs.evaluate, "measure", fragile)
    out = tmp_path / "out"
    assert command(monkeypatch, *options_for(made, out, k=1, targets=1, workers=1)) == 0
    assert f"\n{out}: 2 subjects, 2 new\n3 could not" in f"\n{capfd.readouterr().out}"  # the fixture's Ray prints, too
    failed = {fault["key"]: fault["reason"] for fault in files.read_json(out / "evaluation.json")["failed"]}
    assert failed["c1"].startswith("ended the process that measured it 3 times: ")
    assert tries.read_text().split() == ["2", "1", "1", "1"]


def test_an_unexpected_exception_is_its_subjects_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2
    import numba
    import torch

    from ray_jobs import evaluate_worker

    class Bench:
        def measure(self, subject: str) -> dict[str, Any]:
            if subject == "strange":
                raise IndexError("out of\nrange")
            return {"rows": []}

    for library, name in ((torch, "set_num_threads"), (cv2, "setNumThreads"), (numba, "set_num_threads")):
        monkeypatch.setattr(library, name, lambda count: None)  # this process is no worker
    monkeypatch.setattr(evaluate_worker, "_bench", lambda opened: Bench())
    measure: Any = evaluate_worker.measure
    assert measure(("sound", "strange", "sound"), None) == [{"rows": []}, "IndexError: out of range", {"rows": []}]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"encoder_weights": "w.safetensors"}, "holds the weights of its encoder, so --encoder-weights"),
        ({"checkpoint": None, "avatars": "{made}", "encoder_weights": "w"}, "--encoder-weights is for --checkpoint"),
        ({"checkpoint": None}, "give either --checkpoint, a generator, or --avatars"),
        ({"checkpoint": "none"}, "none: no training run, checkpoint or generator.safetensors there"),
        (
            {"data": "none"},
            "none: no such folder; name the folder of a data set of shards, one above several, or above clips",
        ),
        ({"data": "{made}/run"}, "run: no data set of shards, it holds no manifest.json"),
        ({"data": "{made}/clips/c4"}, "c4: nothing to evaluate: {made}/clips/c4/clip.json: "),
        ({"part": "some"}, "--part some: expected one of all, train, held_out"),
        ({"part": "held_out", "held_out_share": "0.001"}, "nobody of its 4 people is in the part 'held_out'"),
        ({"k": "1,5"}, "--k 1,5: expected numbers of portraits in 1..4, as 1,4"),
        ({"head": "none.head.safetensors"}, "none.head.safetensors: no such file"),
        ({"head": None, "data": "{made}/shards"}, "needs head tiny"),
        ({"checkpoint": None, "avatars": "{made}/clips"}, "clips: no avatar there; name an avatar's folder"),
        ({"out": "{made}"}, "holds something else"),
    ],
)
def test_mistakes_are_one_line_before_ray_starts(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str | None],
    expected: str,
) -> None:
    never_on_ray(monkeypatch)
    given = {name: None if value is None else value.format(made=made) for name, value in changes.items()}
    assert command(monkeypatch, *options_for(made, **{"out": tmp_path / "out", **given})) == 2
    assert expected.format(made=made) in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_relative_folder_of_a_submitted_job_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would lie in the job's copy of the repository, which goes away; also the shards of an ingest."""
    from ray_jobs import command as shared
    from ray_jobs.ingest import app

    never_on_ray(monkeypatch)
    (tmp_path / "_ray_pkg_0123").mkdir()
    monkeypatch.chdir(tmp_path / "_ray_pkg_0123")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert command(monkeypatch, *options_for(made, Path("results"))) == 2
    assert "--out results: a submitted job works in a copy of the repository" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["ingest", "--source", str(made / "clips"), "--output", "shards"])
    with pytest.raises(SystemExit) as e:
        shared.run(app, "ray_jobs.ingest")
    assert e.value.code == 2 and "--output shards: a submitted job works" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_encoder_weights_that_moved(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for where --encoder-weights says, by whoever measures."""
    from spatialavatar.evaluation.subjects import Bench
    from tests.generator.test_checkpoint import SMALL

    trained = tmp_path / "encoder.safetensors"
    timm_model = timm.create_model(SMALL["backbone"], num_classes=0)
    safetensors.torch.save_file(timm_model.state_dict(), trained)
    generator = awaken(tiny_generator(tiny_head(), encoder={**SMALL, "weights": str(trained)}))
    (tmp_path / "run").mkdir()
    write_generator(tmp_path / "run" / FILE, generator, {"resolution": 32})
    moved = trained.rename(tmp_path / "moved.safetensors")

    def measure(instruments: Any, subjects: Any, workers: Any) -> Any:
        bench = Bench(instruments)
        for subject in subjects:
            yield subject, bench.measure(subject)

    monkeypatch.setattr("ray_jobs.connect.connect", lambda *_: None)
    monkeypatch.setattr("ray_jobs.evaluate.on_ray", measure)
    options = options_for(made, tmp_path / "out", checkpoint=tmp_path / "run", data=made / "clips/c0", k=1)
    assert command(monkeypatch, *options) == 2
    assert command(monkeypatch, *options, "--encoder-weights", moved) == 0
    assert files.read_json(tmp_path / "out/evaluation.json")["summary"]["overall"]["cases"] == 2


def test_clips_of_another_head(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never_on_ray(monkeypatch)
    clip = tmp_path / "clips/a"
    shutil.copytree(made / "clips/c0", clip)
    header = json.loads((clip / "clip.json").read_text())
    header["head"]["hash"] = "0" * 64
    (clip / "clip.json").write_text(json.dumps(header))
    assert command(monkeypatch, *options_for(made, tmp_path / "out", data=tmp_path / "clips")) == 2
    assert f"nothing to evaluate: {clip}: made with head tiny (000000000000), but" in capsys.readouterr().err


def test_a_damaged_result_is_measured_again(tmp_path: Path) -> None:
    from spatialavatar.evaluation.footage import ListedClip
    from spatialavatar.evaluation.results import write_result
    from spatialavatar.evaluation.subjects import Settings, Subject
    from spatialavatar.head import HeadReference

    subject = Subject("a/b#1", ListedClip("a/b#1", "ann", 0, "state", HeadReference.of(tiny_head())))
    settings = Settings("hash")
    result = write_result(tmp_path, subject, settings, {"rows": []})
    assert finished(tmp_path, [subject], settings) == {"a/b#1": result}
    assert finished(tmp_path, [subject], Settings("other")) == {}
    (file,) = (tmp_path / "subjects").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    assert finished(tmp_path, [subject], settings) == {}
