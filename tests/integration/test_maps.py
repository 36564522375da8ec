"""Map: a complete dictionary, also of keys and values that are more than bytes."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bequest as bq
from bequest.errors import HeapMisuse
from racks import MIB


@dataclass
class Job:
    name: str
    tries: int = 0


class Kind(enum.Enum):
    A = "a"


@pytest.fixture
def heap(me: bq.Process) -> Iterator[bq.Heap]:
    with me.alloc(MIB) as region, bq.Heap.create(region) as heap:
        yield heap


SAMPLES: list[tuple[Any, list[Any]]] = [
    (bytes, [b"", b"raw"]),
    (str, ["", "größer"]),
    (int, [0, -(2**63), 2**63 - 1]),
    (float, [0.5, float("inf")]),
    (bool, [True, False]),
    (dict, [{}, {"a": [1, None]}]),
    (list[int], [[], [1, 2]]),
    (Job, [Job("a"), Job("b", 7)]),
    (Kind, [Kind.A]),
    (int | None, [None, 3]),
]


@pytest.mark.parametrize(("kind", "samples"), SAMPLES, ids=str)
def test_values_come_back_as_what_they_were(heap: bq.Heap, kind: Any, samples: list[Any]) -> None:
    things: bq.Map[str, Any] = bq.Map(heap, "things", key=str, value=kind)
    for number, sample in enumerate(samples):
        things[str(number)] = sample
    again: bq.Map[str, Any] = bq.Map(heap, "things", key=str, value=kind)
    wanted = {str(number): sample for number, sample in enumerate(samples)}
    assert again == wanted and [type(value) for value in again.values()] == [
        type(wanted[key]) for key in again
    ]


@pytest.mark.parametrize(("kind", "keys"), SAMPLES[:3], ids=str)
def test_keys_come_back_as_what_they_were(heap: bq.Heap, kind: Any, keys: list[Any]) -> None:
    things: bq.Map[Any, int] = bq.Map(heap, "things", key=kind, value=int)
    things.update(zip(keys, range(9), strict=False))
    assert set(things) == set(keys) and all(key in things for key in keys)
    assert things == dict(zip(keys, range(9), strict=False))
    del things[keys[0]]
    assert keys[0] not in things and things.get(keys[0]) is None and things.pop(keys[1]) == 1


def test_it_does_all_that_a_dict_does(heap: bq.Heap) -> None:
    jobs = bq.Map(heap, "jobs", key=str, value=int)
    jobs.update({"a": 1}, b=2)
    jobs |= {"c": 3}
    jobs.update([("d", 4)])
    assert jobs | {"a": 0} == {"a": 0, "b": 2, "c": 3, "d": 4} == {"d": 0} | jobs | {"a": 0}
    assert jobs.keys() & {"a", "x"} == {"a"} and ("b", 2) in jobs.items() and 3 in jobs.values()
    assert len(jobs.items()) == 4 and min(jobs.items()) == ("a", 1) and max(jobs.keys()) == "d"
    assert (jobs.pop("a"), jobs.pop("a", 9), jobs.setdefault("b", 9), jobs.setdefault("e", 5)) == (1, 9, 2, 5)
    assert jobs.copy() == {"b": 2, "c": 3, "d": 4, "e": 5} and type(jobs.copy()) is dict
    assert jobs.popitem()[0] not in jobs and bool(jobs) and repr(jobs) == "<Map 'jobs' of 3 entries>"
    with pytest.raises(KeyError, match="nobody"):
        jobs.pop("nobody")
    jobs.clear()
    assert not jobs and list(jobs) == []
    with pytest.raises(KeyError):
        jobs["a"]
    before = heap.free_bytes
    with pytest.raises(TypeError):
        jobs.update({"a": 1, "b": "two"})  # type: ignore[dict-item]
    assert jobs == {} and heap.free_bytes == before


@pytest.mark.parametrize(
    ("key", "value", "error", "told"),
    [
        (5, 1, TypeError, "a key of 'jobs' is a str, not a int"),
        ("a", "1", TypeError, "a value of 'jobs' is an int, not a str"),
        ("a", 2**63, OverflowError, "a value of 'jobs' is an int of 64 bits"),
    ],
)
def test_what_is_of_another_type_is_refused(
    heap: bq.Heap, key: Any, value: Any, error: type[Exception], told: str
) -> None:
    jobs = bq.Map(heap, "jobs", key=str, value=int)
    with pytest.raises(error, match=told):
        jobs[key] = value
    assert jobs == {}


def test_what_could_not_be_read_is_not_put(heap: bq.Heap) -> None:
    jobs = bq.Map(heap, "jobs", key=str, value=Job)
    for wrong in (Job(5), {"tries": 1}, object()):  # type: ignore[arg-type]
        with pytest.raises((msgspec.ValidationError, TypeError)):
            jobs["a"] = wrong  # type: ignore[assignment]
    assert jobs == {}


def test_a_class_may_get_fields_and_may_not_change_them(heap: bq.Heap) -> None:
    @dataclass
    class More(Job):
        place: str = "here"

    @dataclass
    class Other:
        name: int

    bq.Map(heap, "jobs", key=str, value=Job)["a"] = Job("a", 1)
    assert bq.Map(heap, "jobs", key=str, value=More)["a"] == More("a", 1, "here")
    others = bq.Map(heap, "jobs", key=str, value=Other)
    with pytest.raises(HeapMisuse, match="a value of 'jobs' cannot be read as what it is said to be"):
        others["a"]
    with pytest.raises(HeapMisuse, match="cannot be read"):
        list(others.items())


def test_a_map_of_other_types_is_refused(heap: bq.Heap) -> None:
    bq.Map(heap, "jobs", key=str, value=int)
    with pytest.raises(
        HeapMisuse, match=r"'jobs' maps str to int in this heap, not bytes to bytes: .*value=int\)"
    ):
        bq.Map(heap, "jobs")
    bq.Map(heap, "packed", value=dict)
    with pytest.raises(HeapMisuse, match="'packed' maps bytes to packed in this heap"):
        bq.Map(heap, "packed")
    with pytest.raises(TypeError, match="a Map's keys are bytes, str or int"):
        bq.Map(heap, "wrong", key=float)
    assert "wrong" not in heap


@pytest.mark.parametrize("kind", [bytes, str, int])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    stays=st.integers(0, 300), comes=st.integers(0, 300), seed=st.integers(0, 2**32), count=st.integers(1, 50)
)
def test_a_scan_returns_what_stays_once_while_the_map_grows_and_shrinks(
    heap: bq.Heap, kind: Any, stays: int, comes: int, seed: int, count: int
) -> None:
    def key(number: int) -> Any:
        return number if kind is int else kind(str(number), *["ascii"] * (kind is bytes))

    things: bq.Map[Any, int] = bq.Map(heap, "things", key=kind, value=int)
    things.clear()
    things.update((key(number), 0) for number in range(stays))
    random = Random(seed)
    seen: Counter[Any] = Counter()
    cursor = -1
    while cursor != 0:
        cursor, some = things.scan(max(cursor, 0), count)
        seen.update(some)
        others = [key(stays + random.randrange(comes)) for _ in range(20 if comes else 0)]
        with suppress(ZeroDivisionError), heap.transaction():
            for other in others:
                if random.random() < 0.7:
                    things[other] = 1
                else:
                    things.pop(other, None)
            1 // random.randrange(2)
    assert all(seen[key(number)] == 1 for number in range(stays)) and max(seen.values(), default=1) == 1


def test_a_scan_looks_at_so_much_and_no_more(heap: bq.Heap) -> None:
    things = bq.Map(heap, "things", key=int, value=int)
    assert things.scan() == (0, [])
    things.update((number, number) for number in range(1000))
    cursor, keys = things.scan(count=100)
    assert cursor != 0 and 60 < len(keys) < 130 and len(things.scan()[1]) < 130
    assert sorted(things.scan(0, 10**30)[1]) == list(range(1000))
    for number in range(1000):
        del things[number]
    cursor, keys = things.scan(count=100)
    assert cursor != 0 and keys == []  # its buckets are there still
    for wrong, told in [((-1,), "a cursor is 0 or what"), ((2**64,), "a cursor"), ((0, 0), "at least")]:
        with pytest.raises(ValueError, match=told):
            things.scan(*wrong)


def test_what_is_popped_is_all_there_was(heap: bq.Heap) -> None:
    things = bq.Map(heap, "things", key=int, value=int)
    wanted = {number: -number for number in range(500)}
    things.update(wanted)
    popped = [things.popitem() for _ in range(200)]
    more = {number: -number for number in range(1000, 1020)}  # in front of what was popped last, or behind it
    things.update(more)
    popped += [things.popitem() for _ in range(len(things))]
    assert dict(popped) == wanted | more and len(popped) == 520
    with pytest.raises(KeyError, match="the Map is empty"):
        things.popitem()


def swap(things: bq.Map[int, int]) -> None:
    things.pop(next(iter(things)))
    things[len(things) + 1000] = 0


def swap_by_another_handle(things: bq.Map[int, int]) -> None:
    swap(bq.Map(things.heap, "things", key=int, value=int))


def swap_and_undo(things: bq.Map[int, int]) -> None:
    with suppress(ZeroDivisionError), things.transaction():
        swap(things)
        1 / 0  # noqa: B018


@pytest.mark.parametrize("change", [swap, swap_by_another_handle, swap_and_undo, bq.Map.clear])
@pytest.mark.parametrize("view", [bq.Map.keys, bq.Map.values, bq.Map.items])
def test_an_iterator_notices_that_keys_came_and_went(heap: bq.Heap, view: Any, change: Any) -> None:
    things = bq.Map(heap, "things", key=int, value=int)
    things.update((number, number) for number in range(100))
    iterator = iter(view(things))
    next(iterator)
    change(things)
    with pytest.raises(RuntimeError, match="got or lost keys"):
        next(iterator)


def test_an_iterator_notices_that_what_it_began_with_is_undone(heap: bq.Heap) -> None:
    things = bq.Map(heap, "things", key=int, value=int)
    things.update((number, number) for number in range(100))
    with suppress(ZeroDivisionError), heap.transaction():
        with heap.transaction():
            swap(things)
        iterator = iter(things)
        next(iterator)
        1 / 0  # noqa: B018
    with pytest.raises(RuntimeError, match="got or lost keys"):
        next(iterator)


def test_an_iterator_minds_no_other_change(heap: bq.Heap) -> None:
    things, others = (bq.Map(heap, name, key=int, value=int) for name in ("things", "others"))
    with heap.transaction():
        things.update((number, 0) for number in range(100))
        for key in things:
            with suppress(ZeroDivisionError), heap.transaction():
                things[key] = 1
                others[key] = 1
                1 // (key % 2)
    assert sum(things.values()) == 50 == len(others)
