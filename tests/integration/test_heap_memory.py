"""A heap and the memory under it, which may be gone, another heap's, no region at all, or grown without a handle."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable
from typing import Any

import pytest

import bequest as bq
from actors import Seat
from bequest._core import FieldBase
from bequest.errors import CorruptHeap, HeapFull, HeapMisuse, MemoryRevoked
from bequest.objects import Array, Heap, Log, Map, Struct
from racks import MIB, RackUnderTest, Yard

PAGE = 4096
ENTRIES = 3000  # more than 16 pages hold


def fill(heap: Heap) -> None:
    entries = Map(heap, "entries")
    for number in range(ENTRIES):
        entries[b"%d" % number] = b"password" * 12


def grown(me: bq.Process, **how: Any) -> bq.Region:
    """The first region of a heap that has others, of which nobody has a handle any more."""
    first = me.alloc(16 * PAGE, **how)
    with Heap.create(first) as heap:
        fill(heap)
        assert len(heap.regions) > 1
    return first


# --- forked, or stolen ------------------------------------------------------------------------------------------


def in_a_fork(body: Callable[[], object]) -> int:
    """How a child ends that does this: 0, 1 if it raised, or minus a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_lets_go_of_its_parents_heap(me: bq.Process) -> None:
    region = me.alloc(MIB)
    heaps = [Heap.create(region)]
    entries = Map(heaps[0], "entries")
    entries[b"a"] = b"1"
    assert in_a_fork(heaps[0].close) == 0
    del entries
    assert in_a_fork(heaps.clear) == 0
    assert Map(heaps[0], "entries") == {b"a": b"1"}
    heaps[0].close()
    region.free()


def steal_and_free(seat: Seat, victim: str) -> None:
    seat.me.steal(victim).free()


@pytest.mark.parametrize("way", [Heap.close, lambda heap: None])
def test_a_heap_whose_memory_was_stolen_can_be_let_go(
    yard: Yard, me: bq.Process, way: Callable[[Heap], None]
) -> None:
    heap = Heap.create(me.alloc(MIB))
    yard.actor("thief").do(steal_and_free, "me")
    with pytest.raises(MemoryRevoked):
        Map(heap, "entries")
    way(heap)
    del heap
    gc.collect()
    others = [me.alloc(MIB) for _ in range(4)]  # the same addresses are among them, or not
    for region in others:
        Heap.create(region).close()
        region.free()


# --- in use already ---------------------------------------------------------------------------------------------


def test_no_heap_is_made_over_memory_of_an_open_one(me: bq.Process) -> None:
    first = me.alloc(16 * PAGE)
    with Heap.create(first) as heap:
        fill(heap)
        whole = heap.regions[1]
        part = whole[whole.nbytes // 2 // PAGE * PAGE :]
        for region in (first, first[4 * PAGE :], whole, part):
            with pytest.raises(HeapMisuse, match="open in this process already"):
                Heap.create(region)
        assert len(Map(heap, "entries")) == ENTRIES
    with Heap.open(first), pytest.raises(HeapMisuse, match="open in this process already"):
        Heap.create(whole)  # what was found again is known as well
    Heap.create(whole).close()
    first.free()


# --- no region, and no object -----------------------------------------------------------------------------------


def test_a_heap_lies_in_a_region(me: bq.Process) -> None:
    with me.alloc(MIB) as region:
        for memory in (mmap.mmap(-1, MIB), memoryview(region), bytearray(MIB)):
            with pytest.raises(TypeError, match="lies in a Region"):
                Heap.create(memory, grow=False, durable=False)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="lies in a Region"):
                Heap(memory, 1, False, None)
        del memory


def test_what_was_not_made_says_so(me: bq.Process) -> None:
    class Cell(Struct):
        number: int = 0

    class UnmadeHeap(Heap):
        def __init__(self) -> None:
            pass

    class UnmadeMap(Map[bytes, bytes]):
        def __init__(self) -> None:
            pass

    class UnmadeArray(Array):
        def __init__(self) -> None:
            pass

    with me.alloc(MIB) as region, Heap.create(region) as heap:
        cell = Cell(heap, "cell")
        unmade = UnmadeHeap()
        uses: list[Callable[[], object]] = [
            lambda: list(UnmadeMap()),
            lambda: UnmadeMap().name,
            lambda: UnmadeArray()._view(),
            lambda: FieldBase.__new__(FieldBase).__get__(cell, Cell),
            lambda: Map(unmade, "name"),
            lambda: Log(unmade, "name"),
            lambda: Array(unmade, "name"),
            lambda: Cell(unmade, "name"),
            lambda: unmade.transaction().__enter__(),
            lambda: unmade.journal().__enter__(),
        ]
        for use in uses:
            with pytest.raises(HeapMisuse, match="was not made"):
                use()
        assert repr(UnmadeMap()).startswith("<UnmadeMap that cannot be read: this object was not made")


# --- what it has grown by ---------------------------------------------------------------------------------------


def test_what_a_heap_has_grown_by_stays_with_its_first_region(me: bq.Process) -> None:
    first = grown(me)
    for _ in range(2):
        gc.collect()
        with Heap.open(first) as heap:
            assert len(Map(heap, "entries")) == ENTRIES
    with Heap.open(first) as heap:
        others = heap.regions[1:]
    del heap
    first.free()
    assert all(region.owned for region in others)  # whoever has a handle has the memory
    for region in others:
        region.free()


def test_what_a_heap_has_grown_by_is_freed_with_its_first_region(me: bq.Process, rack: RackUnderTest) -> None:
    first = grown(me)
    first.free()
    assert rack.processes()["me"].owned_bytes == 0
    with grown(me):
        assert rack.processes()["me"].owned_bytes > 16 * PAGE
    assert rack.processes()["me"].owned_bytes == 0
    first = grown(me)
    first._free_when_dropped()
    del first
    assert rack.processes()["me"].owned_bytes == 0


def die_with_it(seat: Seat, stealable: bool) -> None:
    first = seat.me.alloc(16 * PAGE, stealable=stealable)
    seat.me.publish("/first", first)
    heap = seat.kept["heap"] = Heap.create(first)
    fill(heap)
    assert len(heap.regions) > 1


def test_of_an_estate_the_first_region_keeps_the_others_once_it_was_opened(
    yard: Yard, me: bq.Process
) -> None:
    victim = yard.actor("victim")
    victim.do(die_with_it, True)
    victim.kill()
    estate = me.steal("victim")
    with Heap.open(estate.names["/first"]):
        pass
    first = estate.names["/first"]
    del estate
    gc.collect()
    with Heap.open(first) as heap:
        assert len(Map(heap, "entries")) == ENTRIES
    first.free()


@pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")
def test_a_heap_of_an_estate_that_was_not_kept_says_so(yard: Yard, me: bq.Process) -> None:
    victim = yard.actor("victim")
    victim.do(die_with_it, True)
    victim.kill()
    first = me.steal("victim").names["/first"]
    gc.collect()
    with pytest.raises(CorruptHeap, match="keep the estate"):
        Heap.open(first)
    first.free()


def test_a_heap_that_is_not_to_be_stolen_grows_by_such_memory(yard: Yard, me: bq.Process) -> None:
    victim = yard.actor("victim")
    victim.do(die_with_it, False)
    victim.kill()
    assert me.steal("victim").regions == []


def test_a_heap_takes_in_what_it_is_given_and_keeps_it(me: bq.Process, rack: RackUnderTest) -> None:
    first = me.alloc(16 * PAGE)
    with Heap.create(first, grow=False) as heap:
        with pytest.raises(HeapFull):
            fill(heap)
        heap.extend(me.alloc(MIB))
        assert (len(heap.regions), heap.nbytes) == (2, 16 * PAGE + MIB)
        fill(heap)
    gc.collect()
    with Heap.open(first, grow=False) as heap:
        assert (len(heap.regions), len(Map(heap, "entries"))) == (2, ENTRIES)
    del heap
    first.free()
    assert rack.processes()["me"].owned_bytes == 0


def test_what_a_heap_cannot_take_in_it_lets_go_of(me: bq.Process) -> None:
    with me.alloc(16 * PAGE) as first, me.alloc(32 * PAGE) as other, Heap.create(first) as heap:
        with other[: 16 * PAGE] as part, pytest.raises(HeapMisuse, match="whole regions"):
            heap.extend(part)
        with me.alloc(PAGE) as small, pytest.raises(HeapMisuse, match="at least 16384 bytes"):
            heap.extend(small)
        with pytest.raises(HeapMisuse, match="that is open"):
            heap.extend(first)
        with pytest.raises(TypeError, match="lies in a Region"):
            heap.extend(b"memory")  # type: ignore[arg-type]
        for _ in range(63):
            heap.extend(me.alloc(4 * PAGE))
        with me.alloc(4 * PAGE) as one_more, pytest.raises(HeapMisuse, match="no more"):
            heap.extend(one_more)
        fill(heap)
        assert len(heap.regions) == 64


# --- memory of one's own ----------------------------------------------------------------------------------------


def test_memory_of_another_size_is_not_given(me: bq.Process) -> None:
    with me.alloc(MIB) as region, Heap.create(region) as heap:
        assert len(heap.memory("mine", 10)) == 10 == len(heap.memory("mine"))
        with pytest.raises(HeapMisuse, match="has 10 bytes in this heap, not 1000"):
            heap.memory("mine", 1000)
