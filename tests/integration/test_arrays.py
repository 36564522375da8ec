"""Array: a NumPy array in a heap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import bequest as bq
from bequest.errors import HeapFull, HeapMisuse
from racks import MIB


@pytest.fixture
def heap(me: bq.Process) -> Iterator[bq.Heap]:
    with me.alloc(MIB) as region, bq.Heap.create(region) as heap:
        yield heap


def numbers(heap: bq.Heap, count: int = 10) -> bq.Array:
    array = bq.Array(heap, "numbers", dtype="i4", shape=count)
    with array.change() as part:
        part[:] = np.arange(count)
    return array


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("f8", (3, 4)), (">i2", 5), ("c16", (2,)), ("?", (7, 1, 2)), ("U3", 4), ("M8[ms]", 2), ("S5", 0),
     ([("x", "f4"), ("y", "i8", (2,))], (2, 3))],
    ids=str,
)  # fmt: skip
def test_it_is_made_of_zeroes_and_found_again(heap: bq.Heap, dtype: Any, shape: Any) -> None:
    array = bq.Array(heap, "array", dtype=dtype, shape=shape)
    sample = np.zeros(shape, dtype)
    assert (array.dtype, array.shape, len(array)) == (sample.dtype, sample.shape, len(sample))
    assert np.array_equal(np.asarray(array), sample)
    sample.reshape(-1).view(np.uint8)[:] = 1 if dtype != "U3" else 0
    array[...] = sample
    array.extend(sample)
    again = bq.Array(heap, "array")
    assert np.asarray(again).tobytes() == sample.tobytes() * 2 and again.dtype == sample.dtype
    assert heap.roots[0].kind == "Array"


def test_it_is_read_like_an_array(heap: bq.Heap) -> None:
    array = numbers(heap)
    assert (array[3], array[-1], list(array[2:5]), sum(array)) == (3, 9, [2, 3, 4], 45) and 7 in array
    assert repr(array) == "<Array 'numbers' of 10 int32>" and array.name == "numbers" and array.heap is heap
    assert np.sum(array) == 45 and np.asarray(array, "f8").dtype == "f8"  # type: ignore[call-overload]
    assert np.shares_memory(np.asarray(array), array.array)
    assert not np.shares_memory(np.array(array, copy=True), array.array)
    with pytest.raises(ValueError, match="read-only"):
        array.array[0] = 1
    with pytest.raises(IndexError):
        array[10]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.__setitem__(3, -1),
        lambda a: a.__setitem__(np.int64(-1), 2.0),
        lambda a: a.__setitem__(slice(2, 8, 3), [7, 8]),
        lambda a: a.__setitem__(slice(None, None, -2), 5),
        lambda a: a.__setitem__([1, 8], [5, 6]),
        lambda a: a.__setitem__(np.arange(10) % 2 == 0, 0),
        lambda a: a.__setitem__([], 0),
        lambda a: a.__setitem__(..., 4),
        lambda a: a.__setitem__(True, 4),
    ],
    ids=range(9),
)
def test_what_is_assigned_is_kept_or_undone(heap: bq.Heap, change: Callable[[Any], None]) -> None:
    array, model = numbers(heap), np.arange(10, dtype="i4")
    with suppress(ZeroDivisionError), heap.transaction():
        change(array)
        1 / 0  # noqa: B018
    assert np.array_equal(array.array, model)
    change(model)
    change(array)
    assert np.array_equal(array.array, model)


def test_columns_and_masks_of_tables(heap: bq.Heap) -> None:
    table, model = bq.Array(heap, "table", dtype="i2", shape=(4, 5)), np.zeros((4, 5), "i2")
    for key in [(slice(None), 2), 1, (2, 3), (slice(1, 3), slice(None, None, -2)), (..., [0, 4]), model == 7]:
        with suppress(ZeroDivisionError), heap.transaction():
            table[key] = 9
            1 / 0  # noqa: B018
        assert np.array_equal(table.array, model)
        table[key] = model[key] = 7
        assert np.array_equal(table.array, model)


def test_a_change_is_a_transaction(heap: bq.Heap) -> None:
    array = numbers(heap)
    with array.change(slice(2, 5)) as part:
        part[:] += 10
    assert list(array) == [0, 1, 12, 13, 14, 5, 6, 7, 8, 9]
    with pytest.raises(ZeroDivisionError), array.change() as part:
        part[:] = 0
        1 / 0  # noqa: B018
    assert list(array[:3]) == [0, 1, 12]
    with array.change([0, 8]) as part:
        part[:] += 1
    assert (array[0], array[8]) == (1, 9)
    with pytest.raises(TypeError, match="is one element of the Array"), array.change(3):
        pass
    with array.change(slice(0, 0)) as part:
        assert part.size == 0


def test_what_is_kept_of_a_change_writes_nowhere(heap: bq.Heap) -> None:
    array, kept = numbers(heap, 1000), []
    with array.change() as part:
        kept += [part, part[:500], memoryview(part)]
    array.resize(10)  # what it gives back is anybody's
    others = [heap.memory(f"other {number}", 200) for number in range(20)]
    for one in kept:
        one[:500] = kept[0][500:]
    assert list(array) == list(range(10)) and not any(map(any, others))


def test_what_is_read_cannot_be_made_writable(heap: bq.Heap) -> None:
    array = numbers(heap)
    for view in (array.array, array[2:5], np.asarray(array), np.asarray(array)[::2]):
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True


def test_a_value_that_changes_the_array_meanwhile_does_no_harm(heap: bq.Heap) -> None:
    array = numbers(heap, 1000)

    class Value:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
            array.resize(10)
            other[:] = bytes(3000)
            return np.full(10, 7, dtype)

    other = heap.memory("other", 3000)
    array[...] = Value()
    assert list(array) == [7] * 10 and not any(other)
    other.release()


def test_it_says_how_large_it_is(heap: bq.Heap) -> None:
    table = bq.Array(heap, "table", dtype="i2", shape=(3, 2, 2))
    assert (table.ndim, table.size, table.nbytes, len(table)) == (3, 12, 24, 3)
    table[1, 1] = [4, 5]
    assert table.tolist() == [[[0, 0], [0, 0]], [[0, 0], [4, 5]], [[0, 0], [0, 0]]]
    table.resize(0)
    assert (table.ndim, table.size, table.nbytes, table.tolist()) == (3, 0, 0, [])


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        (10, 0, IndexError),
        (0, "x", ValueError),
        (0, [1, 2], (TypeError, ValueError)),
        (slice(3), [1, 2], ValueError),
    ],
)
def test_a_wrong_assignment_changes_nothing(heap: bq.Heap, key: Any, value: Any, error: Any) -> None:
    array = numbers(heap)
    with pytest.raises(error):
        array[key] = value
    assert list(array) == list(range(10))


def test_rows_come_and_go(heap: bq.Heap) -> None:
    table = bq.Array(heap, "table", dtype="f4", shape=(0, 2))
    for row in range(100):
        table.append((row, -row))
    table.extend([[1, 2], [3, 4]])
    assert table.shape == (102, 2) and list(table[-1]) == [3, 4] and table[50, 1] == -50
    table.resize(3)
    assert table.array.tolist() == [[0, 0], [1, -1], [2, -2]]
    table.resize(5)
    assert table.array.tolist()[3:] == [[0, 0], [0, 0]]
    for wrong in ((1, 2, 3), 5, [[1, 2]]):
        with pytest.raises(ValueError, match="rows of this Array have the shape"):
            table.append(wrong)  # type: ignore[arg-type]
    for rows in (-1, 10**30):
        with pytest.raises(ValueError, match=f"cannot have {rows} rows"):
            table.resize(rows)
    table.extend(np.empty((0, 2)))
    table.resize(0)
    assert len(table) == 0 and table.array.shape == (0, 2) and not list(table)


def test_rows_that_went_in_a_transaction_come_back(heap: bq.Heap) -> None:
    array = numbers(heap)
    free = set()
    for _ in range(3):
        with suppress(ZeroDivisionError), heap.transaction():
            array.resize(4)
            array.append(100)  # where there is room for it, rows lay that come back
            assert list(array) == [0, 1, 2, 3, 100]
            array.extend(range(100, 200))
            array[0] = 50
            1 / 0  # noqa: B018
        assert list(array) == list(range(10))
        free.add(heap.free_bytes)
    assert len(free) == 1


def test_it_grows_by_regions_and_fills_what_there_is(me: bq.Process) -> None:
    with me.alloc(MIB) as region, bq.Heap.create(region) as heap:
        array = bq.Array(heap, "array", dtype="i8")
        array.extend(np.arange(200_000))
        assert np.array_equal(array.array, np.arange(200_000)) and len(heap.regions) == 2
        del array
        rest = heap.regions[1:]
    for more in rest:
        more.free()
    with me.alloc(MIB) as region, bq.Heap.create(region, grow=False) as heap:
        array = bq.Array(heap, "array", dtype="u1", shape=MIB * 3 // 10)
        array.extend(np.zeros(MIB * 2 // 10))  # that it can be half as large again is too much to ask for
        with pytest.raises(HeapFull):
            array.extend(np.zeros(MIB))
        assert len(array) == MIB * 3 // 10 + MIB * 2 // 10
        array.resize(5)
        assert heap.free_bytes > MIB * 9 // 10


def test_another_array_is_refused(heap: bq.Heap) -> None:
    bq.Array(heap, "table", dtype="f4", shape=(3, 2))
    assert bq.Array(heap, "table", shape=(50, 2)).shape == (3, 2)  # how many rows there are, it says itself
    with pytest.raises(HeapMisuse, match="'table' is an Array of float32 in this heap, not of float64"):
        bq.Array(heap, "table", dtype="f8")
    with pytest.raises(HeapMisuse, match=r"rows of the shape \(2,\) in this heap, not \(3,\)"):
        bq.Array(heap, "table", shape=(3, 3))
    with pytest.raises(HeapMisuse, match="'table' is a Array in this heap, not a Map"):
        bq.Map(heap, "table")
    for dtype in ("O", "V0", "(2,)f4"):
        with pytest.raises(TypeError, match="holds plain values"):
            bq.Array(heap, "wrong", dtype=dtype)
    for shape in ((), -1, (3, -1)):
        with pytest.raises(ValueError, match="no shape for it"):
            bq.Array(heap, "wrong", shape=shape)
    for shape in ((3, 0), (2**50, 2)):
        with pytest.raises((HeapMisuse, ValueError)):
            bq.Array(heap, "wrong", shape=shape)
    assert "wrong" not in heap


def test_numpy_is_imported_by_who_uses_it() -> None:
    code = "import sys, bequest, bequest.objects; bequest.Array; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
