"""A crew of processes: started together, listened to, and ended together, whatever happens.

Each worker has a `Wire` to whoever started it, a plain multiprocessing pipe, to report progress and its `Tally`. Only
what the job is about, the words, goes another way. Workers are fresh interpreters ("spawn"). They do not hear Ctrl-C,
which a terminal sends to everybody: the crew's master does, and ends them by SIGTERM, upon which they leave in good
order. If one of them dies, `Crew.reports` says which.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Concatenate, ParamSpec

PATIENCE = 3.0  # seconds that a worker has to leave in good order
FOLLOWED = 3  # exit code of a worker that ended because somebody else had

_Arguments = ParamSpec("_Arguments")


class WorkerDied(Exception):
    """A worker ended before its work did. The message names it."""


@dataclass
class Tally:
    """What one worker did: its hand-overs to other processes, and the seconds that it worked."""

    hand_overs: int = 0
    nbytes: int = 0  # handed over
    copied: int = 0  # copied between processes for that
    handing_over: float = 0.0  # seconds, until the worker could go on
    working: float = 0.0  # seconds from the start to the last word, waiting included
    rack_bytes: int = 0  # handed over as the rack counted them: whole pages

    def __iadd__(self, other: Tally) -> Tally:
        for field in self.__dataclass_fields__:
            setattr(self, field, getattr(self, field) + getattr(other, field))
        return self

    @contextmanager
    def hand_over(self, nbytes: int) -> Iterator[None]:
        """Around each hand-over."""
        start = time.perf_counter()
        yield
        self.handing_over += time.perf_counter() - start
        self.hand_overs += 1
        self.nbytes += nbytes


class Wire:
    """A worker's line to its master. Ends the worker if the master has gone."""

    def __init__(self, pipe: connection.Connection) -> None:
        self._pipe = pipe
        self._start = 0.0

    def ready(self) -> None:
        """Says that the worker has set up, and waits until all have."""
        self._pipe.send(("ready", None))
        self._pipe.recv()
        self._start = time.perf_counter()

    def progress(self, nbytes: int) -> None:
        """Reports so many bytes of text as done."""
        self._pipe.send(("progress", nbytes))

    def result(self, value: object) -> int:
        """Sends the master a result; the bytes that it took."""
        pickled = pickle.dumps(("result", value), protocol=5)
        self._pipe.send_bytes(pickled)
        return len(pickled)

    def done(self, tally: Tally) -> None:
        """The worker's last word."""
        tally.working = time.perf_counter() - self._start
        self._pipe.send(("done", tally))

    def check_master(self) -> None:
        """For a worker that waits for others: they may have been told to stop."""
        if self._pipe.poll():
            self._pipe.recv()  # nobody sends anything after the start: EOFError


class Crew:
    """The master's side. A context manager: at its end, no worker is left."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # or the first start of a process would do it, and let Ctrl-C through
        self._workers: dict[connection.Connection, BaseProcess] = {}
        self._finished = False

    def pipe(self) -> tuple[connection.Connection, connection.Connection]:
        """A pipe for workers: (end to receive, end to send)."""
        return self._context.Pipe(duplex=False)

    def start(
        self,
        name: str,
        work: Callable[Concatenate[Wire, _Arguments], None],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> None:
        """Starts a process that runs ``work(wire, …)``; it must say `Wire.ready`, and at its end `Wire.done`."""
        mine, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, work, args, kwargs), name=name, daemon=True
        )
        with _without_ctrl_c():  # a new process inherits that
            process.start()
        theirs.close()
        self._workers[mine] = process

    def go(self) -> None:
        """Waits until all workers are ready, and has them begin."""
        for worker in self._workers:
            self._receive(worker)
        for worker in self._workers:
            worker.send("go")

    def reports(self) -> Iterator[Any]:
        """What they report: bytes of text done, results, and at its end each one's `Tally`. Begins with 0 bytes.

        Raises `WorkerDied`.
        """
        yield 0
        working = set(self._workers)
        while working:
            for ready in connection.wait(list(working)):
                assert isinstance(ready, connection.Connection)
                kind, value = self._receive(ready)
                if kind == "done":
                    working.remove(ready)
                yield value
        self._finished = True

    def _receive(self, worker: connection.Connection) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = worker.recv()
            return message
        except (EOFError, ConnectionError):
            self._workers[worker].join(PATIENCE)
            raise WorkerDied(self._who_died()) from None

    def _who_died(self) -> str:
        """The worker that went first: those that only followed have said so."""
        ended = [process for process in self._workers.values() if process.exitcode]
        cause = next((process for process in ended if process.exitcode != FOLLOWED), None)
        if cause is None or cause.exitcode is None:
            return "a worker closed its line and does not answer"
        if cause.exitcode < 0:
            return f"{cause.name} was killed by {signal.Signals(-cause.exitcode).name}"
        return f"{cause.name} failed with exit code {cause.exitcode}; its error stands above"

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _without_ctrl_c():
            self._end()

    def _end(self) -> None:
        deadline = time.monotonic() + PATIENCE
        for process in self._workers.values():
            if not self._finished:
                process.terminate()
        for wire, process in self._workers.items():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
            wire.close()


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Holds Ctrl-C back: it comes when this ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: connection.Connection, work: Callable[..., None], args: Any, kwargs: Any) -> None:
    """The first thing that a worker runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FOLLOWED))
    try:
        work(Wire(pipe), *args, **kwargs)
    except (EOFError, ConnectionError, ProcessLookupError):  # the master has gone, or another worker
        sys.exit(FOLLOWED)
