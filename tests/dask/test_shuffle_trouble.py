"""Shuffles in which workers are killed, shards are lost, or the rack is full: what comes out is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask.dataframe as dd
import distributed
import pandas as pd
import pytest

import dask
from bequest.dask.shards import Place, Shard
from bequest.dask.shuffle import RackRun
from clusters import cluster_of
from frames import frame, grants_of, of_numbers

PARTS = 6


@pytest.fixture(scope="module", autouse=True)
def peer_to_peer() -> Iterator[None]:
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        yield


def wanted(rows: int) -> pd.DataFrame:
    """All rows, in one order."""
    return in_order(pd.concat([of_numbers(part, rows) for part in range(PARTS)]))


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["key", "x", "part"]).reset_index(drop=True)


def assert_shuffles(client: distributed.Client, data: dd.DataFrame, rows: int = 20_000) -> None:
    parts: list[pd.DataFrame] = client.gather(client.compute(data.shuffle("key").to_delayed()))
    keys = [set(part.key) for part in parts]
    assert sum(map(len, keys)) == len(set().union(*keys))
    pd.testing.assert_frame_equal(in_order(pd.concat(parts)), wanted(rows))


def times_in_logs(client: distributed.Client, text: str) -> int:
    return sum(text in line for log in client.get_worker_logs().values() for _, line in log)


def of_numbers_once(part: int, rows: int = 20_000, *, fatal: Path | None = None) -> pd.DataFrame:
    """A partition; the fourth kills the worker that makes it first, when it has sent some shards."""
    if fatal is not None and part == 3 and not fatal.exists():
        while not any(grants_here()):
            time.sleep(0.01)
        fatal.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return of_numbers(part, rows)


def grants_here() -> list[int]:
    from bequest.dask.rack_worker import here

    place = here()
    return [] if place is None else [place.process.counters["grants"]]


def test_a_worker_is_killed_in_the_middle(tmp_path: Path) -> None:
    fatal = tmp_path / "killed"
    with cluster_of(2, threads_per_worker=2) as client:
        assert_shuffles(client, frame(of_numbers_once, PARTS, fatal=fatal))
        assert fatal.exists()
        assert_shuffles(client, frame(of_numbers, PARTS))  # and the next has both workers again


def lose_what_is_read_first() -> None:
    shards_for = RackRun.shards_for

    def read_twice(self: RackRun, place: Place) -> list[Shard]:
        RackRun.shards_for = shards_for  # type: ignore[method-assign]
        shards_for(self, place)
        return shards_for(self, place)

    RackRun.shards_for = read_twice  # type: ignore[method-assign]


def test_an_output_that_is_wanted_again_when_its_shards_are_gone(
    client: distributed.Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.run(lose_what_is_read_first)
    assert_shuffles(client, frame(of_numbers, PARTS))
    assert "restarted due to data inconsistency" in caplog.text


@contextmanager
def small_rack(size: str) -> Iterator[str]:
    """The name of a rack with that much memory."""
    command = [sys.executable, "-m", "bequest.cli"]
    name = "small"
    subprocess.run(
        [*command, "up", "--name", name, "--element", f"dram0:{size}", "--detach"],
        check=True,
        capture_output=True,
    )
    try:
        yield name
    finally:
        subprocess.run([*command, "down", name], check=True, capture_output=True)


def test_what_finds_no_room_in_the_rack_goes_dasks_way() -> None:
    with small_rack("16MiB") as rack, cluster_of(2, rack=rack) as client:
        for _ in range(2):  # of 8 MB
            assert_shuffles(client, frame(of_numbers, PARTS, rows=50_000), 50_000)
        assert sum(grants_of(client).values()) > 0
        assert 1 <= times_in_logs(client, "the rack is full") <= 2  # once a worker
