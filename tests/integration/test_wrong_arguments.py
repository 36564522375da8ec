"""What is passed wrongly to a heap and its objects is told in words, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import bequest as bq
from actors import Seat
from bequest.errors import BequestError, HeapFull
from bequest.objects import Heap, Queue
from racks import MIB, Yard


class Cell(bq.Struct):
    share: float = 0.5


def in_transaction(heap: Heap) -> None:
    with heap.transaction() as transaction:
        transaction.snapshot(None)  # type: ignore[arg-type]


def in_journal(heap: Heap, target: Any, data: Any) -> None:
    with heap.journal() as journal:
        journal.write(target, data)


WRONG: list[tuple[Callable[[Any], object], str]] = [
    (
        lambda heap: Queue(heap, "queue").put(None),
        "bytes are wanted here, or what has a buffer, not a NoneType",
    ),
    (lambda heap: bq.Log(heap, "log").append(5), "not a int"),
    (lambda heap: bq.Log(heap, "log").append("text"), r"not str: say text.encode\(\)"),
    (lambda heap: bq.Log(heap, "log").extend([b"", None]), "not a NoneType"),
    (lambda heap: bq.Log(heap, "log").extend(None), "not iterable"),
    (lambda heap: bq.Map(heap, "map").get(None), "bytes are wanted"),
    (lambda heap: bq.Map(heap, "map").__setitem__(b"", None), "bytes are wanted"),
    (lambda heap: bq.Map(heap, "texts", key=str).get(None), "a key of 'texts' is a str, not a NoneType"),
    (in_transaction, "bytes are wanted"),
    (lambda heap: in_journal(heap, None, b""), "bytes are wanted"),
    (lambda heap: in_journal(heap, bytearray(1), None), "bytes are wanted"),
    (lambda heap: heap.memory(5), "a name in a heap is a str, not a int"),
    (lambda heap: heap.remove(None), "a name in a heap is a str, not a NoneType"),
    (lambda heap: heap.replace(b"name", b"data"), "a name in a heap is a str, not a bytes"),
    *(
        (lambda heap, kind=kind: kind(heap, 5), "a name in a heap is a str, not a int")
        for kind in (bq.Map, bq.Log, Queue, bq.Array, Cell)
    ),
    *(
        (lambda heap, kind=kind: kind(None, "name"), "a Heap is wanted here, .* not a NoneType")
        for kind in (bq.Map, bq.Log, Queue, bq.Array, Cell)
    ),
]


@pytest.mark.parametrize(("use", "told"), WRONG, ids=range(len(WRONG)))
def test_what_is_of_no_use_is_told_in_words(me: bq.Process, use: Callable[[Any], object], told: str) -> None:
    with me.alloc(MIB) as region, Heap.create(region) as heap:
        with pytest.raises(TypeError, match=told):
            use(heap)
        assert all(
            not len(kind(heap, name)) for name, kind in (("log", bq.Log), ("queue", Queue), ("map", bq.Map))
        )


@pytest.mark.parametrize("number", [10**400, -(10**400)], ids=["large", "small"])
def test_a_float_that_is_too_large_says_so(me: bq.Process, number: int) -> None:
    with me.alloc(MIB) as region, Heap.create(region) as heap:
        cell, shares = Cell(heap, "cell"), bq.Map(heap, "shares", key=str, value=float)
        with pytest.raises(OverflowError, match=r"Cell\.share is a float: it cannot be so large"):
            cell.share = number
        with pytest.raises(OverflowError, match="a value of 'shares' is a float"):
            shares["a"] = number
        assert cell.share == 0.5 and shares == {}


@pytest.mark.parametrize("nbytes", [2**40, 2**61, 2**62, 2**63, 2**64 - 1, 2**64, 10**30, 0, -1])
@pytest.mark.parametrize("grow", [True, False])
def test_memory_that_no_heap_has_is_refused(me: bq.Process, nbytes: int, grow: bool) -> None:
    with me.alloc(MIB) as region, Heap.create(region, grow=grow) as heap:
        with pytest.raises(HeapFull if 0 < nbytes < 2**62 else bq.errors.BadSize):
            heap.memory("mine", nbytes)
        assert "mine" not in heap and len(heap.regions) == 1


def steal_and_free(seat: Seat, victim: str) -> None:
    seat.me.steal(victim).free()


def test_a_heap_whose_memory_is_gone_has_a_repr(yard: Yard, me: bq.Process) -> None:
    heap = Heap.create(me.alloc(MIB))
    things = bq.Map(heap, "things")
    yard.actor("thief").do(steal_and_free, "me")
    assert "that cannot be read: " in repr(heap) and repr(heap).endswith("was stolen>")
    assert "that cannot be read: " in repr(things)
    with pytest.raises(BequestError):
        heap.free_bytes  # noqa: B018
