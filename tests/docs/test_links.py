"""What pages point at is there: files, headings, and the modules that they name."""

import re

import pytest

from tests.docs.commands import PAGES, ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(
    r"\b(?:spatialavatar|ray_jobs|tests|examples|cluster|configs|docs)/[\w./-]+\.(?:py|json|yaml|sh|md)\b"
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    missing = []
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        place, _, heading = target.partition("#")
        path = (ROOT / page).parent / place if place else ROOT / page
        if not path.exists() or (heading and heading not in headings(path.read_text())):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_files_of_ours_that_are_named_exist(page: str) -> None:
    text = re.sub(r"https?://\S+", "", (ROOT / page).read_text())
    assert not sorted({path for path in PATH.findall(text) if not (ROOT / path).exists()})


def test_readme_leads_to_every_page() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    assert not [page for page in PAGES if page != "README.md" and page not in linked]


def prose(page: str) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(text: str) -> set[str]:
    """As GitHub names them in addresses."""
    lines = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
