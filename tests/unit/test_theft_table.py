"""Thefts in the real table, where the random walk of test_table_properties.py does not come by."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bequest import _core

PAGE = _core.PAGE_BYTES
VICTIM, THIEF, OTHER = 1, 2, 3


class Region(_core.RegionBase):
    """What the bindings hand out."""

    __slots__ = ()


class Trio:
    """Three processes of one group, and a slab at the victim's home."""

    def __init__(self) -> None:
        self.table = _core.Table.create(1)
        self.file = os.memfd_create("slab")
        os.ftruncate(self.file, 16 * PAGE)
        for id in (VICTIM, THIEF, OTHER):
            self.table.admit(id, 1, os.getpid(), f"process-{id}")
        self.table.add_slab(1, _core.WINDOW_BASE + (VICTIM << _core.PROCESS_SPACE_BITS), 16, 0, False, VICTIM)
        self.processes = {
            id: _core.ProcessBase(self.table, id, "a rack without daemons", self.open_slab, Region, 0.0)
            for id in (VICTIM, THIEF, OTHER)
        }
        self.refuses = False
        self.kept: list[Region] = []  # what is dropped is freed

    def open_slab(self, slab: int) -> tuple[int, list[tuple[int, int]]]:
        if self.refuses:
            raise OSError("the element does not answer")
        return os.dup(self.file), []

    def alloc(self, pages: int = 1, stealable: bool = True) -> Region:
        region: Region = self.processes[VICTIM]._alloc(pages * PAGE, False, _core.ANY_ELEMENT, stealable)
        self.kept.append(region)
        return region

    def steal(self, thief: int = THIEF, victim: int = VICTIM) -> int:
        listed = [extent[:2] for extent in self.table.stealable(victim)]
        return len(self.table.steal(listed, victim, thief))

    def die(self) -> None:
        self.processes.pop(VICTIM)._leave(False)
        self.table.mark_dead(VICTIM)
        self.table.settle(VICTIM)

    def adopt(self, id: int, victim: int, incarnation: int = 1) -> int:
        adopted = self.processes[id]._adopt(victim, incarnation)
        self.kept += adopted
        return len(adopted)

    def close(self) -> None:
        for process in self.processes.values():
            process._leave(False)
        os.close(self.file)


@pytest.fixture
def trio() -> Iterator[Trio]:
    trio = Trio()
    yield trio
    trio.close()


def test_what_is_owned_is_listed_whether_or_not_it_is_stealable(trio: Trio) -> None:
    given, kept, elsewhere = trio.alloc(2), trio.alloc(1, stealable=False), trio.alloc(3)
    start, end = given.address, kept.address + PAGE
    assert end == elsewhere.address
    listed = [(address, pages) for _, _, address, pages in trio.table.owned(VICTIM, [(start, end - start)])]
    assert listed == [(given.address, 2), (kept.address, 1)]
    assert trio.table.owned(THIEF, [(start, end - start)]) == []


def test_what_is_not_stealable_is_not_taken_by_its_word_either(trio: Trio) -> None:
    region = trio.alloc(stealable=False)
    descriptor, word = trio.processes[VICTIM]._surrender(region)
    assert trio.table.stealable(VICTIM) == []
    assert trio.table.steal([(descriptor, word)], VICTIM, THIEF) == []
    assert trio.table.audit() == []


@pytest.mark.parametrize(
    "extent", [(1 << 21, 0), ((1 << 32) - 1, (1 << 64) - 1), (0, 0), (5, 3 << 61 | VICTIM << 51)]
)
def test_nonsense_takes_nothing(trio: Trio, extent: tuple[int, int]) -> None:
    trio.alloc()
    assert trio.table.steal([extent], VICTIM, THIEF) == []
    assert trio.table.audit() == []


def test_a_mark_is_void_once_the_thief_has_laid_a_hand_on_it(trio: Trio) -> None:
    """Also of what the thief owns and has no handle of: here it is on its way to another group."""
    trio.alloc()
    assert trio.steal() == 1
    assert trio.adopt(THIEF, VICTIM) == 1
    trio.processes[THIEF]._surrender(trio.kept[-1])
    assert trio.adopt(THIEF, VICTIM) == 0


def test_a_mark_speaks_of_one_life_of_one_victim(trio: Trio) -> None:
    trio.alloc()
    trio.steal()
    assert trio.adopt(THIEF, VICTIM, 2) == trio.adopt(THIEF, OTHER) == trio.adopt(OTHER, VICTIM) == 0
    assert trio.adopt(THIEF, VICTIM) == 1


def test_a_thief_is_robbed_before_it_knows(trio: Trio) -> None:
    trio.alloc()
    assert trio.steal() == trio.steal(OTHER, THIEF) == 1
    assert trio.adopt(THIEF, VICTIM) == trio.adopt(OTHER, VICTIM) == 0
    assert trio.adopt(OTHER, THIEF) == 1


def test_who_cannot_open_it_adopts_nothing_and_can_ask_again(trio: Trio) -> None:
    trio.alloc(2)
    trio.alloc(3)
    trio.die()
    for process in trio.processes.values():  # the window goes with the last of them, and all that it maps
        process._leave(False)
    trio.processes[THIEF] = _core.ProcessBase(trio.table, THIEF, "again", trio.open_slab, Region, 0.0)
    assert trio.steal() == 2
    trio.refuses = True
    with pytest.raises(OSError, match="does not answer"):
        trio.processes[THIEF]._adopt(VICTIM, 1)
    trio.refuses = False
    assert trio.adopt(THIEF, VICTIM) == 2
    assert sorted(region.nbytes for region in trio.kept[-2:]) == [2 * PAGE, 3 * PAGE]


def test_an_heir_is_a_living_process_of_a_dead_one(trio: Trio) -> None:
    assert not trio.table.name_heir(VICTIM, THIEF)  # which lives
    trio.processes[OTHER]._send(VICTIM, 1, b"hello", 8)
    trio.die()
    assert trio.processes[THIEF]._inherit(VICTIM, 1, 8) == []
    assert trio.table.name_heir(VICTIM, THIEF)
    assert trio.table.name_heir(VICTIM, THIEF)
    assert not trio.table.name_heir(VICTIM, OTHER)
    assert trio.processes[OTHER]._inherit(VICTIM, 1, 8) == []
    trio.processes.pop(THIEF)._leave(False)
    trio.table.mark_dead(THIEF)
    assert not trio.table.name_heir(VICTIM, THIEF)
    assert trio.table.name_heir(VICTIM, OTHER)
    assert [message.tag for message in trio.processes[OTHER]._inherit(VICTIM, 1, 8)] == [b"hello"]
    with pytest.raises(ValueError, match="no process id"):
        trio.processes[OTHER]._inherit(600, 1, 8)
