"""A result that one Dask worker has is the input of a task on another: on a rack, and in Dask's own way.

Timed: submitting the reading task to worker B until its answer is back at the client; the array was complete on
worker A before. The reader looks at one byte a page, which is what it takes to have it. A transfer of eight bytes
in the same cluster is the *task overhead*, what Dask takes for any task that needs a result from elsewhere; it is
shown, and subtracted from both. The two clusters run one after the other, with two workers each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from .measure import GIB, MIB, PAGE_BYTES, Figure, Noise, Outcome, Target, size_name, timed

SIZES = (64 * MIB, GIB)
LEAST_RATIOS = {64 * MIB: 10.0, GIB: 50.0}
ROUNDS = {8: 40, 64 * MIB: 20, GIB: 7}
QUICK_ROUNDS = {8: 8, 64 * MIB: 5, GIB: 2}


def filled(nbytes: int, number: int) -> Any:
    """Runs in worker A."""
    import numpy

    return numpy.full(nbytes, number % 251, numpy.uint8)


def looked_at(array: Any) -> int:
    """Runs in worker B: one byte of each page."""
    return int(array[::PAGE_BYTES].sum(dtype="int64"))


def rounds_in(kind: Callable[..., Any], counts: dict[int, int], noise: Noise) -> dict[int, list[float]]:
    """Seconds of each transfer, by size, in a cluster of this kind. Raises if an answer is wrong."""
    import distributed

    timings: dict[int, list[float]] = {size: [] for size in counts}
    cluster = kind(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=":0")
    with cluster, cluster.get_client() as client:
        a, b = sorted(client.scheduler_info()["workers"])
        for size, count in counts.items():
            for number in range(count + 1):  # the first does not count: fresh memory is touched
                noise.sample()
                held = client.submit(filled, size, number, workers=[a], pure=False)
                distributed.wait(held)  # type: ignore[no-untyped-call]
                started = time.perf_counter()
                answer = client.submit(looked_at, held, workers=[b], pure=False).result()
                elapsed = time.perf_counter() - started
                if answer != number % 251 * -(-size // PAGE_BYTES):
                    raise AssertionError(f"{size_name(size)} did not arrive as it was sent")
                if number:
                    timings[size].append(elapsed)
                del held
    return timings


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The benchmark."""
    import distributed

    import bequest.dask

    counts = QUICK_ROUNDS if quick else ROUNDS
    say("dask_transfer: on a rack")
    rack = rounds_in(bequest.dask.RackCluster, counts, noise)
    say("dask_transfer: stock")
    stock = rounds_in(distributed.LocalCluster, counts, noise)
    figures = [
        timed("task overhead: 8 bytes, rack", rack[8]),
        timed("task overhead: 8 bytes, stock", stock[8]),
    ]
    for size in SIZES:
        name = size_name(size)
        figures += [timed(f"{name}, rack", rack[size]), timed(f"{name}, stock", stock[size])]
        moved = statistics.median(stock[size]) - statistics.median(stock[8])
        read = statistics.median(rack[size]) - statistics.median(rack[8])
        note = f"task overhead subtracted: {moved * 1e3:.3g} ms and {read * 1e3:.3g} ms"
        ratio = moved / read if read > 0 else None
        if ratio is None:
            note = "the rack's was within the task overhead"
        figures.append(
            Figure(f"{name}: stock over rack", ratio, "x", Target("at least", LEAST_RATIOS[size]), note)
        )
    return Outcome("dask_transfer", figures, {"rack": rack, "stock": stock})
