"""Commands as they stand in pages and files, and whether the programs that they name take them."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from spatialavatar.config import Config, load_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", CLUSTER / "README.md"])
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
# programs of others, which are not asked whether they take it
OTHERS = {"aws", "docker", "helm", "kubectl", "tensorboard", "pytest"}


class Command(NamedTuple):
    page: str
    words: list[str]

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def name(self) -> str:
        """Of what runs in the end: ``spatialavatar clip import``, ``ray_jobs.train``, ``pip``."""
        return name(self.words)


def commands_of(page: str) -> list[Command]:
    """Those of a page's ```bash blocks, in order: lines joined, comments gone, ``a && b`` taken apart."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    found = []
    for line in re.sub(r"\\\n\s*", "", "".join(blocks)).splitlines():
        if line.startswith("export "):  # what it is set to may be another command's output
            found.append(Command(page, line.split(maxsplit=1)))
            continue
        parts: list[list[str]] = [[]]
        for word in split(line):
            parts[-1].append(word) if word not in ("&&", "&") else parts.append([])
        found += [Command(page, part) for part in parts if part]
    return found


def split(line: str) -> list[str]:
    """As a shell does; a # within a word starts no comment."""
    return shlex.split(re.sub(r"(^|\s)#.*", "", line))


def invocations(text: str) -> list[list[str]]:
    """The words of every ``python -m ray_jobs.X ...`` in a text, its lines joined where a backslash ends them."""
    lines = re.sub(r"\\\n\s*(#\s*)?", "", text).splitlines()
    return [split(found.group(0)) for line in lines if (found := re.search(r"python -m ray_jobs\.[^`]*", line))]


def name(words: list[str]) -> str:
    match words:
        case ["spatialavatar", "avatar" | "clip" | "fleet" | "head" | "model" | "shards" as group, command, *_]:
            return f"spatialavatar {group} {command}"
        case ["spatialavatar", command, *_]:
            return f"spatialavatar {command}"
        case ["python", "-m", module, *_]:
            return module
        case ["ray", "job", "submit", *rest] if "--" in rest:
            return name(rest[rest.index("--") + 1 :])
        case ["sbatch", *rest] if "cluster/slurm.sh" in rest:
            return name(rest[rest.index("cluster/slurm.sh") + 1 :])
        case ["python" | "bash", script, *_]:
            return script
    return words[0]


def check(words: list[str]) -> dict[str, object]:
    """Parse a command as its program would, and load its configuration; returns the values by parameter.

    Fails as the program does: unknown options, missing or wrong values, files of ours and keys that are not there.
    """
    match words:
        case ["spatialavatar", *rest]:
            from spatialavatar.cli.main import app

            return _parse(words[0], typer.main.get_command(app), rest)
        case ["python", "-m", module, *rest] if module.startswith("ray_jobs."):
            return _parse(module, typer.main.get_command(importlib.import_module(module).app), rest)
        case ["ray", "job", "submit", *rest]:
            from ray.dashboard.modules.job.cli import submit

            with submit.make_context("submit", list(rest)) as context:
                assert context.params["working_dir"] == ".", "the code of this folder goes along"
            return check(rest[rest.index("--") + 1 :])
        case ["ray", *_]:
            from ray.scripts.scripts import cli

            command, options = cli.commands[words[1]], words[2:]
            if words[1:3] == ["job", "logs"] or words[1:3] == ["job", "stop"]:
                command, options = command.commands[words[2]], words[3:]
            with command.make_context(words[1], options) as context:
                assert "cluster_config_file" not in context.params or (ROOT / words[2]).is_file()
                return dict(context.params)
        case ["sbatch", *rest]:
            return check(rest[rest.index("cluster/slurm.sh") + 1 :])
        case ["pip", "install", *rest]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for listed in re.findall(r"^\.\[(.*)\]$", "\n".join(rest), re.MULTILINE):
                assert set(listed.split(",")) <= extras.keys(), listed
        case ["python" | "bash", script, *rest]:
            text = (ROOT / script).read_text()
            assert all(word in text for word in rest if word.startswith("--")), rest
        case ["export", assignment]:
            assert re.match(r"[A-Z_]+=", assignment)
        case [program, *rest]:
            assert program in OTHERS or (ROOT / program).is_file(), f"{program}: whose command is this?"
            for word in rest:
                if word.startswith(("cluster/", "configs/")):
                    assert (ROOT / word).exists(), word
    return {}


def _parse(program: str, command: Any, words: list[str]) -> dict[str, object]:
    """Of a typer application of ours."""
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"{program}: no command {' '.join(words[:1])}"
        program, command, words = f"{program} {words[0]}", command.commands[words[0]], words[1:]
    with command.make_context(program, list(words)) as context:
        values = dict(context.params)
    file: Any = values.get("config")
    overrides: Any = values.get("set_") or []
    if (model := _config_of(program)) and (file or overrides):
        assert file is None or (ROOT / file).is_file(), file
        settings: Any = load_config(model, file and ROOT / file, overrides)
        if program == "ray_jobs.tune":
            from ray_jobs.tune_config import plan_trials

            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(ROOT)  # the sweep names the training's file from there
                assert plan_trials(settings, file)
    return values


def _config_of(program: str) -> type[Config] | None:
    """What --config and --set of a command are."""
    if program in ("spatialavatar train", "spatialavatar model summary", "ray_jobs.train"):
        from spatialavatar.training.config import TrainConfig

        return TrainConfig
    if program == "spatialavatar refine":
        from spatialavatar.refine.config import RefineConfig

        return RefineConfig
    if program == "ray_jobs.refine":
        from spatialavatar.fleet.config import FleetConfig

        return FleetConfig
    if program == "ray_jobs.tune":
        from ray_jobs.tune_config import TuneConfig

        return TuneConfig
    return None
