"""Results that one Dask worker has are the input of a task on another: on a rack, and in Dask's own way.

Timed: submitting the reading task to worker B until its answer is back at the client; the arrays were complete on
worker A before. The reader looks at one byte a page, which is what it takes to have them. As many transfers of eight
bytes in the same cluster are the *task overhead*, what Dask takes for any task that needs results from elsewhere; it
is shown, and subtracted from both. On a rack 64 MiB take less than that overhead varies, so eight of them are the
input of one task, and what is told is an eighth. The two clusters run one after the other, with two workers each; in
each of them a round of all kinds is followed by the next.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .measure import GIB, MIB, PAGE_BYTES, Figure, Noise, Outcome, Target, size_name, timed


class Kind(NamedTuple):
    """So many arrays of this size are transferred at once."""

    nbytes: int
    arrays: int

    @property
    def name(self) -> str:
        """In the table."""
        return size_name(self.nbytes) if self.arrays == 1 else f"{self.arrays} x {size_name(self.nbytes)}"

    @property
    def overhead(self) -> Kind:
        """The kind whose time is subtracted from this one's."""
        return Kind(8, self.arrays)


KINDS = (Kind(64 * MIB, 8), Kind(GIB, 1))
LEAST_RATIOS = (10.0, 50.0)
ROUNDS, QUICK_ROUNDS = 15, 3


def filled(nbytes: int, number: int) -> Any:
    """Runs in worker A."""
    import numpy

    return numpy.full(nbytes, number % 251, numpy.uint8)


def looked_at(arrays: list[Any]) -> int:
    """Runs in worker B: one byte of each page."""
    return sum(int(array[::PAGE_BYTES].sum(dtype="int64")) for array in arrays)


def transferred(client: Any, kind: Kind, number: int) -> float:
    """Seconds of one transfer. Raises if the answer is wrong."""
    import distributed

    a, b = sorted(client.scheduler_info()["workers"])
    held = [client.submit(filled, kind.nbytes, number, workers=[a], pure=False) for _ in range(kind.arrays)]
    distributed.wait(held)  # type: ignore[no-untyped-call]
    started = time.perf_counter()
    answer = client.submit(looked_at, held, workers=[b], pure=False).result()
    elapsed = time.perf_counter() - started
    if answer != kind.arrays * (number % 251) * -(-kind.nbytes // PAGE_BYTES):
        raise AssertionError(f"{kind.name} did not arrive as they were sent")
    return elapsed


def rounds_in(make: Callable[..., Any], rounds: int, noise: Noise) -> dict[Kind, list[float]]:
    """Seconds of each transfer, by kind, in such a cluster."""
    kinds = [one for kind in KINDS for one in (kind.overhead, kind)]
    timings: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    cluster = make(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=":0")
    with cluster, cluster.get_client() as client:
        for number in range(rounds + 1):
            noise.sample()
            for kind in kinds:
                seconds = transferred(client, kind, number)
                if number:  # the first does not count: fresh memory is touched
                    timings[kind].append(seconds)
    return timings


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The benchmark."""
    import distributed

    import bequest.dask

    rounds = QUICK_ROUNDS if quick else ROUNDS
    say("dask_transfer: on a rack")
    rack = rounds_in(bequest.dask.RackCluster, rounds, noise)
    say("dask_transfer: stock")
    stock = rounds_in(distributed.LocalCluster, rounds, noise)
    figures = []
    for kind, least in zip(KINDS, LEAST_RATIOS, strict=True):
        nets = []
        for name, timings in (("rack", rack), ("stock", stock)):
            figures += [
                timed(f"task overhead, {kind.overhead.name}, {name}", timings[kind.overhead]),
                timed(f"{kind.name}, {name}", timings[kind]),
            ]
            nets.append(statistics.median(timings[kind]) - statistics.median(timings[kind.overhead]))
        read, moved = nets
        each = [f"{net / kind.arrays * 1e3:.3g} ms" for net in (moved, read)]
        note = f"of each, task overhead subtracted: {' and '.join(each)}"
        ratio = moved / read if read > 0 else None
        if ratio is None:
            note = "the rack's was within the task overhead"
        figures.append(
            Figure(f"{size_name(kind.nbytes)}: stock over rack", ratio, "x", Target("at least", least), note)
        )
    raw = {
        name: {kind.name: times for kind, times in timings.items()}
        for name, timings in (("rack", rack), ("stock", stock))
    }
    return Outcome("dask_transfer", figures, raw)
