"""What README, CHANGELOG and docs/ name is there: pages, headings, extras."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"))
}
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = PAGES[name]
    for link in re.findall(r"\]\(([^)]+)\)", without_code(page)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", PAGES)
def test_the_extras_that_are_named_exist(name):
    named = re.findall(r"(?:mrc-edit|'\.)\[([a-z0-9,-]+)\]", PAGES[name].read_text())
    assert {extra for group in named for extra in group.split(",")} <= EXTRAS


def test_the_readme_lists_every_extra():
    install = PAGES["README.md"].read_text().split("## Install")[1].split("\n## ")[0]
    assert set(re.findall(r"`([\w-]+)`", install)) & EXTRAS == EXTRAS
