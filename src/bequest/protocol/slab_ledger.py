"""The Rack MMU's own book of slabs: where each lies, whose group has it, and what it was copied from.

A part of a slab that is granted across groups is copied into a slab of its own, at the same address, whose *parent* is
the slab it came from; the parent keeps a hole there ("away") until the copy has ended. A parent may end before its
copies: it then has no memory any more but keeps its addresses reserved (*ghost*).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

from bequest.ids import GroupId, ProcessId, SlabId, home_of
from bequest.limits import MAX_SLABS, PAGE_BYTES
from bequest.protocol.address_plan import Run
from bequest.protocol.books import Books, Row
from bequest.protocol.failed_runs import covers, lacking, merged


class SlabState(Enum):
    RESERVING = "reserving"  # at the element; not in any table yet
    LIVE = "live"  # in its group's table
    GHOST = "ghost"  # only its addresses are left


class Slab(Row):
    id: SlabId
    group: GroupId
    element: int
    address: int
    pages: int
    huge: bool
    parent: SlabId | None = None
    state: SlabState = SlabState.RESERVING
    is_stillborn: bool = False  # a copy that was never delivered: its addresses are still the grant's
    failed: tuple[
        Run, ...
    ] = ()  # (offset, bytes) that have lost their memory: none of it is handed out again
    condemned: tuple[Run, ...] = ()  # likewise, but its element has not said so yet
    cause: str = ""  # of the last failure
    pins: int = 0  # grants under way that move or copy it: it is not idle, whatever its table says

    transient = ("pins",)

    @property
    def nbytes(self) -> int:
        return self.pages * PAGE_BYTES

    @property
    def run(self) -> Run:
        return self.address, self.address + self.nbytes

    @property
    def home(self) -> ProcessId:
        return home_of(self.address)

    @property
    def doomed(self) -> tuple[Run, ...]:
        """What has lost its memory, or will as soon as its element hears of it."""
        return merged([*self.failed, *self.condemned], self.nbytes)

    def condemn(self, run: Run, cause: str) -> None:
        """Its element is to lose this run (offset, bytes): that is certain once it is written down."""
        self.condemned = merged([*self.condemned, *lacking([run], self.failed)], self.nbytes)
        self.cause = cause

    def fail(self, run: Run, cause: str) -> bool:
        """Its element has lost this run. False if that is known."""
        if covers(self.failed, run):
            return False
        self.failed = merged([*self.failed, run], self.nbytes)
        self.condemned = tuple(lacking(self.condemned, self.failed))
        self.cause = cause
        return True

    def overlaps(self, run: Run) -> bool:
        return self.address < run[1] and run[0] < self.address + self.nbytes

    def covers(self, run: Run) -> bool:
        return self.address <= run[0] and run[1] <= self.address + self.nbytes


class SlabLedger:
    def __init__(self, books: Books, elements: Sequence[int]) -> None:
        self._books = books
        self._slabs = books.open("slabs", Slab, int)
        self._copies: dict[SlabId, dict[SlabId, Slab]] = {}  # by parent
        self._places: dict[int, SlabId] = {}  # in the tables, which have room for so many
        self._used = dict.fromkeys(elements, 0)

    def __iter__(self) -> Iterator[Slab]:
        return iter(self._slabs)

    def __getitem__(self, slab: SlabId) -> Slab:
        return self._slabs[slab]

    def get(self, slab: SlabId) -> Slab | None:
        return self._slabs.get(slab)

    def used(self, element: int) -> int:
        return self._used[element]

    def add(
        self, group: GroupId, element: int, address: int, pages: int, huge: bool, parent: SlabId | None = None
    ) -> Slab:
        slab = Slab(self._fresh_id(), group, element, address, pages, huge, parent)
        self._slabs.put(slab.id, slab)
        self._enter(slab)
        return slab

    def _enter(self, slab: Slab) -> None:
        self._places[slab.id % MAX_SLABS] = slab.id
        if slab.parent is not None:
            self._copies.setdefault(slab.parent, {})[slab.id] = slab
        if slab.state is not SlabState.GHOST:
            self._used[slab.element] += slab.nbytes

    def restored(self) -> None:
        """The book has been filled with what a run before wrote down."""
        for slab in self._slabs:
            self._enter(slab)

    def lose_memory(self, slab: Slab) -> None:
        assert slab.state is not SlabState.GHOST
        slab.state = SlabState.GHOST
        self._used[slab.element] -= slab.nbytes

    def forget(self, slab: Slab) -> None:
        assert slab.state is SlabState.GHOST
        self._slabs.remove(slab.id)
        del self._places[slab.id % MAX_SLABS]
        if slab.parent is not None:
            del self._copies[slab.parent][slab.id]
            if not self._copies[slab.parent]:
                del self._copies[slab.parent]

    def copies_of(self, slab: Slab) -> list[Slab]:
        return list(self._copies.get(slab.id, {}).values())

    def overlapping(self, group: GroupId, run: Run) -> list[Slab]:
        return [
            slab
            for slab in self
            if slab.group == group and slab.state is not SlabState.GHOST and slab.overlaps(run)
        ]

    def held_at_home(self, element: int, home: ProcessId) -> int:
        return sum(
            slab.nbytes
            for slab in self._slabs
            if slab.element == element and slab.home == home and slab.state is not SlabState.GHOST
        )

    def any_in(self, group: GroupId) -> bool:
        return any(slab.group == group and slab.state is not SlabState.GHOST for slab in self._slabs)

    def _fresh_id(self) -> SlabId:
        """Never used before in this rack, and at no other slab's place in the table (its id modulo the capacity)."""
        if len(self._slabs) >= MAX_SLABS - 1:
            raise OverflowError(f"a rack has {MAX_SLABS} slabs at most")
        counter = self._books.counter("slab")
        while counter.next() % MAX_SLABS in self._places:
            pass
        return counter.last
