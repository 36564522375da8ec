"""A thread that waits for the end of a process, and runs the callbacks which that brings about (native/liveness).

The thread that the kernel wakes is the one that calls the program: passing the news on from thread to thread takes
longer than the callback may. A lifeline that breaks is a hint of a death; one that was left in good order is none.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from bequest import _core
from bequest.memory.callbacks import Job, run_job

_END_TIMEOUT = 0.1  # seconds, for a thread that is not in a callback

Broke = Callable[[int, int], object]  # gets the process id and incarnation


class Vigil:
    """Over one process at a time. Its callbacks run one after another, and may take their time."""

    def __init__(self, thread_name: str, broke: Broke) -> None:
        self._thread_name = thread_name
        self._broke = broke
        self._core = _core.Vigil()
        self._jobs: deque[Job] = deque()
        self._is_closed = False
        self._os_pid = os.getpid()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """From now on it waits, and runs what it was given before."""
        self._thread = threading.Thread(target=self._work, name=self._thread_name, daemon=True)
        self._thread.start()

    def keep(self, table: _core.Table, id_: int, incarnation: int) -> None:
        """Over this one from now on: ``broke`` is called once, should its lifeline break."""
        self._core.keep(table, id_, incarnation)

    def run(self, job: Job) -> None:
        """Returns at once, as `Callbacks.run`."""
        self._jobs.append(job)
        self._core.nudge()

    def close(self) -> None:
        """Calls nobody any more on account of a lifeline; what `run` was given before still runs."""
        self._is_closed = True
        self._core.nudge()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_END_TIMEOUT)  # unless a callback takes its time

    def _work(self) -> None:
        _core.ask_for_short_slices()
        while not self._is_closed and self._is_here():
            end = self._core.wait()
            if end is not None and end[2] and not self._is_closed:
                run_job(partial(self._broke, *end[:2]))
            self._run_jobs()
        self._run_jobs()  # what came while it was told to end

    def _run_jobs(self) -> None:
        while self._jobs and self._is_here():
            run_job(self._jobs.popleft())

    def _is_here(self) -> bool:
        """A callback may have forked, and come back in the child: there it has nothing to wait for."""
        return os.getpid() == self._os_pid
