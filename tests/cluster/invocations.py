"""Commands as they stand in files, and whether the programs that they name take them."""

import importlib
import re
import shlex
from pathlib import Path

import typer

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = ("README.md", "aws.yaml", "slurm.sh", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml")


def invocations(text: str) -> list[list[str]]:
    """The words of every ``python -m ray_jobs.X ...`` in a text, its lines joined where a backslash ends them."""
    lines = re.sub(r"\\\n\s*(#\s*)?", "", text).splitlines()
    return [
        shlex.split(found.group(0), comments=True)
        for line in lines
        if (found := re.search(r"python -m ray_jobs\.[^`]*", line))
    ]


def check(words: list[str]) -> dict[str, object]:
    """Parse a command as its entry point would; returns the values by parameter. Fails as the entry point does."""
    assert words[:2] == ["python", "-m"]
    command = typer.main.get_command(importlib.import_module(words[2]).app)
    for word in words[3:]:
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file(), word
    with command.make_context(words[2], words[3:]) as context:
        return dict(context.params)
