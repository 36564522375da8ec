"""What a rack costs jobs that gain nothing by it: tiny tasks, 25,000 of them with it and as many without.

Timed: `client.map` of an increment over so many numbers until all are done, and then have been forgotten by the
workers, so that no round leaves work to the next one. Two clusters are up, Dask's own and one on a rack, and take
turns; who begins alternates. A round of both is one sample: the ratio of its two times. The overhead is the median of
these, since what else goes on in a machine takes longer than a round and so falls on both. The first round does not
count. Beside it stands the ratio of the processor time that all processes of a cluster took, of the same rounds. A task
takes about two milliseconds on two processors, nearly all of it in the scheduler's and the workers' messages.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil

from .dask_side import Side, both_sides
from .measure import Figure, Noise, Outcome, Target, timed

TASKS = 1_000  # in each round of each side
ROUNDS = 25
QUICK_ROUNDS = 4
POLL_SECONDS = 0.01
MOST_OVERHEAD = 0.03


def incremented(number: int) -> int:
    """The task."""
    return number + 1


def processor_seconds(side: Side) -> float:
    """Taken so far by the workers, and by this process, which has the scheduler."""
    times = [psutil.Process(pid).cpu_times() for pid in [psutil.Process().pid, *side.pids]]
    return float(sum(one.user + one.system for one in times))


def held(dask_worker: Any) -> int:
    """How many results the worker has that runs this."""
    return len(dask_worker.data)


def job(side: Side, start: int) -> tuple[float, float]:
    """So many tasks: seconds of the clock, and of processors."""
    import distributed

    gc.collect()
    processors = processor_seconds(side)
    started = time.perf_counter()
    with side.client.as_current():
        futures = side.client.map(incremented, range(start, start + TASKS))
        distributed.wait(futures)  # type: ignore[no-untyped-call]
        last = futures[-1].result()
    del futures
    while any(side.client.run(held).values()):
        time.sleep(POLL_SECONDS)
    elapsed = time.perf_counter() - started
    if last != start + TASKS:
        raise AssertionError("the last task gave something else")
    return elapsed, processor_seconds(side) - processors


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The benchmark."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    spent: dict[str, list[float]] = {}
    with both_sides(count_sockets=False) as sides:
        for number in range(rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                noise.sample()
                seconds, processors = job(side, number * TASKS)
                say(f"dask_overhead: {side.name}, round {number} of {rounds}: {seconds:.2f} s")
                if number:
                    side.seconds.append(seconds)
                    spent.setdefault(side.name, []).append(processors)
    stock, ours = sides
    overhead, of_processors = (
        statistics.median(one / other for one, other in zip(rack, dask, strict=True)) - 1
        for rack, dask in ((ours.seconds, stock.seconds), (spent[ours.name], spent[stock.name]))
    )
    figures = [timed(f"{TASKS:,} tiny tasks, {side.name}", side.seconds) for side in sides]
    figures.append(
        Figure(
            "overhead of the rack", 100 * overhead, "%", Target("at most", 100 * MOST_OVERHEAD),
            f"{2 * rounds * TASKS:,} tasks in all; of processor time: {100 * of_processors:.2g} %",
        )
    )  # fmt: skip
    raw = {side.name: {"seconds": side.seconds, "processor_seconds": spent[side.name]} for side in sides}
    return Outcome("dask_overhead", figures, raw)
