"""Dask clusters of real processes, each on a rack of its own; nothing may be left of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from actors import until
from clusters import cluster_of
from racks import me, nursery, private_place, rack, yard

__all__ = ["me", "nursery", "private_place", "rack", "yard"]


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[distributed.Client]:
    """On a rack, of two workers with nannies, or as many as the module says in WORKERS."""
    with cluster_of(getattr(request.module, "WORKERS", 2)) as one:
        yield one


@pytest.fixture
def client(request: pytest.FixtureRequest, cluster: distributed.Client) -> distributed.Client:
    """Of that cluster, with all its workers there: those that a test has killed are gone, and have come back."""
    workers = getattr(request.module, "WORKERS", 2)
    until(lambda: cluster.run_on_scheduler(is_whole, workers=workers), "a whole cluster", timeout=40)
    return cluster


def is_whole(dask_scheduler: distributed.Scheduler, workers: int) -> bool:
    """So many workers run, all of them in the rack, and no death is being seen to."""
    estates = dask_scheduler.plugins["bequest-rack"].estates
    are_running = all(ws.status is distributed.Status.running for ws in dask_scheduler.workers.values())
    are_members = estates.members.keys() == dask_scheduler.workers.keys()
    return are_running and are_members and len(estates.members) == workers and not estates._settling
