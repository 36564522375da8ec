"""The three ways to change a heap, and what its owner may do with it: journals, replacement, removal, growth."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
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


# --- what ends too late -------------------------------------------------------------------------------------

Late = Generator[None, None, None]


def late_journal(heap: Heap) -> Late:
    journal = heap.journal().__enter__()
    yield
    del journal


def late_transaction(heap: Heap) -> Late:
    with heap.transaction():
        yield


def outlived(heap: Heap, late: Callable[[Heap], Late]) -> Late:
    """Holds what has begun within a transaction that has ended, and was undone with it."""
    held = late(heap)
    with pytest.raises(HeapMisuse, match="begun within this one, and not ended"), heap.transaction():
        next(held)
    return held


@pytest.mark.parametrize("late", [late_journal, late_transaction])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_forgotten_ends_no_other_transaction(
    heap: Heap, late: Callable[[Heap], Late], depth: int
) -> None:
    jobs = bq.Map(heap, "jobs")
    held = [outlived(heap, late)]
    with suppress(ZeroDivisionError), ExitStack() as levels:
        for _ in range(depth):
            levels.enter_context(heap.transaction())
        jobs[b"a"] = b"1"
        held.clear()
        gc.collect()
        jobs[b"b"] = b"2"
        1 / 0  # noqa: B018
    assert not jobs


def test_a_level_below_is_no_other_ones_level(heap: Heap) -> None:
    jobs = bq.Map(heap, "jobs")
    held = late_transaction(heap)
    with pytest.raises(HeapMisuse, match="begun within this one"), heap.transaction():
        next(held)
    with pytest.raises(HeapMisuse, match="has been undone before"), heap.transaction(), heap.transaction():
        jobs[b"a"] = b"1"
        next(held)  # its with statement ends without an exception
    assert not jobs
    outer, inner = heap.journal(), heap.journal()
    with suppress(ZeroDivisionError), outer:
        inner.__enter__()
        1 / 0  # noqa: B018
    for use in (lambda: inner.write(bytearray(1), b"a"), lambda: inner.__exit__(None, None, None)):
        with pytest.raises(HeapMisuse, match="has been undone before"):
            use()
    with pytest.raises(HeapMisuse, match="not under way"):
        inner.__exit__(None, None, None)


@pytest.mark.parametrize("late", [late_journal, late_transaction])
def test_what_is_forgotten_may_outlive_an_open_heap(me: bq.Process, late: Callable[[Heap], Late]) -> None:
    with me.alloc(MIB) as region:
        with Heap.create(region) as heap:
            held = [outlived(heap, late)]
        with Heap.open(region) as again:
            jobs = bq.Map(again, "jobs")
            with suppress(ZeroDivisionError), again.transaction():
                held.clear()
                gc.collect()
                jobs[b"a"] = b"1"
                1 / 0  # noqa: B018
            assert not jobs


def test_a_forgotten_journal_takes_with_it_what_has_begun_within(heap: Heap) -> None:
    jobs, held = bq.Map(heap, "jobs"), [heap.journal().__enter__()]
    with pytest.raises(HeapMisuse, match="has been undone before"), heap.transaction():
        jobs[b"a"] = b"1"
        held.clear()
        gc.collect()
        assert not jobs
    with heap.transaction():
        jobs[b"b"] = b"2"
    assert jobs == {b"b": b"2"}


@pytest.mark.parametrize("what", ["transaction", "journal"])
def test_an_exception_passes_though_something_within_has_not_ended(heap: Heap, what: str) -> None:
    """As Ctrl-C does that comes as a context manager of contextlib begins to end: it is not resumed then."""
    jobs = bq.Map(heap, "jobs")
    with pytest.raises(KeyboardInterrupt), heap.transaction():
        jobs[b"a"] = b"1"
        with getattr(heap, what)():
            held = late_transaction(heap)
            next(held)
            jobs[b"b"] = b"2"
            raise KeyboardInterrupt
    assert not jobs
    jobs[b"c"] = b"3"  # nothing is under way
    held.close()
    assert jobs == {b"c": b"3"}
    heap.close()


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
