"""Section 5 of the paper, "Data parallel computations": what it says about moving data, by Dask shuffles on a rack."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest

import dask

sys.path.insert(0, str(Path(__file__).parents[1] / "dask"))

from clusters import cluster_of
from frames import frame, of_numbers

PARTS, ROWS = 4, 100_000
ROW_BYTES = 3 * 8 + 4  # three columns, and the place in an index that is a range


@pytest.fixture(scope="module")
def client() -> Iterator[distributed.Client]:
    with dask.config.set({"dataframe.shuffle.method": "p2p"}), cluster_of(2) as one:
        yield one


def count_sent() -> None:
    """From now on, in a worker: the bytes that it writes to sockets."""
    from distributed.comm import tcp

    write = tcp.TCP.write
    tcp.TCP.counted = 0  # type: ignore[attr-defined]

    async def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        written = await write(self, *arguments, **options)
        tcp.TCP.counted += written  # type: ignore[attr-defined]
        return written

    tcp.TCP.write = counting  # type: ignore[method-assign]


def sent() -> int:
    from distributed.comm import tcp

    return int(tcp.TCP.counted)  # type: ignore[attr-defined]


def granted_bytes() -> int:
    from bequest.dask.rack_worker import here

    place = here()
    assert place is not None
    return place.process.counters["granted_bytes"]


def test_the_output_of_mappers_is_shuffled_and_sent_to_reducers_that_operate_on_a_chunk_of_related_data(
    client: distributed.Client,
) -> None:
    """ "For example, in MapReduce, the output of mappers is shuffled and sent to reducers that operate on a chunk of
    related data." Each key comes to one reducer, with all of its rows."""
    reduced = (
        frame(of_numbers, PARTS, rows=ROWS)
        .shuffle("key")
        .map_partitions(
            lambda part: part.groupby("key", as_index=False)["x"].sum(), meta={"key": "i8", "x": "f8"}
        )
    )
    found = reduced.compute()
    data = np.concatenate([of_numbers(part, ROWS)[["key", "x"]].to_numpy() for part in range(PARTS)])
    assert found.key.is_unique
    np.testing.assert_allclose(
        found.sort_values("key").x, np.bincount(data[:, 0].astype(int), weights=data[:, 1])
    )


def test_memory_grants_convert_data_transfer_into_a_control_message(client: distributed.Client) -> None:
    """ "Memory grants convert data transfer into a single RTT over the memory interconnect and a control message over
    the ToR. The source would grant the memory pages storing the data that it plans to send to the recipient." All data
    is granted; what goes through sockets is messages, of a size that does not depend on the data's."""
    client.run(count_sent)
    before = sum(client.run(granted_bytes).values())
    outputs = frame(of_numbers, PARTS, rows=ROWS).shuffle("key").persist()
    distributed.wait(outputs)
    by_grants = sum(client.run(granted_bytes).values()) - before
    by_sockets = sum(client.run(sent).values())
    assert by_grants >= PARTS * ROWS * ROW_BYTES
    assert by_sockets < by_grants / 50
