"""Shuffles on a rack give what Dask's own give, partition by partition and row by row, and their data is granted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask.array as da
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import pytest

import dask
from bequest.dask.shuffle import SWITCH
from bequest.limits import WINDOW_BASE, WINDOW_BITS
from frames import (
    frame,
    grants_of,
    of_all_types,
    of_numbers,
    of_other_types,
    of_times,
    sometimes_of_others,
)


@pytest.fixture(scope="module", autouse=True)
def peer_to_peer() -> Iterator[None]:
    with dask.config.set({"dataframe.shuffle.method": "p2p", "array.rechunk.method": "p2p"}):
        yield


@contextmanager
def dasks_own_way(client: distributed.Client) -> Iterator[None]:
    """Shuffles that begin in here are Dask's alone."""
    client.run(dask.config.set, {SWITCH: False})
    try:
        yield
    finally:
        client.run(dask.config.set, {SWITCH: True})


def shuffled(df: dd.DataFrame) -> dd.DataFrame:
    return df.shuffle("key")


def with_fewer_outputs(df: dd.DataFrame) -> dd.DataFrame:
    return df.shuffle("key", npartitions=3)


def some_of_the_outputs(df: dd.DataFrame) -> dd.DataFrame:
    return df.shuffle("key").partitions[1:3]


def indexed(df: dd.DataFrame) -> dd.DataFrame:
    return df.set_index("key", divisions=[0, 100, 300, 500])


def merged(df: dd.DataFrame) -> dd.DataFrame:
    other = frame(of_numbers, 3, rows=300).rename(columns={"x": "y"})
    return df.merge(other, on="key", how="outer", suffixes=("", "-other"))


def grouped(df: dd.DataFrame) -> dd.DataFrame:
    return df.groupby("key").agg({"x": "sum", "part": "max"}, split_out=3, shuffle_method="p2p")


def applied(df: dd.DataFrame) -> dd.DataFrame:
    return df.groupby("key").apply(first_two, meta=of_numbers(0, 2)[["x"]])


def first_two(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[["x"]].head(2)


def without_rows(df: dd.DataFrame) -> dd.DataFrame:
    return df[df.x > 2].shuffle("key")


def parts_of(client: distributed.Client, collection: dd.DataFrame) -> list[pd.DataFrame]:
    parts: list[pd.DataFrame] = client.gather(client.compute(collection.to_delayed()))
    return parts


def assert_same_both_ways(
    client: distributed.Client, make: Callable[[], dd.DataFrame], granted: bool
) -> None:
    """All partitions are those of Dask's own shuffle; and memory was granted for it, or none."""
    with dasks_own_way(client):
        before = grants_of(client)
        wanted = parts_of(client, make())
        assert grants_of(client) == before
    found = parts_of(client, make())
    assert len(found) == len(wanted) > 1
    for ours, theirs in zip(found, wanted, strict=True):
        pd.testing.assert_frame_equal(ours, theirs)
    assert (sum(grants_of(client).values()) > sum(before.values())) is granted


def test_outputs_are_made_where_they_belong_and_in_the_order_that_was_told(
    client: distributed.Client,
) -> None:
    client.run(note_outputs)
    kept = frame(of_numbers, 16, rows=200).shuffle("key").persist()
    distributed.wait(kept)
    noted: list[tuple[list[int], list[int]]] = list(client.run(noted_outputs).values())
    for told, made in noted:
        assert len(told) >= 7
        assert sorted(told) == sorted(made)
        later = made[1:]  # the first may begin before the others have been heard of
        assert later == [output for output in told if output in later]
    outputs = {future.key for future in distributed.futures_of(kept)}  # type: ignore[no-untyped-call]
    assert client.run_on_scheduler(times_begun, keys=outputs) == dict.fromkeys(outputs, 1)


def note_outputs() -> None:
    """In a worker: has it note which outputs it makes from now on."""
    from bequest.dask.compat import wrap
    from bequest.dask.shuffle_frames import FrameRun

    made: list[tuple[FrameRun, int]] = []

    def noting(make: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
        def make_and_note(run: FrameRun, partition: int, *args: object, **kwargs: object) -> pd.DataFrame:
            made.append((run, partition))
            return make(run, partition, *args, **kwargs)

        return make_and_note

    NOTED["outputs"] = (made, wrap(FrameRun, "_make_output", noting))


NOTED: dict[str, Any] = {}


def noted_outputs() -> tuple[list[int], list[int]]:
    """In a worker: the outputs that it was told to make, and those that it has made; it notes no more."""
    made, undo = NOTED.pop("outputs")
    undo()
    run = made[0][0]
    return run.partitions_of[run.local_address], [partition for _, partition in made]


def times_begun(dask_scheduler: distributed.Scheduler, keys: set[Any]) -> dict[Any, int]:
    """How often each of these tasks was sent to a worker."""
    log = dask_scheduler.transition_log
    return Counter(step.key for step in log if step.key in keys and step.finish == "processing")


OPERATIONS = (
    shuffled, with_fewer_outputs, some_of_the_outputs, indexed, merged, grouped, applied, without_rows,
)  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_comes_out_is_what_dasks_own_shuffle_makes(
    client: distributed.Client, operation: Callable[[dd.DataFrame], dd.DataFrame]
) -> None:
    assert_same_both_ways(
        client, lambda: operation(frame(of_numbers, 5)), granted=operation is not without_rows
    )


def test_columns_of_every_type_that_dask_takes(client: distributed.Client) -> None:
    with dask.config.set({"dataframe.convert-string": False}):
        assert_same_both_ways(client, lambda: shuffled(frame(of_all_types, 4)), granted=True)


def test_partitions_whose_types_differ_from_what_was_foreseen(client: distributed.Client) -> None:
    def without_order_of_categories() -> dd.DataFrame:  # of which Dask's is that in which data came
        made = shuffled(frame(of_other_types, 4, enforce_metadata=False))
        return made.map_partitions(lambda part: part.assign(category=part.category.astype(str)))

    assert_same_both_ways(client, without_order_of_categories, granted=True)


def test_plain_columns_of_other_types(client: distributed.Client) -> None:
    assert_same_both_ways(client, lambda: shuffled(frame(of_times, 5)), granted=True)


def test_plain_columns_beside_others(client: distributed.Client) -> None:
    def without_index() -> dd.DataFrame:  # Dask's is that of whichever input comes first
        made = shuffled(frame(sometimes_of_others, 5, enforce_metadata=False))
        return made.map_partitions(lambda part: part[["key", "x", "part"]].reset_index(drop=True))

    assert_same_both_ways(client, without_index, granted=True)


def test_outputs_of_plain_columns_lie_in_the_rack(client: distributed.Client) -> None:
    made = shuffled(frame(of_numbers, 4)).map_partitions(where_columns_lie, meta={"in rack": bool})
    assert client.compute(made).result()["in rack"].all()


def where_columns_lie(part: pd.DataFrame) -> pd.DataFrame:
    addresses = [part[column].to_numpy().__array_interface__["data"][0] for column in part]
    ends = WINDOW_BASE + (1 << WINDOW_BITS)
    return pd.DataFrame({"in rack": [WINDOW_BASE <= address < ends for address in addresses]})


@pytest.mark.parametrize("kind", ["f8", "c16", "bool", "M8[us]", "S3", "O"])
def test_arrays_are_rechunked(client: distributed.Client, kind: str) -> None:
    numbers = np.arange(120 * 90).reshape(120, 90).astype("i8").astype(kind)
    array = da.from_array(numbers, chunks=(50, 90)).rechunk((120, 20))
    before = grants_of(client)
    np.testing.assert_array_equal(client.compute(array).result(), numbers)
    assert (sum(grants_of(client).values()) > sum(before.values())) is (kind != "O")


@pytest.mark.parametrize("rows", [3, 6000])
def test_a_frame_that_is_merged_with_itself(client: distributed.Client, rows: int) -> None:
    """It is shuffled once, and each output is wanted twice by one task; of three rows some outputs are empty."""
    frame = pd.DataFrame({"a": np.arange(rows) % 2000, "b": np.arange(rows), "c": ["A"] * rows})
    ours = dd.from_pandas(frame, npartitions=3)
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        merged = client.compute(ours.merge(ours, on=["a"])).result(timeout=30)
    expected = frame.merge(frame, on=["a"])
    order = ["a", "b_x", "b_y"]
    pd.testing.assert_frame_equal(
        merged.sort_values(order).reset_index(drop=True),
        expected.sort_values(order).reset_index(drop=True),
        check_dtype=False,
    )
