"""Struct: declared like a dataclass, kept in a heap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import ClassVar

import pytest

import bequest as bq
from bequest.errors import HeapMisuse
from bequest.objects import Struct
from racks import MIB


class Counter(bq.Struct):
    """One field of each type, and what is none."""

    unit: ClassVar[str] = "events"

    count: int = 0
    last: float = 0.5
    is_on: bool
    payload: bytes = b"raw"
    label: str = ""

    def more(self) -> int:
        self.count += 1
        return self.count


class Sized(Counter):
    """A subclass's fields come after its base's."""

    size: int = 7
    label: str = "sized"


@pytest.fixture
def heap(me: bq.Process) -> Iterator[bq.Heap]:
    with me.alloc(MIB) as region, bq.Heap.create(region) as heap:
        yield heap


def test_it_begins_with_the_defaults(heap: bq.Heap) -> None:
    state = Counter(heap, "counter")
    assert (state.count, state.last, state.is_on, state.payload, state.label) == (0, 0.5, False, b"raw", "")
    assert [field.name for field in Counter.fields] == ["count", "last", "is_on", "payload", "label"]
    assert (Counter.count, Counter.fields[1].type, Counter.fields[3].default) == (
        Counter.fields[0],
        float,
        b"raw",
    )
    assert repr(state) == "<Counter 'counter' count=0, last=0.5, is_on=False, payload=b'raw', label=''>"
    assert heap.roots[0].kind == "Struct" and state.heap is heap and state.unit == "events"


def test_what_is_assigned_is_kept(heap: bq.Heap) -> None:
    state = Counter(heap, "counter")
    state.count = -(2**63)
    state.last = 3
    state.is_on = True
    state.payload = bytearray(10_000)
    state.label = "größer" * 1000
    assert state.more() == 1 - 2**63
    again = Counter(heap, "counter")
    assert again == state and again.payload == bytes(10_000) and again.label == "größer" * 1000
    assert again.last == 3.0 and isinstance(again.last, float) and again.is_on is True
    state.label = ""
    assert again.label == "" and again == state
    assert state != Counter(heap, "other") and state != 5
    with pytest.raises(TypeError, match="unhashable"):
        hash(state)


def test_another_value_takes_no_more_room(heap: bq.Heap) -> None:
    state = Counter(heap, "counter")
    state.payload = bytes(1000)
    free = heap.free_bytes
    for length in range(900, 1000):
        state.payload = bytes(length)
    assert heap.free_bytes == free


@pytest.mark.parametrize(
    ("field", "value", "error", "told"),
    [
        ("count", 2**63, OverflowError, "Counter.count is an int of 64 bits"),
        ("count", -(2**63) - 1, OverflowError, "64 bits"),
        ("count", 1.5, TypeError, "Counter.count is an int, not a float"),
        ("count", "1", TypeError, "not a str"),
        ("last", "1", TypeError, "Counter.last is a float, not a str"),
        ("is_on", 1, TypeError, "Counter.is_on is a bool, not a int"),
        ("payload", "text", TypeError, "encode"),
        ("label", b"bytes", TypeError, "Counter.label is a str, not a bytes"),
        ("cuont", 1, AttributeError, "Counter has no field 'cuont'"),
    ],
)
def test_a_wrong_value_changes_nothing(
    heap: bq.Heap, field: str, value: object, error: type[Exception], told: str
) -> None:
    state = Counter(heap, "counter")
    before = repr(state)
    with pytest.raises(error, match=told):
        setattr(state, field, value)
    assert repr(state) == before
    with pytest.raises(AttributeError):
        delattr(state, field)


def test_what_begins_with_an_underscore_is_the_process_s_own(heap: bq.Heap) -> None:
    state = Counter(heap, "counter")
    state._seen = 3  # type: ignore[attr-defined]
    assert state._seen == 3 and not hasattr(Counter(heap, "counter"), "_seen")  # type: ignore[attr-defined]


def test_several_changes_are_one(heap: bq.Heap) -> None:
    state, jobs = Counter(heap, "counter"), bq.Map(heap, "jobs")
    with suppress(ZeroDivisionError), state.transaction():
        state.count, state.label = 1, "one"
        state.label = "uno"
        jobs[b"a"] = b"1"
        assert (state.count, state.label) == (1, "uno")
        1 / 0  # noqa: B018
    assert (state.count, state.label, len(jobs)) == (0, "", 0)
    with heap.transaction():
        state.count, state.label = 1, "one"
        with suppress(ZeroDivisionError), heap.transaction():
            state.count, state.label = 2, "two"
            1 / 0  # noqa: B018
    assert (state.count, state.label) == (1, "one")


def test_a_subclass_has_its_base_s_fields(heap: bq.Heap) -> None:
    state = Sized(heap, "sized")
    assert [field.name for field in Sized.fields] == ["count", "last", "is_on", "payload", "label", "size"]
    assert (state.label, state.size, state.more()) == ("sized", 7, 1)
    with pytest.raises(TypeError, match="no field of this Struct"):
        Sized.size.__get__(Counter(heap, "counter"))  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="a field of a Struct"):
        Sized.size.__get__(5)  # type: ignore[attr-defined]


def test_another_layout_is_refused(heap: bq.Heap) -> None:
    Counter(heap, "counter")
    with pytest.raises(HeapMisuse, match="not a Sized of these fields: it lacks size: int"):
        Sized(heap, "counter")
    Sized(heap, "sized")
    with pytest.raises(HeapMisuse, match="it has size: int, which the class lacks"):
        Counter(heap, "sized")

    class Old(bq.Struct):
        count: float
        label: str

    class New(bq.Struct):
        label: str
        count: float

    class Newer(bq.Struct):
        label: str
        count: bool

    Old(heap, "old")
    with pytest.raises(HeapMisuse, match="it has the fields in another order: count, label"):
        New(heap, "old")
    with pytest.raises(HeapMisuse, match=r"it has count as float, not bool.* copy"):
        Newer(heap, "old")
    with pytest.raises(HeapMisuse, match="'old' is a Struct in this heap, not a Map"):
        bq.Map(heap, "old")
    with pytest.raises(HeapMisuse, match="'jobs' is a Map in this heap, not a Struct"):
        bq.Map(heap, "jobs")
        Counter(heap, "jobs")


def test_a_class_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Wrong.tags: a field is an int, float, .* encoded as bytes"):

        class Wrong(Struct):
            tags: list[str]

    with pytest.raises(TypeError, match=r"Wrong.heap: a field cannot have this name"):
        type("Wrong", (Struct,), {"__annotations__": {"heap": int}})
    with pytest.raises(TypeError, match=r"Wrong.count is a field of type int, and its default 'no'"):
        type("Wrong", (Struct,), {"__annotations__": {"count": int}, "count": "no"})
    with pytest.raises(OverflowError, match="64 bits"):
        type("Wrong", (Struct,), {"__annotations__": {"count": int}, "count": 2**63})


def test_one_that_is_no_longer_there(heap: bq.Heap) -> None:
    with suppress(ZeroDivisionError), heap.transaction():
        state, jobs = Counter(heap, "counter"), bq.Map(heap, "jobs")
        state.count = 5
        1 / 0  # noqa: B018
    with pytest.raises(HeapMisuse, match="'counter' is no longer in its heap"):
        state.count = 6
    with pytest.raises(HeapMisuse, match="'jobs' is no longer in its heap"):
        jobs[b"a"] = b"1"
    assert heap.roots == ()
    state = Counter(heap, "counter")
    heap.close()
    assert repr(state) == "<Counter 'counter' that cannot be read: this heap has been closed>"


def test_one_that_was_never_made() -> None:
    state = Counter.__new__(Counter)
    for use in (
        lambda: state.count,
        lambda: setattr(state, "count", 1),
        lambda: bq.Map.__new__(bq.Map)[b"a"],
    ):
        with pytest.raises(HeapMisuse, match="call super"):
            use()
