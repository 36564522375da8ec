"""The map of a slab: its pages from left to right in so many cells, each with the letter of who owns most of it.

Pure: slabs in, letters out. `Owners` gives each owner a letter and a colour, the largest first, and keeps them for all
slabs of a picture. A report tells only the first runs of a badly fragmented slab; of what lies beyond, which begins at
`UNKNOWN`, the map shows how much is whose, but not where.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bequest.wire.messages import SlabRun, SlabStatus

FREE, IN_FLIGHT, AWAY, UNKNOWN = "·", "»", "~", "¦"
_LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits
_OTHERS = "*"  # owners beyond the letters
# Readable behind a black letter, and told apart by most colour-blind people through the letter.
_COLOURS = ("sky_blue1", "orange1", "pale_green3", "plum2", "khaki1", "light_coral", "cyan2", "medium_purple1",
            "dark_sea_green2", "salmon1", "light_steel_blue1", "gold3")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One cell of a map: what is written there, and who owns it (None: nobody)."""

    letter: str
    owner: int | None = None


class Owners:
    """Who owns memory: bytes, a letter and a colour for each, by id."""

    def __init__(self, slabs: Iterable[SlabStatus], page_bytes: int) -> None:
        self.nbytes: dict[int, int] = {}
        for slab in slabs:
            for owner, pages in slab.owners:
                self.nbytes[owner] = self.nbytes.get(owner, 0) + pages * page_bytes
        self.by_size = sorted(self.nbytes, key=lambda owner: (-self.nbytes[owner], owner))
        self._rank = {owner: rank for rank, owner in enumerate(self.by_size)}

    def letter(self, owner: int) -> str:
        """The letter for this owner's cells."""
        rank = self._rank.get(owner, len(_LETTERS))
        return _LETTERS[rank] if rank < len(_LETTERS) else _OTHERS

    def colour(self, owner: int) -> str:
        """A colour of rich; neighbours in size never share one."""
        return _COLOURS[self._rank.get(owner, 0) % len(_COLOURS)]


def draw(slab: SlabStatus, owners: Owners, width: int) -> list[Cell]:
    """The slab in ``width`` cells: where its runs are, then, from the last one reported on, how much is whose."""
    known = sum(run.pages for run in slab.runs)
    exact = width if known >= slab.pages else min(width - 2, known * width // slab.pages)
    cells: list[Cell] = []
    first, first_page = 0, 0  # the run in which the cell begins, and the page at which that run does
    for index in range(exact):
        start = index * slab.pages // width
        stop = max((index + 1) * slab.pages // width, start + 1)
        while first_page + slab.runs[first].pages <= start:
            first_page += slab.runs[first].pages
            first += 1
        cells.append(_cell(_largest(slab.runs, first, first_page, start, stop), owners))
    if exact < width:
        cells += [Cell(UNKNOWN), *_shares(slab, owners, width - exact - 1)]
    return cells


def _shares(slab: SlabStatus, owners: Owners, width: int) -> list[Cell]:
    """What lies beyond the reported runs, by owner in proportion; free pages last."""
    seen: dict[int, int] = {}
    for run in slab.runs:
        if run.state in {"owned", "in-flight", "frozen"}:
            seen[run.owner] = seen.get(run.owner, 0) + run.pages
    rest = {owner: pages - seen.get(owner, 0) for owner, pages in slab.owners}
    whole = slab.pages - sum(run.pages for run in slab.runs)
    cells: list[Cell] = []
    pages = 0
    for owner in sorted(rest, key=lambda owner: (-rest[owner], owner)):
        pages += rest[owner]
        cells += [Cell(owners.letter(owner), owner)] * (round(pages * width / whole) - len(cells))
    return cells + [Cell(FREE)] * (width - len(cells))


def _largest(runs: Sequence[SlabRun], first: int, first_page: int, start: int, stop: int) -> SlabRun:
    """Of the states and owners between two pages, the one with most of them; what is owned wins over what is free."""
    pages: dict[tuple[str, int], int] = {}
    run_of: dict[tuple[str, int], SlabRun] = {}
    for run in runs[first:]:
        if first_page >= stop:
            break
        key = run.state, run.owner
        pages[key] = pages.get(key, 0) + min(stop, first_page + run.pages) - max(start, first_page)
        run_of.setdefault(key, run)
        first_page += run.pages
    return run_of[max(pages, key=lambda key: (pages[key], key[0] != "free"))]


def _cell(run: SlabRun, owners: Owners) -> Cell:
    match run.state:
        case "owned" | "frozen":
            return Cell(owners.letter(run.owner), run.owner)
        case "in-flight":
            return Cell(IN_FLIGHT, run.owner)
        case "away":
            return Cell(AWAY)
        case _:
            return Cell(FREE)


def fragmentation(slabs: Iterable[SlabStatus]) -> float:
    """The share of free pages that lie outside the largest free run of their slab: 0 is none, near 1 is bad."""
    free = largest = 0
    for slab in slabs:
        free += slab.free_pages
        largest += slab.largest_free_run
    return 1 - largest / free if free else 0.0
