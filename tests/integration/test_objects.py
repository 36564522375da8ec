"""Heaps and their objects on a real rack: used, inherited after kills at random instants, stolen from the living."""

from __future__ import annotations

import random
import threading
import time
from functools import partial
from queue import Empty

import pytest

import actors
import bequest as bq
import heap_users
from bequest.errors import CorruptHeap, HeapFull, HeapMisuse
from bequest.objects import Heap, Log, Map, Queue
from racks import MIB, RackUnderTest, Yard

PAGE = 4096


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """It keeps the memory of the dead for a minute."""
    return yard.rack()


# --- in one process -----------------------------------------------------------------------------------------


def test_a_map_is_a_dictionary(me: bq.Process) -> None:
    with me.alloc(MIB) as region, Heap.create(region) as heap:
        jobs = Map(heap, "jobs")
        jobs[b"a"] = b"1"
        jobs[bytearray(b"b")] = memoryview(b"2")
        assert (jobs[b"a"], jobs.get(b"c"), jobs.get(b"c", 7), len(jobs)) == (b"1", None, 7, 2)
        assert b"a" in jobs and b"c" not in jobs
        assert jobs == {b"a": b"1", b"b": b"2"} == dict(jobs.items())
        assert sorted(jobs) == sorted(jobs.keys()) == [b"a", b"b"]
        assert (jobs.pop(b"a"), jobs.pop(b"a", 0), jobs.setdefault(b"d", b"4")) == (b"1", 0, b"4")
        with pytest.raises(KeyError):
            del jobs[b"a"]
        with pytest.raises(TypeError, match="encode"):
            jobs["text"] = b""
        jobs.update({b"e": b"", b"f": b"6"})
        assert sorted(Map(heap, "jobs").values()) == [b"", b"2", b"4", b"6"]
        with pytest.raises(RuntimeError, match="got or lost keys"):
            for key in jobs:
                del jobs[key]
        jobs.clear()
        assert not jobs and "of 0 entries" in repr(jobs)
        with pytest.raises(KeyError):
            jobs.popitem()


def test_a_log_keeps_indices_for_ever(me: bq.Process) -> None:
    with me.alloc(MIB) as region, Heap.create(region) as heap:
        log = Log(heap, "log")
        assert (log.append(b"zero"), log.extend([b"one", bytearray(b"two")]), log.extend([])) == (0, 1, 3)
        assert list(log) == [b"zero", b"one", b"two"]
        assert (log.truncate(1), log.first, log.end, len(log)) == (1, 1, 3, 2)
        assert (log[1], log[-1], log[0:3]) == (b"one", b"two", [b"one", b"two"])
        with pytest.raises(IndexError):
            log[0]
        log.extend(b"%d" % i for i in range(3, 1000))
        assert list(log.read_from(998)) == [b"998", b"999"]


def test_a_queue_hands_out_what_came_first(me: bq.Process) -> None:
    with me.alloc(MIB) as region, Heap.create(region) as heap:
        queue = Queue(heap, "queue")
        queue.put(b"a")
        queue.put_all([b"b", b"c"])
        assert (queue.peek(), queue.get(), list(queue)) == (b"a", b"a", [b"b", b"c"])
        assert (queue.get(), queue.get()) == (b"b", b"c")
        with pytest.raises(Empty):
            queue.get()
        with pytest.raises(HeapMisuse, match="is a Queue in this heap, not a Map"):
            Map(heap, "queue")


def test_a_transaction_is_undone_by_an_exception(me: bq.Process) -> None:
    with me.alloc(MIB) as region, Heap.create(region) as heap:
        jobs, view = Map(heap, "jobs"), heap.memory("mine", 100)
        jobs[b"a"] = b"1"
        with pytest.raises(ZeroDivisionError), heap.transaction() as transaction:
            jobs[b"a"] = b"2"
            transaction.snapshot(view[10:20])
            view[10:20] = b"0123456789"
            with pytest.raises(KeyError), heap.transaction():  # fails by itself
                jobs[b"b"] = b"3"
                raise KeyError
            assert jobs == {b"a": b"2"}
            1 / 0  # noqa: B018
        assert jobs == {b"a": b"1"} and bytes(view) == bytes(100)
        with heap.transaction():
            jobs[b"a"] = b"2"
            with heap.transaction():
                jobs[b"b"] = b"3"
        assert jobs == {b"a": b"2", b"b": b"3"}
        del view


def test_misuse_is_told(me: bq.Process) -> None:
    with me.alloc(MIB) as region:
        heap = Heap.create(region)
        transaction = heap.transaction()
        with pytest.raises(HeapMisuse, match="not under way"):
            transaction.snapshot(bytearray(8))
        with transaction, pytest.raises(HeapMisuse, match="not in this heap"):
            transaction.snapshot(bytearray(8))
        with pytest.raises(HeapMisuse, match="open in this process already"):
            Heap.open(region)
        with heap.transaction(), pytest.raises(HeapMisuse, match="middle of a transaction"):
            heap.close()
        with pytest.raises(BufferError):
            region.free()
        heap.close()
        heap.close()
        with pytest.raises(HeapMisuse, match="has been closed"):
            Map(heap, "jobs")
        region.array()[:] = 0
        with pytest.raises(CorruptHeap, match="no heap"):
            Heap.open(region)
    with me.alloc(PAGE) as small, pytest.raises(HeapMisuse, match="at least 16384 bytes"):
        Heap.create(small)


def test_another_thread_does_not_slip_into_a_transaction(me: bq.Process) -> None:
    with me.alloc(MIB) as region, Heap.create(region) as heap:
        jobs = Map(heap, "jobs")
        caught: list[BaseException] = []

        def intrude() -> None:
            try:
                jobs[b"a"] = b"1"
            except HeapMisuse as error:
                caught.append(error)

        with heap.transaction():
            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()
        assert len(caught) == 1 and not jobs


def test_a_heap_grows_by_regions_of_its_owner(me: bq.Process) -> None:
    first = me.alloc(16 * PAGE)
    heap = Heap.create(first)
    jobs = Map(heap, "jobs")
    for number in range(3000):
        jobs[b"%d" % number] = bytes(100)
    assert len(heap.regions) > 1 and heap.nbytes == sum(region.nbytes for region in heap.regions)
    regions = heap.regions
    heap.close()
    heap = Heap.open(first)
    assert heap.regions == regions and len(Map(heap, "jobs")) == 3000
    heap.close()
    regions[-1].free()
    with pytest.raises(CorruptHeap, match="is not here"):
        Heap.open(first)
    for region in regions[:-1]:
        region.free()


def test_a_heap_that_may_not_grow_is_full_and_stays_whole(me: bq.Process) -> None:
    with me.alloc(16 * PAGE) as region, Heap.create(region, grow=False) as heap:
        jobs = Map(heap, "jobs")
        with pytest.raises(HeapFull):
            for number in range(10_000):
                jobs[b"%d" % number] = bytes(50)
        kept = len(jobs)
        assert kept > 300
        with pytest.raises(HeapFull), heap.transaction():
            del jobs[b"0"]
            jobs[b"large"] = bytes(1 << 20)
        assert len(jobs) == kept and b"0" in jobs
        jobs.clear()
        for number in range(kept):
            jobs[b"%d" % number] = bytes(50)


# --- inherited ----------------------------------------------------------------------------------------------


def test_what_was_under_way_is_undone(yard: Yard, me: bq.Process) -> None:
    victim = yard.actor("victim")
    victim.do(heap_users.die_in_transaction, MIB)
    victim.kill()
    estate, heap = heap_users.take_over(me, "victim")
    assert heap.recovery.did == "undone" and heap.recovery.entries > 0
    assert heap_users.check(heap) == 1
    heap_users.step(heap, 1)  # it goes on
    assert heap_users.check(heap) == 2
    heap.close()
    for region in estate:
        region.free()


def test_kills_at_random_instants(yard: Yard, me: bq.Process) -> None:
    pauses = random.Random(4)
    for round_ in range(12):
        victim = yard.actor(f"victim-{round_}")
        victim.do(heap_users.work, 32 * PAGE)
        time.sleep(pauses.uniform(0, 0.05))
        victim.kill()
        estate, heap = heap_users.take_over(me, f"victim-{round_}")
        done = heap_users.check(heap)
        heap_users.step(heap, done)
        assert heap_users.check(heap) == done + 1
        heap.close()
        for region in estate:
            region.free()


def test_stolen_from_one_that_lives(yard: Yard, me: bq.Process, rack: RackUnderTest) -> None:
    victim = yard.actor("victim")
    victim.do(heap_users.work, MIB)
    estate, heap = heap_users.take_over(me, "victim")
    kind, told = victim.do(partial(heap_users.outcome), actors.DEADLINE)
    assert kind == "MemoryRevoked", told
    done = heap_users.check(heap)
    heap_users.step(heap, done)
    assert heap_users.check(heap) == done + 1
    heap.close()
    for region in estate:
        region.free()
    assert rack.audit() == []


def test_granted_on(yard: Yard, me: bq.Process) -> None:
    region = me.alloc(MIB)
    with Heap.create(region) as heap:
        Map(heap, "jobs")[b"a"] = b"1"
    other = yard.attach("other")
    region.grant("other")
    with other.accept(timeout=actors.DEADLINE) as accepted, Heap.open(accepted) as heap:
        assert heap.recovery.did == "clean"
        assert Map(heap, "jobs") == {b"a": b"1"}
