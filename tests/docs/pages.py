"""Reads the documentation: its pages, their fenced blocks, and what a comment before a block says about it.

A block is marked by a comment on the line before it::

    <!-- not run: why -->       it is not executed; the reason is for the reader of the source
    <!-- file: rack.toml -->    it is a file of that name, there for the blocks below it on its page
    <!-- prints -->             (a text block) what the block before it prints; "..." stands for anything
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[a-z ]+?)(?:: (?P<value>.*?))? -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    value: str = ""
    prints: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order, each with the files that came before it and the output that follows it."""
    source = page.read_text()
    files: dict[str, str] = {}
    for match, following in pairwise([*_FENCE.finditer(source), None]):
        assert match is not None
        prints = None
        if following is not None and following["mark"] == "prints":
            prints = following["text"]
        line = source.count("\n", 0, match.start("text"))
        mark, value = match["mark"] or "", match["value"] or ""
        yield Block(page, line, match["language"], match["text"], mark, value, prints, dict(files))
        if mark == "file":
            files[value] = match["text"]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def table_rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head; backquotes are dropped."""
    text = page.read_text()
    start = re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE)
    assert start is not None, f"{page} has no heading {heading!r}"
    rows = []
    for line in text[start.end() :].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
        elif rows:
            break
    assert len(rows) > 2, f"{page} has no table below {heading!r}"
    return rows[2:]
