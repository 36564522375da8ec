"""A client that has joined the rack of its workers reads there what it gathers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import dask.array as da
import distributed
import numpy as np
import pandas as pd
import pytest

import bequest as bq
import bequest.dask
from actors import until
from bequest.dask.rack_worker import here
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
    "make",
    [
        lambda: 5,
        lambda: {"a": [1, None]},
        lambda: np.arange(10),
        lambda: pd.DataFrame({"x": np.arange(MIB), "y": "text"}),
        lambda: b"x" * MIB,
    ],
    ids=["int", "dict", "small", "DataFrame", "bytes"],
)
def test_values_of_all_kinds_come(
    client: distributed.Client, seat: bequest.dask.Seat, make: Callable[[], object]
) -> None:
    gathered, value = client.submit(make, pure=False).result(), make()
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


# --- scattering ------------------------------------------------------------------------------------------------------


def kept(dask_worker: distributed.Worker) -> int:
    place = here()
    assert place is not None
    return place.shelf.blocks.kept_bytes()


def test_what_is_scattered_lies_in_the_rack_and_is_its_workers(
    client: distributed.Client, seat: bequest.dask.Seat
) -> None:
    given = np.arange(8 * MIB)
    future = client.scatter(given, workers=client_workers(client)[:1])
    assert client.submit(lies_in_the_rack, future).result()
    assert client.submit(np.sum, future).result() == given.sum()
    assert sorted(client.run(kept).values()) == [0, 64 * MIB]
    assert seat._blocks.kept_bytes() == 0
    back = future.result()
    assert lies_in_the_rack(back)
    del future
    until(lambda: sum(client.run(kept).values()) == 0, "that it is given back")
    assert (back == given).all()


def test_scattered_data_outlives_its_worker_and_the_seat(client: distributed.Client) -> None:
    with bequest.dask.join(client):
        future = client.scatter(np.arange(MIB), workers=client_workers(client)[:1])
    client.run(os._exit, 1, workers=client_workers(client)[:1], on_error="ignore")
    assert client.submit(np.sum, future, pure=False).result() == sum(range(MIB))


@pytest.mark.parametrize("broadcast", [False, True])
def test_all_kinds_of_values_are_scattered(
    client: distributed.Client, seat: bequest.dask.Seat, broadcast: bool
) -> None:
    values = {
        "number": 5,
        "frame": pd.DataFrame({"x": np.arange(MIB)}),
        "bytes": b"x" * MIB,
        "small": np.arange(10),
    }
    gathered = client.gather(client.scatter(values, broadcast=broadcast, hash=False))
    pd.testing.assert_frame_equal(gathered.pop("frame"), values.pop("frame"))
    assert (gathered.pop("small") == values.pop("small")).all()
    assert gathered == values


def test_what_finds_no_room_is_sent(
    client: distributed.Client,
    seat: bequest.dask.Seat,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(buffers: object) -> None:
        raise bq.RackMemoryError("no room")

    monkeypatch.setattr(seat._blocks, "write", full)
    future = client.scatter(np.arange(MIB), hash=False)
    assert client.submit(np.sum, future, pure=False).result() == sum(range(MIB))
    assert "is sent instead: no room" in caplog.text


def test_what_a_worker_cannot_open_is_sent(client: distributed.Client, seat: bequest.dask.Seat) -> None:
    def close_the_door(dask_worker: distributed.Worker) -> None:
        place = here()
        assert place is not None

        def full(reference: object) -> None:
            raise bq.TooManyMappings("no room for one more")

        place.shelf.blocks.open = full  # type: ignore[method-assign,assignment]

    def open_the_door(dask_worker: distributed.Worker) -> None:
        place = here()
        assert place is not None
        del place.shelf.blocks.open

    client.run(close_the_door)
    try:
        future = client.scatter(np.arange(MIB), hash=False)
        assert client.submit(np.sum, future, pure=False).result() == sum(range(MIB))
    finally:
        client.run(open_the_door)


def client_workers(client: distributed.Client) -> list[str]:
    return sorted(client.scheduler_info()["workers"])
