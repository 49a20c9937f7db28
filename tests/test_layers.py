"""The packages import each other in one direction alone, as the package's docstring says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import spatialavatar

ROOT = Path(spatialavatar.__file__).parent


def layer_of() -> dict[str, int]:
    """Of each package the number of its line in the docstring, from 1; modules beside the packages are at 0."""
    assert spatialavatar.__doc__ is not None
    lines = [line for line in spatialavatar.__doc__.splitlines() if line.startswith("    ")]
    return {name.strip(): number for number, line in enumerate(lines, 1) for name in line.split(",")}


def imported(file: Path) -> Iterator[str]:
    """Everything of ours that a file imports, anywhere in it, with dots."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_package_has_its_line() -> None:
    assert {file.parent.name for file in ROOT.glob("*/__init__.py")} <= set(layer_of())


def test_imports_lead_upwards() -> None:
    layers, wrong = layer_of(), []
    for file in sorted(ROOT.rglob("*.py")):
        own = file.relative_to(ROOT).parts[0]
        if file.parent == ROOT and own in ("__init__.py", "__main__.py"):
            continue
        for name in imported(file):
            top, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if top == "ray_jobs" or (
                top == "spatialavatar" and other != own and layers.get(other, 0) >= max(layers.get(own, 0), 1)
            ):
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not wrong
