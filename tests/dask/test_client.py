"""A client that has joined the rack of its workers reads there what it gathers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask.array as da
import distributed
import numpy as np
import pandas as pd
import pytest

import bequest as bq
import bequest.dask
from bequest.limits import WINDOW_BASE, WINDOW_BITS
from clusters import cluster_of
from test_transfer import address

MIB = 1 << 20


@pytest.fixture
def seat(client: distributed.Client) -> Iterator[bequest.dask.Seat]:
    with bequest.dask.join(client) as one:
        yield one


def lies_in_the_rack(array: np.ndarray[Any, Any]) -> bool:
    return WINDOW_BASE <= address(array) < WINDOW_BASE + (1 << WINDOW_BITS)


def test_what_is_gathered_is_read_where_it_lies(client: distributed.Client, seat: bequest.dask.Seat) -> None:
    made = client.submit(np.arange, 8 * MIB, pure=False)
    there = client.submit(address, made).result()
    reads = seat._process.counters["read_bytes"]
    gathered: np.ndarray[Any, Any] = made.result()
    assert address(gathered) == there
    assert gathered.sum() == sum(range(8 * MIB))
    assert not gathered.flags.writeable
    assert seat._process.counters["read_bytes"] - reads == 64 * MIB
    again = client.gather([made, made])
    assert [address(array) for array in again] == [there, there]


def test_what_was_gathered_outlives_the_future_and_the_seat(client: distributed.Client) -> None:
    with bequest.dask.join(client):
        made = client.submit(np.full, 8 * MIB, 7, pure=False)
        gathered: np.ndarray[Any, Any] = made.result()
        made.release()
        del made
        assert lies_in_the_rack(gathered)
    other = client.submit(np.full, 8 * MIB, 8, pure=False)
    copied = other.result()
    assert not lies_in_the_rack(copied)
    assert (gathered == 7).all()
    assert (copied == 8).all()


@pytest.mark.parametrize(
    "value",
    [
        5,
        "text",
        {"a": [1, None]},
        np.arange(10),
        pd.DataFrame({"x": np.arange(MIB), "y": "text"}),
        b"x" * MIB,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_all_kinds_come(client: distributed.Client, seat: bequest.dask.Seat, value: object) -> None:
    gathered = client.submit(lambda: value, pure=False).result()
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(gathered, value)
    else:
        assert np.all(gathered == value)


def test_collections_are_computed(client: distributed.Client, seat: bequest.dask.Seat) -> None:
    computed = da.arange(4 * MIB, chunks=MIB).compute()
    assert (computed == np.arange(4 * MIB)).all()


def test_an_exception_of_a_task_comes_as_ever(client: distributed.Client, seat: bequest.dask.Seat) -> None:
    with pytest.raises(ZeroDivisionError):
        client.submit(lambda: 1 // 0, pure=False).result()


def test_what_cannot_be_opened_is_sent(
    client: distributed.Client, seat: bequest.dask.Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.submit(np.arange, MIB, pure=False)

    def full(reference: object) -> None:
        raise bq.TooManyMappings("no room for one more")

    monkeypatch.setattr(seat._blocks, "open", full)
    gathered = made.result()
    assert not lies_in_the_rack(gathered)
    assert (gathered == np.arange(MIB)).all()


def test_seats_end_in_any_order(client: distributed.Client) -> None:
    before = client.direct_to_workers
    with distributed.Client(client.scheduler.address, set_as_default=False) as other:
        first, second = bequest.dask.join(client), bequest.dask.join(other)
        first.close()
        first.close()
        assert client.direct_to_workers == before
        assert not lies_in_the_rack(client.submit(np.arange, MIB, pure=False).result())
        assert lies_in_the_rack(other.submit(np.arange, MIB, pure=False).result())
        second.close()
        assert not lies_in_the_rack(other.submit(np.arange, MIB, pure=False).result())


def test_who_has_no_rack_here_is_told(client: distributed.Client) -> None:
    with cluster_of(1, distributed.LocalCluster) as stock, pytest.raises(bq.NoRack, match="no worker"):
        bequest.dask.join(stock)
