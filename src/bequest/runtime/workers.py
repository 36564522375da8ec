"""Threads that do what takes long while the loop goes on.

Jobs of one lane run one after another, in order. What a job's outcome was is handed over to the loop, which is woken
through a pipe and calls the job's ``then`` in its own thread; the job itself must touch nothing of the loop's.
"""

from __future__ import annotations

import os
import threading
from _queue import SimpleQueue
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Job = Callable[[], Any]
Then = Callable[[Any], None]  # gets the job's result, or the exception that it raised


class Workers:
    def __init__(self, lanes: tuple[str, ...]) -> None:
        self._done: SimpleQueue[tuple[Then, Any]] = SimpleQueue()
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lanes: dict[str, SimpleQueue[tuple[Job, Then]]] = {}
        for name in lanes:
            self._lanes[name] = SimpleQueue()
            threading.Thread(target=self._work, args=(self._lanes[name],), name=name, daemon=True).start()

    def fileno(self) -> int:
        """Readable when there are outcomes to `collect`."""
        return self._read_end

    def submit(self, lane: str, job: Job, then: Then) -> None:
        self._lanes[lane].put((job, then))

    def collect(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._read_end, 4096)
        while not self._done.empty():
            then, outcome = self._done.get()
            then(outcome)

    def _work(self, jobs: SimpleQueue[tuple[Job, Then]]) -> None:
        while True:
            job, then = jobs.get()
            try:
                outcome = job()
            except Exception as error:  # noqa: BLE001 - handed over to whoever waits for the outcome
                outcome = error
            self._done.put((then, outcome))
            with suppress(BlockingIOError):  # full: the loop has been woken often enough
                os.write(self._write_end, b"\0")
