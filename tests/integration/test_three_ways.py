"""The three ways to change a heap, and what its owner may do with it: journals, replacement, removal, growth."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import bequest as bq
from bequest.errors import BadSize, HeapMisuse, NotOwner, RegionMoved
from bequest.objects import Heap, Queue
from racks import MIB, Yard

PAGE = 4096


class State(bq.Struct):
    label: str = "x"


@pytest.fixture
def heap(me: bq.Process) -> Iterator[Heap]:
    with me.alloc(MIB) as region, Heap.create(region) as heap:
        yield heap


# --- a journal ------------------------------------------------------------------------------------------------


def test_a_journal_is_written_at_its_end(heap: Heap) -> None:
    view = heap.memory("mine", 100)
    with heap.journal() as journal:
        journal.write(view[10:13], b"abc")
        journal.write(view[50:53], bytearray(b"def"))
        journal.write(view[11:12], b"B")
        assert bytes(view) == bytes(100)
    assert bytes(view[10:13]) == b"aBc" and bytes(view[50:53]) == b"def"
    with suppress(ZeroDivisionError), heap.journal() as journal:
        journal.write(view[:3], b"xyz")
        1 / 0  # noqa: B018
    assert bytes(view[:3]) == bytes(3)
    with heap.journal():
        pass
    del view


def test_a_journal_is_a_part_of_a_transaction(heap: Heap) -> None:
    view, jobs = heap.memory("mine", 10), bq.Map(heap, "jobs")
    for fails in (True, False):
        with suppress(ZeroDivisionError), heap.transaction():
            jobs[b"a"] = b"1"
            with heap.journal() as journal:
                journal.write(view[:3], b"abc")
            assert bytes(view[:3]) == b"abc"
            1 / (1 - fails)
        assert (bytes(view[:3]), len(jobs)) == ((bytes(3), 0) if fails else (b"abc", 1))
    del view


def test_misuse_of_a_journal_changes_nothing(heap: Heap) -> None:
    view, jobs = heap.memory("mine", 10), bq.Map(heap, "jobs")
    journal = heap.journal()
    with pytest.raises(HeapMisuse, match="not under way"):
        journal.write(view[:1], b"a")
    with journal:
        with pytest.raises(HeapMisuse, match="2 bytes cannot be written over 1"):
            journal.write(view[:1], b"ab")
        with pytest.raises(HeapMisuse, match="not in this heap"):
            journal.write(bytearray(1), b"a")
        with pytest.raises(HeapMisuse, match="under way already"), journal:
            pass
    with pytest.raises(HeapMisuse, match="do not go together"), journal:
        journal.write(view[:1], b"a")
        jobs[b"a"] = b"1"
    for outer in (journal, heap.transaction()):
        with pytest.raises(HeapMisuse, match="begun within this one, and not ended"), outer:  # type: ignore[attr-defined]
            jobs[b"b"] = b"2"
            heap.transaction().__enter__()
        jobs.clear()  # nothing is under way
    assert bytes(view) == bytes(10) and not jobs
    del view


def test_a_journal_that_is_forgotten_ends(heap: Heap) -> None:
    view = heap.memory("mine", 10)
    journal = heap.journal().__enter__()
    journal.write(view[:1], b"a")
    del journal
    gc.collect()
    bq.Map(heap, "jobs")[b"a"] = b"1"
    assert view[0] == 0
    del view


# --- shadow copies --------------------------------------------------------------------------------------------


def test_memory_is_replaced_whole(heap: Heap) -> None:
    assert bytes(heap.replace("config", b"one")) == b"one"
    free = set()
    for _ in range(3):
        for size in range(1, 60):
            heap.replace("config", bytes(size))
        free.add(heap.free_bytes)
    assert len(free) == 1
    with suppress(ZeroDivisionError), heap.transaction():
        heap.replace("config", b"three")
        assert bytes(heap.memory("config")) == b"three"
        1 / 0  # noqa: B018
    assert len(heap.memory("config")) == 59
    heap.replace("config", memoryview(b"two").cast("B"))
    assert bytes(heap.memory("config")) == b"two"
    bq.Map(heap, "jobs")
    with pytest.raises(HeapMisuse, match="'jobs' is a Map in this heap"):
        heap.replace("jobs", b"x")
    with pytest.raises(BadSize):
        heap.replace("config", b"")
    assert bytes(heap.memory("config")) == b"two"


MAKERS: dict[str, Callable[[Heap], Any]] = {
    "Map": lambda heap: bq.Map(heap, "thing"),
    "Log": lambda heap: bq.Log(heap, "thing"),
    "Queue": lambda heap: Queue(heap, "thing"),
    "Struct": lambda heap: State(heap, "thing"),
    "Array": lambda heap: bq.Array(heap, "thing", shape=10),
    "memory": lambda heap: heap.memory("thing", 10),
}
FILLERS: dict[str, Callable[[Any, int], None]] = {
    "Map": lambda thing, i: thing.__setitem__(b"%d" % i, bytes(1000)),
    "Log": lambda thing, i: thing.append(bytes(1000)) and None,
    "Queue": lambda thing, i: thing.put(bytes(1000)) and None,
    "Struct": lambda thing, i: setattr(thing, "label", "x" * 1000 * i),
    "Array": lambda thing, i: thing.extend(range(125)),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_everything_can_be_removed(heap: Heap, kind: str) -> None:
    free = set()
    for _ in range(3):
        thing = MAKERS[kind](heap)
        if kind != "memory":
            for i in range(20):
                FILLERS[kind](thing, i)
            with suppress(ZeroDivisionError), heap.transaction():
                heap.remove("thing")
                1 / 0  # noqa: B018
            FILLERS[kind](thing, 20)  # it is still there
        assert heap.roots[0].kind == kind
        heap.remove("thing")
        assert heap.roots == () and "thing" not in heap
        free.add(heap.free_bytes)
        if kind != "memory":
            with pytest.raises(HeapMisuse, match=f"the {kind} 'thing' is no longer in its heap"):
                FILLERS[kind](thing, 0)
            assert "no longer in its heap" in repr(thing)
        del thing
    assert len(free) == 1
    with pytest.raises(KeyError):
        heap.remove("thing")


# --- growth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILLERS)
def test_everything_grows_past_a_region(me: bq.Process, kind: str) -> None:
    region = me.alloc(16 * PAGE)
    heap = Heap.create(region)
    thing = MAKERS[kind](heap)
    for i in range(120):
        FILLERS[kind](thing, i)
    length = len(thing.label if kind == "Struct" else thing)
    assert len(heap.regions) > 1
    heap.close()
    with Heap.open(region) as heap:
        again = MAKERS[kind](heap)
        assert len(again.label if kind == "Struct" else again) == length
        regions = heap.regions
    for one in regions:
        one.free()


def test_nobody_uses_a_heap_while_it_gets_more_memory(me: bq.Process) -> None:
    caught: list[str] = []
    regions = [me.alloc(16 * PAGE)]

    def grow(least: int, wished: int) -> bq.Region:
        def intrude() -> None:
            for use in (lambda: jobs[b"a"], heap.transaction().__enter__):
                with pytest.raises(HeapMisuse) as told:
                    use()
                caught.append(str(told.value))

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        regions.append(me.alloc(least))
        return regions[-1]

    with Heap(regions[0], 1, False, grow) as heap:
        jobs = bq.Map(heap, "jobs")
        for number in range(50):
            jobs[b"%d" % number] = bytes(2000)
        assert len(jobs) == 50 and len(regions) > 1
    assert caught and all("getting more memory" in told for told in caught)
    for region in regions:
        region.free()


def test_a_heap_in_a_file_is_durable_and_grows_there(tmp_path: Path, yard: Yard) -> None:
    yard.rack("dram0:32MiB", f"disk0:32MiB:file:{tmp_path}")
    me = yard.attach("me")
    with me.alloc(16 * PAGE, element="disk0") as region, Heap.create(region) as heap:
        assert heap.durable
        jobs = bq.Map(heap, "jobs")
        for number in range(100):
            jobs[b"%d" % number] = bytes(1000)
        elements = [me.element_of(one).name for one in heap.regions]
        assert len(elements) > 1 and set(elements) == {"disk0"}
        rest = heap.regions[1:]
    for one in rest:
        one.free()
    for element, durable, wanted in (("dram0", None, False), ("dram0", True, True), ("disk0", False, False)):
        with me.alloc(16 * PAGE, element=element) as region, Heap.create(region, durable=durable) as heap:
            assert heap.durable is wanted


# --- one owner ----------------------------------------------------------------------------------------------


def test_only_the_owner_opens_a_heap(yard: Yard, me: bq.Process) -> None:
    region = me.alloc(MIB)
    other = yard.attach("other")
    with Heap.create(region):
        me.publish("/state", region)
        with pytest.raises(NotOwner, match="me"):
            other.lookup("/state")
        with pytest.raises(BufferError):
            region.grant("other")
    region.grant("other")
    with pytest.raises(RegionMoved):
        Heap.open(region)
    with other.accept(timeout=30) as accepted, Heap.open(accepted) as heap:
        assert heap.roots == ()
