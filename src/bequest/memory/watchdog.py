"""Watchdogs: a process that does not get on is told of, although it runs.

Theory of operation. A stopped process stops beating, and the rack monitor sees that. What waits for ever in a deadlock,
or goes round in circles, does not, for a thread of the library beats, not the program. So a program may promise to
report `progress` again and again. The thread that beats knows by when it is due; once that has passed it says so in
place of beating, whatever becomes of the interpreter, and the monitor tells those who stand by.

A program may have several watchdogs, in several threads: the one that is due first counts.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from bequest._core import Lifeline


class Watchdogs:
    """All of one process."""

    def __init__(self, lifeline: Lifeline) -> None:
        self._lifeline = lifeline
        self._lock = threading.Lock()
        self._due: dict[Watchdog, float] = {}

    def expect(self, watchdog: Watchdog, when: float | None) -> None:
        """By then, or not at all any more."""
        with self._lock:
            if when is None:
                self._due.pop(watchdog, None)
            else:
                self._due[watchdog] = when
            self._lifeline.expect_by(min(self._due.values(), default=0.0))


class Watchdog:
    """From `Process.watchdog`; a context manager, within which `progress` is due every so many seconds."""

    def __init__(self, watchdogs: Watchdogs, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"a watchdog waits for more than 0 seconds, not {seconds}")
        self.seconds = seconds
        self._watchdogs = watchdogs

    def progress(self) -> None:
        """The program gets on. If it was suspected, that ends."""
        self._watchdogs.expect(self, time.monotonic() + self.seconds)

    def __enter__(self) -> Watchdog:
        self.progress()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdogs.expect(self, None)
