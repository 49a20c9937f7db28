"""Every command that a page or a file of cluster/ shows is one that its program takes, and runs somewhere.

Which pages are run as they stand is in test_pages.py. What is not runs elsewhere: ``RUN_BY`` says where.
"""

from pathlib import Path

import pytest

from tests.docs.commands import CLUSTER, PAGES, ROOT, check, commands_of, invocations, name, split
from tests.docs.test_pages import WALKED

pytest.importorskip("ray", reason="ray is not installed, whose commands are shown")

CLUSTER_FILES = ("aws.yaml", "slurm.sh", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
JOBS = ("ingest", "train", "tune", "evaluate", "refine")
RUN_BY = {
    **{f"ray_jobs.{job}": f"tests/ray_jobs/test_{job}.py" for job in JOBS},
    "spatialavatar demo": "tests/cli/test_demo.py",
    "spatialavatar fleet status": "tests/cli/test_fleet.py",
    "spatialavatar fleet report": "tests/cli/test_fleet.py",
    "spatialavatar fleet list": "tests/cli/test_fleet.py",
    "spatialavatar shards verify": "tests/shards/test_report.py",
    "spatialavatar report": "examples/end_to_end.sh",
    "examples/end_to_end.sh": "tests/examples/test_end_to_end.py",
    "pip": ".ci/run",
    "pytest": ".ci/run",
    "benchmarks/refinement.py": "tests/benchmarks/test_scripts.py",
}
# of others: a cluster, a registry or a browser is needed, and what they are given is checked as far as it can be
TAKEN_ON_TRUST = {"aws", "docker", "helm", "kubectl", "ray", "tensorboard", "export"}


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_what_is_taken(page: str) -> None:
    faults = [f"{command}\n  {fault}" for command in commands_of(page) if (fault := fault_of(command.words))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", PAGES)
def test_what_pages_show_is_run_somewhere(page: str) -> None:
    names = {command.name for command in commands_of(page)}
    if page not in WALKED:
        walked = {command.name for other in WALKED for command in commands_of(other)}
        names -= walked | RUN_BY.keys() | TAKEN_ON_TRUST
        assert not names, f"run {page} in test_pages.py, or say in RUN_BY who runs them"


@pytest.mark.parametrize(("command", "file"), RUN_BY.items())
def test_who_runs_it_knows_it(command: str, file: str) -> None:
    word = command.rpartition(" ")[2].rpartition("/")[2].removesuffix(".py")
    assert word in (ROOT / file).read_text()


@pytest.mark.parametrize("file", CLUSTER_FILES)
def test_cluster_files_show_what_is_taken(file: str) -> None:
    for words in invocations((CLUSTER / file).read_text()):
        check(words)


def test_all_jobs_are_shown_for_clusters() -> None:
    shown = {command.name for command in commands_of("cluster/README.md")}
    assert shown >= {f"ray_jobs.{job}" for job in JOBS}


def test_commands_are_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.commands.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "```bash\n# all\na b#1 'c d' \\\n    --e   # why\nf && g h &\nexport X=$(i | j)\n```\nor\n```\nk\n```\n"
    )
    assert [command.words for command in commands_of("page.md")] == [
        ["a", "b#1", "c d", "--e"],
        ["f"],
        ["g", "h"],
        ["export", "X=$(i | j)"],
    ]
    text = (
        "# sbatch x python -m ray_jobs.ingest --source a \\\n#   --output 'b c'  # *\nsee `python -m ray_jobs.tune` too"
    )
    assert invocations(text) == [
        ["python", "-m", "ray_jobs.ingest", "--source", "a", "--output", "b c"],
        ["python", "-m", "ray_jobs.tune"],
    ]
    assert name(split("ray job submit --working-dir . -- python -m ray_jobs.train --config a")) == "ray_jobs.train"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("python -m ray_jobs.ingest --source a", "Missing parameter: output"),
        ("python -m ray_jobs.ingest --source a --output b --no-such-option", "No such option"),
        ("ray job submit --working-dir . -- python -m ray_jobs.train --config configs/none.yaml", "none.yaml"),
        ("spatialavatar clip inport a", "no command inport"),
        ("spatialavatar refine a --out b --set learning_rates.positon=1", "did you mean learning_rates.position"),
        ("python -m ray_jobs.tune --config configs/dev/tune/base_lr.yaml --set set.stepz=1", "did you mean steps"),
        ("pip install -e .[s4]", "s4"),
        ("rm -r clips", "whose command is this"),
    ],
)
def test_notices_what_is_not_taken(line: str, complaint: str) -> None:
    assert complaint in str(fault_of(split(line)))


def fault_of(words: list[str]) -> str | None:
    try:
        check(words)
    except (Exception, SystemExit) as e:
        return f"{type(e).__name__}: {e}"
    return None
