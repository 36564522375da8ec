"""A line of processes, each of which takes the memory of the one before it and is then ended in turn.

The memory is allocated and filled once, by the first of the line; every other has it by stealing, so that a gigabyte
can change hands a hundred times without being touched afresh. Each heir is a new process that has never mapped it: what
it does for the first byte is all that a standby has to do. Afterwards, untimed, it reads a byte of every page, so that
the next one steals from a process with all its page tables in place.

Times are of CLOCK_MONOTONIC, which is one clock for all processes.
"""

from __future__ import annotations

import os
import signal
import time
from _queue import SimpleQueue
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from . import bequest_side
from .bequest_side import PATIENCE_SECONDS
from .peers.peer import as_bytes, checksum

REST_SECONDS = 0.02
"""An untimed pause before each end, so that all who sleep are asleep."""


@dataclass(frozen=True, slots=True)
class Inheritance:
    """When an heir set out to steal, had stolen, and had read the first byte; and how the owner was fenced."""

    began: float
    stolen: float
    read: float
    how: str


def take(steal: Callable[[], Any]) -> tuple[Any, Inheritance]:
    """Steals, reads one byte; returns the estate, too, whose regions are owned for as long as it is kept."""
    began = time.perf_counter()
    estate = steal()
    stolen = time.perf_counter()
    view = memoryview(estate.regions[0])
    first = view[0]
    read = time.perf_counter()
    view.release()
    assert first == 1, "the first of the line has written ones"
    return estate, Inheritance(began, stolen, read, estate.how)


def found(orders: Connection, key: str, name: str, nbytes: int) -> None:
    """The first of a line: allocates the memory and fills it."""
    with bequest_side.join(key).attach(name) as me:
        region = me.alloc(nbytes)
        as_bytes(region)[:] = 1
        orders.send(os.getpid())
        orders.poll(None)


def stand_by(orders: Connection, key: str, name: str, owner: str) -> None:
    """Steals when the owner dies, in the callback of a standby."""
    taken: SimpleQueue[tuple[Any, Inheritance]] = SimpleQueue()
    with bequest_side.join(key).attach(name) as me:
        me.standby(for_=owner, then=lambda death: taken.put(take(death.steal)))
        orders.send(os.getpid())
        own(orders, *taken.get())


def wait_for_word(orders: Connection, key: str, name: str, owner: str) -> None:
    """Steals when it is told to, from an owner that may live."""
    with bequest_side.join(key).attach(name) as me:
        orders.send(os.getpid())
        orders.recv()
        own(orders, *take(lambda: me.steal(owner)))


def own(orders: Connection, estate: Any, inheritance: Inheritance) -> None:
    """Owns it until the end comes."""
    for region in estate:
        checksum(region)
    orders.send(inheritance)
    orders.poll(None)


class Line:
    """The bench's side: a rack's line of heirs to memory of one size, of which the last is the owner now."""

    def __init__(self, key: str, nbytes: int) -> None:
        self._key = key
        self._title = f"line-{nbytes}"
        self._count = 0
        self._processes = ExitStack()
        self.owner, _ = self._start(found, nbytes)

    def _start(self, task: Callable[..., None], *arguments: Any) -> tuple[int, Connection]:
        """One more process; its operating-system pid, once it is ready."""
        name = f"{self._title}-{self._count}"
        orders = self._processes.enter_context(
            bequest_side.partner(task, self._key, name, *arguments, method="forkserver")
        )
        pid: int = receive(orders)
        self._count += 1
        return pid, orders

    @property
    def _owner_name(self) -> str:
        return f"{self._title}-{self._count - 1}"

    def kill(self) -> tuple[float, Inheritance]:
        """Kills the owner, for whom somebody stands by; when, and what came of it."""
        heir, orders = self._start(stand_by, self._owner_name)
        time.sleep(REST_SECONDS)
        killed = time.perf_counter()
        os.kill(self.owner, signal.SIGKILL)
        inheritance: Inheritance = receive(orders)
        self.owner = heir
        return killed, inheritance

    def stop(self) -> Inheritance:
        """Has everything stolen from the owner, which has been stopped and could go on."""
        heir, orders = self._start(wait_for_word, self._owner_name)
        os.kill(self.owner, signal.SIGSTOP)
        wait_until_stopped(self.owner)
        time.sleep(REST_SECONDS)
        orders.send("steal")
        inheritance: Inheritance = receive(orders)
        os.kill(self.owner, signal.SIGKILL)
        self.owner = heir
        return inheritance

    def close(self) -> None:
        """The last of the line leaves, and frees the memory."""
        self._processes.close()


def receive(orders: Connection) -> Any:
    """What the process at the other end says next."""
    if not orders.poll(PATIENCE_SECONDS):
        raise TimeoutError(f"a process has said nothing for {PATIENCE_SECONDS:.0f} s")
    return orders.recv()


def wait_until_stopped(pid: int) -> None:
    """SIGSTOP has stopped every thread."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        if all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats):
            return
        time.sleep(0.001)
    raise TimeoutError(f"os pid {pid} has not stopped")
