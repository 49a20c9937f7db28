"""Sweeps: their files, names and mistakes without Ray; then small ones from end to end, gone on with, and killed."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from spatialavatar.config import load_config
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.generator_report import METRICS
from spatialavatar.training.config import ShardData
from tests.builders.folders import folder_content
from tests.builders.ray_commands import exit_code
from tests.builders.train_jobs import ROOT, ended, wait_for, write_config
from tests.builders.training import tiny_clips, training_folder, training_in
from tests.docs.commands import check, invocations

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("deepspeed", reason="deepspeed is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from ray_jobs.tune_config import TrialPlan, TuneConfig, plan_trials

CONFIGS = ROOT / "configs"
SWEEPS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("tune/*.yaml"))
SLOW, FAST = "learning_rate=0.001", "learning_rate=0.01"
PAPER = {  # method.md, "Ablations"; what the trials of each file vary
    "tune/lambda_sp.yaml": [
        {"loss.lambda_sp": s, "sampler.cross_time": c}
        for s, c in [(0, 0), (1e-3, 0), (0, 0.25), (1e-3, 0.25), (1e-2, 0.25), (1e-4, 0.25)]
    ],
    "tune/cross_time.yaml": [{"sampler.cross_time": c} for c in (0, 0.25)],
    "tune/lambda_jac.yaml": [{"loss.lambda_jac": w} for w in (0, 1e-2, 1e-1, 1)],
    "tune/lr_decay.yaml": [{"optimizer.lr_decay": g} for g in (0.5, 0.65, 0.8, 1)],
    "tune/base_lr.yaml": [{"optimizer.learning_rate": r} for r in (1e-4, 2.5e-4, 5e-4)],
}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_file_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    trials = plan_trials(load_config(TuneConfig, CONFIGS / name), name)
    assert len({trial.config.model_dump_json() for trial in trials}) == len(trials) > 1
    if name in PAPER:
        assert [trial.values for trial in trials] == PAPER[name]


def test_the_paper_has_its_numbers_beside_table_8() -> None:
    sweep = load_config(TuneConfig, CONFIGS / "tune/lambda_sp.yaml")
    assert sweep.paper["d"] == dict(zip(METRICS, (24.94, 0.881, 0.070, 0.935, 0.084, 0.054, 2.032)))
    assert list(sweep.paper) == [variant.name for variant in sweep.variants] == list("abcdef")


def test_shown_sweeps_of_submitted_jobs_name_all_that_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's machine has no data/ and no head of FLAME."""
    from ray_jobs.tune import tune

    monkeypatch.chdir(ROOT)
    texts = [(ROOT / name).read_text() for name in ("docs/cluster.md", "cluster/README.md")]
    shown = [
        words
        for text in (*texts, tune.__doc__ or "")
        for words in invocations(text)
        if {"ray_jobs.tune", "--config"} <= set(words)
    ]
    submitted = [given for given in map(check, shown) if str(given["out"]).startswith("s3://")]
    assert len(submitted) == 3
    for given in submitted:
        sweep = load_config(TuneConfig, str(given["config"]), given["set_"])  # type: ignore[arg-type]
        for trial in plan_trials(sweep, ""):
            assert trial.config.data.shards and trial.evaluated_on.shards
            places = [trial.config.data.shards.url, trial.evaluated_on.shards.url, trial.config.head]
            places += [trial.config.phase1_checkpoint] * (trial.config.phase == 2)
            assert all(str(place).startswith("s3://") for place in places), (given, places)


def test_every_setting_is_spelled_out() -> None:
    written = yaml.safe_load((CONFIGS / "tune/lambda_sp.yaml").read_text())
    assert written.keys() == TuneConfig.model_fields.keys()
    for part in ("asha", "evaluate"):
        assert written[part].keys() == TuneConfig.model_fields[part].annotation.model_fields.keys()  # type: ignore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_folder(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="module")
def training(folder: Path) -> Path:
    held_out = {"clips": [tiny_clips(folder / "others")]}
    every = {"log_every": 1, "sheet_every": 2, "checkpoint_every": 2}
    config = training_in(folder, data={"workers": 1}, held_out=held_out, steps=8, batch_size=2, **every)
    return write_config(folder / "train.yaml", config)


def sweep_file(file: Path, training: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "train": str(training),
        "grid": {"optimizer.learning_rate": [1e-3, 1e-2]},
        "evaluate": {"k": [1, 2], "targets": 2, "limit": 2},
        "paper": {FAST: {"psnr": 12.5}},
    }
    file.write_text(yaml.safe_dump({**values, **changes}))
    return file


def names(file: Path, *overrides: str) -> list[str]:
    return [trial.name for trial in plan_trials(load_config(TuneConfig, file, overrides), str(file))]


def test_names_come_from_values(tmp_path: Path, training: Path) -> None:
    file = sweep_file(tmp_path / "s.yaml", training, paper={})
    assert names(file) == [SLOW, FAST]
    assert names(file, "grid={loss.lambda_jac: [0, 0.1], schedule.kind: [linear, cosine]}") == [
        "lambda_jac=0,kind=linear",
        "lambda_jac=0,kind=cosine",
        "lambda_jac=0.1,kind=linear",
        "lambda_jac=0.1,kind=cosine",
    ]
    assert names(file, "grid={optimizer.kind: [adam], schedule.kind: [linear]}") == [
        "optimizer.kind=adam,schedule.kind=linear"
    ]
    assert names(file, "grid={head: [null], optimizer.betas: [[0.9, 0.99]]}") == ["head=null,betas=0.9-0.99"]
    (trial, _) = plan_trials(load_config(TuneConfig, file, ["set.loss.lambda_ps=3"]), "")
    assert trial.config.loss.lambda_ps == 3 and trial.config.optimizer.learning_rate == 1e-3


def test_shared_values_stay_beside_a_variants_own(tmp_path: Path, training: Path) -> None:
    """Whether keys are nested or dotted; the variant's win."""
    variants = [{"name": "a", "set": {"loss": {"lambda_1": 2}}}, {"name": "b", "set": {"loss.lambda_ps": 5}}]
    shared = {"loss": {"lambda_ps": 3, "lambda_ss": 4}}
    file = sweep_file(tmp_path / "s.yaml", training, grid={}, variants=variants, set=shared, paper={})
    a, b = (trial.config.loss for trial in plan_trials(load_config(TuneConfig, file), str(file)))
    assert (a.lambda_1, a.lambda_ps, a.lambda_ss) == (2, 3, 4) and (b.lambda_ps, b.lambda_ss) == (5, 4)


MISTAKES = {
    "gird={}": "unknown key gird; did you mean grid?",
    "grid={loss.lambda_spp: [1]}": "unknown key loss.lambda_spp; did you mean loss.lambda_sp?",
    "set.stepps=3": "unknown key stepps; did you mean steps?",
    "grid={steps: [0]}": "variant steps=0: ",
    "grid={steps: []}": "grid.steps has no values",
    "grid={}": "give either grid",
    "grid={loss.lambda_1: [0.12345678, 0.12345679]}": "two variants named lambda_1=0.123457",
    "paper={x: {psnr: 1}}": "paper.x: no such variant; there are learning_rate=0.001",
    "paper={x: {fid: 1}}": "no metric fid; there are psnr",
    "evaluate.k=[5]": "expected numbers in 1..4",
    "evaluate.data.clips=[/nowhere]": "/nowhere",
    "set.held_out=null": "nobody to evaluate on: name people that are not trained on",
    "search=asha": "asha.grace_period is 10000 steps, but no training has more than 8",
    "search=bayes": "search",
    "train=none.yaml": "none.yaml",
    "set.data.clips=[/none/here]": "/none/here",
    "set.phase1_checkpoint=runs/typo": "runs/typo: Phase 1 starts from new weights",
    "set.schedule.warmup_steps=8": "warmup_steps is 8, but the decay ends at step 8; make the warm-up shorter",
}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], None),
        (["evaluate.data.shards.url=a"], "held_out must be of other people: set data.shards.part=train"),
        (["evaluate.data.shards.part=train"], "held_out must be of other people"),
        (["evaluate.data.shards={part: held_out, held_out_share: 0.1}"], "shards.held_out_share the same"),
        (["evaluate.data.shards={url: b, part: all}"], None),
    ],
)
def test_nobody_is_evaluated_on_who_was_trained_on(tmp_path: Path, overrides: list[str], expected: str | None) -> None:
    """Of the training's own shards, url and share are the training's unless given."""
    training = tmp_path / "train.yaml"
    training.write_text("data: {shards: {url: a, part: train, held_out_share: 0.2}}")
    file = sweep_file(tmp_path / "s.yaml", training, paper={}, evaluate={"data": {"shards": {"part": "held_out"}}})
    if overrides and "url=a" in overrides[0]:
        overrides = [*overrides, "evaluate.data.shards.part=all"]
    sweep = load_config(TuneConfig, file, overrides)
    if expected is not None:
        with pytest.raises(SpatialAvatarError, match=f"evaluate.data, as held_out of variant {SLOW}: .*{expected}"):
            plan_trials(sweep, str(file))
        return
    found = {(trial.evaluated_on.shards, trial.config.held_out) for trial in plan_trials(sweep, str(file))}
    given = ShardData(url="b", part="all", held_out_share=0.2) if overrides else None
    assert found == {(given or ShardData(url="a", part="held_out", held_out_share=0.2), None)}


def command(monkeypatch: pytest.MonkeyPatch, *options: Any) -> int:
    """The command in this process, which is connected to Ray already; its exit code."""
    return exit_code(monkeypatch, "tune", *options)


@pytest.mark.parametrize("override", MISTAKES)
def test_mistakes_are_one_line_before_ray_starts(
    tmp_path: Path,
    training: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
) -> None:
    import ray_jobs.connect

    monkeypatch.setattr(ray_jobs.connect, "connect", lambda *_: pytest.fail("connected"))
    file = sweep_file(tmp_path / "s.yaml", training, **({} if "paper" in override else {"paper": {}}))
    assert command(monkeypatch, "--config", file, "--out", tmp_path / "out", "--set", override) == 2
    line = capsys.readouterr().err.strip()
    assert MISTAKES[override] in line and line.startswith("error: ") and "\n" not in line
    assert not (tmp_path / "out").exists()


def test_the_same_shards_by_another_path_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = tmp_path / "train.yaml"
    training.write_text("data: {shards: {url: s3://lab/people, part: train}}")
    data = {"shards": {"url": "s3://lab/people/", "part": "all"}}
    file = sweep_file(tmp_path / "s.yaml", training, paper={}, evaluate={"data": data})
    assert command(monkeypatch, "--config", file, "--out", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert f"s.yaml: evaluate.data, as held_out of variant {SLOW}: " in line
    assert "held_out must be of other people" in line


def test_a_mistake_costs_no_sweep_that_is_there(
    tmp_path: Path, training: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--force removes it when all is known to be well, and what holds another sweep is refused before Ray starts."""
    import ray_jobs.connect
    import ray_jobs.tune_places

    def full(*_: Any) -> None:
        raise SpatialAvatarError("the cluster has no room")

    monkeypatch.setattr(ray_jobs.tune_places, "find_room", full)
    out, file = tmp_path / "out", sweep_file(tmp_path / "s.yaml", training)
    options = ["--config", file, "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(ray_jobs.connect, "connect", lambda *_: None)
        assert command(patch, *options) == 2 and not list(out.iterdir())  # nothing holds the folder
        (out / "sweep.yaml").write_text(yaml.safe_dump({"sweep": {}, "trials": {"other": {}}}))
        (out / "trials/other").mkdir(parents=True)
        (out / "table.md").write_text("of days of work")
        before = folder_content(out)
        assert command(patch, *options, "--force") == 2 and "no room" in capsys.readouterr().err
    monkeypatch.setattr(ray_jobs.connect, "connect", lambda *_: pytest.fail("connected"))
    assert command(monkeypatch, *options, "--force", "--set", "set.phase1_checkpoint=runs/typo") == 2
    assert command(monkeypatch, *options) == 2 and "holds another sweep" in capsys.readouterr().err
    assert folder_content(out) == before


def test_a_sweep_without_any_result_has_failed(
    tmp_path: Path, training: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray_jobs.connect
    import ray_jobs.tune
    import ray_jobs.tune_places
    from ray_jobs.train_places import Places
    from ray_jobs.tune_result import Ended

    room = ray_jobs.tune_places.Room(2, (Places(1, 1.0, False, 1),) * 2)
    monkeypatch.setattr(ray_jobs.connect, "connect", lambda *_: None)
    monkeypatch.setattr(ray_jobs.tune_places, "find_room", lambda *_: room)
    ends = {SLOW: Ended(stopped=2, held_out_psnr=9.0), FAST: Ended(failed="the loss is inf")}
    monkeypatch.setattr(ray_jobs.tune, "_run", lambda *_: ends)
    out = tmp_path / "out"
    assert command(monkeypatch, "--config", sweep_file(tmp_path / "s.yaml", training), "--out", out) == 2
    expected = f"error: {out}: none of 2 variants has a result (the loss is inf); table.md says why"
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert (out / "table.md").exists()


def test_a_sweep_that_goes_on_may_run_otherwise(tmp_path: Path, training: Path) -> None:
    """With other workers and less memory it is the same sweep, and what ended stays; not so with another rate."""
    from ray_jobs.tune_result import begin, claim_sweep, fingerprint

    def planned(*overrides: str) -> tuple[TuneConfig, list[TrialPlan]]:
        sweep = load_config(TuneConfig, sweep_file(tmp_path / "s.yaml", training), overrides)
        return sweep, plan_trials(sweep, "s.yaml")

    def prints(sweep: TuneConfig, plans: list[TrialPlan]) -> list[str]:
        return [fingerprint(plan, sweep) for plan in plans]

    out, first = str(tmp_path / "out"), planned()
    begin(out, *first, False)
    free = ["distributed.workers=2", "distributed.wait_seconds=9", "gradient_checkpointing=true", "data.workers=2"]
    other = planned(*(f"set.{value}" for value in free), "concurrent=1")
    claim_sweep(out, *other, False)
    assert prints(*other) == prints(*first)
    changes = ("set.held_out_samples=1", "set.optimizer.clip_norm=2", "evaluate.k=[1]", "evaluate.data.clips=[x]")
    for changed in changes:
        another = planned(changed)
        with pytest.raises(SpatialAvatarError, match=f"holds another sweep .*{changed.split('.')[-1].split('=')[0]}"):
            claim_sweep(out, *another, False)
        assert not set(prints(*another)) & set(prints(*first))


def test_trials_that_fit() -> None:
    from ray_jobs.tune_places import _most, _places

    config = load_config(TuneConfig, CONFIGS / "dev/tune/base_lr.yaml")
    (trial, *_) = plan_trials(config.model_copy(update={"train": str(CONFIGS / "dev/phase1.yaml")}), "")
    four = trial.config.model_copy(update={"distributed": trial.config.distributed.model_copy(update={"workers": 4})})
    cpus: list[dict[str, float]] = [{"CPU": 4.0}]
    assert _most(trial.config, False, cpus) == 2 and _most(four, False, cpus) == 0
    for trials in (1, 2):
        places = _places(trial.config, False, cpus, trials)
        assert trials * (places.cpus + places.data_workers) <= 4 and places.data_workers >= 1
    gpus: list[dict[str, float]] = [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 8.0}]
    assert _most(trial.config, True, gpus) == 16 and _most(four, True, gpus) == 4
    places = _places(four, True, gpus, 4)
    assert places.resources == {"CPU": 1.0, "GPU": 1.0} and places.data_workers == 2


def table_of(out: Path) -> dict[str, dict[str, str]]:
    return {row["variant"]: row for row in csv.DictReader((out / "table.csv").open())}


def evaluation(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "trials" / name / "evaluation.json").read_text())
    return found


def curve_of(out: Path, name: str) -> list[tuple[int, float]]:
    lines = map(json.loads, (out / "trials" / name / "train.jsonl").read_text().splitlines())
    return [(line["step"], line["held_out_psnr"]) for line in lines if "held_out_psnr" in line]


@pytest.mark.slow
def test_a_sweep_and_going_on(
    folder: Path,
    training: Path,
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two trials side by side; the table holds what their evaluations say, and the same command does nothing more."""
    import ray_jobs.tune_plot

    drawn: list[Any] = []
    draw = ray_jobs.tune_plot.draw
    monkeypatch.setattr(ray_jobs.tune_plot, "draw", lambda *given: drawn.append(given) or draw(*given))
    out = folder / "sweep"
    options = ["--config", sweep_file(folder / "sweep.yaml", training), "--out", out]
    assert command(monkeypatch, *options) == 0
    printed = capfd.readouterr()
    assert "2 variants, 2 at a time, each with 1 CPU worker(s)" in printed.err
    assert f"{out}: 2 variants, 2 new" in printed.out
    lines = [
        line
        for line in printed.err.splitlines()
        if not line.startswith(("variants: ", "2 variants", "LPIPS is left out: "))
    ]
    assert not lines, printed.err
    assert "| variant | learning_rate | PSNR |" in printed.out  # the fixture's Ray prints, too

    rows = table_of(out)
    assert list(rows) == [SLOW, FAST]
    for name, row in rows.items():
        found = evaluation(out, name)
        assert len(found["rows"]) == 2 * 2 * 2  # clips, K, targets
        overall = found["summary"]["overall"]
        assert row["psnr"] == f"{overall['psnr']:.2f}" and row["ssim"] == f"{overall['ssim']:.3f}"
        assert overall["psnr"] == pytest.approx(sum(r["psnr"] for r in found["rows"]) / len(found["rows"]))
        assert row["csim"] == "" and row["set.optimizer.learning_rate"] == name.partition("=")[2]
        steps, psnrs = zip(*curve_of(out, name))
        assert steps == (2, 4, 6, 8) and row["held_out_psnr"] == f"{psnrs[-1]:.2f}"
    assert (rows[SLOW]["paper.psnr"], rows[FAST]["paper.psnr"]) == ("", "12.50")
    assert rows[SLOW]["psnr"] != rows[FAST]["psnr"]
    assert "CSIM: no identity estimator installed" in (out / "table.md").read_text()
    ((curves, shown),) = drawn
    assert curves == {name: curve_of(out, name) for name in rows}
    assert [row["psnr"] for row in shown] == [evaluation(out, name)["summary"]["overall"]["psnr"] for name in rows]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    written = yaml.safe_load((out / "sweep.yaml").read_text())
    assert written["trials"][FAST]["optimizer"]["learning_rate"] == 1e-2

    before = folder_content(out)
    with monkeypatch.context() as patch:
        patch.setattr("ray_jobs.connect.connect", lambda *_: pytest.fail("connected"))
        assert command(patch, *options) == 0
        assert "2 variants, nothing new" in capfd.readouterr().out
        assert command(patch, *options, "--set", "set.steps=9") == 2
        assert f"{out}: holds another sweep ({SLOW}: steps: 8 there, 9 here)" in capfd.readouterr().err
    assert folder_content(out) == before

    # an evaluation by other estimators than are installed now is done again, the training is not
    where = out / "trials" / FAST / "evaluation.json"
    other = {**evaluation(out, FAST), "measures": {"estimators": {"identity": "faces 1.2"}}}
    where.write_text(json.dumps(other))
    assert command(monkeypatch, *options) == 0
    assert "2 variants, 1 new" in capfd.readouterr().out
    assert evaluation(out, FAST)["measures"]["estimators"] == {}
    after = folder_content(out)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not [name for name in changed if "checkpoints" in name or name.endswith("train.jsonl")]


def start(config: Path, out: Path, address: str, trials: int = 1) -> "subprocess.Popen[str]":
    options = ["--config", str(config), "--out", str(out), "--address", address, "--trials", str(trials)]
    return subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.tune", *options],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_trial_that_fails_stops_no_other_and_one_that_falls_behind_is_stopped(
    folder: Path, training: Path, ray_cluster: str
) -> None:
    """One at a time: the first's loss is more than a number can hold; the third, which learns nothing, is worse than
    the second at the first look."""
    out, steps = folder / "asha", 80
    variants = [
        {"name": "wild", "set": {"loss.lambda_1": 1e39}},
        {"name": "fits", "set": {"optimizer.learning_rate": 1e-2}},
        {"name": "behind", "set": {"optimizer.learning_rate": 1e-9}},
    ]
    file = sweep_file(
        folder / "asha.yaml",
        training,
        grid={},
        variants=variants,
        paper={},
        set={"steps": steps, "sheet_every": 10, "checkpoint_every": 10},
        search="asha",
        asha={"grace_period": 10, "reduction_factor": 2},
    )
    code, printed = ended(start(file, out, ray_cluster))
    assert code == 0, printed
    assert f"{out}: 3 variants, 3 new, 1 failed" in printed
    rows = table_of(out)
    assert rows["wild"]["note"] == "failed" and rows["wild"]["psnr"] == ""
    assert "\nwild: " in (out / "table.md").read_text() and "loss is inf at step 1" in (out / "table.md").read_text()
    assert float(rows["fits"]["psnr"]) > 0 and rows["fits"]["note"] == ""
    assert (out / "ended/behind.json").exists()
    stopped = rows["behind"]
    assert stopped["psnr"] == "" and stopped["note"].startswith("stopped at step ") and stopped["held_out_psnr"]
    assert int(stopped["note"].rpartition(" ")[2]) < steps


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_and_then_killed(folder: Path, training: Path, ray_cluster: str) -> None:
    """Gone on with, it has the same table as an undisturbed one; the trial that was done stays as it was."""
    file = sweep_file(folder / "disturbed.yaml", training)
    undisturbed, out = folder / "sweep", folder / "disturbed"  # the former as of the test above
    if not undisturbed.exists():
        code, printed = ended(start(file, undisturbed, ray_cluster))
        assert code == 0, printed
    done = []
    for how, step in ((signal.SIGINT, 2), (signal.SIGKILL, 4)):
        process = start(file, out, ray_cluster)
        wait_for((out / "trials" / FAST / f"checkpoints/step-{step:08d}/checkpoint.json").exists, process)
        process.send_signal(how)
        code, printed = ended(process)
        assert code == (130 if how == signal.SIGINT else -how), printed
        assert how != signal.SIGINT or printed.endswith("error: interrupted; run the same command again to go on\n")
        assert not (out / "table.csv").exists()
        done.append((out / "trials" / SLOW / "evaluation.json").stat().st_mtime_ns)

    code, printed = ended(start(file, out, ray_cluster))
    assert code == 0, printed
    assert "2 variants, 1 of them done" in printed
    assert [(out / "trials" / SLOW / "evaluation.json").stat().st_mtime_ns] * 2 == done
    assert table_of(out) == table_of(undisturbed)
    assert curve_of(out, FAST) == curve_of(undisturbed, FAST)


def test_another_folder_is_refused(
    tmp_path: Path, training: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/table.md").write_text("of another program")
    file = sweep_file(tmp_path / "s.yaml", training)
    assert command(monkeypatch, "--config", file, "--out", tmp_path / "out") == 2
    assert "holds table.md, but no sweep.yaml" in capsys.readouterr().err


def test_a_damaged_sweep_is_refused(tmp_path: Path) -> None:
    from ray_jobs.tune_result import claim_sweep

    (tmp_path / "sweep.yaml").write_text("a: [")
    with pytest.raises(SpatialAvatarError, match="not valid YAML"):
        claim_sweep(str(tmp_path), TuneConfig(train="t", grid={"steps": [1]}), [], False)
