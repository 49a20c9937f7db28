"""docs/architecture.md says what imports what, and where things happen, as the code has it."""

import ast
import re
from collections import defaultdict

from tests.docs.commands import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def imports() -> dict[str, set[str]]:
    """Of each package of the library, and of ray_jobs, the packages that its files name."""
    packages = {file.parent.name: file.parent for file in (ROOT / "spatialavatar").glob("*/__init__.py")}
    found = defaultdict(set)
    for package, folder in {**packages, "ray_jobs": ROOT / "ray_jobs"}.items():
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spatialavatar"):
                    words = [f"{node.module}.{alias.name}".split(".") for alias in node.names]
                    found[package] |= {word[1] for word in words if word[1] in packages and word[1] != package}
    return found


def test_arrows_are_imports() -> None:
    drawing = re.search(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    assert drawing is not None
    drawn = defaultdict(set)
    for source, target in re.findall(r"(\w+)(?:\[.*?\])? --> (\w+)", drawing[1]):
        drawn[source].add(target)

    def behind(package: str) -> set[str]:
        return drawn[package].union(*(behind(other) for other in list(drawn[package])))

    found = imports()
    assert {a: bs - found[a] for a, bs in drawn.items() if bs - found[a]} == {}, "drawn, and not imported"
    assert {a: bs - behind(a) for a, bs in found.items() if bs - behind(a)} == {}, "imported, and not drawn"


def test_tables_name_what_is_there() -> None:
    rows = re.findall(r"^\| \[([\w/.]+\.py)\]\([^)]+\) \| (.*?) \|", PAGE, re.MULTILINE)
    assert len(rows) > 25
    missing = []
    for path, names in rows:
        text = (ROOT / path).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            if not all(re.search(rf"\b(def|class) {part}\b", text) for part in name.split(".")):
                missing.append(f"{path}: {name}")
    assert not missing


def test_every_package_has_a_row() -> None:
    folders = {f"spatialavatar/{file.parent.name}" for file in (ROOT / "spatialavatar").glob("*/__init__.py")}
    assert folders <= set(re.findall(r"^\| `([\w/]+)` \|", PAGE, re.MULTILINE))
