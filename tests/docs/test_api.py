"""docs/api says what the docstrings say."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
THING = '''"""Things."""

@dataclass
class Thing(Base):
    """One; 2 * 3."""

    size: int = 3  # pixels
    _own: int = 0

    @property
    def area(self) -> int:
        """Of it."""
        return 9


def f(
    x: int,  # metres
) -> int:
    # why
    return x


def _g() -> None: ...
'''


@pytest.fixture(scope="module")
def make_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(make_api: ModuleType) -> None:
    committed = {path.name: path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")}
    made = make_api.pages()
    other = sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name))
    assert not other, f"docs/api is behind the code ({', '.join(other)}); run: python docs/make_api.py"


def test_what_a_page_shows(make_api: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "spatialavatar" / "part"
    package.mkdir(parents=True)
    (tmp_path / "ray_jobs").mkdir()
    for folder in (package.parent, tmp_path / "ray_jobs"):
        (folder / "__init__.py").write_text("")
    (package / "__init__.py").write_text('"""A part\nof two lines."""\n\n__all__ = ["f"]\n')
    (package / "thing.py").write_text(THING)
    made = make_api.pages(tmp_path)
    assert made.keys() == {"README.md", "spatialavatar.md", "spatialavatar.part.md", "ray_jobs.md"}
    assert "| [spatialavatar.part](spatialavatar.part.md) | A part of two lines. |" in made["README.md"]
    page = made["spatialavatar.part.md"]
    assert "\n## spatialavatar.part.thing\n\n[`spatialavatar/part/thing.py`](../../spatialavatar/part/thing.py)" in page
    assert "```python\n@dataclass\nclass Thing(Base):\n    size: int = 3  # pixels\n```\n\nOne; 2 \\* 3.\n" in page
    assert "#### Thing.area\n\n```python\n@property\ndef area(self) -> int\n```\n\nOf it.\n" in page
    assert "### f\n\n```python\ndef f(\n    x: int,  # metres\n) -> int\n```\n" in page
    assert "_g" not in page and "_own" not in page and "Offers `f`." in page


def test_every_public_definition_is_there(make_api: ModuleType) -> None:
    made = make_api.pages()
    for path in (ROOT / "spatialavatar" / "head").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert f"\n### {node.name}\n" in made["spatialavatar.head.md"], f"{path}: {node.name}"
