"""Whatever is done with the objects of a heap, they are what plain Python objects would be.

Hypothesis drives one of each kind in a small heap, beside a model: a dict, two lists, some values, a NumPy array.
There are transactions within transactions, which are kept or fail; the heap is closed and opened; objects are removed
and made anew; and the heap may be full (also for the log of a transaction), in which case the operation has not
happened at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import bequest as bq
from bequest.errors import HeapFull
from bequest.objects import Heap, Queue

HEAP_BYTES = 64 << 10

keys = st.text(max_size=3)
values = st.one_of(st.integers(-(2**40), 2**40), st.lists(st.integers(0, 9), max_size=4))
records = st.binary(max_size=300)
small = st.integers(0, 12)


class State(bq.Struct):
    count: int = 3
    share: float = 0.5
    is_on: bool
    raw: bytes = b"raw"
    label: str = "label"


FIELDS = {
    "count": st.integers(-(2**63), 2**63 - 1),
    "share": st.floats(allow_nan=False),
    "is_on": st.booleans(),
    "raw": st.binary(max_size=2000),
    "label": st.text(max_size=500),
}


@dataclass
class Model:
    """What the objects hold."""

    table: dict[str, Any] = field(default_factory=dict)
    log: dict[int, bytes] = field(default_factory=dict)
    log_end: int = 0
    queue: list[bytes] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=lambda: {one.name: one.default for one in State.fields})
    numbers: Any = field(default_factory=lambda: np.zeros((2, 3), "i2"))


def of(kind: str) -> Callable[[Any], Any]:
    """A rule of this object's: the others rest, now and then, so that more happens to it within one transaction."""
    return precondition(lambda self: self.only in (kind, None))


class Objects(RuleBasedStateMachine):
    """One heap, and what should be in it."""

    me: bq.Process
    only: str | None

    def __init__(self) -> None:
        super().__init__()
        self.region = self.me.alloc(HEAP_BYTES)
        self.heap = Heap.create(self.region, grow=False)
        self.model = Model()
        self.under_way: list[tuple[Any, Model]] = []
        self.make_handles()

    def make_handles(self) -> None:
        self.table = bq.Map(self.heap, "table", key=str, value=int | list[int])  # type: ignore[call-overload]
        self.log = bq.Log(self.heap, "log")
        self.queue = Queue(self.heap, "queue")
        self.state = State(self.heap, "state")
        self.numbers = bq.Array(self.heap, "numbers", dtype="i2", shape=(2, 3))

    def teardown(self) -> None:
        while self.under_way:
            self.end(True)
        self.heap.close()
        self.region.free()

    def done(self, act: Callable[[], Any]) -> bool:
        """False if there was no room for it."""
        try:
            act()
        except HeapFull:
            return False
        return True

    def agree(self, found: object, wanted: object) -> None:
        assert found == wanted

    # --- the objects --------------------------------------------------------------------------------------------

    @of("table")
    @rule(key=keys, value=values)
    def put(self, key: str, value: Any) -> None:
        if self.done(lambda: self.table.__setitem__(key, value)):
            self.model.table[key] = value

    @of("table")
    @rule(more=st.dictionaries(keys, values, max_size=5))
    def update(self, more: dict[str, Any]) -> None:
        if self.done(lambda: self.table.update(more)):
            self.model.table.update(more)

    @of("table")
    @rule(key=keys)
    def pop(self, key: str) -> None:
        wanted = self.model.table.get(key)
        if self.done(lambda: self.agree(self.table.pop(key, None), wanted)):
            self.model.table.pop(key, None)

    @of("table")
    @rule()
    def clear(self) -> None:
        if self.done(self.table.clear):
            self.model.table.clear()

    @of("log")
    @rule(batch=st.lists(records, max_size=4))
    def extend_log(self, batch: list[bytes]) -> None:
        if self.done(lambda: self.log.extend(batch)):
            for record in batch:
                self.model.log[self.model.log_end] = record
                self.model.log_end += 1

    @of("log")
    @rule(before=st.integers(0, 60))
    def truncate(self, before: int) -> None:
        dropped = [index for index in self.model.log if index < before]
        if self.done(lambda: self.agree(self.log.truncate(before), len(dropped))):
            for index in dropped:
                del self.model.log[index]

    @of("queue")
    @rule(batch=st.lists(records, max_size=4))
    def put_all(self, batch: list[bytes]) -> None:
        if self.done(lambda: self.queue.put_all(batch)):
            self.model.queue += batch

    @of("queue")
    @rule(at_most=small)
    def get_all(self, at_most: int) -> None:
        wanted = self.model.queue[:at_most]
        if self.done(lambda: self.agree(self.queue.get_all(at_most), wanted)):
            del self.model.queue[:at_most]

    @of("state")
    @rule(change=st.sampled_from(sorted(FIELDS)).flatmap(lambda name: st.tuples(st.just(name), FIELDS[name])))
    def assign(self, change: tuple[str, Any]) -> None:
        if self.done(lambda: setattr(self.state, *change)):
            self.model.state[change[0]] = change[1]

    @of("numbers")
    @rule(rows=st.lists(st.lists(st.integers(1, 99), min_size=3, max_size=3), min_size=1, max_size=6))
    def extend_array(self, rows: list[list[int]]) -> None:
        if self.done(lambda: self.numbers.extend(np.reshape(rows, (-1, 3)))):
            self.model.numbers = np.concatenate([self.model.numbers, np.reshape(rows, (-1, 3)).astype("i2")])

    @of("numbers")
    @rule(more=st.integers(-6, 12))
    def resize(self, more: int) -> None:
        rows = max(0, len(self.numbers) + more)
        if self.done(lambda: self.numbers.resize(rows)):
            kept = self.model.numbers[:rows]
            self.model.numbers = np.concatenate([kept, np.zeros((rows - len(kept), 3), "i2")])

    @of("numbers")
    @rule(
        fewer=st.integers(1, 3),
        rows=st.lists(st.lists(st.integers(1, 99), min_size=3, max_size=3), max_size=3),
    )
    def replace_last(self, fewer: int, rows: list[list[int]]) -> None:
        self.resize(-fewer)
        self.extend_array(rows)

    @of("numbers")
    @rule(
        first=small,
        last=small,
        column=st.sampled_from([0, 2, slice(None), slice(None, None, -2)]),
        value=small,
    )
    def write(self, first: int, last: int, column: Any, value: int) -> None:
        key = (slice(first, last), column)
        if self.done(lambda: self.numbers.__setitem__(key, value)):
            self.model.numbers[key] = value

    @of("numbers")
    @rule(first=small, value=small)
    def change(self, first: int, value: int) -> None:
        if self.done(lambda: self.change_rows(first, value)):
            self.model.numbers[first::2] = value

    def change_rows(self, first: int, value: int) -> None:
        with self.numbers.change(slice(first, None, 2)) as part:
            part[:] = value

    # --- the heap -----------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.under_way) < 3)
    @rule()
    def begin(self) -> None:
        self.under_way.append((self.heap.transaction().__enter__(), copy.deepcopy(self.model)))

    @precondition(lambda self: self.under_way)
    @rule(fails=st.booleans())
    def end(self, fails: bool) -> None:
        transaction, before = self.under_way.pop()
        if not self.done(lambda: transaction.__exit__(ValueError if fails else None, None, None)) or fails:
            self.model = before

    @precondition(lambda self: not self.under_way)
    @rule(seldom=st.integers(0, 3))
    def reopen(self, seldom: int) -> None:
        if seldom:
            return
        self.heap.close()
        self.heap = Heap.open(self.region, grow=False)
        self.make_handles()

    @precondition(lambda self: not self.under_way)
    @rule(name=st.sampled_from(["table", "log", "queue", "state", "numbers"]), seldom=st.integers(0, 9))
    def remove(self, name: str, seldom: int) -> None:
        if seldom or not self.done(lambda: self.heap.remove(name)):
            return
        self.make_handles()
        fresh = Model()
        setattr(self.model, name, getattr(fresh, name))
        if name == "log":
            self.model.log_end = 0

    @invariant()
    def everything_is_as_it_should_be(self) -> None:
        assert self.table == self.model.table
        assert len(self.table) == len(self.model.table)
        assert {self.log.first + i: record for i, record in enumerate(self.log)} == self.model.log
        assert self.log.end == self.model.log_end
        assert list(self.queue) == self.model.queue
        assert {one.name: getattr(self.state, one.name) for one in State.fields} == self.model.state
        assert np.array_equal(self.numbers.array, self.model.numbers)


@pytest.mark.parametrize("only", ["table", "log", "queue", "state", "numbers", None], ids=str)
def test_objects_are_what_plain_ones_would_be(me: bq.Process, only: str | None) -> None:
    machine = type("Machine", (Objects,), {"me": me, "only": only})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
