"""Map: a complete dictionary, also of keys and values that are more than bytes."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

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
