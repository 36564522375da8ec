"""Section 5 of the paper, "Dealing with stragglers": each of its sentences, by resumable Dask tasks on a rack."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "dask"))

from clusters import cluster_of
from steps import require_nothing_left, require_resumed, steps_of, wait_for_steps, walk, walked
from test_stragglers import duty, moves, three_walks

STEPS, SECONDS = 150, 0.02  # as those walks have


@pytest.fixture(scope="module")
def client() -> Iterator[distributed.Client]:
    with cluster_of(4) as one:
        yield one


def steals_by(client: distributed.Client) -> dict[str, int]:
    """How often each worker has stolen."""

    def of_worker() -> int:
        from bequest.dask.rack_worker import here

        place = here()
        assert place is not None
        return place.process.counters["steals"]

    found: dict[str, int] = client.run(of_worker)
    return found


def test_a_straggler_s_memory_is_forcibly_reassigned_by_the_orchestrator_and_its_task_resumed(
    client: distributed.Client, tmp_path: Path
) -> None:
    """ "Straggler tasks are often caused by factors local to a particular compute node such as an overloaded processor
    [...]. In such cases, the node can have its memory forcibly reassigned to another node (or set of nodes) by having
    the job orchestrator steal the appropriate memory pages. The recipient node can resume and complete the
    half-completed computation, rather than starting from scratch." """
    moved, stolen = moves(client), sum(steals_by(client).values())
    futures, paths = three_walks(client, tmp_path)
    with duty(steps_of(paths[0])[-1][1], 0.05):
        assert client.gather(futures) == [walked(STEPS)] * 3
    assert moves(client) == moved + 1  # by the orchestrator, on its own account
    assert sum(steals_by(client).values()) == stolen + 1
    require_resumed(paths[0], STEPS)  # no step was done twice but the one under way
    require_nothing_left(client)


def test_the_orchestrator_hears_of_a_failure_from_the_rack_and_relaunches_the_task_where_it_had_stalled(
    client: distributed.Client, tmp_path: Path
) -> None:
    """ "In case of failures, as in Paxos (§4.1), the rack monitor can inform the job orchestrator, allowing it to
    relaunch the task more quickly; if only the compute elements have failed, the relaunched task can resume computation
    from where it had stalled." """
    notes = tmp_path / "notes"
    future = client.submit(walk, notes, STEPS, SECONDS, pure=False)
    victim = wait_for_steps(notes, STEPS // 2)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    while steps_of(notes)[-1][1] == victim:
        assert time.monotonic() < killed + 20, "nobody goes on"
        time.sleep(0.005)
    assert future.result() == walked(STEPS)
    require_resumed(notes, STEPS)
    require_nothing_left(client)
