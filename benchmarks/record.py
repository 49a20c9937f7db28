"""Writes benchmark results: numbers together with what is needed to judge and repeat them.

``record(name, results)`` writes ``benchmarks/results/<name>-<YYYY-MM-DD>.json``. The machine is described by its
hardware and software only: no host name, no user, no paths. Commit, load and time are those of the moment when this
module was imported, at the start of the benchmark. ``arguments(__doc__)`` is the parser that every benchmark begins
with.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numba", "llvmlite", "numpy", "gsplat", "lpips", "timm", "ray", "deepspeed")


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is the script's docstring; the option --out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_Help)
    parser.add_argument(
        "--out", type=Path, metavar="RECORD.json", help="the record; without it benchmarks/results/NAME-DATE.json"
    )
    return parser


def record(name: str, results: Any, out: Path | None = None) -> Path:
    """Write ``results`` (anything JSON) under ``name``, with machine, versions, git commit and command; the path."""
    path = out or RESULTS / f"{name}-{_STARTED:%Y-%m-%d}.json"
    document = {
        "name": name,
        "date": f"{_STARTED:%Y-%m-%dT%H:%M:%SZ}",
        "command": command_line(),
        "commit": _COMMIT,
        "machine": machine(),
        "versions": versions(),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory, accelerators, load at the start (others may be using the machine)."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    description: dict[str, Any] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "vector_extensions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "memory_gib": _memory_gib(),
        "load_1min": _LOAD,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    if description["gpus"]:
        description["cuda"] = torch.version.cuda
    return description


def versions() -> dict[str, str]:
    """Python and the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checked-out commit, with "-dirty" where tracked files differ from it; None outside a git checkout."""
    root = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        # results of other benchmarks do not change what was measured
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def _processor() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def command_line() -> str:
    """This process' command as typed at the repository's root; of files outside it the names alone."""
    root = Path(__file__).parents[1].resolve()

    def shown(argument: str) -> str:
        path = Path(argument)
        if not path.is_absolute() and ("=" in argument or not path.exists()):
            return argument
        resolved = path.resolve()
        return str(resolved.relative_to(root)) if resolved.is_relative_to(root) else path.name

    return shlex.join(["python", *(shown(argument) for argument in sys.argv)])


_STARTED = datetime.datetime.now(datetime.UTC)
_COMMIT = commit()
_LOAD = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
