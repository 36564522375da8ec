"""One thread that waits for the lifelines of other processes to break (native/liveness).

It is started with the first line to watch, and shared by all standbys of an attached process. A broken line is a hint
of a death; one that was left in good order is none.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable

from bequest._core import LIFELINE_OF_STANDBYS, DeathWatch, Table

_CLOSED_CHECK_MS = 500  # how long the thread may linger after a detachment

Broke = Callable[[int, int], object]  # gets the process id and incarnation


class Lifelines:
    """Those that one process watches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watch: DeathWatch | None = None
        self._lines: dict[int, tuple[object, Broke, int, int]] = {}
        self._last_key = 0
        self._is_closed = False

    def watch(self, table: Table, id_: int, incarnation: int, owner: object, broke: Broke) -> None:
        """Has ``broke`` called once, in the thread that waits; ``owner`` may `forget` it."""
        with self._lock:
            if self._is_closed:
                return
            if self._watch is None:
                self._watch = DeathWatch(LIFELINE_OF_STANDBYS)
                threading.Thread(
                    target=self._run, args=(self._watch,), name="bequest-lifelines", daemon=True
                ).start()
            self._last_key += 1
            self._lines[self._last_key] = (owner, broke, id_, incarnation)
            self._watch.add(self._last_key, table, id_)

    def forget(self, owner: object) -> None:
        """Calls nobody of this owner's any more."""
        with self._lock:
            for key, line in list(self._lines.items()):
                if line[0] is owner and self._watch is not None:
                    del self._lines[key]
                    self._watch.remove(key)

    def close(self) -> None:
        """Calls nobody any more; the thread ends by itself."""
        with self._lock:
            self._is_closed = True
            self._lines.clear()

    def _run(self, watch: DeathWatch) -> None:
        ready = select.poll()
        ready.register(watch.fileno(), select.POLLIN)
        while not self._is_closed:
            if not ready.poll(_CLOSED_CHECK_MS):
                continue
            with self._lock:
                broken = [(self._lines.pop(key, None), died) for key, died in watch.drain()]
            for line, died in broken:
                if line is not None and died:
                    _, broke, id_, incarnation = line
                    broke(id_, incarnation)
        watch.close()
