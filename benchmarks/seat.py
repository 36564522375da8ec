"""The process in which one peer's sender lives: its own interpreter, so that no peer's threads delay another.

The runner (`handoff`) gives a seat its turn over a pipe and waits for the end of it. A seat that does not
answer in time is killed with all that it started (it leads a session of its own), and its peer is reported as
failed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from .peers import peer_class
from .peers.peer import Peer

STOP_SECONDS = 20


class PeerFailed(Exception):
    """The peer raised, ended or did not answer in time; the text says which. The run goes on without it."""


def missing_modules(peer: str) -> list[str]:
    """What would have to be installed to run this peer."""
    return [name for name in peer_class(peer).requires if find_spec(name) is None]


def take_turn(peer: Peer, count: int, warm_up: int) -> list[float]:
    """The timings of `count` hand-offs after `warm_up` more that do not count."""
    peer.expect(warm_up + count)
    timings = []
    for _ in range(warm_up + count):
        if peer.rest_seconds:
            time.sleep(peer.rest_seconds)
        timings.append(peer.round())
    return timings[warm_up:]


def serve(name: str, runner: Connection) -> None:
    """The main loop of a seat."""
    os.setsid()
    peer: Peer | None = None
    try:
        while True:
            order, arguments = runner.recv()
            try:
                if order == "start":
                    peer = peer_class(name)()
                    answer: Any = None
                else:
                    assert peer is not None
                    answer = (
                        take_turn(peer, *arguments) if order == "turn" else getattr(peer, order)(*arguments)
                    )
                runner.send((True, answer))
            except EOFError:
                raise PeerFailed("its other process ended") from None
            except Exception as error:  # noqa: BLE001 - the runner reports it
                runner.send((False, f"{type(error).__name__}: {error}"))
    except EOFError:
        pass


class Seat:
    """The runner's handle of a seat."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = peer_class(name)
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, theirs), name=f"seat of {name}")
        self.process.start()
        theirs.close()
        self.failure = ""

    def ask(self, order: str, *arguments: Any, deadline: float = 120.0) -> Any:
        """Has the seat do something; returns its answer. Raises PeerFailed, after which the seat is gone."""
        try:
            self.pipe.send((order, arguments))
            if not self.pipe.poll(deadline):
                raise PeerFailed(f"no answer to {order!r} within {deadline:.0f} s")
            succeeded, answer = self.pipe.recv()
            if not succeeded:
                raise PeerFailed(answer)
        except (EOFError, OSError):
            self._fail("its process ended")
        except PeerFailed as failure:
            self._fail(str(failure))
        return answer

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._kill()
        raise PeerFailed(reason) from None

    def close(self) -> None:
        if self.failure:
            return
        with contextlib.suppress(PeerFailed):
            self.ask("close", deadline=STOP_SECONDS)
        self.pipe.close()
        self.process.join(STOP_SECONDS)
        self._kill()

    def _kill(self) -> None:
        """Ends the seat and what is left of its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.process.pid is not None:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join(STOP_SECONDS)
