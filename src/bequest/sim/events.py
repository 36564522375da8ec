"""Virtual time: a heap of events, and nothing else that happens.

Python's own schedulers give no promise about order; this one does. Events at one instant run in the order in which
they were planned.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush


class EventHeap:
    def __init__(self) -> None:
        self.now = 0.0
        self.done = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0

    def after(self, delay: float, call: Callable[[], None]) -> None:
        self._planned += 1
        heappush(self._heap, (self.now + delay, self._planned, call))

    def run(self, until: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Runs events up to that time, or until it is enough; whether it was."""
        while self._heap and self._heap[0][0] <= until:
            if enough():
                return True
            self.now, _, call = heappop(self._heap)
            self.done += 1
            call()
        self.now = max(self.now, until)
        return enough()
