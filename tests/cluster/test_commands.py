"""Every command that the folder shows is one that the entry points take."""

import pytest

from tests.cluster.invocations import CLUSTER, FILES, check, invocations

SHOWN = [(name, words) for name in FILES for words in invocations((CLUSTER / name).read_text())]


@pytest.mark.parametrize(("name", "words"), SHOWN, ids=[f"{name}-{words[2]}" for name, words in SHOWN])
def test_is_taken(name: str, words: list[str]) -> None:
    check(words)


def test_all_five_jobs_are_shown() -> None:
    readme = {words[2] for name, words in SHOWN if name == "README.md"}
    assert readme == {f"ray_jobs.{job}" for job in ("ingest", "train", "tune", "evaluate", "refine")}


def test_joins_lines_and_stops_at_comments() -> None:
    text = (
        "# sbatch x python -m ray_jobs.ingest --source a \\\n#   --output 'b c'  # *\nsee `python -m ray_jobs.tune` too"
    )
    assert invocations(text) == [
        ["python", "-m", "ray_jobs.ingest", "--source", "a", "--output", "b c"],
        ["python", "-m", "ray_jobs.tune"],
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [("--source a", "Missing parameter: output"), ("--source a --output b --no-such-option", "No such option")],
)
def test_notices_what_is_not_taken(words: str, complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        check(["python", "-m", "ray_jobs.ingest", *words.split()])
