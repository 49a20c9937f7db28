"""What pyproject.toml asks for: all that is imported, nothing that is not."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BROUGHT = {"llvmlite": "numba", "imageio-ffmpeg": "imageio"}  # imported by us, too, and always there with the other
NOT_IMPORTED = {"tensorboard", "s3fs"}  # by us: torch and fsspec do


def asked_for(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[>]", requirement)[0].lower() for requirement in requirements}


def imported(folder: str) -> set[str]:
    """Distributions, of others, that the modules of a folder import anywhere."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    found = packages_distributions()
    names -= sys.stdlib_module_names | {"spatialavatar", "ray_jobs"}
    distributions = {found[name][0].lower() for name in names}
    return {BROUGHT.get(name, name) for name in distributions}


BASE = asked_for(PROJECT["dependencies"])
RAY = asked_for(PROJECT["optional-dependencies"]["ray"])


def test_the_library_imports_the_base_install_and_all_of_it() -> None:
    assert imported("spatialavatar") == BASE - NOT_IMPORTED


def test_ray_jobs_import_their_extra_and_all_of_it() -> None:
    pytest.importorskip("ray")
    assert RAY <= imported("ray_jobs") <= BASE | RAY


def test_imports_bring_only_what_they_compute_with() -> None:
    program = (
        "import pkgutil, sys, spatialavatar as package\n"
        "from importlib import import_module\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "for part in pkgutil.iter_modules(package.__path__, 'spatialavatar.'):\n"
        "    if part.name != 'spatialavatar.__main__': import_module(part.name)\n"
        "import spatialavatar.training.run, spatialavatar.refine.run, spatialavatar.fleet.run\n"
        "late = {'timm', 'lpips', 'torchvision', 'tensorboard', 'gsplat', 'imageio', 'plyfile', 'lmdb', 'rich'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("ray_jobs.train", ["--config", "configs/dev/phase1.yaml", "--out", "{tmp}/run"], "ray"),
        ("spatialavatar", ["shards", "info", "s3://bucket/shards"], "s3"),
    ],
)
def test_what_the_base_install_lacks_is_named_with_its_extra(
    tmp_path: Path, module: str, arguments: list[str], extra: str
) -> None:
    program = (
        "import runpy, sys\n"
        "sys.modules['ray'] = sys.modules['s3fs'] = None\n"
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    )
    given = [module, *(argument.format(tmp=tmp_path) for argument in arguments)]
    done = subprocess.run(
        [sys.executable, "-c", program, *given], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and f"pip install -e '.[{extra}]'" in done.stderr


def test_lower_bounds_alone() -> None:
    extras = PROJECT["optional-dependencies"].values()
    requirements = [each for part in (PROJECT["dependencies"], *extras) for each in part]
    others = [each for each in requirements if not re.fullmatch(r"[\w-]+(\[[\w,]+\])?>=[\w.]+", each)]
    assert others == ["spatialavatar[ray,s3]"]
