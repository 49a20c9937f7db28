"""The Dockerfile's facts; nothing here builds it."""

import fnmatch
import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.cluster.dockerfile import arguments, instructions
from tests.docs.commands import CLUSTER, ROOT

COPIED = [
    word
    for name, rest in instructions()
    if name == "COPY" and "--from" not in rest
    for word in [w for w in rest.split() if not w.startswith("--")][:-1]
]


@pytest.mark.parametrize("source", COPIED)
def test_what_is_copied_exists_and_reaches_the_builder(source: str) -> None:
    assert (ROOT / source).exists()
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert any(fnmatch.fnmatch(source, rule[1:]) for rule in rules if rule.startswith("!"))


def test_all_packages_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {"pyproject.toml", project["project"]["readme"], "LICENSE", "configs"} == set(COPIED)


def test_versions_are_ones_that_the_project_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["ray"]]
    versions = {name.removesuffix("_VERSION").lower(): value for name, value in arguments().items()}
    found = [r.name for r in wanted if r.name in versions and r.specifier.contains(versions[r.name])]
    assert sorted(found) == ["gsplat", "ray", "torch"]


def test_toolkit_is_of_torchs_major_version() -> None:
    import torch

    given = arguments()
    if torch.version.cuda is None or torch.__version__.split("+")[0] != given["TORCH_VERSION"]:
        pytest.skip(f"torch {torch.__version__} here says nothing of the image's {given['TORCH_VERSION']}")
    assert given["CUDA_VERSION"].split(".")[0] == torch.version.cuda.split(".")[0]


def test_kernels_are_compiled_for_the_cards_of_the_cloud() -> None:
    assert arguments()["TORCH_CUDA_ARCH_LIST"].split(";") == ["8.6", "8.9", "9.0"]


def test_every_variable_is_known_in_its_stage() -> None:
    known: set[str] = set()
    for name, rest in instructions():
        used = set(re.findall(r"\$\{?(\w+)", rest))
        if name == "FROM":
            assert used <= {"CUDA_VERSION"}
            assert re.search(r":\$\{CUDA_VERSION\}-(devel|base)-", rest)  # a fixed version, no latest
            known = {"PATH"}
        elif name == "ARG":
            known.add(rest.partition("=")[0])
        else:
            assert used <= known, rest
        if name == "ENV":
            known |= set(re.findall(r"(\w+)=", rest))


def test_runs_as_a_user_with_places_to_write() -> None:
    last = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    users = [rest for name, rest in last if name == "USER"]
    assert users == ["avatar"]
    made = " ".join(rest for name, rest in last if name == "RUN")
    settings = dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for name, rest in last if name == "ENV")))
    assert "useradd --create-home" in made and settings["HOME"] == "/home/avatar"
    assert f"install -d -m 1777 {settings['NUMBA_CACHE_DIR']}" in made
