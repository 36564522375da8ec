"""Clusters for tests: small, and on ports that nobody has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import distributed

import bequest.dask
import dask


@contextmanager
def cluster_of(
    workers: int, kind: type[distributed.LocalCluster] = bequest.dask.RackCluster, **settings: Any
) -> Iterator[distributed.Client]:
    """A client of a fresh cluster of so many workers with one thread each."""
    cluster = kind(
        n_workers=workers, **{"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", **settings}
    )
    # A nanny whose worker is away fifteen seconds after an earlier one's death would be closed; tests kill more often.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        cluster,
        cluster.get_client() as client,
    ):
        yield client
