"""The shelf and the data over it, without Dask's machinery around them."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed.spill import SpillBuffer

import bequest as bq
from bequest.dask.data import RackData
from bequest.dask.shelf import Shelf
from bequest.limits import WINDOW_BASE, WINDOW_BITS
from racks import RackUnderTest

MIB = 1 << 20


@pytest.fixture
def shelf(me: bq.Process) -> Iterator[Shelf]:
    one = Shelf(me)
    yield one
    one.close()
    del one
    gc.collect()


@pytest.fixture
def data(shelf: Shelf) -> Iterator[RackData]:
    one = RackData({}, shelf)
    yield one
    one.give_back(is_closing=True)
    one.inner.clear()


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def in_rack(array: np.ndarray[Any, Any]) -> bool:
    return WINDOW_BASE <= address(array) < WINDOW_BASE + (1 << WINDOW_BITS)


def records(shelf: Shelf) -> int:
    return len(shelf._ledger)


@pytest.mark.parametrize(
    "value",
    [
        7, "text", None, b"x" * 10, b"x" * MIB, [1, 2], {"a": list(range(100_000))}, np.arange(10), np.arange(MIB),
        np.asfortranarray(np.arange(10**6).reshape(1000, 1000)), np.arange(MIB)[::2],
        pd.DataFrame({"a": np.arange(10**5), "b": ["x", "y"] * 50_000}), pa.table({"a": np.arange(10**5)}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_put_in_comes_out(data: RackData, shelf: Shelf, value: Any) -> None:
    data["key"] = value
    found = data["key"]
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        np.testing.assert_array_equal(found, value)
    elif isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(found, value)
    else:
        assert found == value
    assert records(shelf) == 1
    del data["key"]
    assert records(shelf) == 0
    assert "key" not in data


def test_large_arrays_lie_in_the_rack_and_small_ones_do_not(data: RackData) -> None:
    data["large"], data["small"] = np.arange(MIB), np.arange(10)
    assert in_rack(data["large"])
    assert not in_rack(data["small"])
    assert not data["large"].flags.writeable


def test_a_part_of_what_is_there_is_not_copied(data: RackData, shelf: Shelf) -> None:
    data["whole"] = np.arange(MIB)
    whole = address(data["whole"])
    data["part"] = data["whole"][1000:900_000]
    assert address(data["part"]) == whole + 8000
    del data["whole"]
    gc.collect()
    np.testing.assert_array_equal(data["part"], np.arange(1000, 900_000))
    assert records(shelf) == 1


def test_what_was_prepared_is_not_copied(data: RackData, shelf: Shelf, me: bq.Process) -> None:
    (view,) = shelf.prepare("key", [8 * MIB], lambda rooms: rooms[0].fill(7))
    made = np.frombuffer(view, np.int64)
    allocs = me.counters["allocs"]
    data["key"] = shelf.place("key", made)
    assert address(data["key"]) == address(made)
    assert me.counters["allocs"] == allocs
    del made, view, data["key"]
    gc.collect()
    assert me.counters["allocs"] - me.counters["frees"] == 1  # the ledger


def test_a_block_is_made_although_somebody_still_looks_at_what_it_was_filled_with(shelf: Shelf) -> None:
    """As a profiler does, which has the variables of a function that has ended."""
    seen: list[np.ndarray[Any, Any]] = []
    looks_away = threading.Timer(0.2, seen.clear)

    def fill(rooms: Sequence[np.ndarray[Any, Any]]) -> None:
        rooms[0].fill(7)
        seen.extend(rooms)
        looks_away.start()

    (view,) = shelf.prepare("key", [MIB], fill)
    assert set(view) == {7}
    looks_away.join()


def test_memory_goes_with_the_value(data: RackData, shelf: Shelf, me: bq.Process) -> None:
    for number in range(40):  # of 16 MiB each, in a rack of 256
        data[number] = np.full(2 * MIB, number)
        data.pop(number - 1, None)
    assert me.counters["allocs"] - me.counters["frees"] == 2  # the ledger, and the last one
    assert data[39][0] == 39


def test_what_cannot_be_pickled_stays_where_it_was(data: RackData, shelf: Shelf) -> None:
    lock = threading.Lock()
    data["lock"] = lock
    assert data["lock"] is lock
    assert records(shelf) == 0


def test_when_the_rack_is_full_values_stay_where_they_were_after_one_warning(
    data: RackData, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):  # 320 MiB, in a rack of 256
        data[number] = np.full(2 * MIB, number)
    assert [int(data[number][-1]) for number in range(20)] == list(range(20))
    assert 5 < records(shelf) < 20
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "outside of the rack" in warning.getMessage()


def test_what_dask_spills_leaves_the_shelf(shelf: Shelf, tmp_path: Path) -> None:
    data = RackData(SpillBuffer(str(tmp_path), target=20 * MIB), shelf)
    for number in range(6):
        data[number] = np.full(MIB, number)  # 8 MiB each
    assert len(data.fast) == 2
    assert records(shelf) == 2
    assert [int(data[number][0]) for number in range(6)] == list(range(6))
    assert data.spilled_total.memory > 0
    data.give_back(is_closing=True)


def test_a_value_that_dask_refuses_has_no_record(shelf: Shelf, tmp_path: Path) -> None:
    class Refuses(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            raise TypeError("too large to be kept, and it cannot be spilled")

    data = RackData(Refuses(), shelf)
    with pytest.raises(TypeError):
        data["key"] = 1
    assert records(shelf) == 0


def test_when_the_shelf_goes_values_are_the_worker_s_own(me: bq.Process, rack: RackUnderTest) -> None:
    shelf = Shelf(me)
    data = RackData({}, shelf)
    data["key"] = np.arange(MIB)
    inner = data.give_back(is_closing=False)
    shelf.close()
    assert not in_rack(inner["key"])
    np.testing.assert_array_equal(inner["key"], np.arange(MIB))
