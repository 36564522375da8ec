"""Results that go from worker to worker of a rack without being copied."""

from __future__ import annotations

from typing import Any

import distributed
import numpy as np
import pandas as pd
import pytest

import bequest as bq
from actors import until
from bequest.dask.rack_worker import here, name_of

MIB = 1 << 20


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def counted(dask_worker: distributed.Worker) -> tuple[int, int]:
    place = here()
    assert place is not None
    return place.process.counters["reads"], place.process.counters["read_bytes"]


def read(client: distributed.Client) -> tuple[int, int]:
    """What workers have read of others so far: how often, and how many bytes."""
    answers = client.run(counted).values()
    return sum(count for count, _ in answers), sum(nbytes for _, nbytes in answers)


@pytest.fixture
def two(client: distributed.Client) -> list[str]:
    return sorted(client.scheduler_info()["workers"])


def test_an_array_is_read_where_it_lies(client: distributed.Client, two: list[str]) -> None:
    before, bytes_before = read(client)
    made = client.submit(np.arange, 8 * MIB, workers=two[:1], pure=False)
    at_home = client.submit(address, made, workers=two[:1])
    elsewhere = client.submit(address, made, workers=two[1:])
    assert at_home.result() == elsewhere.result()
    assert client.submit(np.sum, made, workers=two[1:]).result() == sum(range(8 * MIB))
    after, bytes_after = read(client)
    assert (after - before, bytes_after - bytes_before) == (1, 64 * MIB)


def test_what_was_read_outlives_who_made_it(client: distributed.Client, two: list[str]) -> None:
    made = client.submit(np.arange, MIB, workers=two[:1], pure=False)
    part = client.submit(lambda array: array[10:-10], made, workers=two[1:], pure=False)
    distributed.wait(part)
    del made
    assert client.submit(lambda array: int(array[0]), part, workers=two[1:]).result() == 10


@pytest.mark.parametrize(
    "value",
    [
        pd.DataFrame({"a": np.arange(10**5), "b": ["x", "yz"] * 50_000, "c": pd.Categorical(["u", "v"] * 50_000)}),
        {"many": [np.full(10_000, number) for number in range(8)], "text": "t" * 100_000},
        b"bytes" * 100_000,
        frozenset(range(100_000)),
        7,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_any_value_arrives_as_it_was(client: distributed.Client, two: list[str], value: Any) -> None:
    (here_,) = client.scatter([value], workers=two[:1], hash=False)
    moved = client.submit(lambda got: got, here_, workers=two[1:], pure=False).result()
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(moved, value)
    elif isinstance(value, dict):
        assert moved["text"] == value["text"]
        np.testing.assert_array_equal(moved["many"], value["many"])
    else:
        assert moved == value


def test_a_parcel_that_cannot_be_opened_is_asked_for_again(
    client: distributed.Client, two: list[str]
) -> None:
    def break_it(dask_worker: distributed.Worker) -> None:
        place = here()
        assert place is not None

        def refuse(*_: object) -> None:
            raise bq.TooManyMappings("for this test")

        place.shelf.arrive = refuse  # type: ignore[method-assign,assignment]

    def mend_it(dask_worker: distributed.Worker) -> None:
        place = here()
        assert place is not None
        del place.shelf.arrive

    client.run(break_it, workers=two[1:])
    try:
        made = client.submit(np.arange, MIB, workers=two[:1], pure=False)
        assert client.submit(np.sum, made, workers=two[1:], pure=False).result() == sum(range(MIB))
    finally:
        client.run(mend_it, workers=two[1:])


def test_who_is_not_in_the_rack_gets_no_parcel(client: distributed.Client, two: list[str]) -> None:
    before, _ = read(client)
    made = client.submit(np.arange, MIB, workers=two[:1], pure=False)
    np.testing.assert_array_equal(made.result(), np.arange(MIB))
    assert read(client)[0] == before


def test_who_joins_the_rack_after_it_has_asked_is_a_neighbour_then(
    client: distributed.Client, two: list[str]
) -> None:
    late = "tcp://127.0.0.1:1"  # nobody's, until a process attaches as that worker

    def asks(dask_worker: distributed.Worker) -> bool:
        place = here()
        assert place is not None
        return place.transfers.is_neighbour(late)

    (rack,) = client.run(lambda: str(here().rack.directory), workers=two[:1]).values()  # type: ignore[union-attr]
    assert set(client.run(asks).values()) == {False}
    with bq.connect(rack) as its_rack, its_rack.attach(name_of(late)):
        until(lambda: set(client.run(asks).values()) == {True}, "that it is found")


def test_memory_is_counted_where_it_is_kept_and_nowhere_else(
    client: distributed.Client, two: list[str]
) -> None:
    def memory(dask_worker: distributed.Worker) -> int:
        return dask_worker.monitor.get_process_memory()

    before = client.run(memory)
    made = client.submit(np.ones, 16 * MIB, workers=two[:1], pure=False)
    assert client.submit(np.sum, made, workers=two[1:], pure=False).result() == 16 * MIB
    during = client.run(memory)
    assert during[two[0]] - before[two[0]] > 100 * MIB
    assert during[two[1]] - before[two[1]] < 64 * MIB
    del made
    until(lambda: client.run(memory)[two[0]] - before[two[0]] < 64 * MIB, "that it is given back")


def test_memory_is_counted_where_it_is_left(client: distributed.Client, two: list[str]) -> None:
    """Dask drops one of two copies. Whichever it is, the other one counts."""

    def kept(dask_worker: distributed.Worker) -> int:
        place = here()
        assert place is not None
        return place.shelf.blocks.kept_bytes()

    client.amm.stop()  # it looks every two seconds, and chooses itself
    try:
        made = client.submit(np.ones, 16 * MIB, workers=two[:1], pure=False)
        fetched = client.submit(np.sum, made, workers=two[1:], pure=False)
        distributed.wait(fetched)
        assert client.run(kept) == {two[0]: 128 * MIB, two[1]: 0}
        client.run_on_scheduler(drop, key=made.key, worker=two[0])
        until(lambda: client.run(kept) == {two[0]: 0, two[1]: 128 * MIB}, "that it is counted there")
    finally:
        client.amm.start()
    assert client.submit(lambda array: float(array[-1]), made, pure=False).result() == 1.0


def drop(dask_scheduler: distributed.Scheduler, key: str, worker: str) -> None:
    """As its active memory manager does."""
    dask_scheduler.stream_comms[worker].send({"op": "remove-replicas", "keys": [key], "stimulus_id": "test"})
