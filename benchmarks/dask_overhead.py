"""What a rack costs jobs that gain nothing by it: 100,000 tiny tasks, in five jobs, with it and without.

Timed: `client.map` of an increment over so many numbers until all are done. Clusters of both kinds take turns, fresh
ones each time, since Dask slows down with what it remembers; the medians are compared. A quiet machine does some
thousand tasks a second, so each kind takes a minute or two; a busy one takes many times as long.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from .measure import Figure, Noise, Outcome, Target, timed

TASKS = 20_000
QUICK_TASKS = 2_000
TURNS = 5
MOST_OVERHEAD = 0.03


def incremented(number: int) -> int:
    """The task."""
    return number + 1


def job_seconds(kind: Callable[..., Any], tasks: int) -> float:
    """One job in a fresh cluster of this kind."""
    import distributed

    cluster = kind(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=":0")
    with cluster, cluster.get_client() as client:
        distributed.wait(client.map(incremented, range(-1000, 0)))  # type: ignore[no-untyped-call]
        started = time.perf_counter()
        futures = client.map(incremented, range(tasks))
        distributed.wait(futures)  # type: ignore[no-untyped-call]
        elapsed = time.perf_counter() - started
        if futures[-1].result() != tasks:
            raise AssertionError("the last task gave something else")
    return elapsed


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The benchmark."""
    import distributed

    import bequest.dask

    tasks = QUICK_TASKS if quick else TASKS
    timings: dict[str, list[float]] = {"stock": [], "rack": []}
    kinds = {"stock": distributed.LocalCluster, "rack": bequest.dask.RackCluster}
    for turn in range(TURNS):
        for name, kind in kinds.items():
            say(f"dask_overhead: {name}, turn {turn + 1} of {TURNS}")
            noise.sample()
            timings[name].append(job_seconds(kind, tasks))
    overhead = statistics.median(timings["rack"]) / statistics.median(timings["stock"]) - 1
    least = min(timings["rack"]) / min(timings["stock"]) - 1
    figures = [
        timed(f"{tasks:,} tiny tasks, stock", timings["stock"]),
        timed(f"{tasks:,} tiny tasks, rack", timings["rack"]),
        Figure(
            "overhead of the rack", 100 * overhead, "%", Target("at most", 100 * MOST_OVERHEAD),
            f"of the minima: {100 * least:.2g} %",
        ),
    ]  # fmt: skip
    return Outcome("dask_overhead", figures, dict(timings))
