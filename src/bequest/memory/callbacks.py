"""Threads that run callbacks, one after another: whoever calls into the program has its own, and nobody waits."""

from __future__ import annotations

import logging
import threading
from _queue import SimpleQueue
from collections.abc import Callable

log = logging.getLogger("bequest")

Job = Callable[[], object]


class Callbacks:
    """The thread is started with the first callback, or before it: starting one takes longer than waking it."""

    def __init__(self, thread_name: str) -> None:
        self._thread_name = thread_name
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Job | None] | None = None

    def run(self, job: Job) -> None:
        """Returns at once. What the job raises is logged; nothing that it raises ends the thread."""
        self.start().put(job)

    def start(self) -> SimpleQueue[Job | None]:
        """Has the thread wait for jobs from now on."""
        with self._lock:
            if self._jobs is None:
                self._jobs = SimpleQueue()
                threading.Thread(
                    target=_work, args=(self._jobs,), name=self._thread_name, daemon=True
                ).start()
            return self._jobs

    def close(self) -> None:
        """What was asked for before still runs."""
        if self._jobs is not None:
            self._jobs.put(None)


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        run_job(job)


def run_job(job: Job) -> None:
    """What it raises is logged."""
    try:
        job()
    except BaseException:
        log.exception("a callback has failed")
