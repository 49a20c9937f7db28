"""What ``--help`` says: it teaches by examples that work, and comes at once."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from spatialavatar.cli import main
from tests.docs.commands import ROOT, check, split


def tree(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Every command by its full name."""
    yield " ".join(path), command
    for name, part in getattr(command, "commands", {}).items():
        yield from tree(part, (*path, name))


def programs() -> dict[str, Any]:
    modules = sorted(
        f"ray_jobs.{path.stem}" for path in (ROOT / "ray_jobs").glob("*.py") if "\napp = " in path.read_text()
    )
    jobs = {f"python -m {name}": typer.main.get_command(importlib.import_module(name).app) for name in modules}
    return dict(tree(typer.main.get_command(main.app), ("spatialavatar",))) | jobs


COMMANDS = programs()


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """The help of every command, from one process; fails when one of them loads what takes long to load."""
    program = (
        "import contextlib, importlib, io, json, sys\n"
        "from ray_jobs import command as jobs\n"
        "from spatialavatar.cli import main\n"
        "said = {}\n"
        "for command in sys.argv[1:]:\n"
        "    program, *rest = command.removeprefix('python -m ').split()\n"
        "    sys.argv = [program, *rest, '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        try: jobs.run(importlib.import_module(program).app, program) if '.' in program else main.run()\n"
        "        except SystemExit as e: assert not e.code, command\n"
        "    said[command] = out.getvalue()\n"
        "slow = {'torch', 'numba', 'numpy', 'scipy', 'cv2', 'ray', 'pyarrow', 'jsonschema', 'matplotlib'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
        "print(json.dumps(said))"
    )
    done = subprocess.run([sys.executable, "-c", program, *COMMANDS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def examples(text: str) -> list[str]:
    """The command lines of a help's block of examples, those that a backslash ends joined with the next."""
    block = re.search(r"^ +Examples?:\n((?: .*\n)+)", text, re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", block.group(1)).splitlines() if block else []
    return [line.strip() for line in lines if not line.lstrip().startswith("#")]


def test_help_teaches_without_loading_torch(said: dict[str, str]) -> None:
    assert said.keys() == COMMANDS.keys() and len(said) > 20
    for command, text in said.items():
        assert "..." not in text.partition("Commands:")[2], f"a sentence is cut short in:\n{text}"
        assert any(f" {command} " in f" {line} " for line in examples(text)), f"{command} shows no example:\n{text}"


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_taken(command: str, said: dict[str, str]) -> None:
    for line in examples(said[command]):
        check(split(line.partition(" | ")[0]))
