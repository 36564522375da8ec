"""Jobs go on whatever befalls the rack or the cluster: a rack that dies, workers that stop, come, go and spill."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import numpy as np
import pandas as pd
import pytest

import bequest.dask
import dask
from actors import until
from clusters import cluster_of
from frames import frame, of_numbers
from jobs import noted, pid_of, runs, total
from racks import RackUnderTest, Yard
from test_shuffle_trouble import PARTS, assert_shuffles, grants_here

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def peer_to_peer() -> Iterator[None]:
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        yield


# --- the rack dies --------------------------------------------------------------------------------------------------


@pytest.fixture
def mortal(yard: Yard, rack: RackUnderTest) -> Iterator[RackUnderTest]:
    """A rack that the test kills; what is left of it is cleared away by its successor."""
    yield rack
    yard.rack(name=rack.directory.name).stop()


def test_when_the_rack_dies_results_stay_and_jobs_go_on(mortal: RackUnderTest, tmp_path: Path) -> None:
    with cluster_of(2, rack=str(mortal.directory)) as client:
        first, second = sorted(client.scheduler_info()["workers"])
        notes = tmp_path / "notes"
        before = [client.submit(noted, notes, n, MIB, workers=[first], pure=False) for n in range(4)]
        distributed.wait(before)
        mortal.kill_daemons()
        # What lies in rack memory is read by who made it, and sent to others in Dask's own way.
        assert client.submit(total, before, workers=[second]).result() == sum(range(4)) * MIB // 8
        after = client.map(noted, [notes] * 4, range(4, 8), [MIB] * 4, pure=False)
        assert client.submit(total, after, pure=False).result() == sum(range(4, 8)) * MIB // 8
        assert_shuffles(client, frame(of_numbers, PARTS))
        assert set(runs(notes).values()) == {1}


def test_when_the_rack_dies_a_client_that_has_joined_goes_on(mortal: RackUnderTest) -> None:
    expected = np.arange(MIB)
    with cluster_of(2, rack=str(mortal.directory)) as client, bequest.dask.join(client):
        before, also_before = (client.submit(np.arange, MIB, pure=False) for _ in range(2))
        gathered = before.result()
        distributed.wait(also_before)
        mortal.kill_daemons()
        assert (gathered == expected).all()
        assert (also_before.result() == expected).all()
        assert (client.submit(np.arange, MIB, pure=False).result() == expected).all()
        assert client.submit(np.sum, client.scatter(expected), pure=False).result() == expected.sum()
        del gathered


def test_the_rack_dies_in_the_middle_of_a_shuffle(mortal: RackUnderTest, tmp_path: Path) -> None:
    half, gone = tmp_path / "half", tmp_path / "gone"
    with cluster_of(2, rack=str(mortal.directory), threads_per_worker=2) as client:
        killer = threading.Thread(target=kill_when, args=(half, gone, mortal))
        killer.start()
        try:
            assert_shuffles(client, frame(of_numbers_in_two_halves, PARTS, half=half, gone=gone))
        finally:
            half.touch()
            killer.join()


def kill_when(half: Path, gone: Path, rack: RackUnderTest) -> None:
    until(half.exists, "the middle of the shuffle", timeout=40)
    rack.kill_daemons()
    gone.touch()


def of_numbers_in_two_halves(
    part: int, rows: int = 20_000, *, half: Path | None = None, gone: Path | None = None
) -> pd.DataFrame:
    """A partition; the fourth is made when some shards have been granted, and the rack is no more."""
    if part == 3 and half and gone and not gone.exists():
        while not any(grants_here()):
            time.sleep(0.01)
        half.touch()
        while not gone.exists():
            time.sleep(0.01)
    return of_numbers(part, rows)


# --- workers stop, come and go ----------------------------------------------------------------------------------------


def of_numbers_stopping(part: int, rows: int = 20_000, *, stopped: Path | None = None) -> pd.DataFrame:
    """A partition; the fourth stops the worker that makes it, when it has sent some shards."""
    if part == 3 and stopped and not stopped.exists():
        while not any(grants_here()):
            time.sleep(0.01)
        stopped.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    return of_numbers(part, rows)


@pytest.mark.parametrize("how", [signal.SIGCONT, signal.SIGKILL])
def test_a_worker_is_stopped_in_the_middle_of_a_shuffle(tmp_path: Path, how: signal.Signals) -> None:
    """And goes on later, or never does."""
    stopped = tmp_path / "stopped"

    def end_it() -> None:
        until(lambda: stopped.exists() and stopped.read_text(), "the middle of the shuffle", timeout=40)
        time.sleep(0.5)
        os.kill(int(stopped.read_text()), how)

    with cluster_of(2, threads_per_worker=2) as client:
        other = threading.Thread(target=end_it)
        other.start()
        assert_shuffles(client, frame(of_numbers_stopping, PARTS, stopped=stopped))
        other.join()


def test_a_worker_is_killed_while_others_read_its_results(client: distributed.Client, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    first, second = sorted(client.scheduler_info()["workers"])
    futures = [client.submit(noted, notes, n, MIB, workers=[first], pure=False) for n in range(40)]
    distributed.wait(futures)
    pid = pid_of(client, first)
    sums = [client.submit(total, [one], workers=[second], pure=False) for one in futures]
    os.kill(pid, signal.SIGKILL)
    assert sum(client.gather(sums)) == sum(range(40)) * MIB // 8
    assert set(runs(notes).values()) == {1}


def test_workers_that_an_adaptive_cluster_adds_and_retires_have_the_rack(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with cluster_of(1) as client:
        kept = client.submit(noted, notes, 1, MIB, pure=False)
        distributed.wait(kept)
        client.cluster.adapt(minimum=1, maximum=3, interval="50ms", wait_count=2, target_duration="50ms")
        sleeping = client.map(nap, range(60), pure=False)
        until(lambda: len(client.scheduler_info()["workers"]) == 3, "three workers", timeout=40)
        assert all(client.run(lambda: bool(grants_here())).values())
        assert client.gather(sleeping) == list(range(60))
        until(lambda: len(client.scheduler_info()["workers"]) == 1, "one worker", timeout=40)
        assert client.submit(total, [kept]).result() == MIB // 8
        assert set(runs(notes).values()) == {1}


def nap(number: int) -> int:
    time.sleep(0.2)
    return number


# --- memory is short --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_spilled_to_disk_and_comes_back(tmp_path: Path) -> None:
    """Results of 160 MiB with room for 80: as without the rack, the rest is on disk."""
    notes = tmp_path / "notes"
    by_size_alone = {"target": 0.1, "spill": False, "pause": False, "terminate": False}
    with (
        dask.config.set({f"distributed.worker.memory.{name}": part for name, part in by_size_alone.items()}),
        cluster_of(1, memory_limit="800MiB") as client,
    ):
        futures = client.map(noted, [notes] * 40, range(40), [4 * MIB] * 40, pure=False)
        distributed.wait(futures)
        (spilled,) = client.run(spilled_keys).values()
        assert 10 <= spilled < 40
        sums = [client.submit(total, [one], pure=False) for one in futures]
        assert client.gather(sums) == [n * 4 * MIB // 8 for n in range(40)]
        assert set(runs(notes).values()) == {1}


def spilled_keys(dask_worker: distributed.Worker) -> int:
    return len(dask_worker.data.slow)
