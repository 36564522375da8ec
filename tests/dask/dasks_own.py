"""A pytest plugin for Dask's own tests: a cluster computes what they do, and their shuffles are peer-to-peer.

``$DASKS_OWN`` says by which: "rack" or "stock". At the end it prints how many grants were made.
"""

from __future__ import annotations

import os

import distributed
import pytest

import bequest.dask
import dask
from bequest.dask.rack_worker import here

SCHEDULERS = ("sync", "synchronous", "single-threaded", "threads", "threading")  # what the tests ask for


def grants() -> int:
    place = here()
    return 0 if place is None else place.process.counters["grants"]


def pytest_sessionstart(session: pytest.Session) -> None:
    kind = bequest.dask.RackCluster if os.environ["DASKS_OWN"] == "rack" else distributed.LocalCluster
    dask.config.set({"dataframe.shuffle.method": "p2p"})
    session.cluster = kind(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    session.client = session.cluster.get_client()
    for name in SCHEDULERS:
        dask.base.named_schedulers[name] = session.client.get


def pytest_sessionfinish(session: pytest.Session) -> None:
    print(f"\ngrants: {sum(session.client.run(grants).values())}")
    session.client.close()
    session.cluster.close()
