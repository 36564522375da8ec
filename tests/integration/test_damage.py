"""Something has written into a heap: what is said of it, and how one gets past it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import bequest as bq
from bequest.errors import CorruptHeap
from bequest.limits import PAGE_BYTES
from bequest.objects import Heap, Log, Map, Queue

DAMAGED = 300  # behind the first batch that iteration fetches, and in a later block than the first
COUNT = 1000


def record(index: int) -> bytes:
    return b"record-%06d" % index


RECORDS = [record(index) for index in range(COUNT)]


@pytest.fixture
def region(me: bq.Process) -> Iterator[bq.Region]:
    with me.alloc(64 * PAGE_BYTES) as region:
        yield region


@pytest.fixture
def heap(region: bq.Region) -> Iterator[Heap]:
    with Heap.create(region) as heap:
        yield heap


def damage(region: bq.Region, found: bytes, offset: int = 0) -> None:
    """Flips a bit of what lies there once, or so many bytes off."""
    with memoryview(region) as memory:
        place = bytes(memory).index(found)
        memory[place + offset] ^= 1


def damaged(kind: str, index: int) -> str:
    return re.escape(f"record {index} of the {kind} 'records' is damaged")


def test_a_damaged_record_of_a_log_is_named_and_left_behind(region: bq.Region, heap: Heap) -> None:
    log = Log(heap, "records")
    log.extend(RECORDS)
    damage(region, record(DAMAGED))
    with pytest.raises(CorruptHeap, match=damaged("Log", DAMAGED) + ".*from 301 on"):
        log[DAMAGED]
    seen: list[bytes] = []
    with pytest.raises(CorruptHeap, match=damaged("Log", DAMAGED)):
        seen.extend(iter(log))
    assert seen == RECORDS[:DAMAGED]
    assert log[DAMAGED - 1 : DAMAGED] + log[DAMAGED + 1 :] == [record(DAMAGED - 1), *RECORDS[DAMAGED + 1 :]]
    assert list(log.read_from(DAMAGED + 1)) == RECORDS[DAMAGED + 1 :]
    assert log.append(b"more") == COUNT
    assert log.truncate(DAMAGED + 1) == DAMAGED + 1
    assert list(log) == [*RECORDS[DAMAGED + 1 :], b"more"]


def test_behind_a_damaged_length_a_log_goes_on_with_the_next_block(region: bq.Region, heap: Heap) -> None:
    log = Log(heap, "records")
    log.extend(RECORDS)
    damage(region, record(DAMAGED), -8)
    with pytest.raises(CorruptHeap, match=damaged("Log", DAMAGED)) as caught:
        log[DAMAGED + 1]
    found = re.search(r"read from (\d+) on", str(caught.value))
    assert found
    further = int(found[1])
    assert DAMAGED + 1 < further < COUNT
    assert list(log.read_from(further)) == RECORDS[further:]
    assert log.truncate(further) == further
    assert list(log) == RECORDS[further:]


def test_a_damaged_record_of_a_queue_is_dropped(region: bq.Region, heap: Heap) -> None:
    queue = Queue(heap, "records")
    queue.put_all(RECORDS[:4])
    damage(region, record(1))
    with pytest.raises(CorruptHeap, match=damaged("Queue", 1)):
        queue.get_all()
    assert len(queue) == 4, "all or none"
    assert queue.get() == record(0)
    for look in (queue.get, queue.peek, queue.get_all, lambda: list(queue)):
        with pytest.raises(CorruptHeap, match=damaged("Queue", 1)):
            look()
    assert (queue.drop(), queue.drop(0), queue.drop(-1)) == (1, 0, 0)
    assert queue.get_all(1) == [record(2)]
    assert list(queue) == [record(3)]
    assert (queue.drop(7), len(queue), queue.drop()) == (1, 0, 0)


def test_a_key_that_is_damaged_is_not_said_to_be_missing(region: bq.Region, heap: Heap) -> None:
    entries = Map(heap, "entries")
    entries[b"the only key"] = b"value"
    damage(region, b"the only key")
    with pytest.raises(CorruptHeap, match="damaged entry"):
        entries.get(b"the only key")
    with pytest.raises(CorruptHeap, match="damaged entry"):
        dict(entries)


def test_memory_knows_when_its_length_is_damaged(region: bq.Region, heap: Heap) -> None:
    heap.memory("cell", 8)[:] = b"contents"
    damage(region, b"contents", -24)
    with pytest.raises(CorruptHeap, match="the memory at"):
        heap.memory("cell")
