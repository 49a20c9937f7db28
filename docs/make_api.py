"""Writes docs/api from the docstrings: ``python docs/make_api.py``. tests/docs/test_api.py holds the pages to the code.

A page for each package, with every public class and function: its signature as it stands in the source, comments on
shapes and units included, and its docstring. Nothing is imported. Commands are left out: ``--help`` explains them.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
API = ROOT / "docs" / "api"
PACKAGES = ("spatialavatar", "ray_jobs")
LEFT_OUT = {"cli"}
SPECIAL = ("__init__", "__call__")  # methods whose signature is that of the class, or of its values

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def pages(root: Path = ROOT) -> dict[str, str]:
    """Text of every page, by its file's name in docs/api."""
    folders = [root / package for package in PACKAGES]
    folders += [f for package in folders for f in sorted(package.iterdir()) if (f / "__init__.py").is_file()]
    found, index = {}, ["# API reference", "", f"Written by `{Path(__file__).name}` from the docstrings.", ""]
    index += ["| package | what |", "|---|---|"]
    for folder in folders:
        if folder.name in LEFT_OUT:
            continue
        package = ".".join(folder.relative_to(root).parts)
        modules = folder.glob("*.py") if folder.parent == root else folder.rglob("*.py")
        found[f"{package}.md"] = "\n".join(_page(package, folder, sorted(modules), root)) + "\n"
        summary = _docstring(ast.parse((folder / "__init__.py").read_text())).partition("\n\n")[0]
        index.append(f"| [{package}]({package}.md) | {' '.join(summary.split())} |")
    return {"README.md": "\n".join(index) + "\n", **found}


def _page(package: str, folder: Path, modules: list[Path], root: Path) -> Iterator[str]:
    yield f"# {package}"
    for path in [folder / "__init__.py", *(m for m in modules if m != folder / "__init__.py")]:
        if any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(root).parts):
            continue
        source = path.read_text()
        module = ast.parse(source)
        public = [node for node in module.body if isinstance(node, Definition) and not node.name.startswith("_")]
        listed = _listed(module)
        if path.name == "__init__.py" and not (public or listed or _docstring(module)):
            continue
        place = path.relative_to(root).as_posix()
        name = place.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
        if name != package:
            yield from ("", f"## {name}")
        yield from ("", f"[`{place}`](../../{place})")
        yield from _text(_docstring(module))
        if listed:
            yield from ("", f"Offers {', '.join(f'`{each}`' for each in sorted(listed))}.")
        for node in public:
            yield from _definition(node, source.splitlines())


def _definition(node: Definition, lines: list[str], owner: str = "") -> Iterator[str]:
    title = f"{owner}{node.name}".replace("__", r"\_\_")
    yield from ("", f"{'####' if owner else '###'} {title}", "", "```python")
    yield from textwrap.dedent("\n".join(_signature(node, lines))).splitlines()
    yield "```"
    yield from _text(_docstring(node))
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, Definition) and (method.name in SPECIAL or not method.name.startswith("_")):
                yield from _definition(method, lines, f"{node.name}.")


def _signature(node: Definition, lines: list[str]) -> Iterator[str]:
    """The lines of the source up to the body; of a class those of its fields, too."""
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    first = node.body[0]
    end = max(start, first.lineno - 1)
    if first.lineno == node.lineno:  # all on one line
        yield lines[start - 1][: first.col_offset].rstrip().removesuffix(":")
        return
    if not isinstance(node, ast.ClassDef):
        head = lines[start - 1 : end]
        while not re.search(r":\s*(#.*)?$", head[-1]):  # comments between signature and body
            head.pop()
        yield from [*head[:-1], re.sub(r":(\s*(#.*)?)$", r"\1", head[-1]).rstrip()]
        return
    while not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#"):
        end -= 1
    yield from lines[start - 1 : end]
    for field in node.body:
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and not field.target.id.startswith("_"):  # type: ignore[union-attr]
            yield from lines[field.lineno - 1 : field.end_lineno]


def _listed(module: ast.Module) -> list[str]:
    """Names in ``__all__``."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _docstring(node: ast.Module | Definition) -> str:
    return ast.get_docstring(node) or ""


def _text(docstring: str) -> Iterator[str]:
    """As Markdown: what is indented, or stands after \\b, keeps its lines; * and < outside of code mean themselves."""
    for paragraph in filter(None, docstring.split("\n\n")):
        yield ""
        if paragraph.startswith("\b") or paragraph.startswith("    "):
            yield from ("```text", *textwrap.dedent(paragraph.lstrip("\b\n")).splitlines(), "```")
        else:
            parts = re.split(r"(``.*?``)", paragraph, flags=re.DOTALL)
            yield "".join(p if p.startswith("``") else re.sub(r"([*<])", r"\\\1", p) for p in parts)


def main() -> None:
    written = pages()
    API.mkdir(exist_ok=True)
    for path in API.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        (API / name).write_text(text)


if __name__ == "__main__":
    main()
