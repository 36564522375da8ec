"""Who is a straggler: the rules, without the world around them.

A task is judged by its steps per second against the median of its siblings': tasks of the same prefix on other
workers, those that run and the last that have ended. It is a straggler if in the time in which a sibling does
`EVIDENCE_STEPS`, and in no less than `EVIDENCE_SECONDS`, it has done less than a third of the siblings' steps. At
least `SIBLINGS_MIN` siblings must have done `EVIDENCE_STEPS` each. A worker that has said nothing for longer than
`SILENCE` does nothing; until then the time since its last word counts for nothing.

A task that was moved is judged anew, from the time it goes on, and moved `MOVES_MAX` times at most. Steps that differ
much in length can make a task look slow that is not: then it is moved in vain, and has lost the step under way.

Times are seconds of one clock, which is an argument.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dask.typing import Key

EVIDENCE_SECONDS = 2.0
EVIDENCE_STEPS = 3
SIBLINGS_MIN = 2
SLOWNESS = 3.0  # times slower than the median
SILENCE = 3.0  # seconds
MOVES_MAX = 3
SLOW_FOR = 30.0  # seconds for which a worker that was relieved is not asked to relieve others
_ENDED_MAX = 32  # tasks of a prefix that are remembered
_SAMPLES_MAX = 1000


@dataclass
class Running:
    """A task on the worker that runs it: how many steps it had done when. ``moves`` is over all workers."""

    prefix: str
    worker: str
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_SAMPLES_MAX))
    moves: int = 0

    @property
    def steps(self) -> int:
        """Done here."""
        return self.samples[-1][1] - self.samples[0][1]

    @property
    def rate(self) -> float | None:
        """Steps per second since it began here; None if there is not enough to tell."""
        seconds = self.samples[-1][0] - self.samples[0][0]
        return self.steps / seconds if self.steps >= EVIDENCE_STEPS and seconds > 0 else None

    def steps_since(self, time: float) -> int:
        """Done since then."""
        before = self.samples[0][1]
        for at, steps in self.samples:
            if at > time:
                break
            before = steps
        return self.samples[-1][1] - before


class Pace:
    """What is known of the tasks that tell how far they have come."""

    def __init__(self) -> None:
        self.running: dict[Key, Running] = {}
        self._ended: dict[str, deque[tuple[str, float]]] = {}  # by prefix: worker, and steps per second
        self._slow: dict[str, float] = {}  # workers that were relieved, and when

    def report(self, key: Key, prefix: str, worker: str, steps: int, now: float) -> None:
        """A task has done so many steps, on whatever workers."""
        run = self.running.get(key)
        if run is None or run.worker != worker:
            run = Running(prefix, worker, moves=0 if run is None else run.moves)
            self.running[key] = run
        run.samples.append((now, steps))

    def ended(self, key: Key) -> None:
        """It is not run any more."""
        run = self.running.pop(key, None)
        if run is not None and run.rate is not None:
            ended = self._ended.setdefault(run.prefix, deque(maxlen=_ENDED_MAX))
            ended.append((run.worker, run.rate))

    def moved(self, key: Key, now: float) -> None:
        """It has been taken from its worker. What it does from now on is another's, and judged when that one tells."""
        run = self.running[key]
        self._slow[run.worker] = now
        self.running[key] = Running(run.prefix, "", deque([(now, run.samples[-1][1])]), run.moves + 1)

    def is_slow(self, worker: str, now: float) -> bool:
        """Whether a task was taken from this worker a short while ago."""
        return now - self._slow.get(worker, -SLOW_FOR) < SLOW_FOR

    def forget(self, worker: str) -> None:
        """It has gone."""
        self._slow.pop(worker, None)

    def stragglers(self, now: float) -> list[Key]:
        """The tasks that someone else should go on with, the longest at it first."""
        found = [
            (run.samples[0][0], key) for key, run in self.running.items() if self._is_straggler(run, now)
        ]
        return [key for _, key in sorted(found, key=lambda one: one[0])]

    def _is_straggler(self, run: Running, now: float) -> bool:
        median = self._median(run)
        if median is None or run.moves >= MOVES_MAX or not run.worker:
            return False
        window = max(EVIDENCE_SECONDS, EVIDENCE_STEPS / median)
        last = run.samples[-1][0]
        end = now if now - last > SILENCE else last
        if end - run.samples[0][0] < window:
            return False
        return run.steps_since(end - window) * SLOWNESS < window * median

    def _median(self, run: Running) -> float | None:
        """Of the siblings' steps per second; None if there are too few."""
        rates = [rate for worker, rate in self._ended.get(run.prefix, ()) if worker != run.worker]
        rates += [
            other.rate
            for other in self.running.values()
            if other.prefix == run.prefix and other.worker != run.worker and other.rate is not None
        ]
        return statistics.median(rates) if len(rates) >= SIBLINGS_MIN else None
