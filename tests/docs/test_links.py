"""Links between pages lead somewhere: to a file of the project, and to a heading that is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pages import PAGES, ROOT

LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The headings of a page as a renderer names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.relative_to(ROOT)} links to {link}, which is not there"
        assert target.is_relative_to(ROOT), f"{page.relative_to(ROOT)} links out of the project: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.relative_to(ROOT)}: {path} has no heading #{anchor}"


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text())}
    unreached = [page for page in PAGES if page.is_relative_to(index.parent) and page not in {index, *linked}]
    assert not unreached, f"docs/index.md does not lead to {unreached}"
