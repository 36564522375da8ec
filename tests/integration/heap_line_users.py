"""A line of processes that go on, one after the other, with the state of the one before, which was killed.

The state is a heap with an object of each kind. Step number *n* changes all of them in one transaction, so that what
each must contain after *n* steps is known without having seen them: a heap that has lost, doubled or torn anything
shows it. Some steps contain a transaction that fails. Behind each step, a few changes are made without a transaction:
they are consistent one by one, and lag behind by at most one step.
"""

from __future__ import annotations

import threading
import time

import bequest as bq
from actors import Seat
from bequest.objects import Heap, Log, Map, Queue

PLACE = "/line/heap"
KEYS, KEPT, WAITING = 40, 60, 5
SMALL, LARGE = 10, 3000  # bytes of a value


class Status(bq.Struct):
    steps: int = 0
    share: float = 0.0
    label: str = ""


class Halted(Exception):
    """A transaction that fails because it is to."""


class State:
    """The objects, and what they contain after so many steps."""

    def __init__(self, heap: Heap) -> None:
        self.heap = heap
        self.status = Status(heap, "status")
        self.counts, self.loose = Map(heap, "counts"), Map(heap, "loose")
        self.log, self.queue = Log(heap, "log"), Queue(heap, "queue")
        self.cell = heap.memory("cell", 16)

    def step(self) -> None:
        number = self.status.steps + 1
        with self.heap.transaction() as transaction:
            self.status.steps = number
            self.status.share = number / 4
            self.status.label = f"step {number} " * (number % 5)
            self.counts[key(number)] = value(number)
            if number % 16 == 0:
                self._fail()
            self.log.append(b"%d" % number)
            self.log.truncate(number - KEPT)
            self.queue.put(b"%d" % number)
            if len(self.queue) > WAITING:
                assert self.queue.get() == b"%d" % (number - WAITING)
            transaction.snapshot(self.cell[:8])
            self.cell[:8] = number.to_bytes(8, "little")
        self.loosely(number)

    def loosely(self, number: int) -> None:
        """The changes behind a step; made again by the heir, who cannot know whether they were."""
        self.loose[b"last"] = b"%d" % number
        self.loose.pop(b"%d" % (number - 3), None)
        self.loose[b"%d" % number] = b"x" * (number % 300)

    def _fail(self) -> None:
        try:
            with self.heap.transaction():
                self.counts.clear()
                self.queue.put(b"never")
                self.status.steps = -1
                raise Halted
        except Halted:
            pass

    def check(self) -> int:
        """How many steps there were, on which all objects agree."""
        done = self.status.steps
        assert self.status.share == done / 4
        assert self.status.label == f"step {done} " * (done % 5)
        assert dict(self.counts.items()) == {
            key(number): value(number) for number in range(max(1, done - KEYS + 1), done + 1)
        }
        assert [int(record) for record in self.log] == list(range(max(1, done - KEPT + 1), done + 1))
        assert [int(record) for record in self.queue] == list(range(max(1, done - WAITING + 1), done + 1))
        assert int.from_bytes(self.cell[:8], "little") == done
        self._check_loose(done)
        return done

    def _check_loose(self, done: int) -> None:
        """The last changes may be missing, the last of all first."""
        loose = dict(self.loose.items())
        assert int(loose.pop(b"last", b"0")) in (done - 1, done)
        numbers = sorted(int(number) for number in loose)
        assert set(numbers) <= set(range(done - 3, done + 1)), numbers
        assert all(loose[b"%d" % number] == b"x" * (number % 300) for number in numbers)
        assert set(range(max(1, done - 2), done)) <= set(numbers), numbers


def key(number: int) -> bytes:
    return b"%d" % (number % KEYS)


def value(number: int) -> bytes:
    return b"%d " % number * (LARGE if number % 7 == 0 else SMALL)


def found(seat: Seat, nbytes: int) -> None:
    """The first of the line."""
    region = seat.me.alloc(nbytes)
    heap = Heap.create(region)
    State(heap)
    seat.me.publish(PLACE, region)
    _go_on(seat, heap)


def inherit(seat: Seat, dead: list[str]) -> tuple[int, str]:
    """Steals from all of these, checks what it has got, and goes on: after how many steps, and what recovery did."""
    names: dict[str, bq.Region] = {}
    regions: list[bq.Region] = []
    for name in dead:
        try:
            estate = seat.me.steal(name)
        except (bq.UnknownProcess, bq.ProcessDead):  # nothing is left of it
            continue
        names |= estate.names
        regions += estate.regions
    seat.kept["regions"] = regions  # all of them stay open
    heap = Heap.open(names[PLACE])
    _free_strays(heap, regions)
    state = State(heap)
    done = state.check()
    state.loosely(done)
    did = heap.recovery.did
    _go_on(seat, heap)
    return done, did


def _free_strays(heap: Heap, regions: list[bq.Region]) -> None:
    """What was allocated for the heap to grow by, when the process was killed before it did."""
    part_of_it = {region.address for region in heap.regions}
    for region in [region for region in regions if region.address not in part_of_it]:
        regions.remove(region)
        region.free()


def _go_on(seat: Seat, heap: Heap) -> None:
    """In a thread, until it is killed."""
    seat.kept["heap"] = heap

    def steps() -> None:
        state = State(heap)
        while True:
            state.step()
            time.sleep(0)

    threading.Thread(target=steps, daemon=True).start()
