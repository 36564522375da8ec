"""What a cluster's racks do, in figures: memory by worker, what was not copied, steals, and what was resumed.

Each worker's own figures come to the scheduler with its heartbeat, as its metric "bequest": nothing is asked for, and
nothing is sent besides. They only grow until the worker ends, but for the memory that it keeps. The scheduler looks at
them once a second (`plugin`), and adds up what they have gained, so that what a dead worker has done stays counted.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from distributed import Scheduler, Worker

    from bequest.dask.recovery import Estates

METRIC = "bequest"
LOOK_SECONDS = 1.0
WINDOW = (
    4  # looks over which a rate is taken: heartbeats come less often than looks where there are many workers
)
HISTORY = 120  # looks
COUNTED = ("grants", "not_copied_bytes", "steals", "resumes")

Counts = dict[str, int]


def figures_of(worker: Worker) -> Counts:
    """A worker's own, with its heartbeat."""
    from bequest.dask.rack_worker import here  # which installs this

    place = here()
    if place is None or place.worker is not worker:
        return {}
    counters = place.process.counters
    return {
        "kept_bytes": place.shelf.blocks.kept_bytes(),
        "grants": counters["grants"],
        "not_copied_bytes": counters["granted_bytes"] + counters["read_bytes"],
        "steals": counters["steals"],
        "resumes": counters["resumes"],
    }


class Look(NamedTuple):
    """What all workers had done in sum at one moment (seconds of a monotonic clock), and each of them."""

    at: float
    total: Counts
    by_worker: dict[str, Counts]


class Figures:
    """On the scheduler: the figures of all workers that are in a rack."""

    def __init__(self, scheduler: Scheduler, estates: Estates, now: float) -> None:
        self._scheduler = scheduler
        self._estates = estates
        self._total = dict.fromkeys(COUNTED, 0)
        self._looks = deque([Look(now, dict(self._total), {})], maxlen=WINDOW + 1)
        self._not_copied_history = deque([0.0] * HISTORY, maxlen=HISTORY)  # bytes a second

    def look(self, now: float) -> None:
        """Takes in what the last heartbeats have told."""
        before = self._looks[-1].by_worker
        told = {
            address: ws.metrics[METRIC]
            for address in self._estates.members
            if (ws := self._scheduler.workers.get(address)) is not None and ws.metrics.get(METRIC)
        }
        for address, counts in told.items():
            for name in COUNTED:
                self._total[name] += _gain(counts, before.get(address), name)
        last = self._looks[-1]
        self._looks.append(Look(now, dict(self._total), told))
        gained = self._total["not_copied_bytes"] - last.total["not_copied_bytes"]
        self._not_copied_history.append(gained / max(now - last.at, 1e-9))

    def document(self) -> dict[str, Any]:
        """All of it, as JSON can tell it: rates are per second, counts are since the plugin came."""
        first, last = self._looks[0], self._looks[-1]
        seconds = max(last.at - first.at, 1e-9)
        workers = []
        for address, counts in sorted(last.by_worker.items()):
            ws, member = self._scheduler.workers.get(address), self._estates.members.get(address)
            if ws is None or member is None:
                continue  # it has gone since
            earlier = first.by_worker.get(address)
            rates = {name: _gain(counts, earlier, name) / seconds for name in COUNTED}
            workers.append(
                {"worker": address, "name": str(ws.name), "rack": member.rack}
                | counts
                | {
                    "grants_per_second": rates["grants"],
                    "not_copied_bytes_per_second": rates["not_copied_bytes"],
                }
            )
        return {
            "kept_bytes": sum(counts["kept_bytes"] for counts in last.by_worker.values()),
            **last.total,
            "grants_per_second": (last.total["grants"] - first.total["grants"]) / seconds,
            "not_copied_bytes_per_second": (last.total["not_copied_bytes"] - first.total["not_copied_bytes"])
            / seconds,
            "not_copied_bytes_per_second_history": list(self._not_copied_history),
            "results_inherited": self._estates.results_inherited,
            "workers": workers,
            "workers_outside": len(self._scheduler.workers) - len(workers),
        }


def _gain(counts: Counts, before: Counts | None, name: str) -> int:
    """What was added since. Another worker at the address of one that ended has begun from nothing."""
    start = 0 if before is None or before[name] > counts[name] else before[name]
    return counts[name] - start
