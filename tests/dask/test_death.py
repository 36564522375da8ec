"""Workers that are killed: what they had finished is not computed again (paper, section 5)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import distributed
import pytest

from actors import until
from clusters import cluster_of
from jobs import keepers, kill, noted, pid_of, runs, total

WORKERS = 3  # who are killed in turn and come back
MIB = 1 << 20
SIZES = (64, 4096, 100_000, MIB)  # in the record, and in blocks


def spread(client: distributed.Client, notes: Path, count: int = 24) -> list[distributed.Future]:
    """Results on all workers, of all sizes."""
    futures = [
        client.submit(noted, notes, number, SIZES[number % len(SIZES)], pure=False) for number in range(count)
    ]
    distributed.wait(futures)
    return futures


def expected_total(count: int = 24) -> int:
    return sum(number * (SIZES[number % len(SIZES)] // 8) for number in range(count))


def test_results_of_killed_workers_are_another_s(client: distributed.Client, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    futures = spread(client, notes)
    first, second, third = sorted(client.scheduler_info()["workers"])
    for victim in (first, second):  # its heir may be the next
        kill(client, victim)
        assert client.submit(total, futures, workers=[third], pure=False).result() == expected_total()
        until(lambda victim=victim: victim not in keepers(client, futures), "its removal")
    assert client.gather(client.map(len, futures)) == [SIZES[n % len(SIZES)] // 8 for n in range(24)]
    assert set(runs(notes).values()) == {1}


def test_scattered_data_is_not_lost(client: distributed.Client, tmp_path: Path) -> None:
    first, second, _ = sorted(client.scheduler_info()["workers"])
    array = noted(tmp_path / "notes", 3, MIB)
    future = client.scatter(array, workers=[first])
    kill(client, first)
    assert client.submit(total, [future], workers=[second]).result() == array.sum()


def test_a_worker_that_hangs_is_fenced_and_inherited_from(client: distributed.Client, tmp_path: Path) -> None:
    async def give_up(dask_scheduler: distributed.Scheduler, worker: str) -> None:
        await dask_scheduler.remove_worker(worker, stimulus_id="test")

    notes = tmp_path / "notes"
    futures = spread(client, notes)
    first, second, _ = sorted(client.scheduler_info()["workers"])
    pid = pid_of(client, first)
    kill(client, first, signal.SIGSTOP)
    try:
        client.run_on_scheduler(give_up, worker=first)
        assert client.submit(total, futures, workers=[second]).result() == expected_total()
        assert set(runs(notes).values()) == {1}
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("value", [b"x" * 100_000, {"a": list(range(30_000))}, frozenset({1, "b"})])
def test_any_value_that_can_be_pickled_is_inherited(client: distributed.Client, value: object) -> None:
    first, second, _ = sorted(client.scheduler_info()["workers"])
    (future,) = client.scatter([value], workers=[first], hash=False)
    distributed.wait(future)
    kill(client, first)
    assert client.submit(lambda found: found == value, future, workers=[second]).result()


def test_a_worker_that_is_retired_leaves_in_dask_s_way(client: distributed.Client, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    futures = spread(client, notes)
    first, second, _ = sorted(client.scheduler_info()["workers"])
    client.retire_workers([first])
    assert first not in keepers(client, futures)
    assert client.submit(total, futures, workers=[second]).result() == expected_total()
    assert set(runs(notes).values()) == {1}


def test_the_only_worker_s_results_are_those_of_the_one_that_its_nanny_starts(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with cluster_of(1) as client:
        futures = spread(client, notes)
        (only,) = keepers(client, futures)
        kill(client, only)
        assert client.submit(total, futures).result() == expected_total()
        until(lambda: only not in keepers(client, futures), "its removal")
        assert set(runs(notes).values()) == {1}
