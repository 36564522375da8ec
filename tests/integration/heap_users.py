"""What actors do with heaps in the tests of objects."""

from __future__ import annotations

import threading
import time
from typing import Any

import bequest as bq
from actors import Seat
from bequest.objects import Heap, Log, Map, Queue

KEYS = 50


def step(heap: Heap, number: int) -> None:
    """One event: it takes the number before it from a queue, and leaves its own in four places."""
    counts, log, queue = Map(heap, "counts"), Log(heap, "log"), Queue(heap, "queue")
    with heap.transaction() as transaction:
        if number > 0:
            assert queue.get() == b"%d" % (number - 1)
        queue.put(b"%d" % number)
        log.append(b"%d" % number)
        counts[b"%d" % (number % KEYS)] = b"%d" % number * (number % 7 + 1)
        cell = heap.memory("cell", 8)
        transaction.snapshot(cell)
        cell[:] = number.to_bytes(8, "little")


def check(heap: Heap) -> int:
    """How many events there were, when all places agree on it."""
    counts, log, queue = Map(heap, "counts"), Log(heap, "log"), Queue(heap, "queue")
    done = len(log)
    if done == 0:
        assert len(queue) == len(counts) == 0
        return 0
    last = done - 1
    assert list(queue) == [b"%d" % last]
    assert [int(record) for record in log] == list(range(done))
    assert int.from_bytes(heap.memory("cell"), "little") == last
    assert {int(key): value for key, value in counts.items()} == {
        number % KEYS: b"%d" % number * (number % 7 + 1) for number in range(max(0, done - KEYS), done)
    }
    return done


def work(seat: Seat, nbytes: int, first: int = 0) -> int:
    """Goes on with it in a thread until it is killed, or its memory is taken."""
    region = seat.kept["region"] = seat.me.alloc(nbytes)
    heap = Heap.create(region)
    Map(heap, "counts"), Log(heap, "log"), Queue(heap, "queue"), heap.memory("cell", 8)
    seat.kept["steps"] = 0
    seat.kept["ended"] = ended = threading.Event()

    def go_on() -> None:
        try:
            for number in range(first, 1 << 40):
                step(heap, number)
                seat.kept["steps"] = number
                if number % 64 == 0:
                    time.sleep(0)
        except Exception as error:
            seat.kept["outcome"] = error
            ended.set()

    threading.Thread(target=go_on, daemon=True).start()
    return region.address


def outcome(seat: Seat, seconds: float) -> tuple[str, str]:
    assert seat.kept["ended"].wait(seconds)
    error: Any = seat.kept["outcome"]
    return type(error).__name__, str(error)


def die_in_transaction(seat: Seat, nbytes: int) -> None:
    """Leaves one behind that has changed everything and not been committed."""
    heap = Heap.create(seat.me.alloc(nbytes))
    step(heap, 0)
    heap.transaction().__enter__()
    Map(heap, "counts")[b"half"] = b"done"
    Log(heap, "log").append(b"half")
    Queue(heap, "queue").get()
    seat.kept["heap"] = heap


def take_over(me: bq.Process, name: str) -> tuple[bq.Estate, Heap]:
    estate = me.steal(name)
    return estate, Heap.open(min(estate.regions, key=lambda region: region.address))
