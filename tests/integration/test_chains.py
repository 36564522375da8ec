"""Log and Queue: records that are more than bytes, read forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import bequest as bq
from bequest.errors import HeapMisuse
from bequest.objects import Queue
from racks import MIB


@dataclass
class Job:
    name: str
    tries: int = 0


@pytest.fixture
def heap(me: bq.Process) -> Iterator[bq.Heap]:
    with me.alloc(MIB) as region, bq.Heap.create(region) as heap:
        yield heap


SAMPLES: list[tuple[Any, list[Any]]] = [
    (bytes, [b"", b"raw", b"x" * 5000]),
    (str, ["", "größer"]),
    (int, [0, -(2**63), 2**63 - 1]),
    (float, [0.5, float("inf")]),
    (bool, [True, False]),
    (Job, [Job("a"), Job("b", 7)]),
    (list[int], [[], [1, 2]]),
]


@pytest.mark.parametrize(("kind", "samples"), SAMPLES, ids=str)
def test_records_come_back_as_what_they_were(heap: bq.Heap, kind: Any, samples: list[Any]) -> None:
    log: bq.Log[Any] = bq.Log(heap, "log", value=kind)
    queue: Queue[Any] = Queue(heap, "queue", value=kind)
    log.append(samples[0])
    log.extend(samples[1:])
    queue.put(samples[0])
    queue.put_all(iter(samples[1:]))
    log, queue = bq.Log(heap, "log", value=kind), Queue(heap, "queue", value=kind)
    assert list(log) == log[:] == list(queue) == samples and list(reversed(log)) == samples[::-1]
    assert [type(record) for record in log] == [type(sample) for sample in samples]
    assert (log[-1], queue.peek(), queue.get()) == (samples[-1], samples[0], samples[0])
    assert queue.get_all() == samples[1:] and len(queue) == 0


@pytest.mark.parametrize("make", [bq.Log, Queue])
def test_records_of_another_type_are_refused(heap: bq.Heap, make: Any) -> None:
    chain = make(heap, "chain", value=int)
    add = chain.extend if make is bq.Log else chain.put_all
    for wrong, error in (("1", TypeError), (None, TypeError), (2**63, OverflowError)):
        with pytest.raises(error, match="a record of 'chain' is an int"):
            add([1, wrong])
    assert len(chain) == 0
    kind = make.__name__
    with pytest.raises(
        HeapMisuse,
        match=rf"'chain' is a {kind} of int in this heap, not of bytes: open it as {kind}\(heap, 'chain', value=int",
    ):
        make(heap, "chain")
    make(heap, "packed", value=Job)
    with pytest.raises(HeapMisuse, match=r"of packed in this heap, not of str: .*value=its type"):
        make(heap, "packed", value=str)
    with pytest.raises(HeapMisuse, match="'other' is a Map"):
        bq.Map(heap, "other")
        make(heap, "other", value=int)


def test_what_cannot_be_read_is_not_taken(heap: bq.Heap) -> None:
    Queue(heap, "jobs", value=dict).put({"name": 5})
    jobs = Queue(heap, "jobs", value=Job)
    with pytest.raises(HeapMisuse, match="a record of 'jobs' cannot be read as what it is said to be"):
        jobs.get()
    assert len(jobs) == 1


def test_a_log_is_read_backwards(heap: bq.Heap) -> None:
    log = bq.Log(heap, "log", value=int)
    assert list(reversed(log)) == []
    log.extend(range(1000))
    assert list(reversed(log)) == list(reversed(range(1000)))
    log.truncate(700)
    assert list(reversed(log)) == list(reversed(range(700, 1000)))
    backwards = reversed(log)
    assert next(backwards) == 999
    log.append(1000)
    log.truncate(990)
    assert list(backwards)[-1] == 744  # those that it has fetched
    log.truncate(5000)
    assert list(reversed(log)) == [] and log.end == 1001


@pytest.mark.parametrize(
    "far",
    [
        lambda log, queue: list(log.read_from(10**30)) == [],
        lambda log, queue: list(log.read_from(-(10**30))) == [1, 2, 3],
        lambda log, queue: log.truncate(-(10**30)) == 0 and log.truncate(10**30) == 3,
        lambda log, queue: queue.get_all(-(10**30)) == [] and queue.get_all(10**30) == [1, 2, 3],
    ],
    ids=range(4),
)
def test_what_is_beyond_all_records_is_no_trouble(heap: bq.Heap, far: Callable[[Any, Any], bool]) -> None:
    log, queue = bq.Log(heap, "log", value=int), Queue(heap, "queue", value=int)
    log.extend([1, 2, 3])
    queue.put_all([1, 2, 3])
    assert far(log, queue)
