"""A half-done task is taken from a worker that is slow, which cannot end it any more (paper, section 5)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import distributed

from actors import until
from bequest.dask import half_done
from clusters import cluster_of
from steps import let_go, require_nothing_left, require_resumed, steps_of, wait_for_steps, walk, walked

WORKERS = 4  # of whom each test spoils one for a while
STEPS = 150
SECONDS = 0.02


@contextmanager
def duty(pid: int, share: float, period: float = 0.4) -> Iterator[None]:
    """Lets a process run for a share of the time only."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(period * (1 - share))
            os.kill(pid, signal.SIGCONT)
            over.wait(period * share)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def moves(client: distributed.Client) -> int:
    """How many tasks were moved."""
    made: int = client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.plugins["bequest-rack"].estates.stragglers.moves
    )
    return made


def known(client: distributed.Client) -> list[str]:
    """The workers of the tasks that the scheduler was told of."""
    workers: list[str] = client.run_on_scheduler(
        lambda dask_scheduler: [
            run.worker
            for run in dask_scheduler.plugins["bequest-rack"].estates.stragglers.pace.running.values()
        ]
    )
    return workers


def three_walks(client: distributed.Client, tmp_path: Path) -> tuple[list[distributed.Future], list[Path]]:
    """On three of the four workers, half done, which the scheduler knows."""
    paths = [tmp_path / str(number) for number in range(3)]
    futures = client.map(walk, paths, [STEPS] * 3, [SECONDS] * 3)
    for path in paths:
        wait_for_steps(path, 10)
    until(lambda: len(known(client)) == 3, "three tasks that the scheduler was told of")
    return futures, paths


def test_a_slowed_worker_s_task_is_gone_on_with_by_an_idle_one(
    client: distributed.Client, tmp_path: Path
) -> None:
    before = moves(client)
    futures, paths = three_walks(client, tmp_path)
    with duty(steps_of(paths[0])[-1][1], 0.05):
        assert client.gather(futures) == [walked(STEPS)] * 3
    assert moves(client) == before + 1
    require_resumed(paths[0], STEPS)
    for path in paths[1:]:
        require_resumed(path, STEPS, moves=0)
    require_nothing_left(client)


def test_a_stopped_worker_s_task_is_gone_on_with_and_it_cannot_end_it(
    client: distributed.Client, tmp_path: Path
) -> None:
    before = moves(client)
    futures, paths = three_walks(client, tmp_path)
    victim = steps_of(paths[0])[-1][1]
    os.kill(victim, signal.SIGSTOP)
    try:
        assert client.gather(futures) == [walked(STEPS)] * 3
    finally:
        os.kill(victim, signal.SIGCONT)
    assert moves(client) == before + 1
    time.sleep(3 * SECONDS)  # for the step under way, if it could end
    require_resumed(paths[0], STEPS)
    require_nothing_left(client)


def test_the_scheduler_is_told_of_a_task_that_begins_without_delay(tmp_path: Path) -> None:
    """Else nobody would ever go on with that of a worker that is stopped in its first steps."""

    def says_nothing_later() -> None:
        half_done.REPORT_INTERVAL = 1000.0

    with cluster_of(1) as client:
        client.run(says_nothing_later)
        time.sleep(2 * half_done.REPORT_INTERVAL)  # until the word that was due has been said
        future = client.submit(walk, tmp_path / "0", 2, 0.0, (0,))
        until(lambda: len(known(client)) == 1, "a task that the scheduler was told of")
        let_go(tmp_path / "0", 0)
        assert future.result() == walked(2)
